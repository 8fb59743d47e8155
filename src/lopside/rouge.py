"""ROUGE, how sure it is, and whether two systems differ.

The scores are those of Google's rouge-score package to the last bit. Its `BootstrapAggregator` is not used: it draws
from numpy's global state and reports a median of means. Here means are plain, and every draw comes from a generator of
its own, seeded by the caller.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any, TypedDict

import numpy as np
from nltk.stem.porter import PorterStemmer
from numpy.typing import ArrayLike, NDArray
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize

from lopside.errors import LopsideError
from lopside.texts import (
    SPLITTER,
    novel_bigrams,
    share_distinct,
    share_empty,
    share_repeating,
    split_sentences,
)

MEASURES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
"""What is measured, in the order in which it is shown."""

CHUNK = 2_000_000
"""Draws held in memory at once: 16 MB an array."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """One system's ROUGE F-measures, 0 to 100."""

    means: dict[str, float]
    """Measure -> plain mean over the documents."""
    intervals: dict[str, tuple[float, float]]
    """Measure -> lower and upper end of the mean's percentile-bootstrap interval."""
    per_document: dict[str, Floats]
    """Measure -> one figure a document, shape (documents,)."""
    signature: str
    """One line that names every setting the figures depend on."""

    @property
    def documents(self) -> int:
        return len(self.per_document[MEASURES[0]])


@dataclass(frozen=True)
class Comparison:
    """How two systems differ on the same documents."""

    difference: float
    low: float
    high: float
    p: float
    """Two-sided paired p-value; never 0, at least 1 / (resamples + 1)."""


