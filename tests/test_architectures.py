"""The table of families: counts read and written, unknown families refused."""

from typing import Any

import pytest

from lopside.architectures import ARCHITECTURES, layer_counts, spec_of, with_layer_counts
from lopside.errors import LopsideError

BART = {"model_type": "bart", "encoder_layers": 6, "decoder_layers": 6, "d_model": 16}
T5 = {"model_type": "t5", "num_layers": 6, "num_decoder_layers": 6, "tie_word_embeddings": False}


def test_a_family_is_found_by_its_model_type() -> None:
    assert spec_of(BART) is ARCHITECTURES["bart"]
    assert spec_of(T5) is ARCHITECTURES["t5"]


@pytest.mark.parametrize(("config", "found"), [({"model_type": "gpt2"}, "'gpt2'"), ({}, "no model_type")])
def test_an_unknown_family_is_refused_and_the_known_ones_are_named(config: dict[str, Any], found: str) -> None:
    with pytest.raises(LopsideError, match=rf"^config.json .*{found}.*supported: bart, t5"):
        spec_of(config)


@pytest.mark.parametrize(
    ("config", "counts"),
    [
        (BART | {"decoder_layers": 3}, (6, 3)),
        (T5 | {"num_decoder_layers": 4}, (6, 4)),
        (T5 | {"num_decoder_layers": None}, (6, 6)),  # the first T5s: as many as the encoder has
        ({"model_type": "t5", "num_layers": 8}, (8, 8)),
    ],
)
def test_counts_are_read(config: dict[str, Any], counts: tuple[int, int]) -> None:
    assert layer_counts(config) == counts


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"model_type": "bart", "encoder_layers": 6}, "decoder_layers is None"),
        ({"model_type": "t5"}, "num_layers is None"),
        (BART | {"encoder_layers": "6"}, "encoder_layers is '6'"),
        (BART | {"encoder_layers": 0}, "encoder_layers is 0"),
        (T5 | {"num_decoder_layers": True}, "num_decoder_layers is True"),
    ],
)
def test_a_count_that_is_none_is_refused(config: dict[str, Any], key: str) -> None:
    with pytest.raises(LopsideError, match=f"^config.json: {key}"):
        layer_counts(config)


@pytest.mark.parametrize(
    ("config", "counts", "changed"),
    [
        (BART, (6, 1), {"decoder_layers": 1}),
        (BART | {"num_hidden_layers": 6}, (2, 1), {"encoder_layers": 2, "num_hidden_layers": 2, "decoder_layers": 1}),
        (T5, (6, 6), {}),
        (T5, (3, 3), {"num_layers": 3, "num_decoder_layers": 3}),
        (T5, (1, 6), {"num_layers": 1, "num_decoder_layers": 6, "decoder_layers": 6}),
        (T5 | {"decoder_layers": 6}, (2, 2), {"num_layers": 2, "num_decoder_layers": 2, "decoder_layers": 2}),
        (
            {"model_type": "t5", "num_layers": 8},
            (4, 8),
            {"num_layers": 4, "num_decoder_layers": 8, "decoder_layers": 8},
        ),
    ],
)
def test_counts_are_written_with_every_repetition_and_nothing_else(
    config: dict[str, Any], counts: tuple[int, int], changed: dict[str, int]
) -> None:
    before = dict(config)
    assert with_layer_counts(config, *counts) == config | changed
    assert config == before
    assert layer_counts(with_layer_counts(config, *counts)) == counts
