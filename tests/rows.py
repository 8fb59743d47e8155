"""Rows of the history, made up."""

import hashlib
from typing import Any

from lopside.grid import GRIDS
from lopside.history import Row

PAPER = GRIDS["paper"]


def row(
    enc: int,
    dec: int,
    delta: float = 0.0,
    speedup: float = 1.0,
    *,
    width: float = 0.5,
    speeds: tuple[tuple[str, int], ...] = (("fixed", 1),),
    **changes: Any,
) -> Row:
    """A row whose dense model has ROUGE-2 20; the intervals reach ``width`` points, and 0.1 in the speedup."""
    fields: dict[str, Any] = {
        "seed": 0,
        "revision": "abc1234",
        "date": "2026-01-31",
        "dataset": "docstrings",
        "model": "docs-bart-mini",
        "strategy": "uniform",
        "unit": "sixths",
        "overrides": "train.batch_size=64",
        "settings": "12ab34cd",
        "inputs": "56ef78ab",
        "training": ("1.0", "0", "64", "0.0005", "linear"),
        "documents": 2000,
        "machine": "made-up CPU, 2 cores",
        "timing": "device:cpu|engine:transformers float32|threads:2",
        "stale": "",
    } | changes
    fields.setdefault("signature", f'made-up|seed:{fields["seed"]}|prefix:"a, b"')
    name = f"e{enc}-d{dec}-{fields['strategy']}-s{fields['seed']}-{fields['revision']}"
    fields.setdefault("experiment", name)
    fields.setdefault("commit", hashlib.sha256(repr((fields, delta, speedup)).encode()).hexdigest()[:7])
    figures = {"parameters.dense": 30e6, "parameters.pruned": (6 + 2 * enc + 2 * dec) * 1e6, "dense.rouge2": 20.0}
    figures |= {"pruned.rouge2": 20 + delta, "delta.rouge2_p": 0.01}
    for key, value, reach in (("delta.rouge2", delta, width), ("retained.rouge2", 1 + delta / 20, width / 20)):
        figures |= {key: value, f"{key}_low": value - reach, f"{key}_high": value + reach}
    for setting, batch in speeds:
        key = f"{setting}.batch_{batch}"
        figures |= {f"{key}.dense_ms": 100.0 * batch, f"{key}.pruned_ms": 100.0 * batch / speedup}
        ends = {"": speedup, "_low": speedup - 0.1, "_high": speedup + 0.1}
        figures |= {f"{key}.speedup{end}": value for end, value in ends.items()}
    return Row(
        enc=enc,
        dec=dec,
        encoder_kept=tuple(range(enc)),
        decoder_kept=tuple(range(6 - dec, 6)),
        figures={key: float(format(value, ".12g")) for key, value in figures.items()},
        **fields,
    )


def grid(cells: tuple[tuple[int, int], ...] = PAPER, **changes: Any) -> list[Row]:
    """A row for each cell: a sixth of the encoder costs 1 point, one of the decoder half a point, and saves twice."""
    return [row(enc, dec, (enc - 6) + (dec - 6) / 2, 36 / (2 * enc + 4 * dec), **changes) for enc, dec in cells]
