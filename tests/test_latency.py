"""Two models timed side by side: tiny ones, in every setting, and the stage."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from lopside import latency
from lopside.engines import export
from lopside.errors import LopsideError
from lopside.inputs import Inputs
from lopside.latency import Effort, check_lengths, measure
from lopside.models import load_model, weight_files
from lopside.pairs import Call, Done, Side
from lopside.pruning import prune
from lopside.timings import Latency
from lopside.vocabulary import trim_vocabulary
from lopside.workloads import Prepare, Setting
from stages.time import main
from tests import timer_check

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["parse the header of a file", "return the number of rows", "", "open a socket and wait for data"]
SETTINGS = ("paper", "fixed", "natural")


pytestmark = pytest.mark.usefixtures("threads_as_before")


def measured(dense: Path, pruned: Path, **changes: Any) -> Latency:
    """As short as can be."""
    settings: dict[str, Any] = {
        "batch_sizes": [1, 3],
        "source_tokens": 12,
        "new_tokens": 4,
        "inputs": Inputs("", 16, 8),
        "max_new_tokens": 8,
        "num_beams": 1,
        "effort": Effort(warmup=1, min_pairs=6, max_seconds=0.01, precision=0.02),
        "threads": 1,
        "device": "cpu",
    }
    engine, dtype = changes.pop("engine", "transformers"), changes.pop("dtype", "float32")
    folders: dict[Side, Path] = {"dense": dense, "pruned": pruned}
    with TemporaryDirectory() as work:
        exported: dict[Side, Path] = {side: Path(work) / side for side in folders}
        for side, folder in folders.items():
            export(folder, exported[side], engine, dtype)
        return measure(folders, exported, DOCUMENTS, **settings | changes)


@pytest.fixture(scope="module")
def shallow(tiny_bart: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1 + 1 layers: quick, where it does not matter what is timed."""
    folder = tmp_path_factory.mktemp("shallow") / "model"
    prune(tiny_bart, folder, [0], [5])
    return folder


@pytest.mark.parametrize("family", ["tiny_bart", "tiny_t5"])
def test_measure(
    request: pytest.FixtureRequest, family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    prune(request.getfixturevalue(family), folder, [0, 5], [0, 5])
    found = measured(folder, folder)
    assert tuple(found.cells) == SETTINGS
    for cells in found.cells.values():
        assert list(cells) == [1, 3]
        for cell in cells.values():
            timing = cell.timing
            assert len(timing.pairs) >= 6
            assert all(pair.dense > 0 and pair.pruned > 0 for pair in timing.pairs)
            for side in ("dense", "pruned"):
                for seconds, done in timing.told(side):
                    assert done.encoder is not None
                    assert done.first is not None
                    assert 0 < done.encoder < done.first < seconds
    parameters = sum(p.numel() for p in load_model(folder).parameters())
    assert found.parameters == {"dense": parameters, "pruned": parameters}
    assert found.gflop["dense"] == found.gflop["pruned"] > 0
    assert found.too_large == {}
    assert found.settings == {
        "device": "cpu",
        "engine": "transformers float32",
        "threads": 1,
        "paper_source_tokens": 128 if family == "tiny_bart" else 1024,
        "source_tokens": 12,
        "new_tokens": 4,
        "natural_source_tokens": 16,
        "natural_new_tokens": 8,
        "natural_beams": 1,
        "precision": 0.02,
        "max_seconds": 0.01,
        "memory": "resident",
    }
    said = capsys.readouterr().err
    for setting in SETTINGS:
        assert f"{setting}, batch 3: dense" in said


@pytest.mark.parametrize(("engine", "dtype"), [("transformers", "bfloat16"), ("ctranslate2", "int8")])
def test_another_engine_is_timed_against_the_baseline_too(
    engine: str, dtype: str, shallow: Path, tmp_path: Path
) -> None:
    pytest.importorskip(engine)
    found = measured(shallow, shallow, engine=engine, dtype=dtype, batch_sizes=[2])
    assert found.settings["engine"] == f"{engine} {dtype}"
    for cells in found.cells.values():
        total = cells[2].total
        assert total is not None
        assert len(total.pairs) >= 6
    forced = found.cells["fixed"][2].timing
    assert {done.tokens for side in ("dense", "pruned") for _, done in forced.told(side)} == {2 * 4}
    found.write_timings(tmp_path / "timings.csv")
    assert set(pd.read_csv(tmp_path / "timings.csv").side) == {"dense", "pruned", "baseline"}
    if dtype == "int8":
        assert found.size_mb["dense"] < sum(file.stat().st_size for file in weight_files(shallow)) / 1e6


@pytest.mark.parametrize("engine", ["transformers", "ctranslate2"])
def test_a_trimmed_vocabulary_is_timed_on_the_same_documents(shallow: Path, tmp_path: Path, engine: str) -> None:
    pytest.importorskip(engine)
    trim_vocabulary(shallow, tmp_path / "pruned", DOCUMENTS)

    found = measured(shallow, tmp_path / "pruned", engine=engine, batch_sizes=[2])

    assert found.parameters["pruned"] < found.parameters["dense"]
    assert found.gflop["pruned"] < found.gflop["dense"]


def test_peak_memory_is_the_weights_and_what_a_call_takes(shallow: Path) -> None:
    weights = sum(4 * p.numel() for p in load_model(shallow).parameters())
    for cell in measured(shallow, shallow).cells["fixed"].values():
        for peak in cell.peak.values():
            assert weights <= peak < weights + 30 * 2**20


def test_what_cannot_be_measured_is_refused_by_its_key(shallow: Path) -> None:
    with pytest.raises(LopsideError, match=r"time\.min_pairs: 5 is refused"):
        measured(shallow, shallow, effort=Effort(1, 5, 1, 0.02))
    with pytest.raises(LopsideError, match=r"time\.precision: 0 is refused"):
        measured(shallow, shallow, effort=Effort(1, 6, 1, 0))


def test_lengths_beyond_the_positions_are_refused_by_name(tiny_bart: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_bart, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32}))
    check_lengths(folder, 32, 32, 32)
    for lengths, key in (
        ((33, 32, 32), "time.source_tokens: 33"),
        ((32, 40, 32), "time.new_tokens: 40"),
        ((32, 32, 50), "generate.max_new_tokens: 50"),
    ):
        with pytest.raises(LopsideError, match=rf"^{key} is more than the 32 positions"):
            check_lengths(folder, *lengths)


