"""params.yaml as frozen, checked dataclasses.

Every knob is one field: its type is the annotation, its range or choices and its one-line doc (with the unit) are data
beside it. `load_params` reads the whole file, collects every fault it finds and raises them as one LopsideError.

Nothing heavy is imported here, nor any module of the library but the error: each stage reads params.yaml, so whatever
is imported here would become a dependency of each stage, and a change of it would rerun them all. The names that other
modules define (MODELS, DATASETS, STRATEGIES, ENGINES) are therefore repeated here; a test holds them equal.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import yaml

from lopside.errors import LopsideError

MODELS = ("docs-bart-mini", "docs-bart-micro", "flan-t5-small", "flan-t5-base", "flan-t5-large")
BUILT_IN = ("docstrings",)
DATASETS = (*BUILT_IN, "cnn_dailymail", "xsum", "samsum", "multi_news", "billsum", "reddit_tifu")
STRATEGIES = ("uniform", "published", "first", "last", "explicit", "importance")
MEASURES = ("loss", "influence")
UNITS = ("sixths", "layers")
VOCABULARIES = ("full", "task")
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16")
ENGINES = {"transformers": DTYPES, "compile": DTYPES, "ctranslate2": ("float32", "int8")}
ENGINE_DTYPES = tuple(dict.fromkeys(itertools.chain(*ENGINES.values())))
SCHEDULERS = ("linear", "constant", "constant_with_warmup", "cosine")

# No name but a place: owner/name on the hub, or a path here. The slash tells it from a name with a typing error.
PLACE = re.compile(r"(?!\s|.*://)[^\x00-\x1f]*/[^\x00-\x1f]*(?<!\s)")
LINE = re.compile(r"[^\x00-\x1f]*")

# YAML 1.2 calls these numbers, PyYAML (YAML 1.1) reads them as text: an exponent without a dot or without a sign.
EXPONENT_FORM = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


@dataclass(frozen=True)
class Rule:
    """What a knob's value (for lists: each item of it) may be; None and empty mean no limit."""

    doc: str
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    also: int | None = None  # one more number, outside the limits, which stands for something else
    one_of: tuple[str, ...] = ()
    like: re.Pattern[str] | None = None  # of a text: its form, where it is none of `one_of`
    in_words: str = ""  # that form
    increasing: bool = False  # of a list: each item larger than the one before it
    distinct: bool = False  # of a list: no item twice
    nonempty: bool = False  # of a list

    def holds(self, number: float) -> bool:
        """Whether a number is within the limits; nan and the infinities never are."""
        return (
            math.isfinite(number)
            and (self.at_least is None or number >= self.at_least)
            and (self.at_most is None or number <= self.at_most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        ) or number == self.also

    def limits(self) -> str:
        """The limits in words."""
        if self.at_least is not None and self.at_most is not None:
            return f"from {self.at_least} to {self.at_most}"
        named = {"of at least": self.at_least, "of at most": self.at_most, "above": self.above, "below": self.below}
        words = " and ".join(f"{words} {limit}" for words, limit in named.items() if limit is not None)
        return words if self.also is None else f"{words}, or {self.also}"


REVISION = Rule(
    "a branch, tag or commit of the hub's repository; empty: the usual one", like=LINE, in_words="a line of text"
)


def _column(role: str) -> Rule:
    return Rule(f"column that holds {role}; empty: known or guessed", like=LINE, in_words="a column's name")


@dataclass(frozen=True)
class ColumnParams:
    document: Annotated[str, _column("the document")]
    summary: Annotated[str, _column("its summary")]
    body: Annotated[str, _column("the document without its name or headline, whose first sentence is the baseline")]
    id: Annotated[str, _column("a name for the pair")]


@dataclass(frozen=True)
class LimitParams:
    train: Annotated[int, Rule("pairs of the training split; 0: all", at_least=0)]
    validation: Annotated[int, Rule("pairs of the validation split; 0: all", at_least=0)]
    test: Annotated[int, Rule("pairs of the test split; 0: all", at_least=0)]
    seed: Annotated[
        int, Rule("which pairs a limit leaves, and which importance is measured on", at_least=0, at_most=2**32 - 1)
    ]


@dataclass(frozen=True)
class DataParams:
    max_source_tokens: Annotated[
        int, Rule("documents are cut here, in tokens, special ones included; 0: the data set's own", at_least=4, also=0)
    ]
    max_target_tokens: Annotated[
        int, Rule("references are cut here in training, in tokens; 0: the data set's own", at_least=4, also=0)
    ]
    prefix: Annotated[
        str,
        Rule("text before each document; auto: the data set's own for T5 kin", like=LINE, in_words="a line of text"),
    ]
    revision: Annotated[str, REVISION]
    config: Annotated[
        str, Rule("which of the hub set's configurations; empty: the only one", like=LINE, in_words="its name")
    ]
    columns: ColumnParams
    limits: LimitParams
    skip_bad: Annotated[bool, Rule("leave out, and count, pairs that cannot be used, instead of stopping at them")]


@dataclass(frozen=True)
class ParentParams:
    revision: Annotated[str, REVISION]
    train: Annotated[bool, Rule("fine-tune the model on the task before anything is pruned")]


@dataclass(frozen=True)
class KeepParams:
    strategy: Annotated[str, Rule("how the layers that stay are chosen", one_of=STRATEGIES)]
    unit: Annotated[str, Rule("what enc and dec count: sixths of a stack, or layers", one_of=UNITS)]
    encoder: Annotated[
        tuple[int, ...], Rule("zero-based encoder layers kept, for explicit alone", at_least=0, increasing=True)
    ]
    decoder: Annotated[
        tuple[int, ...], Rule("zero-based decoder layers kept, for explicit alone", at_least=0, increasing=True)
    ]
    measure: Annotated[
        str, Rule("what importance goes by: the loss without a layer, or its influence", one_of=MEASURES)
    ]
    documents: Annotated[int, Rule("training pairs that importance is measured on", at_least=1)]
    vocabulary: Annotated[str, Rule("tokens that stay: all, or those of the training split", one_of=VOCABULARIES)]

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Iterator[tuple[str, object, str]]:
        """Faults between keys that are right by themselves, as (key, value, what is allowed)."""
        strategy = values.get("strategy")
        for key in ("encoder", "decoder"):
            if strategy == "explicit" and values.get(key) == ():
                yield key, [], "at least one layer where keep.strategy is explicit"
            if strategy not in ("explicit", None) and values.get(key):
                yield key, list(values[key]), "an empty list unless keep.strategy is explicit"


@dataclass(frozen=True)
class TrainParams:
    dtype: Annotated[str, Rule("precision of forward and backward; auto: what this machine does fast", one_of=DTYPES)]
    epochs: Annotated[float, Rule("passes over the training split, used when max_steps is 0", above=0)]
    max_steps: Annotated[int, Rule("optimiser steps, over a sample if short; 0: whole epochs instead", at_least=0)]
    batch_size: Annotated[int, Rule("pairs a step", at_least=1)]
    learning_rate: Annotated[float, Rule("peak step size of AdamW", above=0)]
    scheduler: Annotated[str, Rule("course of the learning rate after its warm-up", one_of=SCHEDULERS)]
    warmup_steps: Annotated[int, Rule("steps in which the learning rate rises from 0; `constant` has none", at_least=0)]
    weight_decay: Annotated[float, Rule("AdamW's decay of the weights, a step, times the learning rate", at_least=0)]
    label_smoothing: Annotated[
        float, Rule("share of the target's probability spread over all tokens", at_least=0, below=1)
    ]
    evaluations: Annotated[int, Rule("validation evaluations, evenly spaced over the steps", at_least=1)]
    evaluation_documents: Annotated[int, Rule("validation documents an evaluation reads", at_least=1)]


@dataclass(frozen=True)
class GenerateParams:
    max_new_tokens: Annotated[
        int, Rule("longest summary, in tokens, the end token included; 0: the length of references", at_least=0)
    ]
    num_beams: Annotated[int, Rule("beams of the search; 1: greedy", at_least=1)]
    batch_size: Annotated[int, Rule("documents a batch", at_least=1)]


@dataclass(frozen=True)
class ScoreParams:
    resamples: Annotated[int, Rule("bootstrap resamples behind each interval and p-value", at_least=100)]
    confidence: Annotated[float, Rule("coverage of the intervals, as a share", above=0, below=1)]


@dataclass(frozen=True)
class TimeParams:
    threads: Annotated[int, Rule("CPU threads; 0: as many as physical cores", at_least=0)]
    batch_sizes: Annotated[
        tuple[int, ...], Rule("documents a batch, one measurement each", at_least=1, distinct=True, nonempty=True)
    ]
    source_tokens: Annotated[int, Rule("length of every document, in tokens, special ones included", at_least=4)]
    new_tokens: Annotated[int, Rule("length of every summary, in tokens", at_least=1)]
    warmup: Annotated[
        int, Rule("pairs run before the first that counts, at least; more until they are no faster", at_least=0)
    ]
    min_pairs: Annotated[
        int, Rule("pairs timed at least, a setting and batch size; a 95% interval needs 6", at_least=6)
    ]
    precision: Annotated[
        float, Rule("pairs end where half the speedup's 95% interval is this share of it", above=0, below=1)
    ]
    max_seconds: Annotated[
        float, Rule("no further pair beyond min_pairs starts after this, in seconds a setting and batch size", above=0)
    ]


MODEL = Rule(
    "the full model to start from",
    one_of=MODELS,
    like=PLACE,
    in_words="owner/name on the hub | the path of a folder, with a slash (./mine)",
)
DATASET = Rule(
    "the documents and their summaries",
    one_of=DATASETS,
    like=PLACE,
    in_words="owner/name on the hub | the path of a file or folder, with a slash (./mine.jsonl)",
)


@dataclass(frozen=True)
class Params:
    """The whole of params.yaml; attribute names are its keys."""

    enc: Annotated[int, Rule("encoder layers kept, in keep.unit", at_least=1)]
    dec: Annotated[int, Rule("decoder layers kept, in keep.unit", at_least=1)]
    seed: Annotated[int, Rule("start of every random generator", at_least=0, at_most=2**32 - 1)]
    device: Annotated[str, Rule("where models run; auto: cuda where there is one", one_of=DEVICES)]
    engine: Annotated[str, Rule("what computes the pruned model once it is trained", one_of=tuple(ENGINES))]
    dtype: Annotated[
        str,
        Rule(
            "the engine's precision; auto: what this machine does fast",
            one_of=ENGINE_DTYPES,
        ),
    ]
    model: Annotated[str, MODEL]
    dataset: Annotated[str, DATASET]
    data: DataParams
    parent: ParentParams
    keep: KeepParams
    train: TrainParams
    generate: GenerateParams
    score: ScoreParams
    time: TimeParams

    @staticmethod
    def conflicts(values: Mapping[str, Any]) -> Iterator[tuple[str, object, str]]:
        """As :meth:`KeepParams.conflicts`. How many layers there are is seen when the model is known."""
        engine, dtype = values.get("engine"), values.get("dtype")
        if engine and dtype and dtype not in ENGINES[engine]:
            yield "dtype", dtype, f"{' | '.join(ENGINES[engine])} where engine is {engine}"
        data = values.get("data")
        if data and values.get("dataset") in BUILT_IN:
            given = {"data.revision": data.revision, "data.config": data.config}
            given |= {f"data.columns.{name}": value for name, value in vars(data.columns).items()}
            for key, value in given.items():
                if value:
                    yield key, value, f"nothing, as {values['dataset']} is built in"
        keep = values.get("keep")
        for key in ("enc", "dec"):
            if values.get(key, 0) > 6 and not (keep and keep.unit == "layers"):
                yield key, values[key], "a whole number from 1 to 6 where keep.unit is sixths; 6: all layers"


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check the whole of params.yaml.

    Raises:
        LopsideError: the file cannot be read, or has faults; all of them are listed, one a line, each with key, value
            and what is allowed.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LopsideError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LopsideError(f"{path}: cannot be read: it is not UTF-8 text") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # PyYAML fails over 2020-13-45 with ValueError
        raise LopsideError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    faults: list[str] = []
    params = _read(Params, raw, "", faults)
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise LopsideError(f"{path}: {count}\n" + "\n".join(f"  {fault}" for fault in faults))
    assert isinstance(params, Params)
    return params


def leaf_keys(group: type = Params, prefix: str = "") -> tuple[str, ...]:
    """The dotted names of all knobs, in the order of the file."""
    return tuple(
        key
        for name, (kind, rule) in _shape(group).items()
        for key in ([prefix + name] if rule else leaf_keys(kind, f"{prefix}{name}."))
    )


@cache
def _shape(group: type) -> dict[str, tuple[Any, Rule | None]]:
    """Each field's type and rule; where there is no rule, the type is a group of knobs."""
    hints = get_type_hints(group, include_extras=True)
    parts = {each.name: get_args(hints[each.name]) or (hints[each.name], None) for each in fields(group)}
    return {name: (kind, rule) for name, (kind, rule) in parts.items()}


def _read(group: type, raw: object, prefix: str, faults: list[str]) -> object:
    """One mapping of the file as its dataclass; None, and lines added to `faults`, where it has any."""
    before = len(faults)
    shape = _shape(group)
    if not isinstance(raw, Mapping):
        faults.append(_refusal(prefix.rstrip(".") or "the file", raw, f"the keys {', '.join(shape)}"))
        return None
    faults.extend(_unknown(f"{prefix}{key}") for key in raw if key not in shape)
    values: dict[str, Any] = {}
    for name, (kind, rule) in shape.items():
        key = prefix + name
        if name not in raw:
            faults.append(f"{key}: is missing; allowed: {_allowed(kind, rule)}")
        elif rule is None:
            values[name] = _read(kind, raw[name], f"{key}.", faults)
        else:
            try:
                values[name] = _value(kind, rule, raw[name])
            except (ValueError, OverflowError):
                faults.append(_refusal(key, raw[name], _allowed(kind, rule, raw[name])))
    if issubclass(group, KeepParams | Params):
        faults.extend(_refusal(f"{prefix}{key}", value, allowed) for key, value, allowed in group.conflicts(values))
    return group(**values) if len(faults) == before else None


def _value(kind: Any, rule: Rule, raw: object) -> Any:
    """The value as its type; ValueError where it is of another type or outside its rule."""
    if get_args(kind):  # tuple[int, ...]
        if not isinstance(raw, list | None):
            raise ValueError
        items = tuple(_value(get_args(kind)[0], rule, item) for item in raw or ())
        fits = (
            not (rule.nonempty and not items)
            and not (rule.distinct and len(set(items)) < len(items))
            and not (rule.increasing and any(left >= right for left, right in itertools.pairwise(items)))
        )
        if not fits:
            raise ValueError
        return items
    if kind is float and isinstance(raw, str) and EXPONENT_FORM.fullmatch(raw):
        raw = float(raw)
    if kind is float and type(raw) is int:
        raw = float(raw)
    if type(raw) is not kind:  # by identity: to isinstance, true is an int
        raise ValueError
    if isinstance(raw, str) and raw not in rule.one_of and not (rule.like and rule.like.fullmatch(raw)):
        raise ValueError
    if isinstance(raw, int | float) and not rule.holds(raw):
        raise ValueError
    return raw


def _allowed(kind: Any, rule: Rule | None, given: object = None) -> str:
    """What a knob may be, in words, with the choice that `given` may have meant and the knob's doc."""
    if rule is None:
        return f"the keys {', '.join(_shape(kind))}"
    if kind is str:
        forms = [*rule.one_of, *([rule.in_words] if rule.like else [])]
        words = " | ".join(forms) + _did_you_mean(str(given), rule.one_of)
    elif kind is bool:
        words = "true | false"
    elif get_args(kind):
        manner = "strictly increasing " if rule.increasing else "different " if rule.distinct else ""
        words = f"a list of {manner}whole numbers {rule.limits()}{', not empty' if rule.nonempty else ''}"
    else:
        words = f"a {'whole ' if kind is int else ''}number {rule.limits()}"
    return f"{words} ({rule.doc})"


def _refusal(key: str, value: object, allowed: str) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)
    return f"{key}: {text if len(text) <= 60 else text[:57] + '...'} is refused; allowed: {allowed}"


def _unknown(key: str) -> str:
    """An unknown key: a known one in the wrong group, or near in spelling to one."""
    keys = leaf_keys()
    elsewhere = [known for known in keys if known.rpartition(".")[2] == key.rpartition(".")[2]]
    return f"{key}: is no known key{_did_you_mean(key, keys, *elsewhere[:1])}"


def _did_you_mean(word: str, known: tuple[str, ...], *better: str) -> str:
    near = [*better, *difflib.get_close_matches(word, known, n=1)]
    return f"; did you mean {near[0]}?" if near else ""
