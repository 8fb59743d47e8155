"""The console command ``lopside``: what is no stage of the pipeline."""

import sys
from pathlib import Path
from typing import Any

import click

from lopside import __version__
from lopside.errors import LopsideError
from lopside.params import DEVICES, ENGINE_DTYPES, ENGINES


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
    """Look at what the pipeline measured; the pipeline itself runs by `dvc repro` and `dvc exp run`."""


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
@click.option("--count", default=20, show_default=True, type=click.IntRange(min=1), help="Documents to print.")
def examples(count: int) -> None:
    """Print the first test documents with their reference and the summaries of dense and pruned."""
    from lopside.examples import examples

    click.echo(examples(count))


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
