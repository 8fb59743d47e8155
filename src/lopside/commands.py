"""The console command ``lopside``: what is no stage of the pipeline."""

import math
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click

from lopside import __version__
from lopside.errors import LopsideError
from lopside.files import new_file
from lopside.params import DEVICES, ENGINE_DTYPES, ENGINES

FOLDER = click.Path(file_okay=False, path_type=Path)


class _Group(click.Group):
    """Says a LopsideError in one line, without a traceback, as the stages do."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LopsideError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Run grids of experiments and look at what they measured; one pipeline runs by `dvc repro` and `dvc exp run`."""


@main.command()
@click.argument("grid", default="paper")
@click.option("--seeds", default=1, show_default=True, help="Repeat each cell with so many seeds.")
@click.option(
    "-S", "--set-param", "overrides", metavar="KEY=VALUE", multiple=True, help="Of all cells, as in `dvc exp run -S`."
)
@click.option(
    "--jobs",
    default=1,
    show_default=True,
    help="Cells at a time, by DVC's queue. Times are measured alone, after that.",
)
@click.option("--dry-run", is_flag=True, help="Print the cells and whether they are done, and run nothing.")
def sweep(grid: str, seeds: int, overrides: tuple[str, ...], jobs: int, dry_run: bool) -> None:
    """Run each cell of a GRID as a DVC experiment: paper (the default), full, reduced, or cells such as 6-1,3-3.

    Finished cells are skipped, and one that fails leaves the rest to go on: stop a sweep at any time, and start it
    again by the same command. It runs what is committed, in a copy, and leaves your files alone.
    """
    from lopside import sweep as sweeps

    if jobs < 1:
        raise LopsideError(f"--jobs: {jobs} is refused; allowed: a whole number of 1 or more")
    planned = sweeps.plan_here(grid, seeds, overrides)
    if dry_run:
        for cell in planned.cells:
            click.echo(f"{cell.name}  {'to do' if sweeps.lacks(cell) else 'done'}")
        return
    for number in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _stop)
    try:
        outcome = sweeps.sweep(planned, jobs)
    except KeyboardInterrupt:
        click.echo("stopped; the same command goes on from here", err=True)
        sys.exit(130)
    click.echo(f"{len(outcome.done)} of {len(planned.cells)} cells are done; `lopside report` sets them side by side")
    for name in outcome.failed:
        click.echo(f"failed: {name}")
    sys.exit(1 if outcome.failed else 0)


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


@main.command()
@click.option(
    "--output", default="report", show_default=True, type=FOLDER, help="Folder for report.md, report.html and pictures."
)
@click.option("--pictures", type=FOLDER, help="Write the pictures to this folder too, as for a README.")
def report(output: Path, pictures: Path | None) -> None:
    """Write new experiments into metrics/history.csv, and from it a page with tables and pictures."""
    from lopside.history import HISTORY, update_history
    from lopside.page import HTML, write_report

    rows, left_out = update_history()
    for each in left_out:
        click.echo(f"left out of {HISTORY}: {each}", err=True)
    if not rows:
        raise LopsideError(f"{HISTORY}: there is no row, and no experiment to make one of; `lopside sweep` runs some")
    drawn = write_report(rows, output)
    if pictures:
        for picture in drawn:
            with new_file(pictures / picture.name) as path:
                path.write_bytes(picture.read_bytes())
    click.echo(f"{HISTORY}: {len(rows)} rows\n{output / HTML}")


@main.command()
@click.option("--max-loss", type=float, help="ROUGE-2 points below dense, at most.")
@click.option("--min-retained", metavar="SHARE", help="Of dense's ROUGE-2, at least: 95% or 0.95.")
@click.option("--min-speedup", type=float, help="How many times as fast as dense in the baseline, at least.")
@click.option("--batch", default=1, show_default=True, help="Batch size of the speedup.")
@click.option("--setting", default="fixed", show_default=True, help="How it was timed.")
@click.option("--engine", type=click.Choice(list(ENGINES)), help="What computed the pruned models.  [default: any]")
@click.option("--dtype", type=click.Choice(ENGINE_DTYPES), help="Its precision.  [default: any]")
def recommend(
    max_loss: float | None,
    min_retained: str | None,
    min_speedup: float | None,
    batch: int,
    setting: str,
    engine: str | None,
    dtype: str | None,
) -> None:
    """Name the fastest cell of metrics/history.csv that loses no more than asked, or the best that is so fast.

    By the far end of its interval. Says how sure that is, what to measure next, and how to have the model.
    """
    from lopside.history import read_history
    from lopside.recommend import Goal, advise

    goal = Goal.of(max_loss, min_retained, min_speedup)
    advice = advise(read_history(), goal, (setting, batch), engine, dtype)
    click.echo("\n".join(advice.lines))
    sys.exit(0 if advice.found else 1)


@main.command()
@click.argument("revisions", metavar="[REV]...", nargs=-1)
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write the plot to this PNG file too.")
@click.option("--batch", default=1, show_default=True, help="Batch size of the plot's speedup.")
def table(revisions: tuple[str, ...], plot: Path | None, batch: int) -> None:
    """Print a Markdown table, a row for each git revision or experiment; without any, for the workspace.

    Of times it has ratios alone: milliseconds of several machines do not belong side by side.
    """
    from lopside.report import read_run, results_table, tradeoff_png

    runs = [read_run(revision) for revision in revisions] or [read_run()]
    if plot:
        tradeoff_png(runs, plot, batch)
    click.echo(results_table(runs))


