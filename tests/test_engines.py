"""Engines give the summaries that transformers gives, on tiny random models of every family they take."""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lopside import engines, params
from lopside.engines import CTRANSLATE2_FAMILIES, baseline, export, load_engine
from lopside.errors import LopsideError
from lopside.generation import summarise
from lopside.models import load_tokenizer
from lopside.pruning import prune
from tests.conftest import _byte_level_tokenizer, _say_untied, _word_mark_tokenizer
from tests.families import FAMILIES, build, save

DOCUMENTS = [
    "Read a file.",
    "Return the number of items in the list, or zero where there is none.",
    "Write a list to the path.",
    "The path of the folder that holds the settings of the user, and more than that: its name.",
    "Raise an error.",
]
# What real models of these families have and tests/families.py leaves out.
MORE: Mapping[str, Mapping[str, Any]] = {"marian": {"eos_token_id": 2}, "pegasus": {"forced_eos_token_id": 2}}


def model_of(model_type: str, folder: Path) -> Path:
    """The first row of a type in tests/families.py, with a tokenizer of as many tokens."""
    family = next(each for each in FAMILIES if each.model_type == model_type)
    tokenizer = _word_mark_tokenizer() if "t5" in model_type else _byte_level_tokenizer()
    settings = {**family.settings, **MORE.get(model_type, {})}
    if model_type == "marian":
        tokenizer = with_padding_last(tokenizer)
        last = len(tokenizer) - 1
        settings |= {"pad_token_id": last, "decoder_start_token_id": last, "bad_words_ids": [[last]]}
    settings["vocab_size"] = len(tokenizer)
    model = build(replace(family, settings=settings))
    if model_type == "marian":
        with torch.no_grad():
            model.get_parameter("model.shared.weight")[last] = 0  # so in real ones, and so does CTranslate2 start
    save(model, folder)
    tokenizer.save_pretrained(folder)
    if family.untied:
        _say_untied(folder / "config.json")
    return folder


def with_padding_last(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Marian's padding, from which it starts too, is the last token."""
    text = tokenizer.backend_tokenizer.to_str().replace('"<pad>"', '"<none>"')
    ours = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), eos_token="</s>", unk_token="<unk>")
    ours.add_special_tokens({"pad_token": "<pad>"})
    return ours


@pytest.mark.parametrize("family", CTRANSLATE2_FAMILIES)
def test_ctranslate2_gives_the_summaries_of_transformers(family: str, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    whole, pruned = model_of(family, tmp_path / "whole"), tmp_path / "pruned"
    prune(whole, pruned, encoder_kept=range(6), decoder_kept=[5])
    tokenizer, seen = load_tokenizer(whole), set()
    for folder in (whole, pruned):
        export(folder, tmp_path / "exported", "ctranslate2", "float32")
        ours, theirs = baseline(folder, "cpu"), load_engine(folder, tmp_path / "exported", "cpu")
        for new_tokens in (4, 12):
            limits: Any = {"max_source_tokens": 24, "max_new_tokens": new_tokens, "batch_size": 3}
            expected = summarise(ours, tokenizer, DOCUMENTS, **limits)
            assert summarise(theirs, tokenizer, DOCUMENTS, **limits) == expected
            seen |= {each.summary for each in expected}
    assert len(seen) > 4  # else equal summaries would say little


def test_what_transformers_forces_and_forbids_ctranslate2_does_too(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    model = model_of("bart", tmp_path / "model")
    tokenizer, settings = load_tokenizer(model), model / "generation_config.json"
    limits: Any = {"max_source_tokens": 24, "max_new_tokens": 6}
    free = summarise(baseline(model, "cpu"), tokenizer, DOCUMENTS, **limits)
    written = tokenizer(free[0].summary, add_special_tokens=False)["input_ids"][0]
    forced = tokenizer("Q", add_special_tokens=False)["input_ids"][0]
    settings.write_text(
        json.dumps(
            json.loads(settings.read_text()) | {"forced_bos_token_id": forced, "suppress_tokens": [written]},
        )
    )
    export(model, tmp_path / "exported", "ctranslate2", "float32")
    expected = summarise(baseline(model, "cpu"), tokenizer, DOCUMENTS, **limits)
    assert expected != free
    assert summarise(load_engine(model, tmp_path / "exported", "cpu"), tokenizer, DOCUMENTS, **limits) == expected


def test_an_int8_model_is_smaller_and_answers(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    model = model_of("t5", tmp_path / "model")
    sizes = {}
    for dtype in ("float32", "int8"):
        export(model, tmp_path / dtype, "ctranslate2", dtype)
        sizes[dtype] = (tmp_path / dtype / "ctranslate2/model.bin").stat().st_size
        engine = load_engine(model, tmp_path / dtype, "cpu")
        assert engine.name == f"ctranslate2 {dtype}"
        found = summarise(engine, load_tokenizer(model), DOCUMENTS, max_source_tokens=24, max_new_tokens=5)
        assert [each.tokens for each in found] == [5] * len(DOCUMENTS)
    assert sizes["int8"] < 0.6 * sizes["float32"]


def test_transformers_runs_the_model_folder_itself(tiny_bart: Path, tmp_path: Path) -> None:
    export(tiny_bart, tmp_path / "exported", "transformers", "bfloat16")
    assert [path.name for path in (tmp_path / "exported").iterdir()] == ["engine.json"]
    assert load_engine(tiny_bart, tmp_path / "exported", "cpu").name == "transformers bfloat16"
    assert baseline(tiny_bart, "cpu").name == "transformers float32"


@pytest.mark.parametrize("model_type", ["bart", "t5"])
def test_compiled_gives_the_summaries_of_transformers(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder is compiled whole; backend ``eager`` leaves out the C++ code, whose making takes half a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    whole, model = model_of(model_type, tmp_path / "whole"), tmp_path / "model"
    prune(whole, model, encoder_kept=[0], decoder_kept=[5])
    export(model, tmp_path / "exported", "compile", "float32")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    engine = load_engine(model, tmp_path / "exported", "cpu")
    assert engine.name == "compile float32"
    limits: Any = {"max_source_tokens": 24, "max_new_tokens": 8}
    expected, found = (
        summarise(each, load_tokenizer(model), DOCUMENTS, **limits, batch_size=5)
        for each in (baseline(model, "cpu"), engine)
    )
    assert found == expected
    compiled = torch._dynamo.utils.counters["frames"]
    assert 0 < compiled["ok"] == compiled["total"]


def test_compiling_needs_a_compiler(tiny_bart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(LopsideError, match=r"engine: compile needs a C\+\+ compiler; there is no no-such-compiler"):
        export(tiny_bart, tmp_path / "exported", "compile", "float32")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("engine", "dtype", "family", "message"),
    [
        ("transformers", "int8", "bart", r"dtype: int8 is refused; engine transformers computes in auto \| float32"),
        ("ctranslate2", "bfloat16", "bart", r"dtype: bfloat16 is refused; engine ctranslate2 computes in float32"),
        ("ctranslate2", "float32", "led", "engine: ctranslate2 is refused for the model type 'led'; it takes bart,"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(engine: str, dtype: str, family: str, message: str) -> None:
    with pytest.raises(LopsideError, match=message):
        engines.check(engine, dtype, family)


def test_a_missing_engine_is_named_and_nothing_written(
    tiny_bart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LopsideError, match="engine: ctranslate2 is not installed; `pip install"):
        export(tiny_bart, tmp_path / "exported", "ctranslate2", "int8")
    assert not list(tmp_path.iterdir())


def test_params_know_the_engines() -> None:
    assert params.ENGINES == engines.DTYPES
