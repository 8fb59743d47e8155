import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoConfig, BartForConditionalGeneration, GenerationConfig

from lopside.engines import Compiled, export
from lopside.errors import LopsideError
from lopside.generation import Generated, generate, summarise, written_tokens
from lopside.models import load_model, load_tokenizer
from stages.generate import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    "Read a file.",
    "Return the number of items in the list, or zero where there is none.",
    "",
    "The path of the folder that holds the settings of the user, and more than that: its name.",
    "Raise an error.",
    "Write a dictionary to a file, one key and one value to a line.",
]
LIMITS: Any = {"max_source_tokens": 24, "max_new_tokens": 9}


@pytest.fixture
def bart(tiny_bart: Path) -> tuple[Any, Any]:
    """Two layers with large weights: what it writes differs from document to document and from token to token."""
    config = AutoConfig.from_pretrained(
        tiny_bart, encoder_layers=2, decoder_layers=2, num_hidden_layers=2, init_std=1.0
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: Any = BartForConditionalGeneration(config)
    return model.eval(), load_tokenizer(tiny_bart)


@pytest.fixture
def t5(tiny_t5: Path) -> tuple[Any, Any]:
    return load_model(tiny_t5), load_tokenizer(tiny_t5)


@pytest.fixture(params=["bart", "t5"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    model_and_tokenizer: tuple[Any, Any] = request.getfixturevalue(request.param)
    return model_and_tokenizer


def greedy(model: Any, tokenizer: Any, document: str) -> Generated:
    """One document, alone, without a cache and without `model.generate`."""
    source = tokenizer(document)["input_ids"]
    cut = len(source) > LIMITS["max_source_tokens"]
    if cut:  # the end token stays the last one
        source = [*source[: LIMITS["max_source_tokens"] - 1], source[-1]]
    settings = model.generation_config
    row, end = [settings.decoder_start_token_id], settings.eos_token_id
    while len(row) <= LIMITS["max_new_tokens"]:
        logits = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([row])).logits
        row.append(int(logits[0, -1].argmax()))
        if len(row) == LIMITS["max_new_tokens"] + 1 and settings.forced_eos_token_id is not None:
            row[-1] = settings.forced_eos_token_id
        if row[-1] == end:
            break
    return Generated(tokenizer.decode(row, skip_special_tokens=True).strip(), len(row) - 1, cut)


@torch.inference_mode()
def test_equals_a_plain_greedy_loop(pair: tuple[Any, Any]) -> None:
    expected = [greedy(*pair, document) for document in DOCUMENTS]
    assert len({each.summary for each in expected}) > 2  # else no order could be told from another
    assert [each.cut for each in expected] == [False, False, False, True, False, False]
    assert generate(*pair, DOCUMENTS, **LIMITS, batch_size=4) == expected


def test_batch_size_and_order_do_not_matter(pair: tuple[Any, Any]) -> None:
    whole = generate(*pair, DOCUMENTS, **LIMITS, batch_size=64)
    for batch_size in (1, 2, 5):
        assert generate(*pair, DOCUMENTS, **LIMITS, batch_size=batch_size) == whole
    assert generate(*pair, DOCUMENTS[::-1], **LIMITS, batch_size=4) == whole[::-1]


def test_two_batches_at_a_time_with_half_the_threads_each(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, threads_as_before: None
) -> None:
    model, tokenizer = pair
    seen: list[tuple[int, int]] = []
    together = threading.Barrier(2, timeout=60)  # broken unless a second batch is at work beside the first

    def watch(*_: Any) -> None:
        seen.append((threading.get_ident(), torch.get_num_threads()))
        together.wait()

    whole = generate(model, tokenizer, DOCUMENTS, **LIMITS)
    torch.set_num_threads(4)
    hook = model.get_encoder().register_forward_hook(watch)
    assert generate(model, tokenizer, DOCUMENTS, **LIMITS, batch_size=1) == whole
    assert len({thread for thread, _ in seen}) == 2
    assert [threads for _, threads in seen] == [2] * len(DOCUMENTS)
    assert torch.get_num_threads() == 4
    hook.remove()

    def fail(*_: Any) -> None:
        raise LopsideError("no")

    stored = model.generation_config
    hook = model.get_encoder().register_forward_hook(fail)
    with pytest.raises(LopsideError, match="no"):
        generate(model, tokenizer, DOCUMENTS, **LIMITS, batch_size=1)
    assert model.generation_config is stored
    assert torch.get_num_threads() == 4
    hook.remove()

    # Compiled, one after the other.
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    seen.clear()
    monkeypatch.setattr(together, "wait", lambda: 0)
    model.get_encoder().register_forward_hook(watch)
    compiled = Compiled(model, tokenizer.pad_token_id)
    assert summarise(compiled, tokenizer, DOCUMENTS, **LIMITS, batch_size=1) == whole
    assert seen == [(threading.get_ident(), 4)] * len(DOCUMENTS)


def test_beams(bart: tuple[Any, Any]) -> None:
    model, tokenizer = bart
    found = generate(model, tokenizer, DOCUMENTS[:1], **LIMITS, num_beams=4)
    row = model.generate(**tokenizer(DOCUMENTS[:1], return_tensors="pt"), max_new_tokens=9, num_beams=4)[0]
    assert found[0].summary == tokenizer.decode(row, skip_special_tokens=True).strip()


def test_stored_settings_and_mode_neither_matter_nor_change(bart: tuple[Any, Any]) -> None:
    model, tokenizer = bart
    expected = generate(model, tokenizer, DOCUMENTS, **LIMITS)
    stored = model.generation_config
    leaks = {
        "do_sample": True,
        "temperature": 5.0,
        "num_beams": 3,
        "min_new_tokens": 9,
        "no_repeat_ngram_size": 1,
        "max_length": 5,
        "encoder_no_repeat_ngram_size": 1,
        "exponential_decay_length_penalty": (1, 3.0),
        "num_return_sequences": 2,
    }
    stored.update(**leaks)
    model.train()
    model.config.dropout = 0.5
    for part in model.modules():
        if hasattr(part, "dropout"):
            part.dropout = 0.5
    assert generate(model, tokenizer, DOCUMENTS, **LIMITS) == expected
    assert model.training
    assert model.generation_config is stored
    assert {name: getattr(stored, name) for name in leaks} == leaks


def test_banned_and_forced_tokens_stay(bart: tuple[Any, Any]) -> None:
    model, tokenizer = bart
    first = int(model.generate(**tokenizer(DOCUMENTS[1:2], return_tensors="pt"), max_new_tokens=9)[0, 1])
    word = tokenizer.decode(first)
    assert word in generate(model, tokenizer, DOCUMENTS[1:2], **LIMITS)[0].summary
    model.generation_config.bad_words_ids = [[first]]
    assert word not in generate(model, tokenizer, DOCUMENTS[1:2], **LIMITS)[0].summary
    model.generation_config.forced_bos_token_id = tokenizer("Q")["input_ids"][1]
    forced = generate(model, tokenizer, DOCUMENTS[1:2], **LIMITS)[0]
    assert forced.summary.startswith("Q")
    assert forced.tokens <= 8  # the forced one is not the model's own


@pytest.mark.parametrize(
    ("row", "written"),
    [
        ([2, 7, 8, 3], [7, 8, 3]),
        ([2, 7, 8, 3, 1, 1], [7, 8, 3]),
        ([2, 7, 8, 3, 9, 3], [7, 8, 3]),  # the first end
        ([2, 7, 8, 9], [7, 8, 9]),  # no end: cut at the limit
        ([2, 7, 8, 1, 1], [7, 8]),
        ([2, 3, 1, 1], [3]),  # nothing but the end
        ([2, 4, 7, 3], [4, 7, 3]),  # an end token that was forced to be first
        ([2, 7, 4, 3], [7, 4]),  # the second of two ends; not forced there
        ([3, 7, 3], [7, 3]),  # started with an end token, as BART
    ],
)
def test_what_was_written(row: list[int], written: list[int]) -> None:
    settings = GenerationConfig(eos_token_id=[3, 4], pad_token_id=1, forced_bos_token_id=4)
    assert written_tokens(row, settings) == written


def test_cut_at_the_limit(bart: tuple[Any, Any]) -> None:
    model, tokenizer = bart
    length = len(tokenizer(DOCUMENTS[1])["input_ids"])
    for limit, cut in ((length - 1, True), (length, False), (length + 1, False)):
        assert generate(model, tokenizer, DOCUMENTS[1:2], max_source_tokens=limit, max_new_tokens=3)[0].cut is cut


def test_no_document(bart: tuple[Any, Any]) -> None:
    with pytest.raises(LopsideError, match="no document"):
        generate(*bart, [], **LIMITS)


@pytest.mark.parametrize(
    ("limits", "key"),
    [
        ({"max_source_tokens": 129, "max_new_tokens": 9}, "data.max_source_tokens: 129"),
        ({"max_source_tokens": 24, "max_new_tokens": 128}, "generate.max_new_tokens: 128"),
    ],
)
def test_limits_beyond_the_positions(bart: tuple[Any, Any], limits: Any, key: str) -> None:
    with pytest.raises(LopsideError, match=f"{key} is refused; the model has 128 positions"):
        generate(*bart, DOCUMENTS, **limits)


def test_limits_at_the_positions(bart: tuple[Any, Any]) -> None:
    generate(*bart, ["a file of the list " * 99], max_source_tokens=128, max_new_tokens=127)


# The stage.


@pytest.fixture
def project(tmp_path: Path, bart: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the stages finetune and export have run."""
    monkeypatch.chdir(tmp_path)
    # For good, in this process: not what a test should leave behind.
    monkeypatch.setattr("stages.generate.keep_memory", lambda: None)
    params = (ROOT / "params.yaml").read_text()
    assert "device: auto" in params
    (tmp_path / "params.yaml").write_text(params.replace("device: auto", "device: cpu"))
    (tmp_path / "data/splits").mkdir(parents=True)
    ids = [f"id{i}" for i in range(len(DOCUMENTS))]
    columns = {"id": ids, "document": DOCUMENTS, "body": DOCUMENTS, "summary": DOCUMENTS, "source": ids}
    test = pd.DataFrame(columns)
    test.to_parquet("data/splits/test.parquet")
    model, tokenizer = bart
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "outputs/finetune/pruned")
    export(tmp_path / "outputs/finetune/pruned", tmp_path / "outputs/export/pruned", "transformers", "float32")
    return tmp_path


def test_stage(project: Path, bart: tuple[Any, Any]) -> None:
    params = project / "params.yaml"
    text = params.read_text()
    for key, value in (("max_source_tokens", 24), ("max_new_tokens", 9)):
        lines = [f"  {key}: {value}" if line.strip().startswith(f"{key}:") else line for line in text.splitlines()]
        text = "\n".join(lines)
    params.write_text(text)
    result = CliRunner().invoke(main, ["pruned"])
    assert result.exit_code == 0, result.output
    table = pd.read_parquet("outputs/generate/pruned.parquet")
    assert list(table.columns) == ["id", "summary", "tokens"]
    assert table["id"].tolist() == [f"id{i}" for i in range(len(DOCUMENTS))]
    expected = generate(*bart, DOCUMENTS, **LIMITS)
    assert table["summary"].tolist() == [each.summary for each in expected]
    assert table["tokens"].tolist() == [each.tokens for each in expected]
    settings = {"prefix": '""', "source_tokens": 24, "new_tokens": 9, "beams": 1}
    settings |= {"trained": "unknown", "engine": "transformers float32"}
    assert table.attrs["generation"] == settings
    assert "pruned: 6 documents by transformers float32 on cpu, 16.7% of them cut at 24 tokens" in result.output
    first = Path("outputs/generate/pruned.parquet").read_bytes()
    assert CliRunner().invoke(main, ["pruned"]).exit_code == 0
    assert Path("outputs/generate/pruned.parquet").read_bytes() == first


def test_stage_names_what_is_missing(project: Path) -> None:
    def refused(side: str, message: str) -> None:
        result = CliRunner().invoke(main, [side])
        assert result.exit_code != 0
        assert message in result.output
        assert not Path("outputs/generate").exists()

    refused("dense", "outputs/finetune/dense")
    refused("both", "'dense', 'pruned'")
    Path("outputs/export/pruned/engine.json").unlink()
    refused("pruned", "outputs/export/pruned/engine.json: no such file; `dvc repro export` makes it")
    pd.read_parquet("data/splits/test.parquet").head(0).to_parquet("data/splits/test.parquet")
    refused("pruned", "data/splits/test.parquet: the split has no pair")
    Path("data/splits/test.parquet").unlink()
    refused("pruned", "data/splits/test.parquet: no such file")
