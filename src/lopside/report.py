"""Set several runs side by side: Markdown tables and plots of their metrics and of their training.

What was run is in git: every committed run, and every DVC experiment, has its params.yaml and metrics/ at its revision,
and what was scored document by document in DVC's cache.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lopside.engines import BASELINE
from lopside.errors import LopsideError
from lopside.estimates import Estimate
from lopside.history import check_whole, flat, seedless
from lopside.pictures import draw_courses, draw_tradeoff
from lopside.repository import LATENCY, LOCK, PARAMS, ROUGE, commit_of, leaf, read_mapping, read_text, stages_of
from lopside.study import in_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCORES = "outputs/scores.parquet"
CURVE = "metrics/plots/finetune-{side}.csv"


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
        return leaf(self.rouge, key, f"{ROUGE} of {self.revision}")

    def latency_figure(self, key: str) -> float:
        """A leaf of metrics/latency.json by its dotted key, such as ``fixed.batch_1.speedup``. Raises LopsideError."""
        return leaf(self.latency, key, f"{LATENCY} of {self.revision}")

    @property
    def engine(self) -> str | None:
        """What generated and was timed, as in ``ctranslate2 int8``; None in records of revisions before engines."""
        return self.latency.get("settings", {}).get("engine")

    @property
    def batches(self) -> list[int]:
        """The batch sizes that were timed."""
        return [int(name.removeprefix("batch_")) for name in self.latency.get("fixed", {})]


def read_run(revision: str | None = None) -> Run:
    """The run at a git revision of the repository that we are in; None reads the files as they lie there now.

    Raises LopsideError where the revision or one of its files is not there, or is no metrics file; or where dvc.lock
    says that the figures are not all of these params: after a part of a run, or one that failed.
    """
    rouge, latency, params = (read_mapping(name, revision) for name in (ROUGE, LATENCY, PARAMS))
    where = revision or "workspace"
    try:
        check_whole(stages_of(LOCK, revision), flat(params))
    except LopsideError as error:
        raise LopsideError(f"{where}: the figures are not those of {PARAMS}: {error}; see `dvc repro`") from error
    enc, dec = (leaf(params, key, f"{PARAMS} of {where}") for key in ("enc", "dec"))
    return Run(label=f"{enc:g}-{dec:g}", revision=where, rouge=rouge, latency=latency)


def results_table(runs: Sequence[Run]) -> str:
    """Markdown, one row a run: size, ROUGE-2 of both sides, their difference and the speedups, with their intervals.

    There is a column for each batch size that any of the runs timed. Where an engine other than transformers in
    float32 was asked for, it is named, and beside the speedup by pruning stands that in all: from dense by transformers
    in float32 to pruned by the engine.
    """
    batches = sorted({batch for run in runs for batch in run.batches})
    engines = any(run.engine not in (None, BASELINE) for run in runs)
    gains = {"speedup": "speedup"} | ({"in all": "total"} if engines else {})
    names = ["enc-dec", *(["engine"] if engines else []), "revision"]
    header = [*names, "parameters", "ROUGE-2 dense", "ROUGE-2 pruned", "difference", "retained"]
    header += [f"{name}, batch {batch}" for batch in batches for name in gains]
    rows = [header, [*["---"] * len(names), *["---:"] * (len(header) - len(names))]]
    for run in runs:
        rouge = run.rouge_figure
        row = [
            run.label,
            *([run.engine or ""] if engines else []),
            run.revision,
            f"{run.latency_figure('parameters.pruned') / 1e6:.1f} M",
            f"{rouge('dense.rouge2'):.2f}",
            f"{rouge('pruned.rouge2'):.2f}",
            f"{rouge('delta.rouge2'):+.2f} [{rouge('delta.rouge2_low'):+.2f}, {rouge('delta.rouge2_high'):+.2f}]",
            # There is none of a dense model that scores 0.
            "" if flat(run.rouge).get("retained.rouge2", 0) is None else f"{rouge('retained.rouge2'):.1%}",
        ]
        row += [
            _times(run, f"fixed.batch_{batch}.{gain}") if batch in run.batches else ""
            for batch in batches
            for gain in gains.values()
        ]
        rows.append(row)
    return markdown_table(rows)


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
    draw_tradeoff(points, f"{in_words('fixed')}, batch {batch}", path)


@dataclass(frozen=True)
class Scored:
    """What pruned models scored on the test documents: one run, or the mean of runs that differ in their seed."""

    label: str
    signature: str
    """That of metrics/rouge.json; runs whose signatures differ in the seed alone were scored alike."""
    ids: tuple[str, ...]
    rouge2: NDArray[np.float64]
    """ROUGE-2 a document, 0 to 100, shape (documents,), in the order of ``ids``."""


def read_scored(revisions: str) -> Scored:
    """The run of a git revision or DVC experiment, or of several with commas between, averaged document by document.

    Raises LopsideError where there is no such revision, its scores are not in DVC's cache, or the runs were not scored
    alike.
    """
    runs = [_read_scored(revision) for revision in revisions.split(",")]
    _check_alike(runs)
    first = runs[0]
    return Scored(revisions, first.signature, first.ids, np.mean([run.rouge2 for run in runs], axis=0))


def comparison_table(base: Scored, others: Sequence[Scored]) -> str:
    """Markdown: the ROUGE-2 of ``base``, then a row for each of ``others`` with its paired difference from it.

    The interval (95%) and p are `lopside.rouge.compare`'s, over the documents; they do not cover the choice of seeds.
    Raises LopsideError where they were not scored alike.
    """
    from lopside.rouge import compare

    _check_alike([base, *others])
    rows = [["pruned", "ROUGE-2", f"minus {base.label}", "p"], ["---", "---:", "---:", "---:"]]
    rows.append([base.label, f"{base.rouge2.mean():.2f}", "", ""])
    for other in others:
        found = compare(other.rouge2, base.rouge2)
        difference = f"{found.difference:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
        rows.append([other.label, f"{other.rouge2.mean():.2f}", difference, f"{found.p:.4f}"])
    return markdown_table(rows)


def _check_alike(runs: Sequence[Scored]) -> None:
    first = runs[0]
    for run in runs:
        if seedless(run.signature) != seedless(first.signature) or run.ids != first.ids:
            raise LopsideError(
                f"{run.label} and {first.label} cannot be compared, as other documents or settings were scored: "
                f"{run.signature} and {first.signature}"
            )


def _read_scored(revision: str) -> Scored:
    import pandas as pd
    from dvc.api import open as open_tracked
    from dvc.exceptions import DvcException
    from scmrepo.exceptions import SCMError

    try:
        with open_tracked(SCORES, rev=commit_of(revision), mode="rb") as file:
            scores = pd.read_parquet(file, columns=["id", "pruned_rouge2"])
    except (DvcException, SCMError, OSError) as error:
        raise LopsideError(
            f"{SCORES} of {revision}: cannot be read ({error}); `dvc repro score` at that revision makes it anew"
        ) from error
    signature = read_mapping(ROUGE, revision).get("signature")
    if not isinstance(signature, str):
        raise LopsideError(f"{ROUGE} of {revision}: there is no signature, which says how it was scored")
    return Scored(revision, signature, tuple(scores["id"]), scores["pruned_rouge2"].to_numpy())


@dataclass(frozen=True)
class Curve:
    """How a model fared on validation while it was fine-tuned. ``label`` as in :class:`Run`, or ``dense``."""

    label: str
    revision: str
    rouge2: dict[int, float]
    """Fine-tuning step -> greedy ROUGE-2 on validation documents, 0 to 100."""


def read_curve(revision: str | None = None, side: Literal["dense", "pruned"] = "pruned") -> Curve:
    """The curve of one side of the run at a git revision; None reads the files as they lie there now.

    Raises LopsideError where the revision or its file is not there, or the file has no such figures.
    """
    params, where = read_mapping(PARAMS, revision), revision or "workspace"
    enc, dec = (leaf(params, key, f"{PARAMS} of {where}") for key in ("enc", "dec"))
    name = CURVE.format(side=side)
    rows = csv.DictReader(read_text(name, revision).splitlines())
    try:
        rouge2 = {int(row["step"]): float(row["validation_rouge2"]) for row in rows if row["validation_rouge2"]}
    except (KeyError, TypeError, ValueError) as error:
        raise LopsideError(f"{name} of {where}: cannot be read") from error
    if not rouge2:
        raise LopsideError(f"{name} of {where}: holds no validation_rouge2")
    return Curve("dense" if side == "dense" else f"{enc:g}-{dec:g}", where, rouge2)


def curves_table(curves: Sequence[Curve]) -> str:
    """Markdown, a row a fine-tuning step, a column a run; empty where a run was not evaluated at that step."""
    steps = sorted({step for curve in curves for step in curve.rouge2})
    rows = [["step", *(curve.label for curve in curves)], ["---:"] * (1 + len(curves))]
    for step in steps:
        figures = (curve.rouge2.get(step) for curve in curves)
        rows.append([f"{step:,}", *("" if figure is None else f"{figure:.2f}" for figure in figures)])
    return markdown_table(rows)


def curves_png(curves: Sequence[Curve], path: str | Path) -> None:
    """Draw validation ROUGE-2 against fine-tuning steps, a line a run. Equal curves give an equal file."""
    lines = [(curve.label, list(curve.rouge2), list(curve.rouge2.values())) for curve in curves]
    draw_courses(lines, "fine-tuning steps", "enc-dec", path)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the second of which is the rule below the header, as Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _with_interval(figure: Callable[[str], float], key: str) -> Estimate:
    return Estimate(figure(key), figure(f"{key}_low"), figure(f"{key}_high"))


def _times(run: Run, key: str) -> str:
    value, low, high = _with_interval(run.latency_figure, key)
    return f"{value:.2f}x [{low:.2f}, {high:.2f}]"
