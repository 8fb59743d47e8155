"""metrics/history.csv: one row an experiment, committed, so that what was measured outlives DVC's cache and its names.

Rows are appended from DVC's experiments and never deleted; one whose inputs are gone is marked in the column `stale`.
Columns are named as params.yaml, `dvc metrics` and `dvc exp show` name them.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from lopside.errors import LopsideError
from lopside.files import new_file
from lopside.intervals import CONFIDENCE
from lopside.params import DATASETS, EXPONENT_FORM, MODELS, STRATEGIES, UNITS, Params, leaf_keys
from lopside.repository import (
    LATENCY,
    LOCK,
    PARAMS,
    ROUGE,
    SHORT,
    Experiment,
    experiments,
    git,
    leaf,
    outputs,
    read_mapping,
    read_text,
    stages_of,
)

HISTORY = "metrics/history.csv"
LAYERS = "metrics/plots/layers.csv"

TRAINING = ("train.epochs", "train.max_steps", "train.batch_size", "train.learning_rate", "train.scheduler")
"""Settings of training that have a column each; all that were changed are in `overrides`."""

SIXTHS = 6
"""All layers of a stack, where enc and dec are shares."""

NAMED = ("enc", "dec", "seed", "keep.strategy")
"""What an experiment's name says, so that its overrides need not."""

ROUGE_FIGURES = (
    *(f"{side}.rouge2{end}" for side in ("dense", "pruned", "delta") for end in ("", "_low", "_high")),
    "delta.rouge2_p",
    *(f"retained.rouge2{end}" for end in ("", "_low", "_high")),
    "lead.rouge2",
)
VITAL = ("delta.rouge2", "delta.rouge2_low", "delta.rouge2_high")
"""Figures that no row is without."""
SIZES = ("parameters.dense", "parameters.pruned")
SPEED_LEAVES = (
    "dense_ms",
    "pruned_ms",
    *(f"{gain}{end}" for gain in ("speedup", "total") for end in ("", "_low", "_high")),
)
"""``speedup`` is by pruning; ``total``, where an engine computes both sides, against dense in the baseline."""
SPEED = re.compile(rf"([a-z_]+)\.batch_([1-9]\d*)\.({'|'.join(SPEED_LEAVES)})")
"""Speeds of any setting and batch size: ``fixed.batch_1.speedup``."""

NO_TEXT = re.compile(r"null|true|false|[-+]?(inf|nan|(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(e[-+]?\d+)?)", re.IGNORECASE)
"""What `dvc exp run -S` takes for something else than a text where it is not quoted."""

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """One experiment: what was run, where, and what was measured."""

    experiment: str
    commit: str
    """The experiment's own commit; this and `revision` are the first digits."""
    revision: str
    """The commit whose code and params.yaml it was run on."""
    date: str
    dataset: str
    model: str
    enc: int
    dec: int
    encoder_kept: tuple[int, ...]
    decoder_kept: tuple[int, ...]
    strategy: str
    unit: str
    seed: int
    overrides: str
    """Params that differ from the revision's params.yaml, but those in NAMED: ``key=value``, quoted for a shell."""
    settings: str
    """A digest of all params that a summary depends on, but for the layers kept and the seed: equal ones compare."""
    inputs: str
    """A digest of what params only name: the parent's files and the training pairs."""
    training: tuple[str, ...]
    """The values of TRAINING."""
    documents: int
    figures: Figures
    """ROUGE_FIGURES, SIZES and speeds, those that there are."""
    machine: str
    timing: str
    """The settings that the times depend on."""
    signature: str
    stale: str = ""
    """Why it can no longer be run as it was; empty: it can."""

    def figure(self, key: str) -> float:
        """A figure by its name. Raises LopsideError where the row has none."""
        if key not in self.figures:
            raise LopsideError(f"{HISTORY}: {self.experiment} has no {key}")
        return self.figures[key]

    @property
    def speeds(self) -> list[tuple[str, int]]:
        """Setting and batch size of each speedup, in the order of the columns."""
        return sorted({(match[1], int(match[2])) for key in self.figures if (match := SPEED.fullmatch(key))})


@dataclass(frozen=True)
class _Column:
    """How a column's text becomes a field of Row, and back; ``read`` raises ValueError."""

    field: str
    read: Callable[[str], Any]
    allowed: str
    write: Callable[[Any], str] = str


def _text(text: str) -> str:
    if not text:
        raise ValueError
    return text


def _date(text: str) -> str:
    return date.fromisoformat(text).isoformat()


def _shell_words(text: str) -> str:
    shlex.split(text)
    return text


