"""The script that compares strategies: what it runs, and where it goes on; `dvc` here only writes down its call."""

import os
import subprocess
from pathlib import Path

from tests.projects import ENVIRONMENT, ROOT, run

STUB = '#!/bin/sh\necho "$(basename "$0") $*" >> calls\n'


def test_sixteen_experiments_of_equal_training_and_four_comparisons(tmp_path: Path) -> None:
    for name in ("dvc", "lopside"):
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)
    run("git", "init", "--quiet", ".", folder=tmp_path)
    run("git", "commit", "--quiet", "--allow-empty", "--message=run", folder=tmp_path)
    run("git", "update-ref", "refs/exps/ab/cdef/mine-uniform-6-3-s0", "HEAD", folder=tmp_path)  # is there already
    environment = ENVIRONMENT | {"PATH": f"{tmp_path}{os.pathsep}{ENVIRONMENT['PATH']}"}
    command = ["sh", str(ROOT / "recipes/strategies.sh"), "mine", "-S", "dataset=./mine.jsonl"]

    subprocess.run(command, cwd=tmp_path, env=environment, check=True)

    *experiments, _, _, _, last = (tmp_path / "calls").read_text().splitlines()
    assert len(experiments) == 15
    assert experiments[0] == (
        "dvc exp run score --name=mine-importance-6-3-s0 -S seed=0 -S enc=6 -S dec=3 -S keep.strategy=importance "
        "-S train.max_steps=100 -S train.warmup_steps=10 -S train.evaluations=1 -S data.max_source_tokens=64 "
        "-S dataset=./mine.jsonl"
    )
    assert "--name=mine-importance-3-6-s1 -S seed=1 -S enc=3 -S dec=6 -S keep.strategy=importance" in experiments[-1]
    assert len({call.split(" -S train")[0] for call in experiments}) == 15
    assert last == (
        "lopside compare mine-uniform-3-6-s0,mine-uniform-3-6-s1 mine-importance-3-6-s0,mine-importance-3-6-s1"
    )
