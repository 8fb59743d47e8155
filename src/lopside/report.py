"""Set the metrics of several runs side by side: a Markdown table and a plot.

What was run is in git: every committed run has its params.yaml and metrics/*.json at its revision.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lopside.errors import LopsideError
from lopside.files import new_file

ROUGE, LATENCY, PARAMS = "metrics/rouge.json", "metrics/latency.json", "params.yaml"

BLUE, GREY = "#0072B2", "#999999"
"""Okabe & Ito's blue, and a grey: told apart by colour-blind people and in print."""


@dataclass(frozen=True)
class Run:
    """One run's metrics. ``label`` names it, as in ``6-1`` for enc 6 and dec 1."""

    label: str
    revision: str
    rouge: dict[str, Any]
    """The contents of metrics/rouge.json."""
    latency: dict[str, Any]
    """The contents of metrics/latency.json."""

    def rouge_figure(self, key: str) -> float:
        """A leaf of metrics/rouge.json by its dotted key, such as ``delta.rouge2_low``. Raises LopsideError."""
        return _leaf(self.rouge, key, f"{ROUGE} of {self.revision}")

    def latency_figure(self, key: str) -> float:
        """A leaf of metrics/latency.json by its dotted key, such as ``fixed.batch_1.speedup``. Raises LopsideError."""
        return _leaf(self.latency, key, f"{LATENCY} of {self.revision}")

    @property
    def batches(self) -> list[int]:
        """The batch sizes that were timed."""
        return [int(name.removeprefix("batch_")) for name in self.latency.get("fixed", {})]


def read_run(revision: str | None = None) -> Run:
    """The run at a git revision of the repository that we are in; None reads the files as they lie there now.

    Raises LopsideError where the revision or one of its files is not there, or is no metrics file.
    """
    rouge, latency, params = (_parsed(name, revision) for name in (ROUGE, LATENCY, PARAMS))
    where = revision or "workspace"
    enc, dec = (_leaf(params, key, f"{PARAMS} of {where}") for key in ("enc", "dec"))
    return Run(label=f"{enc:g}-{dec:g}", revision=where, rouge=rouge, latency=latency)


def results_table(runs: Sequence[Run]) -> str:
    """Markdown, one row a run: size, ROUGE-2 of both sides, their difference and the speedups, with their intervals.

    There is a column for each batch size that any of the runs timed.
    """
    batches = sorted({batch for run in runs for batch in run.batches})
    header = ["enc-dec", "revision", "parameters", "ROUGE-2 dense", "ROUGE-2 pruned", "difference", "retained"]
    header += [f"speedup, batch {batch}" for batch in batches]
    rows = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
    for run in runs:
        rouge = run.rouge_figure
        row = [
            run.label,
            run.revision,
            f"{run.latency_figure('parameters.pruned') / 1e6:.1f} M",
            f"{rouge('dense.rouge2'):.2f}",
            f"{rouge('pruned.rouge2'):.2f}",
            f"{rouge('delta.rouge2'):+.2f} [{rouge('delta.rouge2_low'):+.2f}, {rouge('delta.rouge2_high'):+.2f}]",
            f"{rouge('retained.rouge2'):.1%}",
        ]
        rows.append(row + [_speedup(run, batch) if batch in run.batches else "" for batch in batches])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def tradeoff_png(runs: Sequence[Run], path: str | Path, batch: int = 1) -> None:
    """Draw what is lost in ROUGE-2 against what is won in speed, a labelled point a run, with both 95% intervals.

    Equal runs give an equal file. Raises LopsideError where a run has no figures for this batch size.
    """
    points = [
        (
            run.label,
            _with_interval(run.latency_figure, f"fixed.batch_{batch}.speedup"),
            _with_interval(run.rouge_figure, "delta.rouge2"),
        )
        for run in runs
    ]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=GREY, linewidth=1)
    axes.axvline(1, color=GREY, linewidth=1)
    for label, (x, *x_ends), (y, *y_ends) in points:
        axes.errorbar(
            [x],
            [y],
            xerr=[[x - x_ends[0]], [x_ends[1] - x]],
            yerr=[[y - y_ends[0]], [y_ends[1] - y]],
            fmt="o",
            color=BLUE,
            capsize=3,
        )
        axes.annotate(label, (x, y), xytext=(6, 6), textcoords="offset points")
    axes.set_xlabel(f"speedup: dense time / pruned time, batch {batch}")
    axes.set_ylabel("ROUGE-2: pruned minus dense, points")
    axes.grid(alpha=0.3)
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})


def _parsed(name: str, revision: str | None) -> dict[str, Any]:
    text = Path(name).read_text(encoding="utf-8") if revision is None and Path(name).is_file() else None
    if revision is not None:
        shown = subprocess.run(["git", "show", f"{revision}:./{name}"], capture_output=True, text=True)
        text = shown.stdout if shown.returncode == 0 else None
    where = revision or "workspace"
    if text is None:
        raise LopsideError(f"{name} of {where}: there is no such file, or no such git revision")
    try:
        value = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise LopsideError(f"{name} of {where}: cannot be read") from error
    if not isinstance(value, dict):
        raise LopsideError(f"{name} of {where}: holds no figures")
    return value


def _leaf(tree: Any, key: str, where: str) -> float:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    if not isinstance(tree, int | float):
        raise LopsideError(f"{where}: there is no figure {key}")
    return tree


def _with_interval(figure: Any, key: str) -> tuple[float, float, float]:
    return figure(key), figure(f"{key}_low"), figure(f"{key}_high")


def _speedup(run: Run, batch: int) -> str:
    value, low, high = _with_interval(run.latency_figure, f"fixed.batch_{batch}.speedup")
    return f"{value:.2f}x [{low:.2f}, {high:.2f}]"
