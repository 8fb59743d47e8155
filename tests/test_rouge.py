import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from lopside.errors import LopsideError
from lopside.rouge import MEASURES, _round, compare, evaluate, lead, retained, score
from stages.score import main

ROOT = Path(__file__).parents[1]
FEW: Any = {"resamples": 20, "confidence": 0.95, "seed": 0}
WORD = st.sampled_from(["read", "reads", "a", "the", "file", "list", "value", "3"])
TEXT = st.lists(st.one_of(WORD, WORD.map(lambda word: f"{word}.")), max_size=9).map(" ".join)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6)


def means(reference: str, prediction: str) -> list[float]:
    return [score([reference], [prediction], **FEW).means[measure] for measure in MEASURES]


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [
        ("a b c", "a x y", [100 / 3, 0, 100 / 3, 100 / 3]),
        ("a b c", "a b d", [200 / 3, 50, 200 / 3, 200 / 3]),
        ("a b c d", "a b", [200 / 3, 50, 200 / 3, 200 / 3]),  # precision 1, recall 1/2; bigrams 1 and 1/3
        ("a b c", "c b a", [100, 0, 100 / 3, 100 / 3]),
        ("computes values", "Computing value!", [100, 100, 100, 100]),  # stemmed, lower case, no punctuation
        ("cats run. dogs bark.", "dogs bark. cats run.", [100, 200 / 3, 50, 100]),  # Lsum: sentence by sentence
        ("a b", "", [0, 0, 0, 0]),
        ("", "", [0, 0, 0, 0]),
    ],
)
def test_by_hand(reference: str, prediction: str, expected: list[float]) -> None:
    assert means(reference, prediction) == pytest.approx(expected, abs=1e-12)


@given(PAIRS)
@settings(max_examples=40, deadline=None)
def test_equals_rouge_score(pairs: list[tuple[str, str]]) -> None:
    scorer = RougeScorer(list(MEASURES), use_stemmer=True)
    references, predictions = zip(*pairs, strict=True)
    ours = score(references, predictions, **FEW)
    # The only full stops in these texts end sentences.
    theirs = [scorer.score(*(text.replace(". ", ".\n") for text in pair)) for pair in pairs]
    expected = np.array([[100 * each[measure].fmeasure for measure in MEASURES] for each in theirs])
    for column, measure in enumerate(MEASURES):
        np.testing.assert_allclose(ours.per_document[measure], expected[:, column], rtol=0, atol=1e-12)
        assert ours.means[measure] == pytest.approx(sum(expected[:, column]) / len(pairs), abs=1e-12)
        low, high = ours.intervals[measure]
        assert -1e-9 <= low <= high <= 100 + 1e-9
        assert 0 <= ours.means[measure] <= 100 + 1e-9


def test_lines_stay_sentences() -> None:
    assert means("cats run\ndogs bark", "dogs bark\ncats run") == pytest.approx([100, 200 / 3, 50, 100])


