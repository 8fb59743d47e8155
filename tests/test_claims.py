"""The claims table on rows whose figures are plain: a sixth of the encoder costs 1 point, one of the decoder 0.5."""

from dataclasses import replace

import pytest

from lopside import claims
from lopside.claims import FAILS, HOLDS, UNDECIDED, UNMEASURED, fits, same_across, study_verdicts
from lopside.history import Row
from lopside.study import Study, main_studies, studies
from tests.rows import grid, row

SPEED = ("fixed", 1)


def study(rows: list[Row]) -> Study:
    (found,) = studies(rows)
    return found


def without(rows: list[Row], *cells: tuple[int, int]) -> list[Row]:
    return [each for each in rows if (each.enc, each.dec) not in cells]


def test_accuracy_follows_the_encoder() -> None:
    # 6-x minus x-6 is half a point for each sixth missing: 2.5, 2, 1.5, 1 and 0.5; each reaches 0.5 * sqrt(2).
    found = claims.accuracy_follows_encoder(study(grid()))
    assert found.ours == "+1.50 [+0.79, +2.21] points, above 0 in 5 of 5, x = 1 to 5"
    assert found.theirs == "+0.94 points, above 0 in 9 of 14"
    assert found.verdict == HOLDS
    assert claims.accuracy_follows_encoder(study(grid(width=1.2))).verdict == UNDECIDED
    assert claims.accuracy_follows_encoder(study(without(grid(), *((x, 6) for x in range(1, 6))))).verdict == UNMEASURED
    some = claims.accuracy_follows_encoder(study(without(grid(), (6, 2), (4, 6))))
    assert some.ours.endswith("in 3 of 3, x = 1, 3, 5")


def test_accuracy_may_follow_the_decoder_instead() -> None:
    swapped = [row(each.dec, each.enc, each.figure("delta.rouge2")) for each in grid()]
    assert claims.accuracy_follows_encoder(study(swapped)).verdict == FAILS


def test_latency_follows_the_decoder() -> None:
    # 36 / (12 + 4x) for 6-x, 36 / (24 + 2x) for x-6: 26/16, 28/20, 30/24, 32/28 and 34/32.
    found = claims.latency_follows_decoder(study(grid()), SPEED)
    product = 26 / 16 * 28 / 20 * 30 / 24 * 32 / 28 * 34 / 32
    assert found.ours.startswith(f"{product ** (1 / 5):.2f}x [")
    assert found.ours.endswith("above 1 in 5 of 5, x = 1 to 5")
    assert (found.verdict, found.speed) == (HOLDS, SPEED)
    assert found.theirs == ""
    paper = claims.latency_follows_decoder(study(grid(speeds=(("paper", 1),))), ("paper", 1))
    assert paper.theirs == "1.62x, above 1 in 30 of 30"
    assert (
        claims.latency_follows_decoder(study(without(grid(), *((6, x) for x in range(1, 6)))), SPEED).verdict
        == UNMEASURED
    )


def test_the_authors_times_stand_beside_the_papers_setting_where_that_was_timed() -> None:
    both = study(grid(speeds=(SPEED, ("paper", 16))))
    assert claims.latency_follows_decoder(both, SPEED).theirs == ""
    assert claims.latency_follows_decoder(both, ("paper", 16)).theirs == "0.81x, above 1 in 5 of 30"
    odd = study(grid(speeds=(("fixed", 4),)))
    assert claims.latency_follows_decoder(odd, ("fixed", 4)).theirs == ""


def test_asymmetric_beats_symmetric() -> None:
    symmetric = [row(6, 6), row(4, 4, -3, 1.5), row(3, 3, -4.5, 2), row(1, 1, -9, 4)]
    # 6-2 is slower than 3-3; 6-1 is as fast, for 3-3 may be 0.1 slower; 2-1 is faster and worse.
    others = [row(6, 2, -2, 1.85), row(6, 1, -2.5, 1.92), row(2, 1, -4, 3)]
    found = claims.asymmetric_beats_symmetric(study([*symmetric, *others]), SPEED)
    assert found.ours == (
        "+1.50 [+0.79, +2.21] points, above 0 in 2 of 2, x = 3, 4; "
        "6-2 beside 4-4; 6-1 beside 3-3; none is as fast as 1-1"
    )
    assert found.verdict == HOLDS
    assert claims.asymmetric_beats_symmetric(study([*symmetric, others[2]]), SPEED).verdict == UNDECIDED
    one = claims.asymmetric_beats_symmetric(study([*symmetric[2:], *others]), SPEED)
    assert (one.ours.split(";")[0], one.verdict) == ("+2.00 [+1.29, +2.71] points, above 0 in 1 of 1, x = 3", UNDECIDED)
    assert claims.asymmetric_beats_symmetric(study([*symmetric[2:], others[0]]), SPEED).verdict == UNMEASURED
    assert claims.asymmetric_beats_symmetric(study(others), SPEED).verdict == UNMEASURED


