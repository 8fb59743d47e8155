"""The pictures of a study, and how every picture looks.

Colours are told apart by colour-blind people, and each comes with a marker of its own, for print without colour. Equal
rows give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lopside import published
from lopside.estimates import Estimate
from lopside.files import new_file
from lopside.grid import Pair
from lopside.study import Cell, Speed, Study, in_words, pareto

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#999999"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe & Ito's."""
MARKERS = "osv^D*"
"""As many."""
THEIR_MARKERS = "x+12"
"""Of the authors' models."""

Box = tuple[float, float, float, float]
"""Left, bottom, right and top, in points."""

DELTA = "ROUGE-2: pruned minus dense, points"

RATIOS = (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4, 6, 8, 12, 16)
"""Ticks of speedups."""

LINES: dict[str, Callable[[int], Pair]] = {
    "6-x": lambda x: (6, x),
    "x-6": lambda x: (x, 6),
    "x-x": lambda x: (x, x),
}
"""The three lines of cells that the paper draws."""

SHAPES: dict[str, Callable[[Cell], bool]] = {
    "fewer decoder layers": lambda cell: cell.dec < cell.enc,
    "fewer encoder layers": lambda cell: cell.enc < cell.dec,
    "as many of both": lambda cell: cell.enc == cell.dec,
}
"""The colours of cells."""


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG; equal figures give equal bytes."""
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})


def tradeoff(study: Study, setting: str, path: Path) -> None:
    """What is lost against what is won, a panel for each batch size, with intervals and the cells that no other beats.

    Beside those of the paper's setting, the authors' models whose loss is known.
    """
    batches = study.batches(setting)
    figure, panels = _panels(len(batches), width=4.6, height=5.0)
    named: list[list[tuple[str, tuple[float, float]]]] = []
    for axes, batch in zip(panels, batches, strict=True):
        speed = setting, batch
        if axes is not panels[0]:
            axes.sharey(panels[0])
        if setting == "paper":
            _draw_authors(axes, batch)
        points = {pair: (found, cell.delta) for pair, cell in study.cells.items() if (found := cell.speedup(speed))}
        for number, (shape, is_of) in enumerate(SHAPES.items()):
            _draw_points(axes, [points[pair] for pair in points if is_of(study.cells[pair])], number, shape)
        front = pareto({pair: (x.value, y.value) for pair, (x, y) in points.items()})
        ends = [(points[pair][0].value, points[pair][1].value) for pair in front]
        axes.plot(*_columns(ends), ":", color="black", linewidth=1, label="beaten by no other", zorder=1)
        _frame_tradeoff(axes, f"{in_words(setting)}, batch {batch}")
        named.append([(study.cells[pair].label, (x.value, y.value)) for pair, (x, y) in points.items()])
    _legend_below(figure, panels[0])
    _name_points(figure, panels, named)
    save(figure, path)


def draw_tradeoff(points: Sequence[tuple[str, Estimate, Estimate]], title: str, path: str | Path) -> None:
    """What is lost against what is won, with both intervals: a point each by its label, speedup and difference."""
    figure, (axes,) = _panels(1, width=6.4, height=4.4)
    _draw_points(axes, [(x, y) for _, x, y in points], number=0)
    _frame_tradeoff(axes, title)
    _name_points(figure, [axes], [[(label, (x.value, y.value)) for label, x, y in points]])
    save(figure, path)


def _frame_tradeoff(axes: Axes, title: str) -> None:
    """Where dense is, and what the axes say."""
    axes.axhline(0, color=GREY, linewidth=1)
    axes.axvline(1, color=GREY, linewidth=1)
    axes.set_title(title)
    axes.set_xlabel("speedup: dense time / pruned time")
    axes.set_ylabel(DELTA)
    _in_ratios(axes)


def heat_maps(study: Study, speed: Speed, path: Path) -> None:
    """Difference in ROUGE-2, and speedup, over (enc, dec): a figure in each cell that was measured."""
    deltas = {pair: cell.delta.value for pair, cell in study.cells.items()}
    speedups = {pair: found.value for pair, cell in study.cells.items() if (found := cell.speedup(speed))}
    maps = {DELTA: (deltas, "{:+.2f}"), _speedup_label(speed): (speedups, "{:.2f}")}
    draw_heat_maps(maps, study.first.unit, path)


def draw_heat_maps(maps: Mapping[str, tuple[Mapping[Pair, float], str]], unit: str, path: Path) -> None:
    """A map a panel, by title: the figure of each (enc, dec), and how it is written."""
    figure, panels = _panels(len(maps), width=4.8, height=4.4)
    for axes, (title, (values, form)) in zip(panels, maps.items(), strict=True):
        _draw_heat_map(axes, values, form)
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel(f"decoder layers kept, {unit}")
        axes.set_ylabel(f"encoder layers kept, {unit}")
    save(figure, path)


def lines(study: Study, speed: Speed, path: Path) -> None:
    """Difference in ROUGE-2, and speedup, along 6-x, x-6 and x-x, with intervals."""
    figure, panels = _panels(2, width=4.8, height=4.2)
    kinds: tuple[tuple[str, float, Callable[[Cell], Estimate | None]], ...] = (
        (DELTA, 0, lambda cell: cell.delta),
        (_speedup_label(speed), 1, lambda cell: cell.speedup(speed)),
    )
    for axes, (label, neutral, estimate_of) in zip(panels, kinds, strict=True):
        axes.axhline(neutral, color=GREY, linewidth=1)
        for number, (name, pair_at) in enumerate(LINES.items()):
            cells = {x: study.cells[pair_at(x)] for x in range(1, 7) if pair_at(x) in study.cells}
            found = {x: estimate for x, cell in cells.items() if (estimate := estimate_of(cell))}
            # Side by side, so that intervals can be told apart.
            places = [Estimate(x, x, x) for x in (each + 0.08 * (number - 1) for each in found)]
            _draw_points(axes, list(zip(places, found.values(), strict=True)), number, name, line="-")
        axes.set_xlabel("x: layers kept, sixths")
        axes.set_xlim(0.6, 6.4)
        axes.set_ylabel(label)
    _legend_below(figure, panels[0])
    save(figure, path)


def sizes(study: Study, speed: Speed, path: Path) -> None:
    """ROUGE-2, and time, of each cell against its number of parameters."""
    cells = study.cells.values()
    shapes = {shape: [(study, cell) for cell in cells if is_of(cell)] for shape, is_of in SHAPES.items()}
    _draw_sizes(shapes, speed, path)


def models(mains: Sequence[Study], speed: Speed, path: Path) -> None:
    """The same of several models, whose studies are of one data set and one machine."""
    _draw_sizes({study.first.model: [(study, cell) for cell in study.cells.values()] for study in mains}, speed, path)


def _draw_sizes(groups: Mapping[str, Sequence[tuple[Study, Cell]]], speed: Speed, path: Path) -> None:
    figure, panels = _panels(2, width=4.8, height=4.4)
    measures: tuple[Callable[[Study, Cell], float | None], ...] = (
        lambda study, cell: cell.figure("pruned.rouge2"),
        lambda study, cell: study.milliseconds(cell, speed),
    )
    named: list[list[tuple[str, tuple[float, float]]]] = []
    for axes, measure in zip(panels, measures, strict=True):
        named.append([])
        for (name, cells), marker, colour in zip(groups.items(), cycle(MARKERS), cycle(COLOURS), strict=False):
            found = [(cell.label, cell.figure("parameters.pruned"), measure(study, cell)) for study, cell in cells]
            points = [(label, (size / 1e6, value)) for label, size, value in found if size and value is not None]
            axes.plot(*_columns(point for _, point in points), marker, color=colour, label=name)
            named[-1] += points
        axes.set_xlabel("parameters, millions")
        axes.margins(0.12)
    panels[0].set_ylabel("ROUGE-2 on test documents, 0 to 100")
    panels[1].set_ylabel(f"milliseconds a batch, {in_words(speed[0])}, batch {speed[1]}")
    panels[1].set_ylim(bottom=0)
    _legend_below(figure, panels[0])
    _name_points(figure, panels, named)
    save(figure, path)


def pooled(ours: Mapping[Pair, Estimate], theirs: Mapping[Pair, Sequence[float]], path: Path) -> None:
    """The average degradation of each cell, ours with its interval, the authors' with each of their models."""
    from matplotlib.figure import Figure

    pairs = sorted(ours.keys() | theirs.keys())
    figure = Figure(figsize=(7.2, 1.8 + 0.3 * len(pairs)), layout="constrained")
    axes = figure.subplots()
    places = {pair: float(place) for place, pair in enumerate(pairs)}
    _draw_points(
        axes,
        [(ours[pair], Estimate(*[places[pair] + 0.15] * 3)) for pair in pairs if pair in ours],
        0,
        "ours, mean of models and data sets",
    )
    singles = [(value, places[pair] - 0.15) for pair in pairs for value in theirs.get(pair, ())]
    axes.plot(*_columns(singles), "|", color=COLOURS[1], label="authors, a model and data set")
    means = [(sum(theirs[pair]) / len(theirs[pair]), places[pair] - 0.15) for pair in pairs if theirs.get(pair)]
    axes.plot(*_columns(means), MARKERS[1], color=COLOURS[1], markerfacecolor="white", label="authors, mean")
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(list(places.values()), ["{}-{}".format(*pair) for pair in pairs])
    axes.set_ylabel("encoder-decoder layers kept, sixths")
    axes.set_xlabel(DELTA)
    axes.grid(alpha=0.3)
    _legend_below(figure, axes)
    save(figure, path)