@given(PAIRS, st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_order_of_documents_leaves_means(pairs: list[tuple[str, str]], random: Any) -> None:
    mixed = random.sample(pairs, len(pairs))
    one, other = (score(*zip(*each, strict=True), **FEW) for each in (pairs, mixed))
    assert one.means == pytest.approx(other.means)


@given(st.lists(st.lists(WORD, min_size=2).map(" ".join), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_own_text_scores_100(texts: list[str]) -> None:
    scored = score(texts, texts, **FEW)
    assert scored.means == pytest.approx(dict.fromkeys(MEASURES, 100.0))
    assert scored.documents == len(texts)


def test_same_seed_same_intervals() -> None:
    references = ["a b c", "d e f", "g h i", "j k l", "m n o"]
    predictions = ["a b x", "d y f", "x y z", "j k l", "n m o"]
    first, again, other = (
        score(references, predictions, resamples=200, confidence=0.9, seed=seed) for seed in (1, 1, 2)
    )
    assert first.intervals == again.intervals != other.intervals
    assert first.means == other.means
    assert first.signature == again.signature != other.signature


def test_signature_names_every_setting() -> None:
    assert score(["a"], ["a"], resamples=7, confidence=0.9, seed=3).signature == (
        "rouge-score:0.1.2|figure:F1x100|case:lower|stemmer:porter|sentences:rules-1|mean:documents|"
        "bootstrap:7|confidence:0.9|seed:3"
    )


@pytest.mark.parametrize("predictions", [[], ["a", "b"]])
def test_one_prediction_a_reference(predictions: list[str]) -> None:
    with pytest.raises(LopsideError, match=f"{len(predictions)} summaries for 1 reference"):
        score(["a"], predictions)


def test_no_reference() -> None:
    with pytest.raises(LopsideError, match="no reference"):
        score([], [])


@pytest.mark.parametrize(("confidence", "at_least", "at_most"), [(0.95, 0.92, 0.975), (0.8, 0.75, 0.85)])
def test_interval_covers_the_truth_as_often_as_it_says(confidence: float, at_least: float, at_most: float) -> None:
    """200 samples of 100 differences with mean 1 from a uniform distribution: how many intervals hold 1?"""
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        other = generator.uniform(0, 2, 100)
        interval = compare(other, np.zeros(100), resamples=300, confidence=confidence, seed=0)
        assert interval.low < interval.difference < interval.high
        covered += interval.low <= 1 <= interval.high
    assert at_least <= covered / 200 <= at_most


def test_interval_is_the_percentile_of_the_means() -> None:
    """Of two documents with 0 and 1 a resample's mean is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4."""
    comparison = compare([0, 1], [0, 0], resamples=4000, confidence=0.6, seed=0)  # from 20% to 80%
    assert (comparison.low, comparison.difference, comparison.high) == (0, 0.5, 1)
    comparison = compare([0, 1], [0, 0], resamples=4000, confidence=0.4, seed=0)  # from 30% to 70%
    assert (comparison.low, comparison.high) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 1, 1], 2 / 8),  # all plus or all minus
        ([1] * 10, 2 / 1024),
        ([3, -1], 1),  # sums 4, 2, -2, -4: none is nearer to 0 than the observed 2
        ([3, 1], 1 / 2),
        ([0.1, 0.2, 0.3, -0.6], 1),  # a sum of 0 but for rounding
        ([0, 0, 5], 1),
    ],
)
def test_p_by_hand(differences: list[float], p: float) -> None:
    found = compare(differences, [0] * len(differences), resamples=20_000, confidence=0.95, seed=4).p
    assert found == pytest.approx(p, abs=0.01 if p > 0.1 else 0.001)
    if p == 1:
        assert found == 1


def test_p_is_never_zero() -> None:
    assert compare(np.zeros(100), np.ones(100), resamples=99, confidence=0.95, seed=0).p == 1 / 100


def test_p_is_uniform_without_a_difference() -> None:
    generator = np.random.default_rng(6)
    found = [compare(*generator.normal(size=(2, 30)), resamples=199, confidence=0.95, seed=0).p for _ in range(300)]
    for level in (0.05, 0.25, 0.5, 0.75):
        assert np.mean(np.array(found) <= level) == pytest.approx(level, abs=0.07)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_a_system_does_not_differ_from_itself(values: list[float]) -> None:
    comparison = compare(values, list(values), **FEW)
    assert (comparison.difference, comparison.low, comparison.high, comparison.p) == (0, 0, 0, 1)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=30))
def test_sides_exchanged(pairs: list[tuple[float, float]]) -> None:
    a, b = zip(*pairs, strict=True)
    one, other = compare(a, b, **FEW), compare(b, a, **FEW)
    assert one.difference == pytest.approx(-other.difference)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-9)
    assert one.p == other.p


def test_score_and_comparison_draw_the_same_documents() -> None:
    references = ["a b c", "d e f", "g h i", "j k l", "m n o"]
    scored = score(references, ["a b x", "d y f", "x y z", "j k l", "n m o"], **FEW)
    against_nothing = compare(scored.per_document["rouge1"], np.zeros(5), **FEW)
    assert (against_nothing.low, against_nothing.high) == scored.intervals["rouge1"]


def test_chunks_leave_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.random.default_rng(7).uniform(0, 100, size=(2, 32))
    whole = compare(a, b, resamples=50, confidence=0.9, seed=1)
    monkeypatch.setattr("lopside.rouge.CHUNK", 7 * 32)
    assert astuple(compare(a, b, resamples=50, confidence=0.9, seed=1)) == pytest.approx(astuple(whole), abs=1e-12)