def _hexadecimal(text: str) -> str:
    if not re.fullmatch(rf"[0-9a-f]{{{SHORT}}}", text):
        raise ValueError
    return text


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise ValueError
    return int(text)


def _seed(text: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise ValueError
    return int(text)


def _layers(text: str) -> tuple[int, ...]:
    kept = tuple(map(_seed, text.split(" ")))
    if list(kept) != sorted(set(kept)):
        raise ValueError
    return kept


def _write_layers(kept: tuple[int, ...]) -> str:
    return " ".join(map(str, kept))


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def _number_text(text: str) -> str:
    _number(text)
    return text


def _seed_text(text: str) -> str:
    _seed(text)
    return text


def _above_zero(text: str) -> float:
    number = _number(text)
    if number <= 0:
        raise ValueError
    return number


_LAYERS = (_layers, "rising whole numbers with a space between", _write_layers)
_SOME = (_text, "a text")
_COLUMNS: dict[str, _Column] = {
    "experiment": _Column("experiment", *_SOME),
    "commit": _Column("commit", _hexadecimal, f"{SHORT} hexadecimal digits"),
    "revision": _Column("revision", _hexadecimal, f"{SHORT} hexadecimal digits"),
    "date": _Column("date", _date, "a day as 2026-01-31"),
    "dataset": _Column("dataset", *_SOME),
    "model": _Column("model", *_SOME),
    "enc": _Column("enc", _count, "a whole number of 1 or more"),
    "dec": _Column("dec", _count, "a whole number of 1 or more"),
    "encoder_kept": _Column("encoder_kept", *_LAYERS),
    "decoder_kept": _Column("decoder_kept", *_LAYERS),
    "keep.strategy": _Column("strategy", *_SOME),
    "keep.unit": _Column("unit", *_SOME),
    "seed": _Column("seed", _seed, "a whole number of 0 or more"),
    "overrides": _Column("overrides", _shell_words, "key=value, quoted as for a shell"),
    "settings": _Column("settings", *_SOME),
    "inputs": _Column("inputs", *_SOME),
    "train.epochs": _Column("training", _number_text, "a number"),
    "train.max_steps": _Column("training", _seed_text, "a whole number of 0 or more"),
    **{key: _Column("training", *_SOME) for key in TRAINING[2:]},
    "documents": _Column("documents", _count, "a whole number of 1 or more"),
}
_LAST: dict[str, _Column] = {
    "machine": _Column("machine", *_SOME),
    "timing": _Column("timing", *_SOME),
    "signature": _Column("signature", *_SOME),
    "stale": _Column("stale", str, "a text"),
}
_FIGURE = _Column("figures", _number, "a number", lambda number: format(number, ".12g"))
_AMOUNT = replace(_FIGURE, read=_above_zero, allowed="a number above 0")
"""Of SIZES and speeds."""


def read_history(path: str | Path = HISTORY) -> list[Row]:
    """The rows in the order of the file; none where there is no file.

    Where git has merged two branches, a header of more columns may stand among the rows, and a row be there twice: with
    what marks it as stale, and without.

    Raises LopsideError that names the line, the column, the value and what is allowed, where one was edited by hand and
    broken.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise LopsideError(f"{path}: cannot be read: it is no UTF-8 text file") from error
    except OSError as error:
        raise LopsideError(f"{path}: cannot be read: {error.strerror}") from error
    if lines == [""]:
        return []
    headers: dict[int, list[str]] = {}
    rows: dict[tuple[str, str], Row] = {}
    for number, line in enumerate(lines, start=1):
        fields = _fields(path, number, line)
        if number == 1 or fields[:2] == list(_COLUMNS)[:2]:
            _check_header(path, number, fields)
            if headers.setdefault(len(fields), fields) != fields:
                raise LopsideError(
                    f"{path}, line {number}: a merge left another header of as many columns, and which rows are whose "
                    "cannot be told; undo it, and give one side's file the columns of both first"
                )
            continue
        if len(fields) not in headers:
            many = " or ".join(map(str, headers))
            raise LopsideError(f"{path}, line {number}: has {len(fields)} fields, and the header has {many}")
        row = _row(f"{path}, line {number}", dict(zip(headers[len(fields)], fields, strict=True)))
        before = rows.get((row.experiment, row.commit), row)
        if replace(before, stale=row.stale) != row:
            raise LopsideError(f"{path}, line {number}: experiment {row.experiment} of {row.commit} is there before")
        rows[row.experiment, row.commit] = before if before.stale else row
    return list(rows.values())


def write_history(rows: Sequence[Row], path: str | Path = HISTORY) -> None:
    """Write the rows as they are; equal rows give equal bytes. A column is there for every speed that a row has."""
    speeds = sorted({speed for row in rows for speed in row.speeds})
    header = _header(speeds)
    with new_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([_cell(row, name) for name in header] for row in rows)


def update_history(path: str | Path = HISTORY) -> tuple[list[Row], list[str]]:
    """Append the experiments that are not there yet, mark rows that have become stale, and write what has changed.

    Returns all rows, and for each experiment that has no row and gets none the reason why. New rows come in an order
    that does not depend on when they were run; those of one cell and seed alone, which is the oldest first. Raises
    LopsideError as :func:`read_history`.
    """
    rows = read_history(path)
    known = {(row.experiment, row.commit) for row in rows}
    added, left_out = [], []
    for experiment in experiments():
        if (experiment.name, experiment.commit[:SHORT]) not in known:
            try:
                added.append(row_of(experiment))
            except LopsideError as error:
                left_out.append(f"{experiment.name}: {error}")
    added.sort(key=_order)
    here = {revision: _is_here(revision) for revision in {row.revision for row in rows}}
    updated = [replace(row, stale=_stale(row, here[row.revision])) for row in rows] + added
    if updated != rows:
        write_history(updated, path)
    return updated, left_out


def row_of(experiment: Experiment) -> Row:
    """An experiment's row.

    Raises LopsideError where its figures are not there, or are not those of its params: `dvc exp run` with a stage's
    name runs a part of the pipeline, and commits the other stages' old figures with it. Likewise where it was run on
    code that was not committed, as it cannot be run again from its revision and its overrides; and where its intervals
    are of another confidence, see :func:`check_confidence`.
    """
    commit = experiment.commit
    tree = read_mapping(PARAMS, commit)
    params, base = flat(tree), flat(read_mapping(PARAMS, experiment.baseline))
    rouge, latency = read_mapping(ROUGE, commit), read_mapping(LATENCY, commit)
    _check_current(experiment, params)
    check_confidence(params)
    kept = _kept(commit)
    try:
        row = Row(
            experiment=experiment.name,
            commit=commit[:SHORT],
            revision=experiment.baseline[:SHORT],
            date=experiment.date,
            dataset=params["dataset"],
            model=params["model"],
            enc=params["enc"],
            dec=params["dec"],
            encoder_kept=kept["encoder"],
            decoder_kept=kept["decoder"],
            strategy=params["keep.strategy"],
            unit=params["keep.unit"],
            seed=params["seed"],
            overrides=shlex.join(changes(base, params)),
            settings=_digest(params),
            inputs=_inputs(params, stages_of(LOCK, commit)),
            training=tuple(str(params[key]) for key in TRAINING),
            documents=int(leaf(rouge, "documents", ROUGE)),
            figures=_figures(rouge, latency),
            machine=latency["machine"],
            timing="|".join(f"{key}:{value}" for key, value in flat(latency["settings"]).items()),
            signature=rouge["signature"],
        )
    except (KeyError, AttributeError) as error:
        raise LopsideError(f"its params.yaml or metrics have no {error}") from error
    names = _header(row.speeds)
    return _row("it", {name: _cell(row, name) for name in names})  # as it will be read back, or not at all


def check_confidence(params: Mapping[str, Any]) -> None:
    """Raise LopsideError where flat params ask for other intervals than those that rows, report and advice speak of."""
    if (confidence := params.get("score.confidence")) != CONFIDENCE:
        raise LopsideError(
            f"score.confidence: {confidence} is refused; allowed: {CONFIDENCE} for what the history is to hold, as "
            "the report says so of all intervals"
        )


def changes(base: Mapping[str, Any], params: Mapping[str, Any]) -> list[str]:
    """``key=value`` for each of the ``params`` that differs from ``base``, sorted, but for NAMED; both flat."""
    return [
        f"{key}={_value(params[key])}" for key in sorted(params) if key not in NAMED and params[key] != base.get(key)
    ]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one: dotted key -> leaf. Texts that are numbers to DVC (``5e-4``) are numbers here too, unless
    the knob is a text (``parent.revision: 12e4567``).
    """
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, str) and EXPONENT_FORM.fullmatch(value) and prefix + key not in _texts():
            leaves[f"{prefix}{key}"] = float(value)
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


