"""The report: all of the history in one Markdown page with pictures, and the same page as one HTML file."""

from __future__ import annotations

import base64
import html
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lopside import pictures, published
from lopside.claims import Fit, Verdict, fits, same_across, study_verdicts
from lopside.estimates import IN_POINTS, IN_TIMES, Estimate, mean
from lopside.examples import Example, read_examples
from lopside.files import new_file
from lopside.grid import Pair
from lopside.history import HISTORY, TRAINING, Row, seedless
from lopside.report import markdown_table
from lopside.study import Cell, Speed, Study, Subject, counted, in_words, main_studies, studies

MARKDOWN, HTML = "report.md", "report.html"

PICTURED = 3
"""Studies that are drawn, in their order, but the first alone for every setting: pictures take time."""

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 75rem; margin: 2rem auto;
  padding: 0 1rem; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.2; margin-top: 2em; }
img { max-width: 100%; height: auto; }
.table { overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; font-size: 0.85rem; overflow-wrap: normal; }
th, td { border: 1px solid #ccc; padding: 0.3em 0.6em; vertical-align: top; }
th { background: #f2f2f2; text-align: left; }
td[style*="right"] { white-space: nowrap; }
@media print { body { max-width: none; margin: 0; font-size: 10pt; } .table { overflow: visible; }
  table { font-size: 7.5pt; } img, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""


@dataclass
class _Page:
    """Paragraphs of Markdown, written one after another, and the folder of its pictures."""

    folder: Path
    parts: list[str] = field(default_factory=list)

    def say(self, *paragraphs: str) -> None:
        self.parts += [paragraph for paragraph in paragraphs if paragraph]

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> None:
        """A table whose last ``numbers`` columns are set to the right."""
        rule = [*["---"] * (len(header) - numbers), *["---:"] * numbers]
        self.say(markdown_table([header, rule, *rows]))

    def picture(self, name: str, words: str) -> Path:
        """Where a picture belongs that is shown here; ``words`` say what it shows."""
        self.say(f"![{words}]({name})")
        return self.folder / name


def write_report(rows: Sequence[Row], folder: str | Path) -> list[Path]:
    """Write the report on these rows into ``folder``: report.md, report.html and PNGs. Returns the paths of the PNGs.

    The HTML file needs none of the others. Other files of the folder are left alone. Three documents of the first
    study are shown where DVC's cache has them; all else is from the rows.
    """
    folder = Path(folder)
    found = studies(rows)
    mains = main_studies(found)
    page = _Page(folder)
    page.say("# What lopside measured", _summary(rows, found))
    _claims(page, mains)
    for number, study in enumerate(found, start=1):
        _study(page, study, number, first=study is next(iter(mains.values()), None))
    _models(page, mains)
    _pooled(page, mains)
    _regression(page, mains)
    _examples(page, found)
    _method(page, rows, found)
    text = "\n\n".join(page.parts) + "\n"
    for name, content in ((MARKDOWN, text), (HTML, to_html(text, folder))):
        with new_file(folder / name) as path:
            path.write_text(content, encoding="utf-8")
    return [folder / name for name in re.findall(r"^!\[.*\]\((.*)\)$", text, re.MULTILINE)]


def to_html(text: str, folder: Path) -> str:
    """A Markdown page as one HTML file that holds its pictures, which lie in ``folder``. HTML in the text is text."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")
    body = re.sub(r'(?<=<img src=")[^"]+', lambda match: _inlined(folder / match[0]), body)
    title = html.escape(text.partition("\n")[0].lstrip("# "))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def plain(text: str) -> str:
    """A text for Markdown that shows as it is, in one line."""
    return re.sub(r"([\\`*_\[\]<>|&~$])", r"\\\1", " ".join(text.split()))


def _inlined(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _summary(rows: Sequence[Row], found: Sequence[Study]) -> str:
    stale = sum(bool(row.stale) for row in rows)
    left_out = f" {stale} of the rows are stale (see the last column of {HISTORY}) and left out here." if stale else ""
    return (
        f"{counted(len(rows), 'row')} of {HISTORY} make {counted(len(found), 'study', 'studies')}: a study holds what "
        "may be compared, as it shares data, model, weights, training, strategy, scoring, machine and settings of the "
        "timer; further seeds of its cells may come from elsewhere, without their times. Those trained for whole "
        "epochs come first, then those of most cells. "
        f"Everything is relative to dense, the full model trained as long on the same batches.{left_out}"
    )


def _claims(page: _Page, mains: Mapping[Subject, Study]) -> None:
    page.say("## The paper's claims")
    if not mains:
        page.say("Nothing was measured yet that the claims speak of: cells in sixths, of one strategy.")
        return
    main = next(iter(mains.values()))
    page.say(
        f"1 to 4 for {plain(main.title)} ({_where(main)}), 5 for the first study of each of our models and data sets. "
        "The authors' figures are those they published for FLAN-T5 on CNN/DailyMail and XSUM: ROUGE-2 of single "
        "runs on the validation split, times of up to 20 tokens on a GPU. A verdict goes by our interval: "
        "*undecided* where it holds the bound, or there are fewer than two comparisons, *not measured* where rows "
        "are missing; 5 takes two models and two data sets. The best cells of 3 and 4 are chosen by the figures "
        "they are judged by, which flatters them. Intervals of a difference between two cells are wider than they "
        "need be, as the rows do not say how their errors go together; `lopside compare` goes by the documents and "
        "has the paired ones. " + _luck(mains)
    )
    found = [*study_verdicts(main), same_across(mains)]
    usual = ("paper", 1) if ("paper", 1) in main.speeds else next(iter(main.speeds), None)
    page.say(f"With times of {_at(usual)}:" if usual else "Nothing was timed:")
    _verdict_table(page, [each for each in found if each.speed in (None, usual)])
    if usual:
        page.say("And 2 to 4 for each setting and batch size that was timed:")
        _verdict_table(page, [each for each in found if each.speed])


def _luck(mains: Mapping[Subject, Study]) -> str:
    """Whether the intervals of the claims cover what training leaves to chance."""
    known = {" on ".join(subject): study for subject, study in mains.items() if study.seed_noise}
    if not known:
        return "What training leaves to chance is in none of them: no cell was trained with several seeds."
    found = []
    for subject, study in known.items():
        assert study.seed_noise
        deviation, freedom = study.seed_noise
        own = [statistics.stdev(figures) for figures in study.singles.values()]
        found.append(
            f"from seed to seed a figure of {plain(subject)} varies by {deviation:.2f} points (standard deviation, "
            f"{counted(freedom, 'degree')} of freedom), which is taken to be so for every cell (by themselves: "
            f"{min(own):.2f} to {max(own):.2f})"
        )
    others = [plain(" on ".join(subject)) for subject in mains if " on ".join(subject) not in known]
    without = f" In those of {' and '.join(others)} it is not, for want of several seeds." if others else ""
    return f"What training leaves to chance is in those of ROUGE-2: {'; '.join(found)}.{without}"


def _verdict_table(page: _Page, verdicts: Iterable[Verdict]) -> None:
    page.table(
        ["claim", "measure", "timed", "ours", "the authors'", "verdict"],
        (
            [
                each.claim,
                each.measure,
                _at(each.speed) if each.speed else "",
                plain(each.ours),
                plain(each.theirs),
                f"**{each.verdict}**",
            ]
            for each in verdicts
        ),
    )


def _study(page: _Page, study: Study, number: int, first: bool) -> None:
    page.say(f"## {plain(study.title)}", f"{_where(study)}.")
    header = [
        "enc-dec",
        "seeds",
        "parameters",
        "ROUGE-2 dense",
        "ROUGE-2 pruned",
        "difference",
        "with training's luck",
        "seed to seed",
        "retained",
    ]
    page.table(header, (_cell(study, cell) for cell in study.cells.values()), numbers=len(header) - 1)
    page.say(_control(study))
    prefix = "" if number == 1 else f"{number}-"
    for setting in study.settings:
        header = ["enc-dec", *(f"speedup, {_at((setting, batch))}" for batch in study.batches(setting))]
        rows = ([cell.label, *_speedups(study, cell, setting)] for cell in study.cells.values())
        page.table(header, rows, numbers=len(header) - 1)
        if number == 1 or (number <= PICTURED and setting == study.settings[0]):
            words = f"ROUGE-2 lost against speed won, {in_words(setting)}, by batch size"
            pictures.tradeoff(study, setting, page.picture(f"{prefix}tradeoff-{setting}.png", words))
    if not study.speeds:
        page.say("Not drawn, as nothing was timed.")
    elif number > PICTURED:
        page.say(f"Not drawn, as {PICTURED} studies are before it.")
    else:
        if "paper" not in study.settings:
            page.say("The authors' points are left out: they compare with the paper's setting, which was not timed.")
        _draw(page, study, prefix)
    if study.in_sixths and not first and len(study.cells) > 1:
        page.say("The first four claims, here:")
        _verdict_table(page, study_verdicts(study))


def _control(study: Study) -> str:
    """What the timer says where nothing was pruned; nothing where no such cell was timed."""
    dense = (cell for cell in study.cells.values() if study.is_dense(cell))
    singles = (
        replace(cell, rows=(row,)).speedup(speed) for cell in dense for row in cell.rows for speed in study.speeds
    )
    found = [speedup for speedup in singles if speedup]
    if not found:
        return ""
    held = sum(speedup.low <= 1 <= speedup.high for speedup in found)
    return (
        f"The control, where pruned is dense itself: 1 lies in {held} of {counted(len(found), 'interval')} of the "
        "speedup, over seeds, settings and batch sizes."
    )


def _cell(study: Study, cell: Cell) -> list[str]:
    singles = [row.figure("delta.rouge2") for row in cell.rows]
    figures = [cell.figure(f"{side}.rouge2") for side in ("dense", "pruned")]
    size = cell.figure("parameters.pruned")
    return [
        cell.label,
        ", ".join(str(row.seed) for row in cell.rows),
        f"{size / 1e6:.1f} M" if size else "",
        *("" if figure is None else f"{figure:.2f}" for figure in figures),
        IN_POINTS.format(*cell.delta),
        "[{:+.2f}, {:+.2f}]".format(*study.delta(cell)[1:]) if study.seed_noise else "",
        f"{min(singles):+.2f} to {max(singles):+.2f}" if len(singles) > 1 else "",
        "{:.1%} [{:.1%}, {:.1%}]".format(*cell.retained) if cell.retained else "",
    ]


def _speedups(study: Study, cell: Cell, setting: str) -> list[str]:
    found = (cell.speedup((setting, batch)) for batch in study.batches(setting))
    return [IN_TIMES.format(*speedup) if speedup else "" for speedup in found]


def _draw(page: _Page, study: Study, prefix: str) -> None:
    usual = study.speeds[0]
    where = _at(usual)
    pictures.heat_maps(
        study, usual, page.picture(f"{prefix}heat-maps.png", f"ROUGE-2 lost and speedup for each cell, {where}")
    )
    if study.in_sixths:
        words = f"ROUGE-2 lost and speedup along 6-x, x-6 and x-x, {where}"
        pictures.lines(study, usual, page.picture(f"{prefix}lines.png", words))
    pictures.sizes(
        study, usual, page.picture(f"{prefix}sizes.png", f"ROUGE-2 and time against the number of parameters, {where}")
    )


def _models(page: _Page, mains: Mapping[Subject, Study]) -> None:
    """A picture for each data set on which several models were trained, scored and timed alike."""
    groups: dict[tuple[object, ...], list[Study]] = defaultdict(list)
    for study in mains.values():
        row = study.first
        groups[row.dataset, row.training, seedless(row.signature), row.machine, row.timing].append(study)
    pictured = 0
    for each in groups.values():
        common = [speed for speed in each[0].speeds if all(speed in study.speeds for study in each)]
        if len(each) > 1 and common:
            pictured += 1
            if pictured == 1:
                page.say("## Size and accuracy", "Cells of several models, by what is left of their parameters.")
            words = (
                f"ROUGE-2 and time against the number of parameters on {plain(each[0].first.dataset)}, {_at(common[0])}"
            )
            pictures.models(each, common[0], page.picture(f"models-{pictured}.png", words))


def _pooled(page: _Page, mains: Mapping[Subject, Study]) -> None:
    ours: dict[Pair, list[Estimate]] = defaultdict(list)
    for study in mains.values():
        for pair, cell in study.cells.items():
            ours[pair].append(study.delta(cell))
    if not ours:
        return
    theirs: dict[Pair, list[float]] = defaultdict(list)
    for figures in published.deltas().values():
        for pair, delta in figures.items():
            theirs[pair].append(delta)
    means = {pair: mean(estimates) for pair, estimates in ours.items()}
    page.say(
        "## Average degradation",
        f"ROUGE-2 minus dense, the mean over {counted(len(mains), 'pair')} of model and data set of ours, each by its "
        f"first study ({'; '.join(plain(study.title) for study in mains.values())}), and over those of the "
        "authors whose full model has a sound figure. Not all of them have every cell: *of* says how many do. The "
        "intervals are as those of the claims: with the luck of training, where that is known.",
    )
    pictures.pooled(
        means, theirs, page.picture("pooled.png", "Average ROUGE-2 lost for each cell, ours and the authors'")
    )
    page.table(
        ["enc-dec", "ours", "of", "the authors'", "of"],
        (
            [
                "{}-{}".format(*pair),
                IN_POINTS.format(*means[pair]) if pair in means else "",
                str(len(ours.get(pair, ()))),
                f"{sum(theirs[pair]) / len(theirs[pair]):+.2f}" if pair in theirs else "",
                str(len(theirs.get(pair, ()))),
            ]
            for pair in sorted(ours.keys() | theirs.keys(), reverse=True)
        ),
        numbers=4,
    )


def _regression(page: _Page, mains: Mapping[Subject, Study]) -> None:
    ours, theirs = fits(mains)
    page.say(
        "## ROUGE-2 lost for each sixth of the layers",
        "Least squares of the ROUGE-2 points lost on the sixths of the encoder and of the decoder that were removed, "
        "through zero, 6-6 left out; a cell is one point, whatever its seeds. The intervals (95%, Student) take cells "
        "to err independently, and each sixth to cost as much as the one before it.",
    )
    header = ["model and data", "whose", "cells", "points a sixth of the encoder", "points a sixth of the decoder"]
    rows = [*(_fit(fit, "ours") for fit in ours), *(_fit(fit, "the authors'") for fit in theirs)]
    page.table(header, rows, numbers=3)
    if not ours:
        page.say(
            "Of ours there are too few cells yet: three besides 6-6 at least, of one study and not all of them x-x."
        )


def _fit(fit: Fit, whose: str) -> list[str]:
    coefficients = ("{:.2f} [{:.2f}, {:.2f}]".format(*each) for each in (fit.encoder, fit.decoder))
    return [plain(fit.subject), whose, str(fit.cells), *coefficients]


def _examples(page: _Page, found: Sequence[Study]) -> None:
    page.say("## Three documents")
    if not found:
        page.say("None, as there is no study.")
        return
    cells = found[0].cells
    row = (cells.get((6, 1)) or list(cells.values())[-1]).rows[0]
    read = read_examples(row)
    if isinstance(read, str):
        page.say(f"Left out: the summaries of {plain(row.experiment)} cannot be read here ({plain(read)}).")
        return
    page.say(f"Of {plain(row.experiment)}, drawn at random, with ROUGE-2 of each summary.")
    for example in read:
        _example(page, example)


def _example(page: _Page, example: Example) -> None:
    page.say(f"**Document:** {plain(example.document)}", f"**Reference:** {plain(example.reference)}")
    sides = {"dense": example.dense, "pruned": example.pruned}
    header = [f"{side}, {example.rouge2[side]:.1f}" for side in sides]
    page.table(header, [[plain(summary) or "(empty)" for summary in sides.values()]])


def _method(page: _Page, rows: Sequence[Row], found: Sequence[Study]) -> None:
    page.say(
        "## How it was measured",
        "- ROUGE-2 is the F-measure x 100. Its intervals (95%, paired bootstrap over the test documents) cover the "
        "choice of documents. With several seeds a figure is their mean, and its interval the mean of theirs; the "
        "column *seed to seed* has the range of the single ones, which is what training leaves to chance. The column "
        "*with training's luck* has the interval that covers that too, dense's included, as claims and "
        "`lopside recommend` take it; so does the average, where it is known, while the pictures of a study have the "
        "interval of documents alone.",
        "- A speedup is the median over interleaved pairs of dense time / pruned time in one process, with a 95% "
        "interval from order statistics. Milliseconds compare on one machine alone, ratios travel better. At the "
        "paper's setting a batch is always the first documents of the test split, at batch 1 a single one: its "
        "interval covers neither the choice of documents nor that another training writes other summaries.",
    )
    page.table(
        ["study", "documents", "inputs", "revisions", "days", "machine", "timing", *TRAINING, "scoring"],
        (
            [
                plain(study.title),
                ", ".join(dict.fromkeys(str(row.documents) for row in study.rows)),
                study.first.inputs,
                ", ".join(dict.fromkeys(row.revision for row in study.rows)),
                " to ".join(dict.fromkeys([min(days := [row.date for row in study.rows]), max(days)])),
                plain(study.first.machine),
                plain(study.first.timing),
                *map(plain, study.first.training),
                plain(study.first.signature),
            ]
            for study in found
        ),
    )
    page.say(f"All {counted(len(rows), 'row')}, with what each was run with: {HISTORY}.")


def _at(speed: Speed) -> str:
    return f"{in_words(speed[0])}, batch {speed[1]}"


def _where(study: Study) -> str:
    seeds = sorted({len(cell.rows) for cell in study.cells.values()})
    many = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else counted(seeds[0], "seed")
    elsewhere = (
        f" ({counted(study.elsewhere, 'row')} of other seeds elsewhere, or otherwise)" if study.elsewhere else ""
    )
    return (
        f"{counted(len(study.cells), 'cell')}, {many} each; timed on {plain(study.first.machine)}{elsewhere}; "
        f"{study.first.documents:,} test documents; {plain(study.training)}"
    )
