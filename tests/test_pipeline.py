"""The pipeline as a whole: dvc.yaml against the code, and bad input."""

import ast
import errno
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from safetensors import SafetensorError

from lopside import tables
from lopside.params import leaf_keys
from lopside.splits import write_split
from tests.projects import ROOT, invoke, run, write_splits

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
# name -> definition; the sides of one stage share theirs
STAGES: dict[str, dict[str, Any]] = {name: stage.get("do", stage) for name, stage in PIPELINE["stages"].items()}
EACH_STAGE = pytest.mark.parametrize("stage", STAGES)


# dvc.yaml against the code


def local_files(module: Path) -> set[Path]:
    """What of the repository a module reads when it runs: modules imported anywhere in it, package data it names."""
    found: set[Path] = set()
    for node in running_nodes(ast.parse(module.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: import by full name, so that this test can follow it"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(".csv"):
            data = module.parent / node.value
            found |= {data} if data.is_file() else set()
        for name in names:
            found |= module_files(name)
    return found


def running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from (inner for branch in node.orelse for inner in (branch, *running_nodes(branch)))
            continue
        yield node
        yield from running_nodes(node)


def module_files(name: str) -> set[Path]:
    """The files that importing ``name``, a module or what is in one, runs; empty where it is not ours."""
    parts = name.split(".")
    base = {"lopside": ROOT / "src", "stages": ROOT, "recipes": ROOT}.get(parts[0])
    if base is None:
        return set()
    places = [base.joinpath(*parts[:length]) for length in range(1, len(parts) + 1)]
    files = [candidate for place in places for candidate in (place.with_suffix(".py"), place / "__init__.py")]
    return {file for file in files if file.is_file()}


def closure(module: Path) -> set[Path]:
    """All files of the repository that a module reads, directly or through others."""
    found, todo = set[Path](), module_files(".".join(module.relative_to(ROOT).with_suffix("").parts))
    while todo:
        file = todo.pop()
        found.add(file)
        todo |= (local_files(file) if file.suffix == ".py" else set()) - found
    return found


def deps(stage: str) -> list[str]:
    return STAGES[stage].get("deps") or []


def test_no_dependency_lies_inside_a_folder_that_a_stage_writes() -> None:
    """`dvc exp run` looks such a path up in the folder that HEAD's dvc.lock names, and the cache may lack that."""
    items = [item for stage in PIPELINE["stages"].values() for item in stage.get("foreach", ())]
    inputs = [item for stage in PIPELINE["stages"].values() for item in _inputs(stage)]
    outs = {
        re.sub(r"\$\{\w+\}", item, out)
        for stage in STAGES.values()
        for out in stage.get("outs", ())
        if isinstance(out, str)
        for item in items
    }
    assert {"data/splits/train.parquet", "outputs/finetune/dense", "outputs/parent_origin.json"} <= outs
    assert "outputs/parent_origin.json" in inputs
    assert not {path for path in inputs if any(str(parent) in outs for parent in Path(path).parents)}


def _inputs(stage: dict[str, Any]) -> Iterator[str]:
    """A stage's dependencies, those that it is given for each item among them."""
    yield from stage.get("do", stage).get("deps", ())
    given = stage.get("foreach", {})
    for values in given.values() if isinstance(given, dict) else ():
        yield from values.values()


@EACH_STAGE
def test_deps_are_exactly_the_modules_that_a_stage_reads(stage: str) -> None:
    listed = {dep for dep in deps(stage) if dep.startswith(("src/", "stages/", "recipes/"))}
    assert listed == {file.relative_to(ROOT).as_posix() for file in closure(ROOT / f"stages/{stage}.py")}


def test_the_closure_sees_imports_inside_functions_and_package_data() -> None:
    names = {file.name for file in closure(ROOT / "stages/prune.py")}
    assert {"pruning.py", "models.py", "selection.py", "published_layers.csv", "__init__.py", "errors.py"} <= names
    assert "torch" not in names
    assert "latency.py" not in names


def params_read(stage: str) -> set[str]:
    """The leaf keys behind every ``params.key``, ``params.group.key`` and ``params.group`` in a stage's source."""
    tree = ast.parse((ROOT / f"stages/{stage}.py").read_text())
    parts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    handed_on = {id(value) for call in calls if dotted(call.func) in functions for value in call.args}
    read: set[str] = set()
    for node in ast.walk(tree):
        key = dotted(node) if id(node) not in parts | handed_on else None
        if key == "params" and isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            pytest.fail(f"stages/{stage}.py, line {node.lineno}: hand on the values needed, not the whole of params")
        elif key and key.startswith("params."):
            key = key.removeprefix("params.")
            leaves = {leaf for leaf in leaf_keys() if leaf == key or leaf.startswith(f"{key}.")}
            assert leaves, f"stages/{stage}.py: there is no params.{key}"
            read |= leaves
    return read


def dotted(node: ast.AST) -> str | None:
    """``a.b.c`` as text; None for other expressions."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return before and f"{before}.{node.attr}"
    return None


@EACH_STAGE
def test_params_are_exactly_the_leaf_keys_that_a_stage_reads(stage: str) -> None:
    listed = STAGES[stage].get("params", [])
    assert len(listed) == len(set(listed))
    assert set(listed) == params_read(stage)


def test_only_prune_reads_enc_and_dec() -> None:
    assert {stage for stage in STAGES if params_read(stage) & {"enc", "dec"}} == {"prune"}


def test_only_score_reads_the_summaries() -> None:
    assert {stage for stage in STAGES if any("outputs/generate" in dep for dep in deps(stage))} == {"score"}


@EACH_STAGE
def test_every_stage_has_a_module_and_is_run_as_one(stage: str) -> None:
    assert (ROOT / f"stages/{stage}.py").is_file()
    assert STAGES[stage]["cmd"].split()[:3] == ["python", "-m", f"stages.{stage}"]


def test_every_module_in_stages_is_a_stage() -> None:
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"} == set(STAGES)


# Commands


def test_commands_start_without_heavy_imports() -> None:
    """Help and refusals come at once: nothing that takes seconds is imported before params.yaml is read."""
    heavy = "{'torch', 'transformers', 'datasets', 'accelerate', 'scipy', 'matplotlib'}"
    code = "; ".join(
        ["import sys", *(f"import stages.{stage}" for stage in STAGES), f"print(*{heavy} & {{*sys.modules}})"]
    )
    assert run(sys.executable, "-c", code, folder=ROOT).split() == []


def sides(stage: str) -> list[str]:
    """The arguments of a stage's command, the first side where it has sides."""
    return ["dense"] if "foreach" in PIPELINE["stages"][stage] else []


@EACH_STAGE
def test_help_says_what_a_stage_does(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no params.yaml
    result = invoke(stage, "--help")
    assert result.exit_code == 0
    purpose = result.output.splitlines()[2].strip()
    assert purpose[0].isupper()
    assert purpose.count(" ") >= 3


@pytest.mark.parametrize("stage", [stage for stage in STAGES if sides(stage)])
def test_another_side_is_refused(stage: str) -> None:
    result = invoke(stage, "sparse")
    assert result.exit_code == 2
    assert "'sparse' is not one of 'dense', 'pruned'" in result.output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, but for the shipped params.yaml."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def assert_refused(result: Result, *said: str) -> None:
    """Exit code 1, a message on its own, no traceback."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    for words in said:
        assert words in result.stderr


@EACH_STAGE
def test_every_stage_refuses_bad_params_with_all_faults_and_writes_nothing(stage: str, folder: Path) -> None:
    text = (folder / "params.yaml").read_text()
    for before, after in {
        "enc: 6": "enc: 0",
        "dec: 3": 'dec: "two"',
        "model: docs-bart-mini": "model: t5-base",
        "dataset: docstrings": "dataset: xsun",
        "strategy: importance": "strategy: best",
        "epochs: 1.0": "epoch: 1.0",
    }.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    (folder / "params.yaml").write_text(text)
    result = invoke(stage, *sides(stage))
    assert_refused(
        result,
        "params.yaml: 7 faults",
        "enc: 0 is refused",
        'dec: "two" is refused',
        'model: "t5-base" is refused',
        'dataset: "xsun" is refused',
        'keep.strategy: "best" is refused',
        "train.epoch: is no known key; did you mean train.epochs?",
        "train.epochs: is missing",
    )
    assert files_in(folder) == {"params.yaml"}


@pytest.mark.parametrize(
    ("stage", "named"),
    [
        ("download", "data/docstrings.lock"),
        ("parent", "models/docs-bart-mini: there is no such model folder"),
        ("prune", "outputs/parent"),
        ("finetune", "data/splits/train.parquet"),
        ("generate", "data/splits/test.parquet"),
        ("score", "data/splits/test.parquet"),
        ("time", "data/splits/test.parquet"),
    ],
)
def test_a_stage_whose_input_is_missing_names_it_and_writes_nothing(stage: str, named: str, folder: Path) -> None:
    assert_refused(invoke(stage, *sides(stage)), named)
    assert files_in(folder) == {"params.yaml"}


# What the files of a model folder are changed to (None: removed), and what is said of it.
BAD_MODELS: dict[str, tuple[dict[str, bytes | None], str]] = {
    "decoder-only": ({"config.json": b'{"model_type": "gpt2"}'}, "model_type 'gpt2' and not is_encoder_decoder"),
    "encoder-only": ({"config.json": b'{"model_type": "bert"}'}, "model_type 'bert' and not is_encoder_decoder"),
    "another family": (
        {"config.json": b'{"model_type": "whisper", "is_encoder_decoder": true}'},
        "model_type 'whisper', which is not supported",
    ),
    "config no JSON": ({"config.json": b'{"model_type": '}, "mine/config.json: cannot be read as JSON"),
    "weights cut short": (
        {"model.safetensors": b"\x99" * 99},
        "mine/model.safetensors: is not a whole safetensors file",
    ),
    "a pickle": (
        {"model.safetensors": None, "pytorch_model.bin": b"x"},
        "mine/pytorch_model.bin: weights are read from safetensors files alone",
    ),
}


@pytest.mark.parametrize("stage", ["machine", "parent"])
@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_model_that_cannot_be_used_is_said_at_once_and_nothing_is_written(
    stage: str, case: str, folder: Path, tiny_bart: Path
) -> None:
    changes, said = BAD_MODELS[case]
    shutil.copytree(tiny_bart, folder / "mine")
    for name, content in changes.items():
        (folder / "mine" / name).unlink() if content is None else (folder / "mine" / name).write_bytes(content)
    params = (folder / "params.yaml").read_text().replace("model: docs-bart-mini", "model: ./mine")
    (folder / "params.yaml").write_text(params)
    before = files_in(folder)
    assert_refused(invoke(stage), said)
    assert files_in(folder) == before


@pytest.mark.parametrize("stage", ["finetune", "generate", "score", "time"])
def test_an_empty_split_is_named(stage: str, folder: Path) -> None:
    write_splits(folder, train=0, validation=0, test=0)
    before = files_in(folder)
    assert_refused(
        invoke(stage, *sides(stage)), "data/splits/", "train.parquet" if stage == "finetune" else "test.parquet"
    )
    assert files_in(folder) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device that is always full")
def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (folder / "params.yaml").read_text().replace("dataset: docstrings", "dataset: ./mine.jsonl")
    (folder / "params.yaml").write_text(text)
    rows = [{"document": f"Text {number}.", "summary": "Text."} for number in range(50)]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write_to_a_full_disk(columns: Any, path: Path) -> None:
        path.symlink_to("/dev/full")  # by a link: what fails to write removes the file, and would the device
        write_split(columns, path)

    monkeypatch.setattr(tables, "write_split", write_to_a_full_disk)
    result = invoke("download")
    assert (result.exit_code, result.exception.__class__) == (1, SystemExit)
    assert re.fullmatch(r"error: .*: no space is left on the disk\n", result.stderr)
    assert files_in(folder) == {"params.yaml", "mine.jsonl", "data"}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "mine.csv"), "mine.csv: cannot be used: permission denied"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "a file: cannot be written: no space is"),
        (ValueError("a fault of ours"), None),
        (SafetensorError("Error while deserializing header"), None),
    ],
)
def test_faults_of_files_are_one_line_and_others_keep_their_traceback(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, said: str | None
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr("stages.prune.read_config", fail)
    result = invoke("prune")
    if said:
        assert_refused(result, said)
    else:
        assert result.exception is fault
