"""Models of two languages: each side has its own tokenizer, and the target language goes along all the way."""

import csv
import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from transformers import GenerationConfig, Seq2SeqTrainer

from lopside.engines import baseline, export, load_engine
from lopside.errors import LopsideError
from lopside.generation import summarise
from lopside.importance import rank_layers
from lopside.inputs import Inputs, check_first_token
from lopside.models import load_model, load_tokenizer, read_config
from lopside.params import load_params
from lopside.pruning import prune
from lopside.training import finetune
from tests.conftest import PARALLEL
from tests.projects import ROOT, TINY, invoke, metrics, write_params

ENGLISH, GERMAN = (list(side) for side in zip(*PARALLEL, strict=True))
PAIRS = pd.DataFrame({"document": ENGLISH[:8], "summary": GERMAN[:8]})
LENGTHS = {"max_source_tokens": 60, "max_target_tokens": 60}


def train(source: Path, target: Path) -> None:
    """A step of fine-tuning."""
    settings = dataclasses.replace(
        load_params(ROOT / "params.yaml").train, dtype="float32", max_steps=1, batch_size=4, evaluation_documents=2
    )
    inputs = Inputs(prefix="", **LENGTHS)
    finetune(source, target, target.with_suffix(".csv"), PAIRS, PAIRS, settings, inputs, seed=0, device="cpu")


def rank(source: Path) -> None:
    """Measure the decoder's layers."""
    model, tokenizer = load_model(source), load_tokenizer(source)
    rank_layers(model, tokenizer, ENGLISH[:8], GERMAN[:8], "decoder", 1, measure="influence", **LENGTHS)


