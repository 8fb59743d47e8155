"""Which layers of a stack stay: pure functions from (layers, how many, strategy) to zero-based indices."""

import csv
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Literal

from lopside.errors import LopsideError

STRATEGIES = ("uniform", "published", "first", "last", "explicit", "importance")
UNITS = ("sixths", "layers")

Stack = Literal["encoder", "decoder"]
# The key of params.yaml that says how much of a stack is kept.
SHARE: dict[Stack, str] = {"encoder": "enc", "decoder": "dec"}

# The end of each stack that `uniform` keeps when it keeps one layer only: the better of first and last, as measured
# by fine-tuning both on the built-in model (see README); -1 is the last layer.
SINGLE: dict[Stack, int] = {"encoder": 0, "decoder": -1}


def keep_layers(
    layers: int,
    sixths: int,
    strategy: str,
    explicit: Sequence[int] | None = None,
    stack: Stack = "encoder",
    unit: str = "sixths",
) -> tuple[int, ...]:
    """Choose the layers of one stack that stay.

    layers: how many the stack has, 1 or more.
    sixths: how much to keep, in ``unit``; :func:`kept_count` says how many layers that is. Not read by ``explicit``.
    strategy: one of :data:`STRATEGIES`.
        uniform: evenly spread, first and last included where two or more are kept. Kept layer i of n is
        i * (layers - 1) / (n - 1), rounded to the nearest whole number, halves upwards.
        published: the table of Campos and Zhai for stacks of 8, 12 and 24 layers.
        first, last: the layers nearest the input, nearest the output.
        explicit: the indices given in ``explicit``.
        importance: not from here: it asks the model, by :func:`lopside.importance.rank_layers`.
    stack: which one; matters to ``uniform`` where it keeps one layer (:data:`SINGLE`), and to messages.
    unit: one of :data:`UNITS`; with "layers", ``sixths`` is a number of layers.

    Returns sorted, zero-based indices. Raises LopsideError for a value out of range, an unknown strategy, and a
    number of layers without a published table.
    """
    if strategy not in STRATEGIES:
        raise LopsideError(unknown("keep.strategy", strategy, STRATEGIES))
    if strategy == "importance":
        raise LopsideError("keep.strategy: 'importance' is measured on a model; see lopside.importance.rank_layers")
    if strategy == "explicit":
        return check_kept(explicit or (), layers, f"keep.{stack}")
    count = kept_count(layers, sixths, unit, SHARE[stack])
    if strategy == "published":
        return _published(layers, count)
    if strategy == "first":
        return tuple(range(count))
    if strategy == "last":
        return tuple(range(layers - count, layers))
    return _uniform(layers, count, SINGLE[stack])


def kept_count(layers: int, amount: int, unit: str = "sixths", key: str = "sixths") -> int:
    """How many of ``layers`` layers an amount is: sixths are rounded down, but never to none.

    unit: one of :data:`UNITS`. key: what messages call the amount, such as "enc".

    Raises LopsideError for an amount below 1, or above 6 sixths or all layers.
    """
    if unit not in UNITS:
        raise LopsideError(unknown("keep.unit", unit, UNITS))
    if not _is_int(layers) or layers < 1:
        raise LopsideError(f"layers: {layers!r} is not a whole number of 1 or more")
    most = 6 if unit == "sixths" else layers
    if not _is_int(amount) or not 1 <= amount <= most:
        raise LopsideError(f"{key}: {amount!r} is not a whole number of {unit} from 1 to {most}")
    return max(1, layers * amount // 6) if unit == "sixths" else amount


def check_kept(kept: Sequence[int], layers: int, key: str) -> tuple[int, ...]:
    """Return ``kept`` as a tuple if it is a non-empty, strictly rising run of indices below ``layers``.

    Raises LopsideError that begins with ``key``.
    """
    if not all(_is_int(index) for index in kept):
        raise LopsideError(f"{key}: {kept!r} is not a list of whole numbers")
    if not kept:
        raise LopsideError(f"{key}: is empty; name at least one layer from 0 to {layers - 1}")
    if any(later <= earlier for earlier, later in pairwise(kept)):
        raise LopsideError(f"{key}: {list(kept)} is not in rising order, each layer once")
    if kept[0] < 0 or kept[-1] >= layers:
        raise LopsideError(f"{key}: {list(kept)} names a layer that is not there; there are 0 to {layers - 1}")
    return tuple(kept)


def unknown(key: str, value: object, allowed: Sequence[str]) -> str:
    """The message for a ``value`` that is not among the ``allowed`` names, with the nearest one where one is near."""
    near = get_close_matches(str(value), allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{key}: {value!r} is unknown{hint} Allowed: {', '.join(allowed)}"


def _uniform(layers: int, count: int, single: int) -> tuple[int, ...]:
    if count == 1:
        return (single % layers,)
    gaps = count - 1
    # Whole numbers only, so that no machine rounds differently: floor((2a + b) / 2b) is a/b rounded, halves upwards.
    return tuple((2 * i * (layers - 1) + gaps) // (2 * gaps) for i in range(count))


def _published(layers: int, count: int) -> tuple[int, ...]:
    table = _published_table()
    if (layers, count) in table:
        return table[layers, count]
    counts = [kept for stack, kept in sorted(table) if stack == layers]
    if counts:
        known = f"keeps {', '.join(map(str, counts))} of {layers} layers, and not {count}"
    else:
        stacks = ", ".join(str(stack) for stack in sorted({stack for stack, _ in table}))
        known = f"has tables for stacks of {stacks} layers, and this one has {layers}"
    raise LopsideError(f"keep.strategy: 'published' {known}; choose another strategy")


@cache
def _published_table() -> dict[tuple[int, int], tuple[int, ...]]:
    """(layers, how many are kept) -> kept, from published_layers.csv, which names its source."""
    text = files("lopside").joinpath("published_layers.csv").read_text(encoding="utf-8")
    table = {}
    for row in csv.DictReader(_without_comments(text)):
        kept = tuple(int(index) for index in row["kept"].split())
        table[int(row["layers"]), len(kept)] = kept
    return table


def _without_comments(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if not line.startswith("#"))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