def score(
    references: Sequence[str],
    predictions: Sequence[str],
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Score:
    """Score each prediction against the reference at the same place.

    F-measures x 100 with Porter's stemmer. For rougeLsum both sides are put one sentence a line first: lines stay, and
    each is split by `lopside.texts.split_sentences`; the other measures do not see lines. An empty prediction scores 0.

    Args:
        references: one a document, at least one.
        predictions: as many.
        resamples: bootstrap samples of the documents.
        confidence: of the intervals, between 0 and 1.
        seed: of the bootstrap's generator. The same seed, number of documents and resamples draw the same documents
            in every call, here and in `compare`.

    Raises:
        LopsideError: no document, or not as many predictions as references.
    """
    if len(references) != len(predictions):
        raise LopsideError(f"{len(predictions)} summaries for {len(references)} references: there must be one each")
    if not references:
        raise LopsideError("there is no reference to score against: at least one is needed")
    scorer = RougeScorer(list(MEASURES), tokenizer=_Tokenizer())
    rows = []
    for reference, prediction in zip(references, predictions, strict=True):
        scores = scorer.score(_one_sentence_a_line(reference), _one_sentence_a_line(prediction))
        rows.append([100 * scores[measure].fmeasure for measure in MEASURES])
    figures = np.array(rows, dtype=np.float64)
    low, high = _interval(_bootstrap_means(figures, resamples, seed), confidence)
    return Score(
        means=dict(zip(MEASURES, figures.mean(axis=0).tolist(), strict=True)),
        intervals=dict(zip(MEASURES, zip(low.tolist(), high.tolist(), strict=True), strict=True)),
        per_document=dict(zip(MEASURES, figures.T.copy(), strict=True)),
        signature=_signature(resamples, confidence, seed),
    )


class _Tokenizer:
    """rouge-score's own with Porter's stemmer, which takes most of the time: here once a word, not once a token."""

    def __init__(self) -> None:
        self.stem = cache(PorterStemmer().stem)

    def tokenize(self, text: str) -> list[str]:
        tokens: list[str] = tokenize(text, self)
        return tokens


def compare(
    ours: ArrayLike,
    theirs: ArrayLike,
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """``ours`` minus ``theirs``, both one figure a document, shape (documents,).

    The difference is the mean over the documents, the interval its percentile bootstrap (pairs are drawn, of the same
    documents as in `score`). p is from a sign-flip permutation test: were the two alike, each document's difference
    would as soon have the other sign; p is the share of random sign patterns with a mean at least as far from 0, the
    observed one counted among them: (k + 1) / (resamples + 1). Equal inputs give 0, [0, 0] and 1.

    Raises:
        LopsideError: not as many figures in one as in the other, or none.
    """
    differences = np.subtract(*_paired(ours, theirs))
    low, high = _interval(_bootstrap_means(differences[:, None], resamples, seed), confidence)
    return Comparison(
        difference=float(differences.mean()),
        low=float(low[0]),
        high=float(high[0]),
        p=_sign_flip(differences, resamples, seed),
    )


def retained(
    ours: ArrayLike,
    theirs: ArrayLike,
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float | None, float | None, float | None]:
    """Mean of ``ours`` / mean of ``theirs``, and the ends of its interval, over the same resamples as `compare`.

    None where a mean of ``theirs``, the whole or a resample's, is 0.

    Raises:
        LopsideError: as `compare`.
    """
    both = np.stack(_paired(ours, theirs), axis=1)
    whole, parts = both.mean(axis=0), _bootstrap_means(both, resamples, seed)
    ratio = float(whole[0] / whole[1]) if whole[1] else None
    if not parts[:, 1].all():
        return ratio, None, None
    low, high = _interval(parts[:, :1] / parts[:, 1:], confidence)
    return ratio, float(low[0]), float(high[0])


def lead(body: str) -> str:
    """The baseline that reads no model: the first sentence of the body; the empty string where it has none."""
    return next(iter(split_sentences(body)), "")


class _Bootstrap(TypedDict):
    resamples: int
    confidence: float
    seed: int


@dataclass(frozen=True)
class Evaluation:
    """What the `score` stage writes."""

    metrics: dict[str, Any]
    """Nested, rounded, ready for JSON; see `evaluate`."""
    scores: dict[str, Score]
    """System -> its scores: dense, pruned, lead and, where the data has names, name."""


def evaluate(
    documents: Sequence[str],
    bodies: Sequence[str],
    references: Sequence[str],
    summaries: Mapping[str, Sequence[str]],
    tokens: Mapping[str, Sequence[int]],
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> Evaluation:
    """Score dense and pruned, beside them two baselines that read no model, and pruned against dense.

    ``summaries`` and ``tokens`` (generated tokens a summary) have the keys ``dense`` and ``pruned``; everything is in
    the order of ``documents``. ``bodies`` are the documents without their names, or the documents again where the data
    has no names. The baselines: ``lead``, the first sentence of the body; ``name``, what the document has before its
    body, left out where no document has anything there.

    The metrics, ROUGE in points of 0 to 100:

    * ``dense``, ``pruned``, ``lead``, ``name``: each measure with its interval (``rouge2``, ``rouge2_low``,
      ``rouge2_high``). Of the models also ``tokens`` (mean number generated) and shares of 0 to 1: ``novel_bigrams``,
      ``empty``, ``repeats``, ``distinct`` (see `lopside.texts`); of lead ``empty`` and ``distinct``.
    * ``delta``: pruned minus dense for each measure, with interval and ``_p`` (see `compare`).
    * ``retained``: pruned / dense of ROUGE-2, with interval (see `retained`).
    * ``documents``, ``signature``.
    """
    bootstrap: _Bootstrap = {"resamples": resamples, "confidence": confidence, "seed": seed}
    texts = {side: summaries[side] for side in ("dense", "pruned")}
    texts["lead"] = [lead(body) for body in bodies]
    names = [document.removesuffix(body).strip() for document, body in zip(documents, bodies, strict=True)]
    if any(names):
        texts["name"] = names
    scores = {system: score(references, predictions, **bootstrap) for system, predictions in texts.items()}

    metrics: dict[str, Any] = {system: _rounded(scored) for system, scored in scores.items()}
    for side in ("dense", "pruned"):
        metrics[side] |= {
            "tokens": _round(float(np.mean(tokens[side])), 2),
            "novel_bigrams": _round(novel_bigrams(texts[side], documents), 4),
            "empty": _round(share_empty(texts[side]), 4),
            "repeats": _round(share_repeating(texts[side]), 4),
            "distinct": _round(share_distinct(texts[side]), 4),
        }
    metrics["lead"] |= {
        "empty": _round(share_empty(texts["lead"]), 4),
        "distinct": _round(share_distinct(texts["lead"]), 4),
    }
    pruned, dense = scores["pruned"].per_document, scores["dense"].per_document
    metrics["delta"] = {}
    for measure in MEASURES:
        comparison = compare(pruned[measure], dense[measure], **bootstrap)
        metrics["delta"] |= {
            measure: _round(comparison.difference, 3),
            f"{measure}_low": _round(comparison.low, 3),
            f"{measure}_high": _round(comparison.high, 3),
            f"{measure}_p": _round(comparison.p, 4),
        }
    ratio, low, high = retained(pruned["rouge2"], dense["rouge2"], **bootstrap)
    metrics["retained"] = {"rouge2": _round(ratio, 4), "rouge2_low": _round(low, 4), "rouge2_high": _round(high, 4)}
    metrics["documents"] = len(documents)
    metrics["signature"] = scores["dense"].signature
    return Evaluation(metrics, scores)


def _one_sentence_a_line(text: str) -> str:
    return "\n".join(sentence for line in text.split("\n") for sentence in split_sentences(line))


def _signature(resamples: int, confidence: float, seed: int) -> str:
    settings = {
        "rouge-score": version("rouge-score"),
        "figure": "F1x100",
        "case": "lower",
        "stemmer": "porter",
        "sentences": SPLITTER,
        "mean": "documents",
        "bootstrap": resamples,
        "confidence": confidence,
        "seed": seed,
    }
    return "|".join(f"{key}:{value}" for key, value in settings.items())


def _paired(ours: ArrayLike, theirs: ArrayLike) -> tuple[Floats, Floats]:
    """Both as floats of one shape, (documents,)."""
    left, right = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if left.shape != right.shape or left.ndim != 1 or not len(left):
        raise LopsideError(
            f"a paired comparison needs one figure a document from both sides, here: {left.shape} and {right.shape}"
        )
    return left, right


def _bootstrap_means(values: Floats, resamples: int, seed: int) -> Floats:
    """Means of ``values``, shape (documents, figures), over documents drawn with replacement: (resamples, figures)."""
    generator = np.random.Generator(np.random.PCG64(seed))
    documents = len(values)
    means = []
    for rows in _chunks(resamples, documents):
        drawn = generator.integers(documents, size=(rows, documents))
        # How often each document was drawn, row by row: the means are then one matrix product.
        places = drawn + documents * np.arange(rows)[:, None]
        counts = np.bincount(places.ravel(), minlength=rows * documents).reshape(rows, documents)
        means.append(counts @ values / documents)
    return np.concatenate(means)


def _sign_flip(differences: Floats, resamples: int, seed: int) -> float:
    """The p-value of `compare`; its generator is another one than the bootstrap's."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 1])))
    documents, total = len(differences), differences.sum()
    # Sums in another order differ in their last bits: what is as far from 0 but for that counts as as far.
    bound = abs(total) - 1e-12 * np.abs(differences).sum()
    reached = 0
    for rows in _chunks(resamples, documents):
        size = -(-documents // 8)
        octets = np.frombuffer(generator.bytes(rows * size), dtype=np.uint8).reshape(rows, size)
        kept = np.unpackbits(octets, axis=1, count=documents)
        reached += int((np.abs(2 * (kept @ differences) - total) >= bound).sum())
    return (reached + 1) / (resamples + 1)


def _chunks(resamples: int, documents: int) -> Iterator[int]:
    """``resamples`` cut into numbers of rows that fit into CHUNK."""
    rows = max(1, CHUNK // documents)
    for start in range(0, resamples, rows):
        yield min(rows, resamples - start)


def _interval(means: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Percentiles of ``means``, shape (resamples, figures), that leave out as much below as above."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def _rounded(scored: Score) -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    for measure in MEASURES:
        low, high = scored.intervals[measure]
        figures |= {
            measure: _round(scored.means[measure], 3),
            f"{measure}_low": _round(low, 3),
            f"{measure}_high": _round(high, 3),
        }
    return figures


def _round(value: float | None, digits: int) -> float | None:
    """Rounded, without a negative zero."""
    return None if value is None else round(value, digits) + 0.0
