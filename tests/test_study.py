"""Which rows compare, and what they are together."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lopside.history import Row
from lopside.study import main_studies, pareto, studies
from tests.rows import grid, row


def test_rows_that_differ_in_layers_and_seed_alone_are_one_study() -> None:
    (study,) = studies([row(6, 1), row(6, 1, seed=1), row(3, 3)])
    assert {pair: len(cell.rows) for pair, cell in study.cells.items()} == {(6, 1): 2, (3, 3): 1}


@pytest.mark.parametrize(
    "other",
    [
        {"machine": "another"},
        {"timing": "device:cuda"},
        {"dataset": "xsum"},
        {"model": "flan-t5-small"},
        {"strategy": "last"},
        {"settings": "99999999"},
        {"inputs": "99999999"},
        {"signature": 'made-up|seed:0|prefix:"c"'},
        {"unit": "layers"},
    ],
)
def test_what_does_not_compare_is_another_study(other: dict[str, Any]) -> None:
    found = studies([row(6, 1, -1), row(6, 1, -2, **other)])
    assert [[each.figure("delta.rouge2") for each in study.rows] for study in found] == [[-2], [-1]]


def test_seeds_come_from_elsewhere_without_their_times() -> None:
    own = [row(6, 1, -1, 2), row(3, 3, -2, 2)]
    there = [row(6, 1, -3, 4, seed=seed, machine="another", date=f"2026-01-0{seed + 1}") for seed in (0, 1, 2)]
    again = row(6, 1, -5, 4, seed=1, timing="device:cuda", date="2026-01-31")
    unlike = row(3, 3, -9, 2, seed=1, settings="99999999")
    two, one, *_ = studies([*own, *there, again, unlike, row(1, 1, -9, 2, machine="another")])
    assert [(study.first.machine, study.elsewhere) for study in (one, two)] == [
        ("made-up CPU, 2 cores", 2),
        ("another", 0),
    ]
    assert [(each.seed, each.figures["delta.rouge2"]) for each in one.cells[6, 1].rows] == [(0, -1), (1, -5), (2, -3)]
    assert one.cells[6, 1].delta.value == -3
    assert one.cells[6, 1].speedup(("fixed", 1)) == (2, 1.9, 2.1)
    assert list(one.cells) == [(6, 1), (3, 3)]  # what was never timed so is no cell of it
    assert one.cells[3, 3].delta.value == -2
    assert two.cells[6, 1].speedup(("fixed", 1)) == (4, 3.9, 4.1)
    deviation, freedom = one.seed_noise or (0.0, 0)
    assert deviation == pytest.approx(2)
    assert freedom == 2


def test_the_luck_of_training_is_shared_by_engines_alone() -> None:
    def served(**changes: Any) -> Row:
        timing = "device:cpu|engine:ctranslate2 int8|threads:2"
        overrides = "engine=ctranslate2 dtype=int8 train.batch_size=64"
        return row(6, 1, -1, timing=timing, settings="served", **{"overrides": overrides} | changes)

    own = [row(6, 1, -1), row(6, 1, -1.4, seed=1), row(3, 3, -2)]
    one, other = studies([*own, served()])
    assert one.is_alike(other)
    assert other.singles == one.singles == {(6, 1): [19, 18.6]}
    assert other.seed_noise == one.seed_noise == pytest.approx((0.4 / 2**0.5, 1))
    # A seed that both have computed counts once.
    _, other = studies([*own, served(), served(seed=1)])
    assert other.seed_noise == pytest.approx((0, 1))
    for change in (
        {"dataset": "xsum"},
        {"machine": "another"},
        {"training": ("2.0", "0", "64", "0.0005", "linear")},
        {"overrides": "engine=ctranslate2 dtype=int8 train.batch_size=64 train.weight_decay=0"},
    ):
        (other,) = (study for study in studies([*own, served(**change)]) if study.first.settings == "served")
        assert other.seed_noise is None
    # What rows have only a digest of.
    unlike = studies([*own, row(6, 1, settings="other")])[1]
    assert unlike.apart(one) == []
    assert not unlike.is_alike(one)


def test_milliseconds_of_cells_compare_though_the_machine_was_slower_for_some() -> None:
    slow = row(3, 3, -2, 2)
    slow = replace(
        slow, figures={key: value * 3 if key.endswith("_ms") else value for key, value in slow.figures.items()}
    )
    (study,) = studies([row(6, 6), row(6, 1, -1, 4), slow, row(1, 1, speeds=())])
    found = [study.milliseconds(cell, ("fixed", 1)) for cell in study.cells.values()]
    assert found == [100, 25, 50, None]


def test_on_which_device_both_sides_were_trained_parts_no_study() -> None:
    trained = "made-up|seed:{}|trained:{}|prefix:a"
    here, there, coarser = (
        row(6, 1, seed=seed, signature=trained.format(seed, how))
        for seed, how in enumerate(("float32 on cpu", "float32 on cuda", "bfloat16 on cuda"))
    )
    assert [len(study.rows) for study in studies([coarser, here, there])] == [2, 1]


def test_explicit_layers_are_studies_of_their_own() -> None:
    assert len(studies([row(2, 2, strategy="explicit"), row(2, 3, strategy="explicit")])) == 2


def test_stale_rows_take_no_part_and_later_ones_replace_earlier_ones() -> None:
    rows = [row(6, 1, -1), row(6, 1, -2, revision="def5678"), row(6, 1, -3, stale="revision 0000000 is gone")]
    (study,) = studies(rows)
    assert study.cells[6, 1].delta.value == -2
    (study,) = studies([*rows, row(6, 1, -4, date="2026-01-30")])  # as when an older experiment is pulled later
    assert study.cells[6, 1].delta.value == -2
    assert studies([row(6, 1, stale="gone")]) == []


def test_the_study_of_most_cells_comes_first_and_is_the_main_one() -> None:
    one, two = grid(((6, 6), (6, 1))), grid(((6, 6), (6, 1), (1, 6)), machine="another")
    found = studies([*two, *one, row(3, 3, dataset="xsum")])
    assert [len(study.cells) for study in found] == [3, 2, 1]
    mains = main_studies(found)
    assert {subject: len(study.cells) for subject, study in mains.items()} == {
        ("docs-bart-mini", "docstrings"): 3,
        ("docs-bart-mini", "xsum"): 1,
    }
    assert main_studies(studies([row(12, 2, unit="layers")])) == {}


def test_whole_epochs_come_before_steps() -> None:
    short: dict[str, Any] = {"training": ("1.0", "80", "32", "0.0005", "linear"), "settings": "short"}
    found = studies([row(6, 1), *grid(**short)])
    assert [study.title for study in found] == [
        f"docs-bart-mini on docstrings, uniform, {length}, transformers float32" for length in ("1 epoch", "80 steps")
    ]
    sample = row(6, 1, overrides="data.limits.train=12800 train.max_steps=0")
    assert studies([sample])[0].length == "1 epoch of 12,800 pairs"
    longest = row(6, 1, training=("2.5", "0", "32", "0.0005", "linear"), timing="engine:ctranslate2 int8")
    assert studies([longest])[0].title == "docs-bart-mini on docstrings, uniform, 2.5 epochs, ctranslate2 int8"


def test_seeds_are_averaged_and_so_are_the_ends() -> None:
    (study,) = studies([row(6, 1, -1, 2), row(6, 1, -2, 3, seed=1, width=1)])
    cell = study.cells[6, 1]
    assert cell.delta == (-1.5, (-1.5 - 3) / 2, (-0.5 - 1) / 2)
    assert cell.speedup(("fixed", 1)) == (2.5, 2.4, 2.6)
    assert cell.retained == pytest.approx((0.925, (0.925 + 0.85) / 2, (0.975 + 0.95) / 2))
    assert cell.figure("fixed.batch_1.pruned_ms") == pytest.approx((50 + 100 / 3) / 2)


def test_a_figure_that_one_seed_lacks_is_that_of_the_others() -> None:
    speeds = (("fixed", 1), ("natural", 8))
    (study,) = studies([row(6, 1, speeds=speeds), row(6, 1, seed=1)])
    assert study.cells[6, 1].speedup(("natural", 8)) == (1.0, 0.9, 1.1)
    assert study.cells[6, 1].speedup(("natural", 1)) is None
    assert study.speeds == [("fixed", 1), ("natural", 8)]


def test_the_usual_setting_comes_first_and_batches_in_the_order_of_their_size() -> None:
    speeds = (("paper", 1), ("another", 1), ("fixed", 16), ("fixed", 8))
    (study,) = studies([row(6, 1, speeds=speeds)])
    assert study.settings == ["fixed", "paper", "another"]
    assert study.batches("fixed") == [8, 16]


def test_the_front_leaves_out_what_is_beaten() -> None:
    points = {(6, 6): (1.0, 0.0), (6, 3): (1.5, -1.0), (3, 6): (1.4, -1.2), (6, 1): (2.5, -2.0), (1, 6): (2.5, -2.5)}
    points |= {(5, 5): (1.4, -1.0)}
    assert pareto(points) == [(6, 6), (6, 3), (6, 1)]


@given(
    st.dictionaries(st.tuples(st.integers(1, 6), st.integers(1, 6)), st.tuples(*[st.integers(0, 9)] * 2), min_size=1)
)
def test_what_is_not_on_the_front_is_beaten_by_what_is(points: dict[tuple[int, int], tuple[int, int]]) -> None:
    front = pareto(points)
    assert front
    for pair, (x, y) in points.items():
        beaten = any(points[other][0] >= x and points[other][1] >= y for other in front if other != pair)
        assert beaten or pair in front
    assert [points[pair] for pair in front] == sorted(points[pair] for pair in front)