def test_relative_positions_have_no_limit(tiny_t5: Path) -> None:
    check_lengths(tiny_t5, 100_000, 100_000, 100_000)


# What may be wrong with the machine


def no_memory_beyond(size: int, settings: tuple[str, ...] = SETTINGS) -> Callable[..., Prepare]:
    """Stands for `calls_of` where there is memory for so many documents a batch, and for no more."""

    def engine(*_: Any) -> Prepare:
        import torch

        def prepare(setting: Setting, batch: int) -> Call:
            def call() -> Done:
                if setting.name in settings and batch > size:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
                return Done(batch)

            return call

        return prepare

    return engine


@pytest.mark.parametrize(
    ("sizes", "room", "timed", "refused"),
    [
        ([1, 8, 16], 8, [1, 8], 16),
        ([1, 16], 8, [1, 8], 16),  # half of it, which was not asked for
        ([1, 32, 64, 128], 9, [1, 8], 16),  # and half of that
        ([32], 1, [1], 2),
        ([1, 2, 3], 1, [1], 2),
    ],
)
def test_a_batch_too_large_for_memory_is_said_and_the_next_smaller_timed(
    shallow: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sizes: list[int],
    room: int,
    timed: list[int],
    refused: int,
) -> None:
    monkeypatch.setattr(latency, "calls_of", no_memory_beyond(room, ("fixed",)))
    found = measured(shallow, shallow, batch_sizes=sizes)
    assert sorted(found.cells["fixed"]) == timed
    assert sorted(found.cells["paper"]) == sizes
    assert found.too_large == {"fixed": refused}
    assert f"fixed, batch {refused}: too large for the memory here" in capsys.readouterr().err


def test_no_memory_for_a_single_document(shallow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "calls_of", no_memory_beyond(0))
    with pytest.raises(LopsideError, match="no memory here for a single document of the setting paper"):
        measured(shallow, shallow)