def test_the_luck_of_a_training_counts_where_it_is_known() -> None:
    # ROUGE-2 of two cells differs by 0.4 from seed to seed: a deviation of 0.4 / sqrt(2), two degrees of freedom.
    again = [row(6, 3, -1.9, 1.5, seed=1), row(3, 6, -3.4, 1.2, seed=1)]
    noisy = study([*grid(), *again])
    assert noisy.seed_noise == pytest.approx((0.4 / 2**0.5, 2))
    reach = 4.302653 * 0.4 / 2**0.5  # of Student's t

    def width(trainings: float) -> float:
        return (0.5**2 + trainings * reach**2) ** 0.5

    for cell, value, trainings in (((6, 1), -2.5, 2), ((6, 3), -1.7, 1)):  # dense was trained, too; the second twice
        ends = value, value - width(trainings), value + width(trainings)
        assert noisy.delta(noisy.cells[cell]) == pytest.approx(ends)
    # What is compared has dense in common, and the seeds: only the first of 6-3 counts beside 6-1.
    one, other = noisy.deltas((6, 1), (6, 3))
    assert one == pytest.approx((-2.5, -2.5 - width(1), -2.5 + width(1)))
    assert other == pytest.approx((-1.5, -1.5 - width(1), -1.5 + width(1)))
    # Without a seed in common each dense is another training.
    apart = study([*grid(((6, 6), (6, 3))), row(3, 6, -3.4, 1.2, seed=1), row(6, 3, -1.9, 1.5, seed=2)])
    deviation = 0.4 / 2**0.5
    one, other = apart.deltas((6, 3), (3, 6))
    assert apart.seed_noise == pytest.approx((deviation, 1))
    assert other.value - other.low == pytest.approx((0.5**2 + 2 * (12.7062 * deviation) ** 2) ** 0.5, rel=1e-4)
    assert one.value - one.low == pytest.approx((0.5**2 + (12.7062 * deviation) ** 2) ** 0.5, rel=1e-4)  # of two seeds
    # Nor with one, where dense came out otherwise.
    retrained = row(3, 6, -3.4, 1.2, seed=2)
    retrained = replace(retrained, figures={**retrained.figures, "dense.rouge2": 20.1})
    one, other = study([*grid(((6, 6), (6, 3))), retrained, row(6, 3, -1.9, 1.5, seed=2)]).deltas((6, 3), (3, 6))
    assert other.value - other.low == pytest.approx((0.5**2 + 2 * (12.7062 * deviation) ** 2) ** 0.5, rel=1e-4)
    assert one.value == pytest.approx(-1.7)  # both seeds count
    assert claims.accuracy_follows_encoder(study(grid())).verdict == HOLDS
    assert claims.accuracy_follows_encoder(noisy).verdict == UNDECIDED
    assert noisy.delta(noisy.cells[6, 6]) == noisy.cells[6, 6].delta  # dense itself


def test_claim_4_shows_the_interval_that_it_is_judged_by() -> None:
    rows = [*grid(((6, 6), (6, 3), (6, 2))), *(row(6, 1, -0.9 - seed / 10, 2.7, seed=seed) for seed in (0, 1))]
    found = claims.three_for_one(study(rows), SPEED)
    assert found.verdict == UNDECIDED
    noisy = study(rows)
    assert claims.POINTS.form.format(*noisy.delta(noisy.cells[6, 1])) in found.ours


@pytest.mark.parametrize(
    ("delta", "speedup", "verdict"),
    [
        (-0.9, 2.7, HOLDS),
        (-1.1, 2.7, UNDECIDED),
        (-0.9, 2.55, UNDECIDED),
        (-1.9, 2.7, UNDECIDED),
        (-2.1, 2.7, FAILS),
        (-0.9, 2.3, FAILS),
    ],
)
def test_about_three_times_for_about_a_point(delta: float, speedup: float, verdict: str) -> None:
    rows = [*grid(((6, 6), (6, 3), (6, 2))), row(6, 1, delta, speedup)]
    found = claims.three_for_one(study(rows), SPEED)
    assert found.verdict == verdict
    if speedup >= 2.5:
        assert found.ours.startswith(f"6-1: {speedup:.2f}x [{speedup - 0.1:.2f}, {speedup + 0.1:.2f}], {delta:+.2f} [")
    else:
        assert found.ours.startswith("none; the fastest is 6-1: 2.30x")
    assert found.theirs == ""