def test_retained() -> None:
    ratio, low, high = retained([5, 10, 15], [10, 20, 30], **FEW)
    assert (ratio, low, high) == pytest.approx((0.5, 0.5, 0.5))
    ratio, low, high = retained([30, 10, 20], [10, 20, 30], **FEW)
    assert ratio == 1
    assert low is not None
    assert high is not None
    assert low < 1 < high


def test_retained_of_nothing() -> None:
    assert retained([1, 0], [0, 0], **FEW) == (None, None, None)
    assert retained([0, 0, 1], [0, 0, 1], **FEW) == (1, None, None)  # some resample has the first two alone


@pytest.mark.parametrize(("a", "b"), [([], []), ([1], [1, 2]), ([[1, 2]], [[1, 2]])])
@pytest.mark.parametrize("function", [compare, retained])
def test_unpaired(function: Callable[..., Any], a: Any, b: Any) -> None:
    with pytest.raises(LopsideError, match="one figure a document"):
        function(a, b, **FEW)


BODIES = ["Reads all lines. Then closes it.", "Gives the sum of the numbers.", "Raises where there is none. Else 3."]
DOCUMENTS = [f"{name}: {body}" for name, body in zip(["file read lines", "sum", "find"], BODIES, strict=True)]
REFERENCES = ["Read all lines of a file.", "Return the sum.", "Find the value or raise."]
DENSE = ["read all lines.", "return the sum.", "find a value"]
PRUNED = ["read the the file.", "", "find a value"]


def evaluated(dense: list[str], pruned: list[str], bodies: list[str] = BODIES) -> dict[str, Any]:
    tokens = {"dense": [4, 4, 3], "pruned": [5, 1, 3]}
    return evaluate(DOCUMENTS, bodies, REFERENCES, {"dense": dense, "pruned": pruned}, tokens, **FEW).metrics


def test_evaluation() -> None:
    metrics = evaluated(DENSE, PRUNED)
    assert list(metrics) == ["dense", "pruned", "lead", "name", "delta", "retained", "documents", "signature"]
    first = score(
        REFERENCES, ["Reads all lines.", "Gives the sum of the numbers.", "Raises where there is none."], **FEW
    )
    name = score(REFERENCES, ["file read lines", "sum", "find"], **FEW)
    for measure in MEASURES:
        assert metrics["lead"][measure] == round(first.means[measure], 3)
        assert metrics["lead"][f"{measure}_low"] == round(first.intervals[measure][0], 3)
        assert metrics["name"][f"{measure}_high"] == round(name.intervals[measure][1], 3)
        assert metrics["delta"][measure] == pytest.approx(
            metrics["pruned"][measure] - metrics["dense"][measure], abs=2e-3
        )
        assert metrics["delta"][f"{measure}_low"] <= metrics["delta"][measure] <= metrics["delta"][f"{measure}_high"]
    assert metrics["retained"]["rouge2"] == pytest.approx(
        metrics["pruned"]["rouge2"] / metrics["dense"]["rouge2"], abs=1e-3
    )
    assert {key: metrics["pruned"][key] for key in ("tokens", "empty", "repeats", "distinct")} == {
        "tokens": 3.0,
        "empty": 0.3333,
        "repeats": 0.3333,
        "distinct": 1.0,
    }
    # dense: read all, all lines; return the, the sum; find a, a value. The documents have all lines and the sum.
    assert metrics["dense"]["novel_bigrams"] == round(4 / 6, 4)
    assert metrics["documents"] == 3


def test_equal_sides_are_exactly_equal() -> None:
    metrics = evaluated(DENSE, DENSE)
    assert metrics["delta"] == {
        f"{measure}{part}": 1.0 if part == "_p" else 0.0 for measure in MEASURES for part in ("", "_low", "_high", "_p")
    }
    assert metrics["retained"]["rouge2"] == 1


def test_no_negative_zero() -> None:
    assert str(_round(-0.0001, 3)) == "0.0"
    assert _round(None, 3) is None


def test_lead() -> None:
    assert [lead(body) for body in [*BODIES[:2], "", "no stop"]] == [
        "Reads all lines.",
        "Gives the sum of the numbers.",
        "",
        "no stop",
    ]


def test_data_without_names_has_no_name_baseline() -> None:
    assert "name" not in evaluated(DENSE, PRUNED, bodies=DOCUMENTS)


