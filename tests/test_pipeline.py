"""The pipeline as a whole: dvc.yaml against the code, bad input, and `dvc repro` from nothing on a tiny model."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner, Result

from lopside import tables
from lopside.params import leaf_keys
from lopside.splits import write_split

ROOT = Path(__file__).parents[1]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
# name -> definition; the sides of one stage share theirs
STAGES: dict[str, dict[str, Any]] = {name: stage.get("do", stage) for name, stage in PIPELINE["stages"].items()}
EACH_STAGE = pytest.mark.parametrize("stage", STAGES)


ENVIRONMENT = os.environ | {
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads of so tiny a model mostly wait; spinning, they take the other tests' time
    "DVC_NO_ANALYTICS": "1",
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@example.org",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@example.org",
}


def run(*command: str, folder: Path, libraries: Path | None = None) -> str:
    """What a command prints; it runs the code of ``folder`` (and finds ``libraries`` first), and must succeed."""
    path = os.pathsep.join(str(each) for each in (libraries, folder / "src") if each)
    environment = ENVIRONMENT | {"PYTHONPATH": path, "DVC_SITE_CACHE_DIR": str(folder / ".dvc/tmp/site")}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout


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


def invoke(stage: str, *arguments: str) -> Result:
    """A stage's command in this process, in the current folder."""
    return CliRunner().invoke(import_module(f"stages.{stage}").main, [*arguments])


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
        "strategy: uniform": "strategy: best",
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


# The whole of it


def write_splits(folder: Path, **sizes: int) -> None:
    """data/splits as `download` leaves it, with this many pairs a split."""
    body = "The item at this place of the list is returned. It is not copied, so that a change shows in the list."
    (folder / "data/splits").mkdir(parents=True, exist_ok=True)
    for split, size in sizes.items():
        rows = [
            {
                "id": f"{split}{number}",
                "document": f"{split} function {number} {body}",
                "body": body,
                "summary": f"Return item {number} of the {split} list.",
                "source": f"made==1.0 made:{split}{number}",
            }
            for number in range(size)
        ]
        frame = pd.DataFrame(rows, columns=["id", "document", "body", "summary", "source"]).astype(str)
        frame.to_parquet(folder / f"data/splits/{split}.parquet", index=False)


TINY = {
    "dec": 6,
    "device": "cpu",
    "train": {"dtype": "float32", "max_steps": 2, "batch_size": 4, "evaluations": 2, "evaluation_documents": 4},
    "generate": {"max_new_tokens": 6},
    "score": {"resamples": 100},
    "time": {
        "threads": 1,
        "batch_sizes": [1],
        "source_tokens": 16,
        "new_tokens": 4,
        "warmup": 0,
        "min_pairs": 6,
        "max_seconds": 0.1,
    },
}


