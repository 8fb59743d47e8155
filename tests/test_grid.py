"""Which cells a sweep has, and their names."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lopside.errors import LopsideError
from lopside.grid import GRIDS, grid_cells, plan

PARAMS = (Path(__file__).parents[1] / "params.yaml").read_text()
COMMIT = "1e49af1" + "0" * 33


def test_named_grids() -> None:
    assert len(GRIDS["paper"]) == len(set(GRIDS["paper"])) == 16
    assert set(GRIDS["full"]) == {(enc, dec) for enc in range(1, 7) for dec in range(1, 7)}
    assert set(GRIDS["paper"]) == {(enc, dec) for enc, dec in GRIDS["full"] if 6 in (enc, dec) or enc == dec}
    assert set(GRIDS["reduced"]) < set(GRIDS["paper"])
    assert [cells[0] for cells in GRIDS.values()] == [(6, 6)] * 3


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1))
def test_a_list_is_read_back_each_cell_once(cells: list[tuple[int, int]]) -> None:
    assert grid_cells(", ".join(f"{enc}-{dec}" for enc, dec in cells)) == tuple(dict.fromkeys(cells))


@pytest.mark.parametrize("grid", ["", "papers", "6", "6-0", "6-1,", "6-1;3-3", "-1-6", "6-1-1"])
def test_another_text_is_refused(grid: str) -> None:
    with pytest.raises(LopsideError, match=r"^grid: .* is refused; allowed: paper, full, reduced, or cells"):
        grid_cells(grid)


def names(grid: str, seeds: int = 1, *overrides: str) -> list[str]:
    return [cell.name for cell in plan(grid, seeds, overrides, PARAMS, COMMIT).cells]


def test_names_say_layers_strategy_seed_and_revision_seed_by_seed() -> None:
    assert names("6-1,3-3", 2) == [
        "e6-d1-importance-s0-1e49af1",
        "e3-d3-importance-s0-1e49af1",
        "e6-d1-importance-s1-1e49af1",
        "e3-d3-importance-s1-1e49af1",
    ]
    assert names("6-1", 2, "seed=7", "keep.strategy=last") == ["e6-d1-last-s7-1e49af1", "e6-d1-last-s8-1e49af1"]


def test_other_params_have_other_names_and_equal_ones_the_same() -> None:
    plain, longer, shorter = names("6-1"), names("6-1", 1, "train.max_steps=80"), names("6-1", 1, "train.max_steps=8")
    assert len({*plain, *longer, *shorter}) == 3
    assert longer[0].startswith(f"{plain[0]}-")
    # What params.yaml says already is no change, however it is written, and the order is no change either.
    steps = yaml.safe_load(PARAMS)["train"]["max_steps"]
    assert names("6-1", 1, f"train.max_steps={steps}", "train.learning_rate=0.0005") == plain
    both = ("train.max_steps=80", "train.batch_size=8")
    assert names("6-1", 1, *both) == names("6-1", 1, *both[::-1]) != longer


def test_a_cell_knows_all_its_params() -> None:
    (cell,) = plan("5-2", 1, ["train.learning_rate=1e-4", "keep.strategy=first"], PARAMS, COMMIT).cells
    assert (cell.enc, cell.dec, cell.seed) == (5, 2, 0)
    expected = {
        "enc": 5,
        "dec": 2,
        "seed": 0,
        "train.learning_rate": 1e-4,
        "keep.strategy": "first",
        "dataset": "docstrings",
    }
    assert expected.items() <= cell.params.items()


def test_layers_can_be_counted() -> None:
    assert names("12-2", 1, "keep.unit=layers")[0].startswith("e12-d2-importance-s0-1e49af1-")


@pytest.mark.parametrize(
    ("grid", "seeds", "override", "message"),
    [
        ("6-1", 0, "seed=1", r"--seeds: 0 is refused"),
        ("6-1", 1, "enc=3", r"-S enc: is refused, for the grid sets it"),
        ("6-1", 1, "params.yaml:enc=3", r"-S enc: is refused, for the grid sets it"),
        ("6-1", 1, "train.epoch=3", r"-S train.epoch=3: Could not override 'train.epoch'"),
        ("6-1", 1, "train.epochs", r"-S train.epochs: Error parsing override"),
        ("6-1", 1, "train.epochs=1,2", r"-S train.epochs=1,2: "),
        ("6-1", 1, "other.yaml:a=1", r"-S: other.yaml is refused"),
        ("6-1", 1, "train.epochs=-1", r"^params.yaml: 1 fault\n  train.epochs: -1"),
        ("6-1", 1, "+train.more=1", r"^params.yaml: 1 fault\n  train.more: is no known key"),
        ("7-1", 1, "seed=1", r"enc: 7 is refused"),
        ("6-1", 2, f"seed={2**32 - 1}", rf"seed: {2**32} is refused"),
        ("6-1", 1, "score.confidence=0.9", r"^score.confidence: 0.9 is refused; allowed: 0.95 for what the history"),
        ("6-1", 1, "keep.strategy=explicit", r"keep.encoder: \[\] is refused"),
    ],
)
def test_bad_input_is_one_clear_error(grid: str, seeds: int, override: str, message: str) -> None:
    with pytest.raises(LopsideError, match=message):
        plan(grid, seeds, [override], PARAMS, COMMIT)


def test_explicit_layers_make_no_grid() -> None:
    overrides = ["keep.strategy=explicit", "keep.encoder=[0,1]", "keep.decoder=[5]"]
    with pytest.raises(LopsideError, match=r"^keep.strategy: 'explicit' is refused, for it does not go by the cells"):
        plan("6-1", 1, overrides, PARAMS, COMMIT)