@cache
def _texts(group: type = Params, prefix: str = "") -> frozenset[str]:
    """The knobs that are texts, by their dotted names."""
    kinds = get_type_hints(group)
    groups = {name: kind for name, kind in kinds.items() if isinstance(kind, type) and is_dataclass(kind)}
    inner = (_texts(kind, f"{prefix}{name}.") for name, kind in groups.items())
    return frozenset(prefix + name for name, kind in kinds.items() if kind is str).union(*inner)


def seedless(signature: str) -> str:
    """A ROUGE signature but for the seed: of the same documents, scored alike, or not."""
    return re.sub(r"\|seed:\d+", "", signature)


def _fields(path: Path, number: int, line: str) -> list[str]:
    if re.match(r"<{7}|={7}|>{7}|\|{7}", line):
        raise LopsideError(f"{path}, line {number}: git's mark of a conflict; the rows of both sides may stay")
    try:
        rows = list(csv.reader([line], strict=True))
    except csv.Error as error:
        raise LopsideError(f"{path}, line {number}: is no line of a CSV file: {error}") from error
    return rows[0] if rows else []


def _header(speeds: Iterable[tuple[str, int]]) -> list[str]:
    named = [f"{setting}.batch_{batch}.{name}" for setting, batch in speeds for name in SPEED_LEAVES]
    return [*_COLUMNS, *ROUGE_FIGURES, *SIZES, *named, *_LAST]