@main.command()
@click.argument("revisions", metavar="[REV]...", nargs=-1)
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write the plot to this PNG file too.")
def curves(revisions: tuple[str, ...], plot: Path | None) -> None:
    """Print how the models of git revisions fared on validation as they were fine-tuned: dense, of the first revision,
    and then each revision's pruned one.
    """
    from lopside.report import curves_png, curves_table, read_curve

    where = revisions or (None,)
    read = [read_curve(where[0], "dense"), *(read_curve(revision) for revision in where)]
    if plot:
        curves_png(read, plot)
    click.echo(curves_table(read))


@main.command()
@click.argument("base", metavar="REV[,REV]...")
@click.argument("others", metavar="REV[,REV]...", nargs=-1, required=True)
def compare(base: str, others: tuple[str, ...]) -> None:
    """Print the ROUGE-2 of pruned models beside that of the first: the paired difference on the test documents.

    Each is a git revision or an experiment; several with commas between are averaged document by document, as in
    s0,s1 for two seeds.
    """
    from lopside.report import comparison_table, read_scored

    click.echo(comparison_table(read_scored(base), [read_scored(other) for other in others]))


@main.command()
@click.argument("model", default="")
@click.option("--engine", default="transformers", show_default=True, type=click.Choice(list(ENGINES)))
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(ENGINE_DTYPES), help="Precision.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(DEVICES))
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Documents a call.")
@click.option("--source-tokens", default=512, show_default=True, type=click.IntRange(1), help="Of each document.")
@click.option("--new-tokens", default=64, show_default=True, type=click.IntRange(2), help="Of each summary.")
@click.option("--seconds", default=45.0, show_default=True, help="To measure for, once the models are built.")
@click.option("--target", metavar="SPEEDUP", help="Name the cells that are so much faster than dense: 3x.")
@click.option("--check", metavar="GRID", help="Time these cells too, to see how far predictions are off: 6-3,3-6.")
@click.option("--published", is_flag=True, help="Beside the authors' ratios, at their setting.")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write the heat map to this PNG file too."
)
def plan(
    model: str,
    batch: int,
    source_tokens: int,
    new_tokens: int,
    target: str | None,
    check: str | None,
    published: bool,
    plot: Path | None,
    **how: Any,
) -> None:
    """Predict the time of all 36 cells of MODEL on this machine, before anything is trained.

    MODEL is as in params.yaml, whose model is the default. A few cells are built and timed, a minute in all.
    flan-t5-small, -base and -large need no weights: their shape is known, and time does not depend on the rest.
    """
    from lopside.grid import grid_cells
    from lopside.params import load_params

    if not 0 <= how["seconds"] < math.inf:
        raise LopsideError(f"--seconds: {how['seconds']:g} is refused; allowed: a number of 0 or more")
    speedup = _speedup(target)
    cells = grid_cells(check) if check else ()
    revision = ""
    if not model:
        params = load_params()
        model, revision = params.model, params.parent.revision
    from lopside import plan as plans

    authors = plans.authors_speedups(model, batch) if published else None
    work = replace(plans.PAPER, batch=batch) if published else plans.Work(batch, source_tokens, new_tokens)
    made = plans.make_plan(model, work, revision=revision, check=cells, **how)
    if plot:
        plans.plan_heat_map(made, plot)
    click.echo(f"{plans.in_words(made)}\n\n{plans.plan_table(made, authors)}")
    if authors:
        click.echo(f"\n{plans.authors_line(made, authors)}")
    if speedup:
        click.echo(f"\n{plans.target_line(made, speedup)}")


def _speedup(text: str | None) -> float | None:
    try:
        speedup = None if text is None else float(text.removesuffix("x"))
    except ValueError:
        speedup = 0
    if speedup is not None and not speedup > 0:
        raise LopsideError(f"--target: {text!r} is refused; allowed: a number above 0, such as 3x")
    return speedup


@main.command()
@click.option("--count", default=20, show_default=True, type=click.IntRange(min=1), help="Documents to print.")
def examples(count: int) -> None:
    """Print the first test documents with their reference and the summaries of dense and pruned."""
    from lopside.side_by_side import side_by_side

    click.echo(side_by_side(count))


@main.command()
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--model", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the model.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write.  [default: the terminal]")
@click.option("--column", default="", help="Column that holds the documents.  [default: guessed]")
@click.option("--engine", default="transformers", show_default=True, type=click.Choice(list(ENGINES)))
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(ENGINE_DTYPES), help="Precision.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(DEVICES))
@click.option("--max-source-tokens", default=0, type=click.IntRange(0), help="Cut documents here.  [default: 1,024]")
@click.option("--max-new-tokens", default=0, type=click.IntRange(0), help="Longest summary.  [default: 128]")
@click.option("--num-beams", default=1, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1))
def summarize(file: Path, out: Path | None, column: str, **settings: Any) -> None:
    """Summarise the documents of FILE: .jsonl, .csv, .parquet (or .gz), else a document a line; - is standard input.

    A row comes out for each document, in order. With --out a run that was stopped goes on where it was.
    """
    from lopside.summarize import Settings, summarize

    summarize(file, out, Settings(**settings), column)