def draw_courses(
    lines: Iterable[tuple[str, Sequence[float], Sequence[float]]], x_label: str, title: str, path: str | Path
) -> None:
    """ROUGE-2 on validation documents in the course of training: a line each by its label, x and y."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for (label, x, y), colour, marker in zip(lines, cycle(COLOURS), cycle(MARKERS), strict=False):
        axes.plot(x, y, color=colour, marker=marker, label=label)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel("ROUGE-2 on validation documents")
    axes.grid(alpha=0.3)
    axes.legend(title=title)
    save(figure, path)


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, height), layout="constrained")
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return figure, panels


def _draw_points(
    axes: Axes, points: Sequence[tuple[Estimate, Estimate]], number: int, label: str | None = None, line: str = ""
) -> None:
    """Points with the intervals of both coordinates, in the colour and marker of this number."""
    (x, x_reach), (y, y_reach) = (_with_reach(column) for column in _columns(points))
    axes.errorbar(
        x,
        y,
        xerr=x_reach,
        yerr=y_reach,
        fmt=MARKERS[number],
        linestyle=line,
        color=COLOURS[number],
        elinewidth=0.8,
        capsize=2,
        label=label,
    )


def _with_reach(estimates: Sequence[Estimate]) -> tuple[list[float], list[list[float]]]:
    """Values, and how far their intervals reach down and up, as matplotlib wants them."""
    down = [estimate.value - estimate.low for estimate in estimates]
    up = [estimate.high - estimate.value for estimate in estimates]
    return [estimate.value for estimate in estimates], [down, up]


def _draw_authors(axes: Axes, batch: int) -> None:
    for number, (model, deltas) in enumerate(published.deltas().items()):
        speedups = published.speedups()[model].get(batch, {})
        points = [(speedups[pair].value, delta) for pair, delta in deltas.items() if pair in speedups]
        label = f"authors: flan-t5-{model[0]}, {model[1]}"
        axes.plot(*_columns(points), THEIR_MARKERS[number], color=GREY, markersize=5, label=label, zorder=1)


def _draw_heat_map(axes: Axes, values: Mapping[Pair, float], form: str) -> None:
    amounts = range(1, max([6, *(amount for pair in values for amount in pair)]) + 1)
    grid = [[values.get((enc, dec), float("nan")) for dec in amounts] for enc in amounts]
    ends = 0.5, len(amounts) + 0.5
    image = axes.imshow(grid, origin="lower", cmap="cividis", extent=(*ends, *ends))
    axes.set_xticks(amounts)
    axes.set_yticks(amounts)
    middle = sum(image.get_clim()) / 2
    for (enc, dec), value in values.items():
        colour = "black" if value > middle else "white"
        axes.text(dec, enc, form.format(value), ha="center", va="center", color=colour, fontsize="small")
    axes.grid(visible=False)


def _name_points(
    figure: Figure, panels: Sequence[Axes], named: Sequence[Sequence[tuple[str, tuple[float, float]]]]
) -> None:
    """Write the label of each panel's points beside them, once all else is drawn."""
    figure.draw_without_rendering()  # now the panels have their final places
    for axes, points in zip(panels, named, strict=True):
        _write_labels(axes, points, figure.dpi / 72)