def _check_header(path: Path, number: int, header: list[str]) -> None:
    matches = [SPEED.fullmatch(name) for name in header]
    expected = _header(sorted({(match[1], int(match[2])) for match in matches if match}))
    if header != expected:
        odd = [name for name in header if name not in expected] or [name for name in expected if name not in header]
        hint = f": {odd[0]!r} is {'unknown' if odd[0] in header else 'missing'}" if odd else ", which are in this order"
        raise LopsideError(
            f"{path}, line {number}: the header is not {', '.join(expected[:4])} ... {expected[-1]}{hint}"
        )


def _row(where: str, fields: Mapping[str, str]) -> Row:
    def read(name: str, column: _Column) -> Any:
        try:
            return column.read(fields[name])
        except ValueError:
            raise LopsideError(f"{where}: {name}: {fields[name]!r} is refused; allowed: {column.allowed}") from None

    columns = _COLUMNS | _LAST
    values = {column.field: read(name, column) for name, column in columns.items() if name not in TRAINING}
    figures = {
        name: read(name, _AMOUNT if name in SIZES or SPEED.fullmatch(name) else _FIGURE)
        for name, text in fields.items()
        if name in VITAL or (text and name not in columns)
    }
    for name, value in figures.items():
        low, high = figures.get(f"{name}_low", value), figures.get(f"{name}_high", value)
        if not low <= value <= high:
            raise LopsideError(f"{where}: {name}: {value:g} is outside its own interval, {low:g} to {high:g}")
    if values["unit"] == "sixths" and values["strategy"] != "explicit":
        for name in ("enc", "dec"):
            if values[name] > SIXTHS:
                raise LopsideError(f"{where}: {name}: {values[name]} is refused; allowed: 1 to {SIXTHS} sixths")
    return Row(**values, training=tuple(read(key, _COLUMNS[key]) for key in TRAINING), figures=figures)


def _cell(row: Row, name: str) -> str:
    if name in TRAINING:
        return row.training[TRAINING.index(name)]
    column = _COLUMNS.get(name) or _LAST.get(name)
    if column:
        return column.write(getattr(row, column.field))
    return _FIGURE.write(row.figures[name]) if name in row.figures else ""


def _order(row: Row) -> tuple[Any, ...]:
    return row.dataset, row.model, row.settings, row.strategy, row.seed, -row.enc, -row.dec


def _figures(rouge: Mapping[str, Any], latency: Mapping[str, Any]) -> dict[str, float]:
    """Those of ROUGE_FIGURES, SIZES and speeds that there are. Raises LopsideError where a vital one is missing."""
    for tree, keys, where in ((rouge, VITAL, ROUGE), (latency, SIZES, LATENCY)):
        for key in keys:
            leaf(tree, key, where)
    rouge_leaves, latency_leaves = flat(rouge), flat(latency)
    found = {key: rouge_leaves[key] for key in ROUGE_FIGURES if rouge_leaves.get(key) is not None}
    found |= {key: value for key, value in latency_leaves.items() if key in SIZES or SPEED.fullmatch(key)}
    if not any(SPEED.fullmatch(key) for key in found):
        raise LopsideError(f"{LATENCY}: there is no speedup")
    return found


