"""`lopside summarize`, on files of a few lines with a tiny random model."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from lopside import summarize as module
from lopside.commands import main
from lopside.generation import generate
from lopside.models import load_model, load_tokenizer

DOCUMENTS = ["Read a file.", "Return the number of items in the list.", "The path of the folder.", "Raise an error."]


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """For good, in this process: not what a test should leave behind."""
    monkeypatch.setattr("lopside.machine.keep_memory", lambda: True)


@pytest.fixture
def expected(tiny_bart: Path) -> list[str]:
    found = generate(
        load_model(tiny_bart), load_tokenizer(tiny_bart), DOCUMENTS, max_source_tokens=24, max_new_tokens=6
    )
    assert len({each.summary for each in found}) > 1  # else no order could be told from another
    return [" ".join(each.summary.split()) for each in found]


def run(file: Path | str, model: Path, *more: str, given: str | None = None) -> Result:
    limits = ["--max-source-tokens=24", "--max-new-tokens=6", "--batch-size=2", "--device=cpu"]
    return CliRunner().invoke(main, ["summarize", str(file), f"--model={model}", *limits, *more], input=given)


def write(path: Path, texts: list[str]) -> Path:
    """The documents as the kind of file that the name asks for."""
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["id", "text"], *([f"d{i}", text] for i, text in enumerate(texts))])
    elif path.suffix == ".parquet":
        pd.DataFrame({"id": [f"d{i}" for i in range(len(texts))], "article": texts}).to_parquet(path)
    elif path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress("".join(json.dumps({"document": text}) + "\n" for text in texts).encode()))
    else:
        path.write_text("".join(f"{text}\n" for text in texts))
    return path


@pytest.mark.parametrize("name", ["notes.txt", "notes.csv", "notes.parquet", "notes.jsonl.gz"])
def test_one_row_comes_out_for_each_that_goes_in(
    name: str, tmp_path: Path, tiny_bart: Path, expected: list[str]
) -> None:
    file, out = write(tmp_path / name, DOCUMENTS), tmp_path / "out"
    result = run(file, tiny_bart, f"--out={out}")
    assert result.exit_code == 0, result.output
    assert "documents a second" in result.stderr
    lines = out.read_text().splitlines()
    if name == "notes.txt":
        assert [" ".join(line.split()) for line in lines] == expected
    else:
        rows = [json.loads(line) for line in lines]
        keys = [{"row": 1 + i} if name.endswith(".gz") else {"id": f"d{i}"} for i in range(len(DOCUMENTS))]
        assert [{key: row[key] for key in row if key != "summary"} for row in rows] == keys
        assert [" ".join(row["summary"].split()) for row in rows] == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "out"])


def test_from_standard_input_to_standard_output(tiny_bart: Path, expected: list[str]) -> None:
    result = run("-", tiny_bart, given="".join(f"{text}\n" for text in DOCUMENTS))
    assert result.stdout.splitlines() == expected


def test_a_line_ends_at_its_newline_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("one\u2028still one\x0cand still\n\nthree")
    assert [each.text for each in module.read_documents(file)] == ["one\u2028still one\x0cand still", "", "three"]


def test_a_run_that_was_stopped_goes_on_where_it_was(
    tmp_path: Path, tiny_bart: Path, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW", 1)
    file, out = write(tmp_path / "notes.txt", DOCUMENTS), tmp_path / "out"
    calls = list[int]()

    def stopped(windows: Any, total: int, label: str) -> Any:
        calls.append(total)
        yield from windows[: 1 if len(calls) == 1 else total]
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "progress", stopped)
    assert run(file, tiny_bart, f"--out={out}").exit_code != 0
    assert not out.exists()
    part = tmp_path / "out.part"
    assert part.read_text().splitlines() == expected[:2]
    part.write_text(part.read_text() + "half a r")

    other = run(file, tiny_bart, f"--out={out}", "--num-beams=2")
    assert other.exit_code == 1
    assert "out.part: its rows are of other documents or settings; remove it and out.part.json" in other.output

    assert run(file, tiny_bart, f"--out={out}").exit_code == 0
    assert calls == [2, 1]
    assert out.read_text().splitlines() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "out"]


def test_an_engine_and_a_folder_that_was_exported_for_it(tmp_path: Path, tiny_bart: Path, expected: list[str]) -> None:
    pytest.importorskip("ctranslate2")
    from lopside.engines import export

    file = write(tmp_path / "notes.txt", DOCUMENTS)
    assert run(file, tiny_bart, "--engine=ctranslate2").stdout.splitlines() == expected
    export(tiny_bart, tmp_path / "exported", "ctranslate2", "float32")
    assert run(file, tmp_path / "exported", "--engine=ctranslate2").stdout.splitlines() == expected
    result = run(file, tmp_path / "exported", "--engine=ctranslate2", "--dtype=int8")
    assert "exported: was exported for ctranslate2 in float32" in result.output


@pytest.mark.parametrize(
    ("name", "content", "more", "message"),
    [
        ("none.csv", None, [], "none.csv: there is no such file"),
        ("none.txt", None, [], "none.txt: cannot be read: No such file"),
        ("empty.txt", "", [], "empty.txt: has no document; at least one is needed"),
        (
            "odd.csv",
            "a,b\n1,2\n",
            [],
            "--column: it is not clear which column holds the documents; odd.csv has the columns a, b",
        ),
        ("odd.csv", "a,b\n1,2\n", ["--column=c"], "--column: there is no column c; odd.csv has the columns a, b"),
        ("odd.jsonl", '{"text": 1}\n', [], "odd.jsonl, line or row 1: text is not text but int"),
        ("odd.jsonl", '{"id": 1, "text": "a"}\n{"text": "b"}\n', [], "odd.jsonl, line or row 2: has no id, as others"),
        ("a.txt", "a\n", ["--column=c"], "--column: 'c' is refused"),
        ("a.txt", "a\n", ["--dtype=int8"], "dtype: int8 is refused; engine transformers computes in"),
        ("a.txt", "a\n", ["--out=nowhere/out"], "nowhere/out: there is no folder nowhere"),
    ],
)
def test_bad_input_is_one_error_and_nothing_is_written(
    name: str,
    content: str | None,
    more: list[str],
    message: str,
    tmp_path: Path,
    tiny_bart: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_text(content)
    out = [] if any(option.startswith("--out") for option in more) else ["--out=out"]
    result = run(name, tiny_bart, *more, *out)
    assert result.exit_code == 1
    assert message in result.output
    assert [path.name for path in tmp_path.iterdir()] == ([] if content is None else [name])
