"""The table of families: counts read and written, unknown families refused."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest

from lopside.architectures import ARCHITECTURES, layer_counts, spec_of, with_layers
from lopside.errors import LopsideError

BART = {"model_type": "bart", "encoder_layers": 6, "decoder_layers": 6, "d_model": 16}
T5 = {"model_type": "t5", "num_layers": 6, "num_decoder_layers": 6, "tie_word_embeddings": False}
LED = {"model_type": "led", "encoder_layers": 4, "decoder_layers": 4, "attention_window": [2, 4, 6, 8]}
PEGASUS_X = {"model_type": "pegasus_x", "encoder_layers": 4, "decoder_layers": 4, "stagger_local_blocks": True}
PROPHETNET = {"model_type": "prophetnet", "num_encoder_layers": 4, "num_decoder_layers": 4}
BERT2BERT = {
    "model_type": "encoder-decoder",
    "encoder": {"model_type": "bert", "num_hidden_layers": 4},
    "decoder": {"model_type": "bert", "num_hidden_layers": 3},
}
T5GEMMA = {
    "model_type": "t5gemma",
    "encoder": {"num_hidden_layers": 3, "layer_types": ["a", "b", "c"]},
    "decoder": {"num_hidden_layers": 3, "layer_types": ["d", "e", "f"]},
}


def test_a_family_is_found_by_its_model_type() -> None:
    assert spec_of(BART) is ARCHITECTURES["bart"]
    assert spec_of(T5) is ARCHITECTURES["t5"]


@pytest.mark.parametrize(("config", "found"), [({"model_type": "gpt2"}, "'gpt2'"), ({}, "no model_type")])
def test_an_unknown_family_is_refused_and_the_known_ones_are_named(config: dict[str, Any], found: str) -> None:
    with pytest.raises(
        LopsideError, match=rf"^config.json .*{found}.*supported: bart, .*, umt5. CONTRIBUTING.md says how"
    ):
        spec_of(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "nllb-moe"}, r"model_type 'nllb-moe', which is refused: its sparse .*placed by number"),
        ({"model_type": "switch_transformers"}, r"'switch_transformers', which is refused: its sparse"),
        ({"model_type": "mvp", "use_prompt": True}, "mvp with use_prompt is refused: its prompts are one tensor"),
        (BERT2BERT | {"decoder": {"model_type": "gpt2"}}, "encoder-decoder with decoder.model_type 'gpt2' .*: bert, "),
        ({"model_type": "encoder-decoder"}, "encoder-decoder with encoder.model_type None is not supported"),
    ],
)
def test_what_cannot_lose_a_layer_is_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(LopsideError, match=f"^config.json.* {message}"):
        spec_of(config)


@pytest.mark.parametrize(
    ("config", "counts"),
    [
        (BART | {"decoder_layers": 3}, (6, 3)),
        (T5 | {"num_decoder_layers": 4}, (6, 4)),
        (T5 | {"num_decoder_layers": None}, (6, 6)),  # the first T5s: as many as the encoder has
        ({"model_type": "t5", "num_layers": 8}, (8, 8)),
        (BERT2BERT, (4, 3)),
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
        (T5GEMMA | {"decoder": None}, "decoder.num_hidden_layers is None"),
    ],
)
def test_a_count_that_is_none_is_refused(config: dict[str, Any], key: str) -> None:
    with pytest.raises(LopsideError, match=f"^config.json: {key}"):
        layer_counts(config)


@pytest.mark.parametrize(
    ("config", "kept", "changed"),
    [
        (BART, (range(6), (5,)), {"decoder_layers": 1}),
        (
            BART | {"num_hidden_layers": 6},
            ((0, 3), (5,)),
            {"encoder_layers": 2, "num_hidden_layers": 2, "decoder_layers": 1},
        ),
        (T5, (range(6), range(6)), {}),
        (T5, ((0, 1, 2), (3, 4, 5)), {"num_layers": 3, "num_decoder_layers": 3}),
        (T5, ((0,), range(6)), {"num_layers": 1, "num_decoder_layers": 6, "decoder_layers": 6}),
        (T5 | {"decoder_layers": 6}, ((0, 1), (0, 1)), {"num_layers": 2, "num_decoder_layers": 2, "decoder_layers": 2}),
        (
            {"model_type": "t5", "num_layers": 8},
            (range(4), range(8)),
            {"num_layers": 4, "num_decoder_layers": 8, "decoder_layers": 8},
        ),
        (LED, ((1, 3), (0, 2)), {"encoder_layers": 2, "decoder_layers": 2, "attention_window": [4, 8]}),
        (LED | {"attention_window": 4}, ((1,), range(4)), {"encoder_layers": 1, "attention_window": 4}),
        (PEGASUS_X, ((0, 3), (1, 2)), {"encoder_layers": 2, "decoder_layers": 2}),
        (PEGASUS_X | {"stagger_local_blocks": False}, ((1, 3), range(4)), {"encoder_layers": 2}),
        (PROPHETNET, ((0, 3), (1, 2)), {"num_encoder_layers": 2, "num_decoder_layers": 2}),
        (
            BERT2BERT,
            ((3,), (0, 2)),
            {
                "encoder": {"model_type": "bert", "num_hidden_layers": 1},
                "decoder": {"model_type": "bert", "num_hidden_layers": 2},
            },
        ),
        (
            T5GEMMA,
            ((1,), (0, 2)),
            {
                "encoder": {"num_hidden_layers": 1, "layer_types": ["b"]},
                "decoder": {"num_hidden_layers": 2, "layer_types": ["d", "f"]},
            },
        ),
    ],
)
def test_layers_are_written_with_every_repetition_and_nothing_else(
    config: dict[str, Any], kept: tuple[Sequence[int], Sequence[int]], changed: dict[str, Any]
) -> None:
    before = deepcopy(config)
    assert with_layers(config, *kept) == config | changed
    assert config == before
    assert layer_counts(with_layers(config, *kept)) == tuple(len(indices) for indices in kept)


@pytest.mark.parametrize(
    ("config", "kept", "message"),
    [
        (
            PEGASUS_X,
            ((0, 2), (0,)),
            r"pegasus_x: encoder layers \[0, 2\] are refused: with stagger_local_blocks, .*odd",
        ),
        (
            {key: value for key, value in PEGASUS_X.items() if key != "stagger_local_blocks"},
            ((1,), (0,)),
            r"pegasus_x: encoder layers \[1\] are refused",
        ),
        (
            PROPHETNET,
            ((0, 1), (0, 1, 2)),
            r"prophetnet: 3 decoder layers behind 2 .* refused: generate\(\) of .* cache",
        ),
        (LED | {"attention_window": [4]}, ((0,), (0,)), r"config.json: attention_window is \[4\], not .* 4 entries"),
        (
            T5GEMMA | {"decoder": {"num_hidden_layers": 3}},
            ((0,), (0,)),
            "config.json: decoder.layer_types is None, not a list of 3 entries, one a layer",
        ),
    ],
)
def test_layers_that_no_config_can_express_are_refused(
    config: dict[str, Any], kept: tuple[Sequence[int], Sequence[int]], message: str
) -> None:
    with pytest.raises(LopsideError, match=f"^{message}"):
        with_layers(config, *kept)