def _kept(commit: str) -> dict[str, tuple[int, ...]]:
    """The layers that `prune` kept of each stack."""
    kept: dict[str, list[int]] = {"encoder": [], "decoder": []}
    try:
        for row in csv.DictReader(read_text(LAYERS, commit).splitlines()):
            stack, index = row["layer"].split(" ")
            if row["kept"] == "1":
                kept[stack].append(int(index))
    except (KeyError, ValueError, AttributeError) as error:
        raise LopsideError(f"{LAYERS} of {commit[:SHORT]}: cannot be read") from error
    return {stack: tuple(indices) for stack, indices in kept.items()}


def check_whole(stages: Mapping[str, Mapping[str, Any]], params: Mapping[str, Any]) -> dict[str, str | None]:
    """What the stages wrote (`outputs`), if by a dvc.lock each was run on these params and the stages before it.

    Raises LopsideError where one was not.

    Each stage's lock names the params it was run with and the hashes of what it read and wrote; what it read of a
    folder is checked where DVC's cache still has the folder's listing.

    Args:
        stages: of dvc.lock.
        params: all knobs by their dotted names.
    """
    written = outputs(stages)
    for name, stage in stages.items():
        for key, value in flat(stage.get("params", {}).get(PARAMS, {})).items():
            if params.get(key) != value:
                raise LopsideError(f"stage {name} was last run with {key} = {value}, not {params.get(key)}")
        for dep in stage.get("deps", []):
            if dep["path"] in written and dep.get("md5") != written[dep["path"]]:
                raise LopsideError(f"stage {name} was not run again after {dep['path']} had changed")
    return written


def _check_current(experiment: Experiment, params: Mapping[str, Any]) -> None:
    """Raise LopsideError as `check_whole`, and where what stages read and none wrote, such as code, is not that of the
    commit that the experiment was run on.
    """
    commit = experiment.commit
    stages = stages_of(LOCK, commit)
    written = check_whole(stages, params)
    read = {dep["path"] for stage in stages.values() for dep in stage.get("deps", [])} - written.keys()
    changed = git("diff", "--name-only", "--relative", experiment.baseline, commit, "--", "dvc.yaml", *sorted(read))
    if changed:
        raise LopsideError(f"was run with changes that were not committed: {', '.join(changed.splitlines())}")
    for path in (ROUGE, LATENCY):
        text = read_text(path, commit)
        if written.get(path) != hashlib.md5(text.encode(), usedforsecurity=False).hexdigest():
            raise LopsideError(f"{path} is not what the pipeline wrote")


def _digest(params: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that change with any param but those of time, scoring, seed and layers."""
    layers = {"keep.unit", "keep.encoder", "keep.decoder"}
    if params["keep.strategy"] != "importance":
        layers |= {"keep.measure", "keep.documents"}  # which nothing reads
    counted = {
        key: value
        for key, value in params.items()
        if key not in NAMED and key not in layers and not key.startswith(("time.", "score."))
    }
    return _eight_digits(counted)


def _inputs(params: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> str:
    """Eight hexadecimal digits that change with the parent and the training pairs, by the hashes of a dvc.lock.

    A parent that was trained first differs from seed to seed: of it counts where it came from.
    """
    parts = [part for stage in stages.values() for kind in ("deps", "outs") for part in stage.get(kind) or ()]
    hashes = {part["path"]: part.get("md5") for part in parts}
    parent = "outputs/parent_origin.json" if params.get("parent.train") else "outputs/parent"
    return _eight_digits([hashes.get(parent), hashes.get("data/splits/train.parquet")])


def _eight_digits(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _value(value: Any) -> str:
    """A param's value as `dvc exp run -S` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, str) and (not re.fullmatch(r"[\w./-]+", value) or NO_TEXT.fullmatch(value)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _stale(row: Row, here: bool | None) -> str:
    """What of a row's inputs this code and this repository no longer have; empty: nothing, as far as can be seen.

    here: whether the repository has the row's revision, as by _is_here.
    """
    for key in (override.partition("=")[0] for override in shlex.split(row.overrides)):
        if key not in leaf_keys():
            return f"{key} is no knob"
    for key, value, known in (
        ("keep.strategy", row.strategy, STRATEGIES),
        ("keep.unit", row.unit, UNITS),
        ("dataset", row.dataset, DATASETS),
        ("model", row.model, MODELS),
    ):
        if value not in known and "/" not in value:
            return f"{key} {value} is unknown"
    if here is None:
        return row.stale
    return "" if here else f"revision {row.revision} is gone"


def _is_here(revision: str) -> bool | None:
    """Whether a commit is in this repository; None where that cannot be told: no git, or a shallow clone."""
    if git("rev-parse", "--is-shallow-repository") != "false\n":
        return None
    return git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}") is not None
