"""Whether rows of the history come out again: ``python -m tests.history_check [--rows 3 | EXPERIMENT ...]``.

Of each row's experiment, which has to be here, `dvc exp apply` brings back params and weights in a clone that shares
DVC's cache; there both sides generate and are scored anew, whatever DVC knows of them. Prints the row's figure beside
that, and exits with 1 where one of its ROUGE figures differs. Without names it takes so many rows, evenly apart.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lopside.history import ROUGE_FIGURES, Row, flat, read_history
from lopside.repository import ROUGE, SHORT, cache_folder, experiments, read_mapping
from tests.projects import run

STAGES = ("generate@dense", "generate@pruned", "score")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT")
    parser.add_argument("--rows", type=int, default=3)
    arguments = parser.parse_args()
    rows = chosen(read_history(), arguments.experiments, arguments.rows)
    if not rows:
        sys.exit("error: metrics/history.csv: none of its rows, or of those named, has its experiment here")
    odd = 0
    with tempfile.TemporaryDirectory() as folder:
        clone = clone_of(Path(), Path(folder) / "clone")
        for row in rows:
            again = recompute(row, clone, STAGES)
            differ = [key for key in ROUGE_FIGURES if row.figures.get(key) != again.get(key)]
            odd += bool(differ)
            shown = ", ".join(
                f"{key} {row.figures.get(key)} and {again.get(key)}" for key in differ or ["delta.rouge2"]
            )
            print(f"{row.experiment}: {f'differs: {shown}' if differ else f'as it was: {shown}'}", flush=True)
    sys.exit(int(odd > 0))


def chosen(rows: Sequence[Row], names: Sequence[str], count: int) -> list[Row]:
    """Of the rows whose experiments are here those named, or so many from the first to the last, evenly apart."""
    here = {(each.name, each.commit[:SHORT]) for each in experiments()}
    found = [row for row in rows if (row.experiment, row.commit) in here]
    if names:
        return [row for row in found if row.experiment in names]
    places = {round(place * (len(found) - 1) / max(1, count - 1)) for place in range(count)} if found else set()
    return [found[place] for place in sorted(places)]


def clone_of(project: Path, folder: Path) -> Path:
    """A clone with the experiments of a project, and with its DVC cache."""
    run("git", "clone", "--quiet", str(project.resolve()), str(folder), folder=project)
    run("git", "fetch", "--quiet", "origin", "+refs/exps/*:refs/exps/*", folder=folder)
    run("dvc", "config", "--quiet", "--local", "cache.dir", str((project / cache_folder()).resolve()), folder=folder)
    return folder


def recompute(row: Row, clone: Path, stages: Sequence[str]) -> dict[str, float]:
    """The figures of metrics/rouge.json after these stages have run again in the clone, on the row's experiment."""
    run("git", "reset", "--quiet", "--hard", row.revision, folder=clone)
    run("dvc", "exp", "apply", row.experiment, folder=clone)
    run("dvc", "repro", "--quiet", "--force", "--single-item", *stages, folder=clone)
    return flat(read_mapping(str(clone / ROUGE)))


if __name__ == "__main__":
    main()
