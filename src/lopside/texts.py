"""What can be counted in a text without a model: sentences, words, novelty, repetition."""

import re
from collections.abc import Sequence
from itertools import pairwise

from rouge_score.tokenize import tokenize

SPLITTER = "rules-1"
"""Name of `split_sentences`'s rules in a signature; a change of them gives another number."""

# A sentence may end after . ! or ? (and whatever closes quotes or brackets) where white space follows, but not inside
# "e. g." and "i. e.", as tokenizers of uncased models may write them.
END = re.compile(
    r"""(?! (?<=\be)\.\sg\. | (?<=\bi)\.\se\. ) ([.!?]+) ["'\u201d\u2019)\]}*`]* (?=\s)""", re.VERBOSE | re.IGNORECASE
)
PARAGRAPH = re.compile(r"\n\s*\n")
# A full stop after these is part of the word.
WITHIN = re.compile(
    r"(\b(e\.?\s?g|i\.?\s?e|cf|vs|viz|al|approx|resp|incl|excl|eqs?|figs?|vol|pp|dr|mr|mrs|ms|prof|st)\.|(?<!\S)(?-i:[A-Z])\.)$",
    re.IGNORECASE,
)
# These may end a sentence too: they do, unless a lower-case letter follows.
EITHER = re.compile(r"(\b(etc|inc|ltd|co|corp|jr|sr|u\.s|u\.k|a\.m|p\.m)\.|\.\.+)$", re.IGNORECASE)
LOWER = re.compile(r"\s+[a-z]")
WINDOW = 12
"""Characters before an end that are looked at: the longest abbreviation and some."""


def split_sentences(text: str) -> list[str]:
    """The sentences of ``text``, in order, white space inside them collapsed; none of them is empty.

    A sentence ends at ``.``, ``!`` or ``?`` followed by white space, or at a blank line; what comes next need not be a
    capital, since uncased models write none. A full stop after a usual abbreviation (``e.g.``, ``vs.``) or after one
    capital letter (an initial) ends nothing; after ``etc.`` and the like, or several stops in a row, it does unless a
    lower-case letter follows. Rules, no training, no download; known limits: a sentence that does end in ``e.g.`` or in
    one capital ("... is option B. Then") is joined to the next one, an abbreviation that is not on the list ends a
    sentence, and so does the full stop of a numbered item ("1. First").
    """
    sentences: list[str] = []
    for paragraph in PARAGRAPH.split(text):
        start = 0
        for end in END.finditer(paragraph):
            if not _goes_on(paragraph[max(start, end.end(1) - WINDOW) : end.end(1)], paragraph, end.end()):
                sentences.append(paragraph[start : end.end()])
                start = end.end()
        sentences.append(paragraph[start:])
    return [" ".join(sentence.split()) for sentence in sentences if sentence.strip()]


def _goes_on(before: str, paragraph: str, position: int) -> bool:
    """Whether the stop that ends ``before`` is no end of a sentence; ``position``: where the rest begins."""
    if WITHIN.search(before):
        return True
    return bool(EITHER.search(before) and LOWER.match(paragraph, position))


def words(text: str) -> list[str]:
    """The runs of letters a-z and digits in ``text``, in lower case: ROUGE's words before stemming."""
    found: list[str] = tokenize(text, None)
    return found


def novel_bigrams(summaries: Sequence[str], documents: Sequence[str]) -> float:
    """Share (0..1) of the summaries' bigrams that do not occur in their document; 0.0 where there is no bigram.

    Bigrams are two successive `words`, counted as often as they occur and pooled over all summaries, so that a long
    summary weighs more than a short one (as in See et al. 2017, arXiv 1704.04368).
    """
    novel = total = 0
    for summary, document in zip(summaries, documents, strict=True):
        known = set(pairwise(words(document)))
        bigrams = list(pairwise(words(summary)))
        novel += sum(bigram not in known for bigram in bigrams)
        total += len(bigrams)
    return novel / total if total else 0.0


def repeats_itself(text: str) -> bool:
    """Whether a word or bigram directly follows itself ("the the", "of a of a"), or a trigram occurs twice."""
    found = words(text)
    if any(first == second for first, second in pairwise(found)):
        return True
    if any(found[i : i + 2] == found[i + 2 : i + 4] for i in range(len(found) - 3)):
        return True
    trigrams = [tuple(found[i : i + 3]) for i in range(len(found) - 2)]
    return len(set(trigrams)) < len(trigrams)


def share_empty(summaries: Sequence[str]) -> float:
    """Share (0..1) of the summaries without any letter or digit; there must be a summary."""
    return sum(not words(summary) for summary in summaries) / len(summaries)


def share_repeating(summaries: Sequence[str]) -> float:
    """Share (0..1) of the summaries for which `repeats_itself` holds; there must be a summary."""
    return sum(map(repeats_itself, summaries)) / len(summaries)


def share_distinct(summaries: Sequence[str]) -> float:
    """Number of different summaries as a share (0..1) of all; there must be a summary."""
    return len(set(summaries)) / len(summaries)
