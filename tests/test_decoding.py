"""Rows that leave the batch as they end: what comes out is what transformers' own loop gives."""

from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, StoppingCriteria

from lopside.decoding import greedy
from lopside.generation import Transformers, generation_settings
from tests.families import FAMILIES, build

ROWS, NEW_TOKENS = 12, 16
ENDS = list(range(3, 64, 6))
"""So many end tokens that most rows end early, each at another step."""


class Shaken(LogitsProcessor):
    """Scores beside which those of a random model, that hardly differ from row to row, are not always the largest.

    They depend on a row's last token and its length alone.
    """

    def __init__(self, vocabulary: int) -> None:
        self.noise = torch.randn(vocabulary, NEW_TOKENS + 3, vocabulary, generator=torch.Generator().manual_seed(3))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        shaken: Any = scores + scores.std(-1, keepdim=True) * self.noise[input_ids[:, -1], input_ids.shape[1]]
        return shaken


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_equals_generate_with_fewer_rows(family: Any) -> None:
    model: Any = build(family).eval()
    settings = generation_settings(model, NEW_TOKENS)
    settings.eos_token_id = ENDS
    settings.forced_eos_token_id = None
    model.generation_config = settings
    generator = torch.Generator().manual_seed(5)
    documents = torch.randint(20, 56, (ROWS, 11), generator=generator)
    mask = torch.ones_like(documents)
    for row in range(0, ROWS, 3):
        mask[row, 11 - row % 5 :] = 0
    documents[mask == 0] = settings.pad_token_id
    start = settings.decoder_start_token_id or settings.bos_token_id or 0
    begun = torch.tensor([[start, 20 + row] for row in range(ROWS)])  # no two rows are alike
    rows: list[int] = []
    model.register_forward_pre_hook(lambda _, __, given: rows.append(len(given["decoder_input_ids"])), with_kwargs=True)

    def run(**how: Any) -> tuple[torch.Tensor, list[int]]:
        rows.clear()
        with torch.inference_mode():
            found = model.generate(
                input_ids=documents,
                attention_mask=mask,
                decoder_input_ids=begun,
                generation_config=settings,
                logits_processor=[Shaken(model.get_output_embeddings().weight.shape[0])],
                **how,
            )
        return found, list(rows)

    (expected, whole), (found, leaving) = run(), run(custom_generate=greedy)
    assert found.tolist() == expected.tolist()
    assert len(leaving) == len(whole)
    assert leaving[0] == whole[0] == whole[-1] == ROWS
    assert leaving == sorted(leaving, reverse=True)
    assert leaving[-1] <= ROWS / 2
    ended = [[token in ENDS for token in row[1:]].index(True) for row in expected.tolist() if set(row[1:]) & set(ENDS)]
    assert len(set(ended)) > 2  # at different steps


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_two_batches_at_a_time_disturb_each_other_in_nothing(family: Any, threads_as_before: None) -> None:
    model: Any = build(family).eval()
    engine = Transformers(model, pad=1)
    generator = torch.Generator().manual_seed(6)
    batches = [torch.randint(20, 56, (3, length), generator=generator).tolist() for length in (11, 11, 9, 8, 5, 12)]
    logits: list[bytes] = []
    model.register_forward_hook(lambda _, __, outputs: logits.append(outputs.logits.numpy().tobytes()))
    torch.set_num_threads(1)
    expected = [rows for batch in batches for rows in engine.answers([batch], 6, 1)]
    alone = sorted(logits)
    assert len(set(alone)) > len(batches)
    logits.clear()
    torch.set_num_threads(2)
    assert list(engine.answers(batches, 6, 1)) == expected
    assert sorted(logits) == alone


def test_nobody_leaves_for_a_few() -> None:
    """The cache is copied once a quarter of the rows have ended, not for each."""
    model: Any = build(FAMILIES[0]).eval()
    settings = generation_settings(model, 8)
    model.generation_config = settings
    rows: list[int] = []
    model.register_forward_pre_hook(lambda _, __, given: rows.append(len(given["decoder_input_ids"])), with_kwargs=True)
    ends = iter([[0], [0, 1], [0], [0, 2], [0, 1, 2, 3]])  # of the rows that are still there, at each step

    class Stop(StoppingCriteria):
        def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> torch.BoolTensor:
            ended: Any = torch.isin(torch.arange(len(input_ids)), torch.tensor(next(ends)))
            return ended

    with torch.inference_mode():
        found = model.generate(
            input_ids=torch.full((8, 5), 7),
            attention_mask=torch.ones(8, 5, dtype=torch.long),
            generation_config=settings,
            stopping_criteria=[Stop()],
            custom_generate=greedy,
        )
    assert rows == [8, 8, 6, 6, 4]
    assert found.shape == (8, 6)
    lengths = [row.index(settings.pad_token_id, 1) if settings.pad_token_id in row[1:] else 6 for row in found.tolist()]
    assert lengths == [2, 3, 4, 6, 5, 6, 6, 6]