@pytest.mark.usefixtures("threads_as_before")
def test_a_marian_model_and_parallel_lines_through_all_stages(
    tmp_path: Path, tiny_marian: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"dataset": "./lines.csv", "model": "./marian", "enc": 3, "dec": 1}
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text())["data"]
    columns = shipped["columns"] | {"document": "en", "summary": "de"}
    keep = {"strategy": "importance", "documents": 4}
    write_params(tmp_path, TINY | own | {"keep": keep, "data": {"columns": columns}})
    with (tmp_path / "lines.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("en", "de"), *PARALLEL])
    shutil.copytree(tiny_marian, tmp_path / "marian")
    monkeypatch.chdir(tmp_path)

    sides = {"finetune", "export", "generate"}
    for stage in ("machine", "download", "parent", "prune", "finetune", "export", "generate", "score", "time"):
        for side in ("dense", "pruned") if stage in sides else ("",):
            done = invoke(stage, *filter(None, [side]))
            assert done.exit_code == 0, (stage, side, done.output, done.exception)

    assert metrics(tmp_path, "rouge")["documents"] == len(pd.read_parquet("outputs/generate/pruned.parquet")) > 0
    pruned = Path("outputs/finetune/pruned")
    config = read_config(pruned)
    assert (config["encoder_layers"], config["decoder_layers"]) == (3, 1)
    for name in ("source.spm", "target.spm", "vocab.json", "target_vocab.json"):
        for folder in (Path("outputs/parent"), pruned):
            assert (folder / name).read_bytes() == (tiny_marian / name).read_bytes()
    measured = json.loads(Path("outputs/prune/lopside.json").read_text())["importance"]
    assert sorted(measured["decoder"]["scores"][0]) == list("012345")


def test_training_and_importance_read_references_with_the_tokenizer_of_the_target(
    tiny_marian: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    real = Seq2SeqTrainer.train

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.extend({"input_ids": row["input_ids"], "labels": row["labels"]} for row in self.train_dataset)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Seq2SeqTrainer, "train", spy)
    train(tiny_marian, tmp_path / "model")
    trained, seen = seen, []
    model, tokenizer = load_model(tiny_marian), load_tokenizer(tiny_marian)
    model.register_forward_pre_hook(lambda _, __, given: seen.append(given), with_kwargs=True)
    rank_layers(model, tokenizer, ENGLISH[:8], GERMAN[:8], "encoder", 1, measure="influence", **LENGTHS)

    vocabularies = [json.loads((tiny_marian / name).read_text()) for name in ("vocab.json", "target_vocab.json")]
    english, german = ({code: piece for piece, code in vocabulary.items()} for vocabulary in vocabularies)

    def text(codes: Any, pieces: dict[int, str]) -> str:
        return "".join(pieces[code] for code in codes if code > 2).replace("▁", " ").strip()

    read = {text(row["input_ids"], english): text(row["labels"], german) for row in trained}
    assert len(read) == len(trained) == 4  # one step of four: a sample
    assert read.items() <= dict(zip(ENGLISH, GERMAN, strict=True)).items()
    assert [text(row, english) for row in seen[0]["input_ids"].tolist()] == ENGLISH[:8]
    assert [text(row, german) for row in seen[0]["labels"].tolist()] == GERMAN[:8]


def test_the_target_language_goes_along(tiny_nllb: Path, tmp_path: Path) -> None:
    rank(tiny_nllb)
    prune(tiny_nllb, tmp_path / "pruned", range(6), [5])
    train(tmp_path / "pruned", tmp_path / "trained")
    tokenizer = load_tokenizer(tmp_path / "trained")
    german = tokenizer.convert_tokens_to_ids("deu_Latn")
    assert tokenizer(text_target=GERMAN[0])["input_ids"][0] == german
    for folder in (tmp_path / "pruned", tmp_path / "trained"):
        assert load_model(folder).generation_config.forced_bos_token_id == german


def test_ctranslate2_begins_with_the_target_language_too(tiny_nllb: Path, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    export(tiny_nllb, tmp_path / "exported", "ctranslate2", "float32")
    tokenizer = load_tokenizer(tiny_nllb)
    limits: Any = {"max_source_tokens": 60, "max_new_tokens": 12}
    expected = summarise(baseline(tiny_nllb, "cpu"), tokenizer, ENGLISH[:6], **limits)
    assert summarise(load_engine(tiny_nllb, tmp_path / "exported", "cpu"), tokenizer, ENGLISH[:6], **limits) == expected


def test_ctranslate2_is_refused_for_two_vocabularies(tiny_marian: Path, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    with pytest.raises(LopsideError, match=r"^engine: ctranslate2 is refused for a model with two vocabularies"):
        export(tiny_marian, tmp_path / "exported", "ctranslate2", "float32")
    assert not (tmp_path / "exported").exists()


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("tokenizer_config.json", {"tgt_lang": None}, "references with eng_Latn, .* begin with deu_Latn"),
        ("generation_config.json", {"forced_bos_token_id": None}, "references with deu_Latn, .* begin with any"),
        ("generation_config.json", {"forced_bos_token_id": 2}, "references with deu_Latn, .* begin with </s>"),
    ],
)
def test_a_target_language_that_only_one_side_knows_is_refused(
    tiny_nllb: Path, tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(tiny_nllb, tmp_path / "nllb")
    change(folder / file, **changes)
    for use in (rank, lambda source: train(source, tmp_path / "trained")):
        with pytest.raises(LopsideError, match=f"^model: its tokenizer begins {message}: both must name the target"):
            use(folder)
    assert not (tmp_path / "trained").exists()


def test_a_tokenizer_without_any_target_language_is_refused() -> None:
    class Tokenizer:
        """As M2M-100's where tgt_lang is not set."""

        all_special_ids = (0, 1, 2)
        bos_token_id = cls_token_id = unk_token_id = None

        def __call__(self, text_target: str) -> Any:
            raise KeyError(None)

    tokenizer: Any = Tokenizer()
    with pytest.raises(LopsideError, match="begins references with no known token"):
        check_first_token(tokenizer, GenerationConfig())


@pytest.mark.parametrize("family", ["tiny_bart", "tiny_t5", "tiny_marian"])
def test_models_of_one_language_need_no_first_token(family: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(family)
    settings = load_model(folder).generation_config
    assert settings.forced_bos_token_id is None
    with warnings.catch_warnings(action="error"):
        check_first_token(load_tokenizer(folder), settings)
