"""What is predicted of cells: the additive model, with times that fit it and times that do not, then real models."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from lopside import plan as plans
from lopside import untrained
from lopside.commands import main
from lopside.errors import LopsideError
from lopside.estimates import Estimate
from lopside.grid import GRIDS, Pair
from lopside.models import load_model, load_tokenizer
from lopside.pairs import Call
from lopside.plan import (
    FITTED,
    PAPER,
    Plan,
    Prediction,
    Work,
    authors_line,
    authors_speedups,
    in_words,
    make_plan,
    plan_heat_map,
    plan_table,
    predict,
    target_line,
    time_rounds,
    within_positions,
)
from tests.test_pairs import Clock

LAYERS = (12, 12)


def seconds(pair: Pair, fixed: float = 10, encoder: float = 3, decoder: float = 5) -> float:
    """Of a model whose every sixth is two layers."""
    return fixed + encoder * 2 * pair[0] + decoder * 2 * pair[1]


def test_times_that_add_up_are_predicted_exactly() -> None:
    cells = predict({pair: [seconds(pair)] * 6 for pair in [*FITTED, (2, 5)]}, LAYERS, FITTED)

    assert set(cells) == set(GRIDS["full"])
    for pair, cell in cells.items():
        assert cell.seconds == pytest.approx((seconds(pair),) * 3)
        assert cell.speedup == pytest.approx((seconds((6, 6)) / seconds(pair),) * 3)
        assert cell.measured == (seconds(pair) if pair in [*FITTED, (2, 5)] else None)
    assert cells[2, 5].error == pytest.approx(0)


def test_the_gain_in_all_is_over_dense_by_the_baseline() -> None:
    times = {pair: [seconds(pair)] * 6 for pair in FITTED}

    cells = predict(times, LAYERS, FITTED, [4 * seconds((6, 6))] * 6)

    assert cells[6, 6].total == pytest.approx((4, 4, 4))
    assert cells[6, 1].total == pytest.approx((4 * seconds((6, 6)) / seconds((6, 1)),) * 3)


@given(st.lists(st.floats(0.5, 2), min_size=6, max_size=9))
def test_what_slows_a_whole_round_down_leaves_speedups_alone(slow: list[float]) -> None:
    cells = predict({pair: [factor * seconds(pair) for factor in slow] for pair in FITTED}, LAYERS, FITTED)

    assert cells[4, 2].speedup == pytest.approx((seconds((6, 6)) / seconds((4, 2)),) * 3)
    assert cells[4, 2].seconds.low <= seconds((4, 2)) * sorted(slow)[len(slow) // 2] * 1.001


def test_intervals_are_as_wide_as_the_model_misses_what_it_was_fitted_to() -> None:
    times = {pair: [seconds(pair) * (1.2 if pair == (3, 3) else 1)] * 6 for pair in FITTED}

    cells = predict(times, LAYERS, FITTED)

    assert all(cells[pair].seconds.low <= times[pair][0] <= cells[pair].seconds.high for pair in FITTED)
    assert cells[2, 2].speedup.high > 1.05 * cells[2, 2].speedup.value
    assert cells[6, 6].speedup == (1, 1, 1)


def test_rounds_go_forwards_and_backwards() -> None:
    clock, order = Clock(), list[Pair]()

    def call(pair: Pair, took: float) -> Call:
        def wait() -> None:
            order.append(pair)
            clock.now += took

        return wait

    times = time_rounds({(6, 6): call((6, 6), 4), (6, 1): call((6, 1), 2)}, 3, clock)

    assert times == {(6, 6): [4, 4, 4], (6, 1): [2, 2, 2]}
    assert order == [(6, 6), (6, 1), (6, 1), (6, 6), (6, 6), (6, 1)]


def a_plan(**changed: Any) -> Plan:
    times = {pair: [seconds(pair) / 1000] * 6 for pair in FITTED} | {(6, 2): [0.0726] * 6}
    plan = Plan(
        "flan-t5-base", "transformers float32", PAPER, LAYERS, "cpu", 2, predict(times, LAYERS, FITTED), FITTED, 6, 50
    )
    return replace(plan, **changed)


def test_a_target_names_the_cells_that_reach_it_most_encoder_first() -> None:
    plan = a_plan()

    # dense 106 ms; 6-1 56, 5-1 50, 4-1 44, 3-1 38, 2-1 32, 1-1 26; 4-2 54, 3-2 48, 2-2 42, 1-2 36; 2-3 52, 1-3 46.
    assert plan.reaching(2) == [(5, 1), (4, 1), (3, 2), (3, 1), (2, 3), (2, 2), (2, 1), (1, 3), (1, 2), (1, 1)]
    assert target_line(plan, 3) == ("3 times faster or more: 2-1, 1-1; `dvc exp run -S enc=2 -S dec=1` makes the first")
    assert target_line(plan, 9) == "no cell is 9 times faster; the fastest is 1-1, 4.08 [4.08, 4.08]"


def test_the_table_has_all_cells_and_the_errors_of_those_that_were_timed() -> None:
    plan = a_plan()
    table = plan_table(plan).splitlines()

    assert table[0] == "| enc-dec | layers | milliseconds | speedup | measured, ms | error |"
    assert len(table) == 2 + 36
    assert table[2] == "| 6-6 (fitted) | 12 + 12 | 106 [106, 106] | 1.00 [1.00, 1.00] | 106 |  |"
    assert table[6] == "| 6-2 | 12 + 4 | 66 [66, 66] | 1.61 [1.61, 1.61] | 73 | -9.1% |"
    assert in_words(plan).splitlines()[1] == (
        "errors of 1 cells that were timed and not fitted to: median 9.1%, worst 9.1%"
    )


def test_the_authors_stand_beside_the_cells_that_they_timed() -> None:
    authors = authors_speedups("flan-t5-base", 1)

    table = plan_table(a_plan(), authors).splitlines()

    assert set(authors) == {"cnn_dailymail", "xsum"}
    assert table[0].endswith("| authors' speedup, cnn_dailymail | authors' speedup, xsum |")
    assert len(table) == 2 + 16
    assert f"{authors['xsum'][6, 1].value:.2f} [" in next(line for line in table if line.startswith("| 6-1 "))


def test_short_decoders_are_set_against_short_encoders_beside_the_authors() -> None:
    line = authors_line(a_plan(), {"xsum": {(6, 1): Estimate(4, 4, 4), (1, 6): Estimate(2, 1, 4)}})

    # 6-1 ... 6-5 take 56, 66, 76, 86, 96 ms, and 1-6 ... 5-6 take 76, 82, 88, 94, 100.
    mean = ((76 * 82 * 88 * 94 * 100) / (56 * 66 * 76 * 86 * 96)) ** 0.2
    here = f"here {mean:.2f}x [{mean:.2f}, {mean:.2f}]"
    assert line == f"speedup of 6-x / x-6, geometric mean over x: {here}, xsum 2.00x [1.00, 4.00]"


@pytest.mark.parametrize(("model", "batch"), [("docs-bart-mini", 1), ("flan-t5-base", 2)])
def test_what_the_authors_did_not_time_is_refused(model: str, batch: int) -> None:
    with pytest.raises(LopsideError, match=f"not {model} at batch {batch}"):
        authors_speedups(model, batch)


def test_documents_of_the_paper_are_cut_at_the_positions_and_others_are_refused() -> None:
    bart = {"max_position_embeddings": 512}

    assert within_positions(PAPER, bart) == replace(PAPER, source_tokens=512)
    assert within_positions(PAPER, {}) == PAPER
    with pytest.raises(LopsideError, match=r"--source-tokens: 600 .* 512 positions"):
        within_positions(Work(1, 600, 10), bart)
    with pytest.raises(LopsideError, match=r"--new-tokens: 600 .* 512 positions"):
        within_positions(Work(1, 60, 600), bart)


@pytest.mark.parametrize("engine", ["transformers", "ctranslate2"])
def test_a_models_cells_are_built_and_timed(tiny_bart: Path, tmp_path: Path, engine: str) -> None:
    if engine == "ctranslate2":
        pytest.importorskip("ctranslate2")

    plan = make_plan(str(tiny_bart), Work(2, 16, 4), engine=engine, seconds=0.1, check=[(6, 3), (6, 6)], device="cpu")

    assert plan.layers == (6, 6)
    assert plan.engine == f"{engine} float32"
    assert plan.rounds >= 6
    assert set(plan.cells) == set(GRIDS["full"])
    assert set(plan.errors()) == {(6, 3)}
    assert plan.cells[1, 1].seconds.value < plan.cells[6, 6].seconds.value
    assert (plan.cells[6, 1].total is None) == (engine == "transformers")
    assert ("speedup over transformers float32" in plan_table(plan)) == (engine != "transformers")
    plan_heat_map(plan, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_a_known_shape_needs_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    shape = untrained.SHAPES["flan-t5-small"] | {"vocab_size": 64, "d_model": 16, "d_ff": 24, "num_heads": 2}
    monkeypatch.setitem(untrained.SHAPES, "flan-t5-small", shape)

    state = torch.get_rng_state()
    for name in ("one", "other"):
        untrained.write_untrained("flan-t5-small", tmp_path / name)
    assert torch.equal(torch.get_rng_state(), state)
    plan = make_plan("flan-t5-small", replace(PAPER, source_tokens=8, new_tokens=3), seconds=0.1, device="cpu")

    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other")]
    assert weights[0] == weights[1]
    with safe_open(tmp_path / "one" / "model.safetensors", framework="pt") as tensors:
        assert "lm_head.weight" in tensors.keys()  # noqa: SIM118
    model, tokenizer = load_model(tmp_path / "one"), load_tokenizer(tmp_path / "one")
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert tokenizer("<17> <3>")["input_ids"] == [17, 3]
    assert plan.layers == (8, 8)


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_shapes_have_the_parameters_that_are_published(size: str) -> None:
    """76.96, 247.58 and 783.15 million, of the model cards; counted without making the weights."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    shape: dict[str, Any] = untrained.SHAPES[f"flan-t5-{size}"]
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(**shape))
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    parameters = sum(p.numel() for p in model.parameters()) + tied * shape["vocab_size"] * shape["d_model"]

    assert round(parameters / 1e6, 2) == {"small": 76.96, "base": 247.58, "large": 783.15}[size]