def test_other_errors_are_not_taken_for_a_lack_of_memory(shallow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(*_: Any) -> Prepare:
        def fail() -> Done:
            raise RuntimeError("shapes cannot be multiplied")

        return lambda setting, size: fail

    monkeypatch.setattr(latency, "calls_of", engine)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        measured(shallow, shallow)


@pytest.mark.parametrize(("load", "warned"), [(1.01, True), (1.0, False), (None, False)])
def test_a_busy_machine_is_said_and_recorded(
    shallow: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    load: float | None,
    warned: bool,
) -> None:
    def average() -> tuple[float, ...]:
        if load is None:
            raise OSError
        return load, 99.0, 99.0

    monkeypatch.setattr("os.getloadavg", average)
    found = measured(shallow, shallow, batch_sizes=[1])
    assert found.load == {"before": load, "after": load}
    assert (f"warning: load average {load} on 1 cores" in capsys.readouterr().err) is warned


# The check of the timer on a real machine


def test_the_check_on_a_real_model_runs(
    shallow: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it finds is not judged: on a tiny model and in so short a time that is noise."""
    monkeypatch.setattr(timer_check, "NEW_TOKENS", 4)
    monkeypatch.setattr("sys.argv", ["", "--model", str(shallow), "--runs", "2", "--seconds", "0.01", "--threads", "1"])
    with pytest.raises(SystemExit):
        timer_check.main()
    said = capsys.readouterr().out
    assert said.count("A against A, run") == 2
    assert re.search(r"1\.00 is in [012] of 2 intervals", said)
    assert re.search(r"ms more on one side: 1\.\d+ expected, \d+\.\d+ \[", said)
    assert re.search(r"torch\.utils\.benchmark: [\d.]+ ms, here [\d.]+ ms, [\d.]+% apart", said)


# The stage


def split_of(documents: list[str]) -> pd.DataFrame:
    ids = [str(number) for number in range(len(documents))]
    columns = {"id": ids, "document": documents, "body": documents, "summary": documents, "source": ids}
    return pd.DataFrame(columns, dtype=str)


@pytest.fixture
def workspace(tiny_bart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as it lies when the stage begins: tiny models, a few documents, short settings."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["device"] = "cpu"
    params["time"] |= {"threads": 1, "batch_sizes": [1, 2], "source_tokens": 12, "new_tokens": 3}
    params["time"] |= {"min_pairs": 6, "max_seconds": 0.01}
    params["generate"] |= {"max_new_tokens": 5}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "data/splits").mkdir(parents=True)
    split_of(DOCUMENTS).to_parquet(tmp_path / "data/splits/test.parquet")
    shutil.copytree(tiny_bart, tmp_path / "outputs/finetune/dense")
    prune(tiny_bart, tmp_path / "outputs/finetune/pruned", range(6), [5])
    for side in ("dense", "pruned"):
        export(tmp_path / f"outputs/finetune/{side}", tmp_path / f"outputs/export/{side}", "transformers", "float32")
    (tmp_path / "metrics").mkdir()
    record = {"cpu": "A CPU", "physical_cores": 2, "gpus": [], "versions": {"torch": "2.13.0"}}
    (tmp_path / "metrics/machine.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_stage_writes_metrics_plot_and_raw_times(workspace: Path) -> None:
    result = CliRunner().invoke(main)
    assert result.exit_code == 0, result.output
    metrics = json.loads((workspace / "metrics/latency.json").read_text())
    assert metrics["machine"] == "A CPU, 2 cores, torch 2.13.0"
    for name in ("parameters", "size_mb", "gflop"):
        assert metrics[name]["dense"] > metrics[name]["pruned"] > 0
    assert (metrics["settings"]["natural_new_tokens"], metrics["settings"]["precision"]) == (5, 0.02)
    plot = pd.read_csv(workspace / "metrics/plots/latency.csv").set_index("side")
    timings = pd.read_csv(workspace / "outputs/timings.csv")
    for setting in SETTINGS:
        assert list(metrics[setting]) == ["batch_1", "batch_2"]
        for batch in (1, 2):
            figures = metrics[setting][f"batch_{batch}"]
            cell = timings[(timings["batch"] == batch) & (timings["setting"] == setting)]
            raw = cell.pivot(index="pair", columns="side", values="seconds")
            assert len(raw) == figures["pairs"] >= 6
            assert figures["speedup_low"] <= figures["speedup"] <= figures["speedup_high"]
            assert (raw["dense"] / raw["pruned"]).median() == pytest.approx(figures["speedup"], abs=6e-4)
            for side in ("dense", "pruned"):
                assert 1000 * raw[side].median() == pytest.approx(figures[f"{side}_ms"], rel=1e-3)
                tokens = cell.loc[cell["side"] == side, "tokens"]
                if setting == "fixed":
                    assert plot.loc[side, f"batch_{batch}_ms"] == figures[f"{side}_ms"]
                    assert set(tokens) == {batch * 3}
                    assert figures[f"{side}_encoder_ms"] < figures[f"{side}_first_ms"] < figures[f"{side}_ms"]
                else:
                    assert tokens.mean() / batch == pytest.approx(figures[f"{side}_tokens"], abs=0.06)


def test_stage_refuses_a_gpu_where_there_is_none(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    params = yaml.safe_load((workspace / "params.yaml").read_text()) | {"device": "cuda"}
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    result = CliRunner().invoke(main)
    assert result.exit_code == 1
    assert "error: device: cuda asked for, but torch finds no CUDA GPU here" in result.output
    assert not (workspace / "metrics/latency.json").exists()
    assert not (workspace / "outputs/timings.csv").exists()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("metrics/machine.json", "metrics/machine.json: no such file"),
        ("data/splits/test.parquet", "data/splits/test.parquet: no such file"),
        ("outputs/finetune/pruned/config.json", "outputs/finetune/pruned/config.json: is missing"),
        ("outputs/finetune/dense/model.safetensors", "outputs/finetune/dense/model.safetensors: the model's weights"),
    ],
)
def test_stage_names_what_is_missing(workspace: Path, missing: str, message: str) -> None:
    (workspace / missing).unlink()
    result = CliRunner().invoke(main)
    assert result.exit_code == 1
    assert f"error: {message}" in result.output
    assert not (workspace / "metrics/latency.json").exists()
    assert not (workspace / "outputs/timings.csv").exists()


def test_stage_refuses_an_empty_split(workspace: Path) -> None:
    split_of([]).to_parquet(workspace / "data/splits/test.parquet")
    result = CliRunner().invoke(main)
    assert result.exit_code == 1
    assert "error: data/splits/test.parquet: the split has no pair" in result.output