def test_the_authors_shares_stand_beside_ours() -> None:
    found = claims.three_for_one(study(grid(speeds=(("paper", 1),))), ("paper", 1))
    assert "base xsum 6-1: 2.70x, -1.96, 87.5% retained" in found.theirs
    assert found.ours.startswith(
        "none; the fastest is 6-1: 2.25x [2.15, 2.35], -2.50 [-3.00, -2.00] points, 87.5% [85.0%, 90.0%]"
    )


def test_a_claim_that_another_cell_makes_good_names_it() -> None:
    # 6-2 loses less and counts as three times as fast, though its interval does not say so; 6-1 is sure.
    rows = [row(6, 6), row(6, 2, -0.5, 2.55), row(6, 1, -0.9, 2.7)]
    found = claims.three_for_one(study(rows), SPEED)
    assert found.verdict == HOLDS
    assert found.ours.startswith("6-2: 2.55x [")
    assert found.ours.endswith("; even at the far ends of its intervals: 6-1")
    assert "far ends" not in claims.three_for_one(study([rows[0], rows[2]]), SPEED).ours


def test_without_a_shallow_decoder_there_is_no_verdict() -> None:
    assert claims.three_for_one(study(grid(((6, 6), (3, 3)))), SPEED).verdict == UNMEASURED
    assert claims.three_for_one(study(grid(((6, 6), (6, 2)))), SPEED).verdict == UNMEASURED


REDUCED = ((6, 6), (6, 3), (6, 1), (3, 6), (1, 6), (3, 3), (1, 1))


def across(*groups: list[Row]) -> claims.Verdict:
    return same_across(main_studies(studies([each for group in groups for each in group])))


def test_the_same_order_everywhere() -> None:
    # 6-1 loses 2.5, 3-3 4.5, 1-6 5.
    one, other = grid(REDUCED, width=0.2), grid(REDUCED, dataset="xsum", width=0.2)
    assert across(one, other).verdict == UNDECIDED  # two data sets, but one model
    second = grid(REDUCED, model="./other", width=0.2)
    assert across(one, second).verdict == UNDECIDED
    found = across(one, other, second)
    assert found.verdict == HOLDS
    assert "docs-bart-mini on xsum: 6-1 > 3-3 > 1-6, by +2.00 [" in found.ours
    assert "small cnn_dailymail: 3-3 > 1-6 > 6-1" in found.theirs
    assert across(one).verdict == UNMEASURED
    assert across(one, without(other, (3, 3))).verdict == UNMEASURED
    assert across(one, second, grid(REDUCED, dataset="xsum", width=0.5)).verdict == UNDECIDED
    turned = [row(each.dec, each.enc, each.figure("delta.rouge2"), dataset="xsum") for each in one]
    assert across(one, turned).verdict == FAILS


def test_a_study_has_a_row_for_each_claim_and_each_time() -> None:
    found = study_verdicts(study(grid(speeds=(("fixed", 1), ("fixed", 8), ("paper", 1)))))
    assert [(each.claim[0], each.speed) for each in found] == [
        ("1", None),
        *[(number, speed) for number in "234" for speed in (("fixed", 1), ("fixed", 8), ("paper", 1))],
    ]


def test_rows_without_a_speedup_have_no_verdict_on_speed() -> None:
    bare = [replace(each, figures={k: v for k, v in each.figures.items() if "speedup" not in k}) for each in grid()]
    assert study(bare).speeds == []
    assert [each.verdict for each in study_verdicts(study(bare))] == [HOLDS]


def test_the_regression_finds_what_a_sixth_costs() -> None:
    ours, theirs = fits(main_studies(studies(grid())))
    (fit,) = ours
    assert (fit.subject, fit.cells) == ("docs-bart-mini on docstrings", 15)
    assert (fit.encoder.value, fit.decoder.value) == pytest.approx((1, 0.5))
    assert {fit.subject: fit.cells for fit in theirs} == {
        "flan-t5-small on cnn_dailymail": 12,
        "flan-t5-small on xsum": 6,
        "flan-t5-base on xsum": 8,
        "flan-t5-large on cnn_dailymail": 10,
    }
    assert fits(main_studies(studies(grid(((6, 6), (6, 1), (1, 6))))))[0] == []
