"""What a model is given: the prefix of its kind, and lengths that it has positions for."""

import json
from pathlib import Path
from typing import Any

import pytest

from lopside.errors import LopsideError
from lopside.inputs import Inputs, choose_inputs

T5 = {"model_type": "t5"}
BART = {"model_type": "bart", "max_position_embeddings": 512}
LED = {"model_type": "led", "max_encoder_position_embeddings": 16384, "max_decoder_position_embeddings": 100}
BERTS = {
    "model_type": "encoder-decoder",
    "encoder": {"max_position_embeddings": 512},
    "decoder": {"max_position_embeddings": 64},
}

ROBERTAS = {
    "model_type": "encoder-decoder",
    "encoder": {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1},
    "decoder": {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1},
}


@pytest.mark.parametrize(
    ("config", "dataset", "given", "expected"),
    [
        (T5, "cnn_dailymail", ("auto", 0, 0), ("summarize: ", 1024, 128)),
        (T5, "./mine.jsonl", ("auto", 0, 0), ("summarize: ", 1024, 128)),
        (T5, "docstrings", ("", 0, 0), ("", 80, 40)),
        (T5, "xsum", ("TL;DR ", 2048, 64), ("TL;DR ", 2048, 64)),
        (BART, "docstrings", ("auto", 0, 0), ("", 80, 40)),
        (BART, "cnn_dailymail", ("auto", 0, 0), ("", 512, 128)),
        (BART, "cnn_dailymail", ("auto", 512, 511), ("", 512, 511)),
        (LED, "me/mine", ("auto", 0, 0), ("", 1024, 99)),
        (BERTS, "xsum", ("summarize: ", 0, 0), ("summarize: ", 512, 63)),
        (ROBERTAS, "xsum", ("auto", 0, 511), ("", 512, 511)),
    ],
)
def test_what_is_left_open_follows_data_set_and_model(
    tmp_path: Path, config: dict[str, Any], dataset: str, given: tuple[str, int, int], expected: tuple[str, int, int]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert choose_inputs(tmp_path, dataset, *given) == Inputs(*expected)


def test_a_length_beyond_the_positions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BART))
    with pytest.raises(
        LopsideError, match=r"^data.max_source_tokens: 513 is refused; the model takes 512 tokens at most"
    ):
        choose_inputs(tmp_path, "docstrings", "auto", 513, 0)
    with pytest.raises(
        LopsideError, match=r"^data.max_target_tokens: 512 is refused; the model takes 511 tokens at most"
    ):
        choose_inputs(tmp_path, "docstrings", "auto", 0, 512)


def test_the_prefix_goes_before_each_document_as_it_stands() -> None:
    assert Inputs("summarize: ", 9, 9).sources(["a b", ""]) == ["summarize: a b", "summarize: "]