# The stage.


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the generate stage has run."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for folder in ("data/splits", "outputs/generate"):
        (tmp_path / folder).mkdir(parents=True)
    ids = ["x", "y", "z"]
    columns = {"id": ids, "document": DOCUMENTS, "body": BODIES, "summary": REFERENCES, "source": ids}
    test = pd.DataFrame(columns)
    test.to_parquet("data/splits/test.parquet")
    write_generated("dense", DENSE)
    write_generated("pruned", PRUNED)
    return tmp_path


def write_generated(
    side: str, summaries: list[str], ids: tuple[str, ...] = ("x", "y", "z"), beams: int = 1, trained: str = "float32"
) -> None:
    table = pd.DataFrame({"id": ids, "summary": summaries, "tokens": range(len(ids))})
    table.attrs["generation"] = {"new_tokens": 40, "beams": beams, "trained": trained, "engine": f"{side} engine"}
    table.iloc[::-1].to_parquet(f"outputs/generate/{side}.parquet")  # in another order than the test documents


def run() -> Result:
    return CliRunner().invoke(main)


def test_stage(project: Path) -> None:
    result = run()
    assert result.exit_code == 0, result.output
    metrics = json.loads(Path("metrics/rouge.json").read_text())
    expected = score(REFERENCES, PRUNED, resamples=10_000, confidence=0.95, seed=0)
    assert metrics["pruned"]["rouge2"] == round(expected.means["rouge2"], 3)
    text = "".join(f"{document}\0{reference}\0" for document, reference in zip(DOCUMENTS, REFERENCES, strict=True))
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    generation = "new_tokens:40|beams:1|trained:float32|engine:dense engine/pruned engine"
    assert metrics["signature"] == f"{expected.signature}|{generation}|texts:{digest}"
    assert list(metrics)[-2:] == ["documents", "signature"]

    scores = pd.read_parquet("outputs/scores.parquet")
    assert scores["id"].tolist() == ["x", "y", "z"]
    assert scores["pruned_rouge1"].tolist() == expected.per_document["rouge1"].tolist()
    assert len(scores.columns) == 1 + 4 * 4

    plot = pd.read_csv("metrics/plots/rouge.csv")
    assert plot["side"].tolist() == ["dense", "pruned"]
    assert plot["rouge2_low"].tolist() == [metrics[side]["rouge2_low"] for side in ("dense", "pruned")]

    before = Path("metrics/rouge.json").read_bytes()
    assert run().exit_code == 0
    assert Path("metrics/rouge.json").read_bytes() == before


def test_stage_names_what_is_wrong(project: Path) -> None:
    def refused(*parts: str) -> None:
        result = run()
        assert result.exit_code == 1, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        for part in ("error: ", *parts):
            assert part in result.output
        assert not Path("metrics").exists()

    write_generated("pruned", PRUNED[:2], ids=("x", "y"))
    refused(
        "outputs/generate/pruned.parquet", "no summary for 1 of 3 documents", "first z", "dvc repro generate@pruned"
    )
    write_generated("pruned", [*PRUNED, "w"], ids=("x", "y", "z", "w"))
    refused("outputs/generate/pruned.parquet", "not in the test split", "first w")
    write_generated("pruned", PRUNED, ids=("x", "y", "y"))
    refused("outputs/generate/pruned.parquet", "id y occurs twice")
    write_generated("pruned", PRUNED, beams=4)
    refused("outputs/generate", "'beams': 1", "'beams': 4", "`dvc repro --force --single-item generate`, and")
    write_generated("pruned", PRUNED, trained="bfloat16")
    refused("outputs/generate", "'float32'", "'bfloat16'", "`dvc repro --force --single-item finetune`, and")
    Path("outputs/generate/pruned.parquet").unlink()
    refused("outputs/generate/pruned.parquet: no such file")
    pd.read_parquet("data/splits/test.parquet").head(0).to_parquet("data/splits/test.parquet")
    refused("data/splits/test.parquet", "the split has no pair")
    Path("data/splits/test.parquet").unlink()
    refused("data/splits/test.parquet: no such file")


def test_scoring_imports_no_torch(project: Path) -> None:
    code = "import sys, stages.score, lopside.rouge; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    path = f"{ROOT / 'src'}:{ROOT}"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}).returncode == 0
