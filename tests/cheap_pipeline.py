"""A project whose pipeline has lopside's shape and files, but whose stages only write figures that follow from params.

For what is to be tested of sweeps and of the history, and does not ask for a model.
"""

import shutil
from pathlib import Path

import yaml

from tests.projects import ROOT, run

DVC_YAML = """\
stages:
  machine:
    cmd: python stage.py machine
    always_changed: true
    outs: [metrics/machine.json: {cache: false, persist: true}]
  dense:
    cmd: python stage.py dense
    deps: [stage.py]
    params: [seed, train.batch_size]
    outs: [outputs/dense]
  pruned:
    cmd: python stage.py pruned
    deps: [stage.py]
    params: [enc, dec, seed, train.batch_size]
    outs: [outputs/pruned]
    plots: [metrics/plots/layers.csv: {cache: false}]
  score:
    cmd: python stage.py score
    deps: [outputs/dense, outputs/pruned]
    params: [seed]
    metrics: [metrics/rouge.json: {cache: false}]
  time:
    cmd: python stage.py time
    deps: [outputs/dense, outputs/pruned, metrics/machine.json]
    metrics: [metrics/latency.json: {cache: false}]
"""

STAGE = """\
import json, os, sys, time
from pathlib import Path

import yaml

stage, params = sys.argv[1], yaml.safe_load(Path("params.yaml").read_text())
enc, dec, seed = params["enc"], params["dec"], params["seed"]


def write(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content if isinstance(content, str) else json.dumps(content))


def interval(name, value, width):
    return {name: value, f"{name}_low": round(value - width, 3), f"{name}_high": round(value + width, 3)}


with open(os.environ["TOLD"], "a") as file:
    print(stage, enc, dec, seed, file=file)
if os.environ.get("FAIL") == f"{stage} {enc} {dec}":
    sys.exit("error: this one is to fail")
if os.environ.get("WAIT") == f"{stage} {enc} {dec}":
    time.sleep(60)
if stage == "machine":
    if params["dataset"].startswith("."):
        Path(params["dataset"]).read_text()
    write("metrics/machine.json", {"cpu": "none"})
elif stage == "dense":
    write("outputs/dense", f"{seed} {params['train']}")
elif stage == "pruned":
    write("outputs/pruned", f"{enc} {dec} {seed} {params['train']}")
    layers = [("encoder", i, i < enc) for i in range(6)] + [("decoder", i, i >= 6 - dec) for i in range(6)]
    lines = [f"{stack} {index},{int(kept)}," for stack, index, kept in layers]
    write("metrics/plots/layers.csv", "\\n".join(["layer,kept,importance", *lines, ""]))
elif stage == "score":
    lost = round(0.5 * (6 - enc) ** 1.5 + 0.3 * (6 - dec) ** 1.5 + 0.01 * seed * (enc + dec < 12), 3)
    metrics = {
        "dense": interval("rouge2", 15.0, 0.5),
        "pruned": interval("rouge2", round(15 - lost, 3), 0.5),
        "delta": interval("rouge2", -lost, 0.4) | {"rouge2_p": 0.01},
        "retained": interval("rouge2", round(1 - lost / 15, 4), 0.02),
        "lead": {"rouge2": 7.0},
        "documents": 100,
        "signature": f"made-up|seed:{seed}|texts:none",
    }
    write("metrics/rouge.json", metrics)
elif stage == "time":
    speedup = round(12 / (2 + enc * 0.5 + dec * 1.17), 3)
    batch = {"dense_ms": 100.0, "pruned_ms": round(100 / speedup, 2)} | interval("speedup", speedup, 0.05)
    write(
        "metrics/latency.json",
        {
            "fixed": {"batch_1": batch, "batch_8": batch},
            "parameters": {"dense": 3000, "pruned": 600 + 200 * (enc + dec)},
            "settings": {"device": "cpu", "threads": 1},
            "machine": "made-up, 1 core",
        },
    )
"""


def make(folder: Path) -> Path:
    """Such a project in ``folder``, committed, nothing run. Stages note what they run in ``folder``/.dvc/tmp/told."""
    folder.mkdir(parents=True)
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "stage.py").write_text(STAGE)
    (folder / ".gitignore").write_text("/outputs/\n")
    (folder / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, folder / ".dvc" / name)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    run("git", "init", "--quiet", "--initial-branch=main", ".", folder=folder)
    run("git", "add", "--all", folder=folder)
    run("git", "commit", "--quiet", "--message=start", folder=folder)
    return folder
