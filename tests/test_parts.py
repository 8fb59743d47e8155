"""A batch in parts, two at a time: the gradients of the whole batch, and the same draws whoever comes first."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import DataCollatorForSeq2Seq

from lopside.inputs import IGNORED
from lopside.models import load_model, load_tokenizer
from lopside.parts import LEAST, MOST, OwnDraws, Parts, count_parts, part_of, twin

FAMILIES = ("tiny_bart", "tiny_t5", "tiny_t5_tied", "tiny_marian")


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def two_threads(threads_as_before: None) -> None:
    torch.set_num_threads(2)


def model_of(folder: Path, dropout: float = 0.0) -> Any:
    model = load_model(folder, attention="eager").train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
        elif hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = dropout
    return model


def batch_of(folder: Path, model: Any, pairs: int) -> dict[str, torch.Tensor]:
    """Sources of 3 to 20 tokens, references of 1 to 9."""
    chance = random.Random(0)
    rows = [
        {name: [chance.randrange(5, 60) for _ in range(chance.randint(*span))] for name, span in spans.items()}
        for spans in [{"input_ids": (3, 20), "labels": (1, 9)}] * pairs
    ]
    collate = DataCollatorForSeq2Seq(load_tokenizer(folder), model=model)
    return dict(collate([{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]))


def loss_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    loss: torch.Tensor = model(**batch).loss
    return loss


def gradients(model: Any) -> list[torch.Tensor]:
    found = [each.grad.clone() for each in model.parameters() if each.grad is not None]
    model.zero_grad()
    return found


@pytest.mark.parametrize("threads", [1, 2])
def test_parts_have_the_gradients_of_the_whole_batch(folder: Path, two_threads: None, threads: int) -> None:
    """Of 70 pairs, so that there are more parts than are at work at a time."""
    model = model_of(folder)
    batch = batch_of(folder, model, 70)
    loss_of(model, batch).backward()
    wanted = gradients(model)
    whole = loss_of(model, batch).detach()

    torch.set_num_threads(threads)
    parts = Parts(model, loss_of, seed=0)
    for step in range(2):
        loss = parts.backward(batch, step)
        found = gradients(model)
        assert float(loss) == pytest.approx(float(whole), rel=1e-5)
        assert len(found) == len(wanted) > 90
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    assert torch.get_num_threads() == threads


def test_what_is_frozen_stays_without_gradients(tiny_t5: Path, two_threads: None) -> None:
    model = model_of(tiny_t5)
    frozen = [name for name, _ in model.named_parameters() if "encoder" in name]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    Parts(model, loss_of, seed=0).backward(batch_of(tiny_t5, model, 40), 0)
    assert frozen
    assert {name for name, each in model.named_parameters() if each.grad is None} == set(frozen)


def test_a_model_that_draws_by_numpy_has_one_part_at_a_time(
    tiny_bart: Path, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = model_of(tiny_bart), set[int]()

    def noted(model: Any, batch: Any) -> torch.Tensor:
        seen.add(id(model))
        return loss_of(model, batch)

    batch = batch_of(tiny_bart, model, 40)
    Parts(model, noted, seed=0).backward(batch, 0)
    assert len(seen) == 2
    seen.clear()
    monkeypatch.setattr(model.config, "model_type", "bigbird_pegasus")
    Parts(model, noted, seed=0).backward(batch, 0)
    assert seen == {id(model)}


def test_gradients_are_added_to_those_that_are_there(tiny_bart: Path, two_threads: None) -> None:
    model = model_of(tiny_bart)
    batch, parts = batch_of(tiny_bart, model, 40), Parts(model, loss_of, seed=0)
    parts.backward(batch, 0)
    once = gradients(model)

    parts.backward(batch, 0)
    parts.backward(batch, 0)

    for ours, theirs in zip(gradients(model), once, strict=True):
        torch.testing.assert_close(ours, 2 * theirs)


def test_equal_seeds_and_steps_draw_the_same_whoever_comes_first(folder: Path, two_threads: None) -> None:
    model = model_of(folder, dropout=0.3)
    batch = batch_of(folder, model, 40)

    def draw(seed: int, step: int) -> list[torch.Tensor]:
        Parts(model, loss_of, seed).backward(batch, step)
        return gradients(model)

    def equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
        return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))

    first = draw(0, 0)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    assert all(equal(first, draw(0, 0)) for _ in range(5))
    assert not equal(first, draw(0, 1))
    assert not equal(first, draw(1, 0))
    assert torch.equal(before, torch.get_rng_state())


def test_small_batches_go_whole_and_draw_as_torch_does(tiny_bart: Path, two_threads: None) -> None:
    model = model_of(tiny_bart, dropout=0.3)
    batch = batch_of(tiny_bart, model, 31)
    torch.manual_seed(0)
    loss_of(model, batch).backward()
    wanted = gradients(model)

    torch.manual_seed(0)
    Parts(model, loss_of, seed=5).backward(batch, 7)

    assert all(torch.equal(one, other) for one, other in zip(gradients(model), wanted, strict=True))


def test_what_fails_in_a_part_is_raised_and_the_threads_are_given_back(tiny_bart: Path, two_threads: None) -> None:
    model = model_of(tiny_bart)

    def fail(model: Any, batch: Any) -> torch.Tensor:
        raise MemoryError("too little")

    with pytest.raises(MemoryError, match="too little"):
        Parts(model, fail, seed=0).backward(batch_of(tiny_bart, model, 40), 0)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("pairs", "parts"), [(1, 1), (31, 1), (32, 2), (33, 2), (64, 2), (65, 4), (100, 4), (128, 4), (129, 6)]
)
def test_two_parts_at_a_time_from_32_pairs_on(pairs: int, parts: int) -> None:
    assert count_parts(pairs, 2) == parts


@pytest.mark.parametrize(("pairs", "parts"), [(1, 1), (15, 1), (32, 1), (33, 2), (128, 4)])
def test_one_part_at_a_time_where_there_is_one_thread(pairs: int, parts: int) -> None:
    assert count_parts(pairs, 1) == parts


@given(st.integers(1, 500), st.sampled_from([1, 2]))
def test_parts_are_neither_large_nor_idle(pairs: int, at_once: int) -> None:
    count = count_parts(pairs, at_once)

    assert -(-pairs // count) <= MOST
    assert count % at_once == 0 or pairs < at_once * LEAST
    assert count == 1 or pairs // count >= LEAST // 2


LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), min_size=1, max_size=12)


@given(LENGTHS, st.booleans(), st.data())
def test_each_pair_is_in_one_part_without_padding_that_none_needs(
    lengths: list[tuple[int, int]], left: bool, data: st.DataObject
) -> None:
    sources = [list(range(1, source + 1)) for source, _ in lengths]
    targets = [list(range(1, target + 1)) for _, target in lengths]

    def padded(rows: list[list[int]], filler: int) -> torch.Tensor:
        fillers = [[filler] * (max(map(len, rows)) - len(row)) for row in rows]
        return torch.tensor([fill + row if left else row + fill for row, fill in zip(rows, fillers, strict=True)])

    batch = {
        "input_ids": padded(sources, 0),
        "attention_mask": padded([[1] * len(row) for row in sources], 0),
        "labels": padded(targets, IGNORED),
        "decoder_input_ids": padded(targets, 0),
    }
    count = data.draw(st.integers(1, len(lengths)))

    for number in range(count):
        part = part_of(batch, number, count)
        assert part["input_ids"].tolist() == padded(sources[number::count], 0).tolist()
        assert part["attention_mask"].tolist() == (part["input_ids"] > 0).long().tolist()
        assert part["labels"].tolist() == padded(targets[number::count], IGNORED).tolist()
        assert part["decoder_input_ids"].tolist() == padded(targets[number::count], 0).tolist()
        assert all(values.is_contiguous() for values in part.values())  # models take views of them


def test_a_twin_has_the_same_weights_and_gradients_of_its_own(folder: Path) -> None:
    model = model_of(folder)
    other: Any = twin(model)

    pairs = list(zip(model.parameters(), other.parameters(), strict=True))
    assert all(ours is not theirs and ours.data_ptr() == theirs.data_ptr() for ours, theirs in pairs)
    assert (other.get_input_embeddings().weight is other.get_output_embeddings().weight) == (
        model.get_input_embeddings().weight is model.get_output_embeddings().weight
    )
    with torch.no_grad():
        pairs[0][0].fill_(0.5)
    assert (pairs[0][1] == 0.5).all()
    loss_of(other, batch_of(folder, model, 2)).backward()
    assert all(each.grad is None for each in model.parameters())


def test_dropout_by_draws_of_its_own_is_dropout() -> None:
    ones = torch.ones(100_000)
    before = torch.get_rng_state()
    with OwnDraws(3):
        dropped = nn.Dropout(0.2)(ones)
        rand = torch.rand(4)
        assert nn.Dropout(0.2).eval()(ones) is ones
        assert nn.functional.dropout(ones, 0.0) is ones
        inplace = ones.clone()
        nn.functional.dropout(inplace, p=0.5, inplace=True)
    assert set(dropped.tolist()) == {0.0, 1.25}
    assert float((dropped == 0).float().mean()) == pytest.approx(0.2, abs=0.01)
    assert set(inplace.tolist()) == {0.0, 2.0}
    assert torch.equal(before, torch.get_rng_state())
    with OwnDraws(3):
        assert torch.equal(nn.Dropout(0.2)(ones), dropped)
        assert torch.equal(torch.rand(4), rand)
    with OwnDraws(4):
        assert not torch.equal(nn.Dropout(0.2)(ones), dropped)