def _write_labels(axes: Axes, points: Sequence[tuple[str, tuple[float, float]]], scale: float) -> None:
    """Each where there is room away from the points and the labels before it. ``scale``: pixels a point."""
    markers = [axes.transData.transform(point) / scale for _, point in points]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in markers]
    for (label, point), (x, y) in zip(points, markers, strict=True):
        width = 4.4 * len(label)
        places = [
            (x + across, y + up, x + across + width, y + up + 8)
            for reach in (4, 12, 20)
            for up in (reach, -8 - reach, -4)
            for across in (reach, -reach - width)
        ]
        box = next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])
        taken.append(box)
        offset = box[0] - x, box[1] - y
        axes.annotate(label, point, xytext=offset, textcoords="offset points", fontsize="x-small")


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = max(2, int(figure.get_figwidth() // 2.6))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize="small")


def _in_ratios(axes: Axes) -> None:
    """A scale of x on which equal ratios are equally far apart."""
    axes.set_xscale("log")
    axes.set_xticks([tick for tick in RATIOS if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()


def _columns(points: Any) -> list[list[Any]]:
    """Pairs as two lists, which may be empty."""
    return [list(column) for column in zip(*points, strict=True)] or [[], []]


def _speedup_label(speed: Speed) -> str:
    return f"speedup, {in_words(speed[0])}, batch {speed[1]}"
