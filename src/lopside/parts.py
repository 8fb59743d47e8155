"""The gradients of a large batch on a CPU: it goes through the model in parts of 16 to 32 pairs, two of them at a time.

Each of the two has half of the threads: while one is in Python, or in an operation too small to be shared, the other
computes. And of few pairs at a time more stays in the caches. It needs memory for two parts, and for the gradients of
all weights once more.
"""

import random
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from lopside.inputs import IGNORED
from lopside.machine import shared_threads

AT_ONCE = 2
MOST = 32
"""Pairs of a part: of more, less stays in the caches."""
LEAST = 16
"""Pairs of each part from which two at a time are faster than one after the other, all threads in each."""
ALONE = frozenset({"bigbird_pegasus"})
"""Model types that draw by numpy's generator, of which there is one for all threads: one part at a time."""

Batch = Mapping[str, torch.Tensor]
"""As `DataCollatorForSeq2Seq` makes it: (pairs, tokens) each."""
Loss = Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]
"""Of a model and a batch, the mean over its labels."""


class Parts:
    """Adds the gradients of batches to those of a model: those of the whole batch, but for rounding and draws."""

    def __init__(self, model: PreTrainedModel, loss: Loss, seed: int) -> None:
        """``seed``: of what is drawn for batches that go in parts; others draw by torch's own generator."""
        self._model, self._loss, self._seed = model, loss, seed
        self._twins: list[nn.Module] = []

    def backward(self, batch: Batch, step: int) -> torch.Tensor:
        """The mean loss over the labels of ``batch``, a scalar; its gradient is added to ``grad`` of the parameters.

        ``step`` is the batch's number: with the seed, and how many parts are at work at a time, it tells what is drawn.
        """
        at_once = 1 if self._model.config.model_type in ALONE else min(AT_ONCE, torch.get_num_threads())
        count = count_parts(len(batch["labels"]), at_once)
        if count == 1 or self._model.device.type != "cpu":
            return _backward(self._loss(self._model, dict(batch)))
        while len(self._twins) < at_once - 1:
            self._twins.append(twin(self._model))
        parts = [part_of(batch, number, count) for number in range(count)]
        labels = [int((part["labels"] != IGNORED).sum()) for part in parts]

        def work(place: int, model: nn.Module) -> torch.Tensor:
            with OwnDraws(random.Random(f"{self._seed} {step} {place}").getrandbits(63)):
                losses = [
                    _backward(self._loss(model, parts[number]) * (labels[number] / sum(labels)))
                    for number in range(place, count, at_once)
                ]
            return torch.stack(losses).sum()

        with shared_threads(at_once) as pool:
            losses = list(pool.map(work, range(at_once), [self._model, *self._twins]))
        for each in self._twins:
            _move_gradients(each, self._model)
        return torch.stack(losses).sum()


class OwnDraws(TorchFunctionMode):
    """While it lasts, in this thread, dropout and `torch.rand` (layer dropout) draw by a generator of their own.

    torch's is one for all threads, and whose turn it is would be left to chance. Other draws are not caught.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.dropout:
            return self._dropout(*args, **kwargs)
        if func is torch.rand:
            kwargs = {"generator": self._generator, **kwargs}
        return func(*args, **kwargs)

    def _dropout(self, values: torch.Tensor, p: float, training: bool, inplace: bool) -> torch.Tensor:
        if not training or p == 0:
            return values
        kept = torch.empty_like(values).bernoulli_(1 - p, generator=self._generator).div_(1 - p)
        return values.mul_(kept) if inplace else values * kept


def count_parts(pairs: int, at_once: int) -> int:
    """Into how many parts a batch is cut, ``at_once`` (1 or 2) of which are at work at a time."""
    if pairs < at_once * LEAST:
        return 1
    fewest = -(-pairs // MOST)
    return -(-fewest // at_once) * at_once


def part_of(batch: Batch, number: int, count: int) -> dict[str, torch.Tensor]:
    """Every ``count``-th pair, from ``number`` on, without the columns that are padding in all of these.

    Neighbours are alike where batches are sorted, so that the parts are about as much work.
    """
    part = {name: values[number::count] for name, values in batch.items()}
    source, target = (part["attention_mask"] != 0).any(0), (part["labels"] != IGNORED).any(0)
    return {
        name: values[:, source if name in ("input_ids", "attention_mask") else target] for name, values in part.items()
    }


def twin(model: nn.Module) -> nn.Module:
    """The same weights, in the same memory, with gradients of its own."""
    shared = {
        id(weights): nn.Parameter(weights.detach(), requires_grad=weights.requires_grad)
        for weights in model.parameters()
    }
    return deepcopy(model, shared)


def _backward(loss: torch.Tensor) -> torch.Tensor:
    loss.backward()
    return loss.detach()


def _move_gradients(source: nn.Module, target: nn.Module) -> None:
    for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
        if ours.grad is None:
            ours.grad = theirs.grad
        elif theirs.grad is not None:
            ours.grad += theirs.grad
        theirs.grad = None
