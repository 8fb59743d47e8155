import pytest
from hypothesis import given
from hypothesis import strategies as st

from lopside.texts import (
    novel_bigrams,
    repeats_itself,
    share_distinct,
    share_empty,
    share_repeating,
    split_sentences,
    words,
)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        (" \n ", []),
        ("No stop at all", ["No stop at all"]),
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("in lower case. also split.", ["in lower case.", "also split."]),
        ("Use a.b.c or 3.5 here. Done.", ["Use a.b.c or 3.5 here.", "Done."]),
        ("Some types, e.g. lists, vs. tuples. Then more.", ["Some types, e.g. lists, vs. tuples.", "Then more."]),
        ("some types ( e. g. lists ) . then more .", ["some types ( e. g. lists ) .", "then more ."]),
        ("See (cf. Smith et al. 2003). Next.", ["See (cf. Smith et al. 2003).", "Next."]),
        ("By J. R. Smith. Next.", ["By J. R. Smith.", "Next."]),
        ("Multiply a by b. Then add c.", ["Multiply a by b.", "Then add c."]),
        ("Lists, tuples etc. are read. Done.", ["Lists, tuples etc. are read.", "Done."]),
        ("Lists, tuples etc. The rest stays.", ["Lists, tuples etc.", "The rest stays."]),
        ("From a, b, ... to z. Done.", ["From a, b, ... to z.", "Done."]),
        ('He said "no." She left.', ['He said "no."', "She left."]),
        ("(It ends here.) Next.", ["(It ends here.)", "Next."]),
        ("wrapped\n  line. New\tone", ["wrapped line.", "New one"]),
        ("A heading\n\nA paragraph. End", ["A heading", "A paragraph.", "End"]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@given(st.text(st.sampled_from("ab eg.!?\n\"')J"), max_size=60))
def test_splitting_loses_nothing_and_is_final(text: str) -> None:
    sentences = split_sentences(text)
    assert " ".join(sentences).split() == text.split()
    assert [split_sentences(sentence) for sentence in sentences] == [[sentence] for sentence in sentences]


def test_words_are_lower_case_letters_and_digits() -> None:
    assert words("Don't re-read HTTP2, naïve!") == ["don", "t", "re", "read", "http2", "na", "ve"]


def test_novel_bigrams_are_pooled() -> None:
    # (a b) is known and (b d) is not; all three of the second summary are new: 4 of 5.
    assert novel_bigrams(["A b, d", "x y z w"], ["a b c", ""]) == pytest.approx(4 / 5)
    assert novel_bigrams(["a b c"], ["x. A b c y"]) == 0
    assert novel_bigrams(["one", ""], ["two", "three"]) == 0  # no bigram at all


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("", False),
        ("return the value of the key", False),
        ("return the the value", True),  # a word
        ("the size of the size of it", True),  # trigram: the size of
        ("of a of a list", True),  # a bigram
        ("of a or of a list", False),  # a bigram again, but not directly
        ("get the name and then get the name", True),  # trigram: get the name
    ],
)
def test_repetition(text: str, repeats: bool) -> None:
    assert repeats_itself(text) is repeats


def test_shares() -> None:
    summaries = ["a a", "", " . ", "b", "b", "c d", "c d", "c d"]
    assert share_empty(summaries) == 2 / 8
    assert share_repeating(summaries) == 1 / 8
    assert share_distinct(summaries) == 5 / 8