def new_project(folder: Path, settings: dict[str, Any]) -> None:
    """A fresh git repository of this pipeline with these settings, nothing built in, nothing run or committed yet."""
    for name in ("src", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore", ".dvc/plots"):
        (folder / name).parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in settings.items():
        params[key] = params[key] | value if isinstance(value, dict) else value
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for name in ("data/docstrings.lock", "models/docs-bart-mini/trained_on.npy"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    run("git", "init", "--quiet", "--initial-branch=main", ".", folder=folder)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_bart: Path) -> Path:
    """Such a project with a tiny random model and a handful of pairs, nothing run yet."""
    folder = tmp_path_factory.mktemp("project")
    new_project(folder, TINY)
    shutil.copytree(tiny_bart, folder / "models/docs-bart-mini", dirs_exist_ok=True)
    write_splits(folder, train=12, validation=4, test=6)
    # Stands for the download, whose own tests are elsewhere: what lies in data/splits is taken as its result.
    run("dvc", "repro", "--quiet", "machine", folder=folder)
    run("dvc", "commit", "--force", "--quiet", "download", folder=folder)
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    run("git", "add", "--all", folder=folder)
    run("git", "commit", "--quiet", "--message=run", folder=folder)


def ran(output: str) -> list[str]:
    """The stages that DVC ran, sorted."""
    return sorted(re.findall(r"^Running stage '([^']+)'", output, re.MULTILINE))


def metrics(folder: Path, name: str) -> Any:
    return json.loads((folder / f"metrics/{name}.json").read_text())


def test_the_pipeline_from_nothing_and_experiments_on_it(project: Path) -> None:
    """One test, because each step goes on from what the one before it left."""
    everything = [
        *("export@dense", "export@pruned"),
        *("finetune@dense", "finetune@pruned", "generate@dense", "generate@pruned"),
        *("machine", "parent", "prune", "score", "time"),
    ]
    assert ran(run("dvc", "repro", folder=project)) == everything
    rouge, latency = metrics(project, "rouge"), metrics(project, "latency")
    assert {"dense", "pruned", "lead", "delta", "retained", "documents", "signature"} <= set(rouge)
    assert {"rouge2", "rouge2_low", "rouge2_high", "rouge2_p"} <= set(rouge["delta"])
    assert rouge["documents"] == 6
    assert {"dense_ms", "pruned_ms", "speedup", "speedup_low", "speedup_high"} <= set(latency["fixed"]["batch_1"])
    assert {"paper", "fixed", "natural", "parameters", "machine"} <= set(latency)

    # At 6-6 dense and pruned are the same model, trained on the same batches.
    dense, pruned = (project / f"outputs/finetune/{side}/model.safetensors" for side in ("dense", "pruned"))
    assert dense.read_bytes() == pruned.read_bytes()
    assert dense.read_bytes() != (project / "outputs/parent/model.safetensors").read_bytes()
    assert summaries(project, "dense") == summaries(project, "pruned")
    assert rouge["delta"]["rouge2"] == rouge["delta"]["rouge2_low"] == rouge["delta"]["rouge2_high"] == 0
    assert latency["parameters"]["dense"] == latency["parameters"]["pruned"]

    # All that DVC does not track is for git; nothing else lies about.
    commit(project)
    assert ran(run("dvc", "repro", folder=project)) == ["machine"]
    assert run("git", "status", "--porcelain", folder=project) == ""

    # enc and dec are read by prune alone; dense stays as it is.
    before = dense.read_bytes()
    output = run("dvc", "exp", "run", "--name=shallow", "-S", "enc=6", "-S", "dec=1", folder=project)
    assert ran(output) == ["export@pruned", "finetune@pruned", "generate@pruned", "machine", "prune", "score", "time"]
    assert dense.read_bytes() == before != pruned.read_bytes()
    parameters = metrics(project, "latency")["parameters"]
    assert parameters["dense"] == latency["parameters"]["dense"] > parameters["pruned"]
    changed = json.loads(run("dvc", "metrics", "diff", "--json", folder=project))
    assert changed["metrics/latency.json"]["parameters.pruned"] == {
        "old": parameters["dense"],
        "new": parameters["pruned"],
        "diff": parameters["pruned"] - parameters["dense"],
    }
    shown = run("dvc", "exp", "show", "--csv", folder=project)
    assert "shallow" in shown
    assert "delta.rouge2" in shown
    compare = [sys.executable, "-c", "from lopside.commands import main; main()", "compare", "HEAD", "shallow"]
    base, other = metrics(project, "rouge")["dense"]["rouge2"], metrics(project, "rouge")["pruned"]["rouge2"]
    table = run(*compare, folder=project).splitlines()[2:]  # at HEAD, 6-6, pruned scores what dense scores
    assert table[0].startswith(f"| HEAD | {base:.2f} |")
    assert table[1].startswith(f"| shallow | {other:.2f} |")
    drawn = json.loads(run("dvc", "plots", "show", "--json", folder=project))["data"]
    assert {"Validation loss", "Validation ROUGE-2", "ROUGE-2 against latency"} <= set(drawn)
    assert all(plot for plot in drawn.values())

    # Settings of generation leave training alone; the setting `natural` is timed as `generate` generates. (A dry run
    # looks no further than what changed itself.)
    params = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(params.replace("max_new_tokens: 6", "max_new_tokens: 5"))
    assert ran(run("dvc", "repro", "--dry", folder=project)) == [
        "generate@dense",
        "generate@pruned",
        "machine",
        "time",
    ]
    assert {stage for stage in STAGES if any("outputs/generate" in dep for dep in deps(stage))} == {"score"}

    # What was run once is not run again: back at the first commit's params all comes from the run cache.
    run("git", "checkout", "--quiet", "params.yaml", folder=project)
    assert ran(run("dvc", "repro", folder=project)) == ["machine"]
    assert metrics(project, "rouge") == rouge
    assert metrics(project, "latency") == latency


def summaries(project: Path, side: str) -> list[str]:
    return list(pd.read_parquet(project / f"outputs/generate/{side}.parquet")["summary"])