def test_the_command_prints_table_and_target(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def made(model: str, work: Work, **how: Any) -> Plan:
        asked.append((model, work, how["check"]))
        return a_plan()

    monkeypatch.setattr(plans, "make_plan", made)

    result = CliRunner().invoke(
        main, ["plan", "flan-t5-base", "--published", "--batch", "8", "--check", "6-2", "--target", "3x"]
    )

    assert result.exit_code == 0, result.output
    assert asked == [("flan-t5-base", replace(PAPER, batch=8), ((6, 2),))]
    assert "| 6-1 (fitted) |" in result.output
    assert "3 times faster or more: 2-1, 1-1" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "fast"], "--target: 'fast' is refused"),
        (["--target", "-1"], "--target: '-1' is refused"),
        (["--seconds", "nan"], "--seconds: nan is refused"),
        (["--seconds", "inf"], "--seconds: inf is refused"),
        (["--check", "x"], "grid: 'x' is refused"),
        (["--published", "--batch", "3"], "not flan-t5-base at batch 3"),
        (["--source-tokens", "0"], "0 is not in the range"),
    ],
)
def test_bad_options_are_refused_before_anything_is_built(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "make_plan", lambda *_, **__: pytest.fail("was built"))

    result = CliRunner().invoke(main, ["plan", "flan-t5-base", *arguments])

    assert result.exit_code != 0
    assert said in result.stderr


def test_cells_to_check_are_refused_before_a_model_is_looked_for() -> None:
    with pytest.raises(LopsideError, match=r"^dec: 7 is not a whole number of sixths from 1 to 6"):
        make_plan("./nowhere", Work(1, 8, 4), check=[(6, 7)], device="cpu")


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(LopsideError, match="there is no such file or folder"):
        make_plan("./nowhere", Work(1, 8, 4), device="cpu")


def test_predictions_have_no_error_where_nothing_was_timed() -> None:
    assert Prediction(Estimate(1, 1, 1), Estimate(1, 1, 1)).error is None
    assert json.dumps(a_plan(cells={}).errors()) == "{}"
