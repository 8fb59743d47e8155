"""The cells of a sweep: which there are, what each is called and which params it has. Nothing is run here."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lopside.errors import LopsideError
from lopside.history import SIXTHS, changes, check_confidence, flat
from lopside.params import load_params
from lopside.repository import PARAMS, SHORT

Pair = tuple[int, int]
"""Layers kept of encoder and decoder, in sixths unless it is said otherwise."""

ALL = SIXTHS
"""Sixths: all layers of a stack."""
FEWER = range(ALL - 1, 0, -1)
DENSE: Pair = (ALL, ALL)

GRIDS: dict[str, tuple[Pair, ...]] = {
    "paper": (DENSE, *((ALL, x) for x in FEWER), *((x, ALL) for x in FEWER), *((x, x) for x in FEWER)),
    "full": tuple((enc, dec) for enc in range(ALL, 0, -1) for dec in range(ALL, 0, -1)),
    "reduced": ((6, 6), (6, 3), (6, 1), (3, 6), (1, 6), (3, 3), (1, 1)),
}
"""Name -> (enc, dec) of its cells. ``paper``: those that Campos and Zhai trained."""


@dataclass(frozen=True)
class Cell:
    """One experiment of a sweep."""

    name: str
    enc: int
    dec: int
    seed: int
    params: Mapping[str, Any]
    """All of its params.yaml, flat."""


@dataclass(frozen=True)
class Plan:
    """What a sweep runs, and on what."""

    commit: str
    """The commit whose code and params.yaml it runs."""
    cells: tuple[Cell, ...]
    overrides: tuple[str, ...]
    """``key=value`` that all cells are given."""


def names(pairs: Iterable[Pair], between: str = ", ") -> str:
    """Cells in words, as in ``6-1, 3-3``."""
    return between.join("{}-{}".format(*pair) for pair in pairs)


def grid_cells(grid: str) -> tuple[Pair, ...]:
    """The cells of a named grid, or of a list such as ``6-1,3-3``, each once. Raises LopsideError for another text."""
    if grid in GRIDS:
        return GRIDS[grid]
    parts = [part.strip() for part in grid.split(",")]
    if not all(re.fullmatch(r"[1-9]\d*-[1-9]\d*", part) for part in parts):
        raise LopsideError(f"grid: {grid!r} is refused; allowed: {', '.join(GRIDS)}, or cells such as 6-1,3-3")
    pairs = (part.split("-") for part in parts)
    return tuple(dict.fromkeys((int(enc), int(dec)) for enc, dec in pairs))


def plan(grid: str, seeds: int, overrides: Sequence[str], params: str, commit: str) -> Plan:
    """The cells of a grid, seed by seed, so that a sweep that is stopped has whole grids of the first seeds.

    seeds: how many; they are counted up from that of the params.
    overrides: ``key=value``, as `dvc exp run -S` takes them.
    params: the text of params.yaml at ``commit``.

    A name says the layers, the strategy, the seed and the commit; where other params are overridden, it ends with a
    digest of these, so that no two experiments of one name differ. Raises LopsideError where there is no such grid, or
    params would be refused.
    """
    pairs = grid_cells(grid)
    if seeds < 1:
        raise LopsideError(f"--seeds: {seeds} is refused; allowed: a whole number of 1 or more")
    keys = [override.partition("=")[0].rpartition(":")[2].lstrip("+~") for override in overrides]
    for key in ("enc", "dec"):
        if key in keys:
            raise LopsideError(f"-S {key}: is refused, for the grid sets it; give cells instead, as in 6-1,3-3")
    # What holds for the most layers and the last seed holds for all.
    most = [f"enc={max(enc for enc, _ in pairs)}", f"dec={max(dec for _, dec in pairs)}"]
    common = _overridden(params, [*overrides, *most])
    if common["keep.strategy"] == "explicit":
        raise LopsideError("keep.strategy: 'explicit' is refused, for it does not go by the cells of a grid")
    check_confidence(common)
    last = common["seed"] + seeds - 1
    _overridden(params, [*overrides, *most, f"seed={last}"])
    changed = changes(flat(yaml.safe_load(params)), common)
    digest = f"-{hashlib.sha256(' '.join(changed).encode()).hexdigest()[:6]}" if changed else ""
    cells = tuple(
        Cell(
            f"e{enc}-d{dec}-{common['keep.strategy']}-s{seed}-{commit[:SHORT]}{digest}",
            enc,
            dec,
            seed,
            {**common, "enc": enc, "dec": dec, "seed": seed},
        )
        for seed in range(common["seed"], last + 1)
        for enc, dec in pairs
    )
    return Plan(commit, cells, tuple(overrides))


def _overridden(params: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The flat params with overrides, read as DVC reads them. Raises LopsideError where DVC or we refuse them."""
    from dvc.exceptions import DvcException
    from dvc.utils.cli_parse import to_path_overrides
    from dvc.utils.hydra import apply_overrides

    by_path = to_path_overrides(overrides)
    if set(by_path) != {PARAMS}:
        raise LopsideError(f"-S: {', '.join(set(by_path) - {PARAMS})} is refused; allowed: keys of {PARAMS}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PARAMS
        path.write_text(params, encoding="utf-8")
        for override in by_path[PARAMS]:
            try:
                apply_overrides(path, [override])
            except DvcException as error:
                cause = str(error.__cause__ or error).splitlines()[0].rstrip(".")
                raise LopsideError(f"-S {override}: {cause}; allowed: KEY=VALUE with a key of {PARAMS}") from error
        try:
            load_params(path)
        except LopsideError as error:
            raise LopsideError(str(error).replace(str(path), PARAMS)) from None
        return flat(yaml.safe_load(path.read_text(encoding="utf-8")))
