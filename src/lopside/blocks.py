"""The blocks of a loaded model, and a model with some of them switched off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lopside.architectures import StackSpec, path_pattern

if TYPE_CHECKING:
    from torch.nn import ModuleList
    from transformers import PreTrainedModel


def blocks_of(model: PreTrainedModel, stack: StackSpec) -> ModuleList:
    """The blocks of one stack of a loaded model, in order."""
    from torch.nn import ModuleList

    pattern = path_pattern(stack)
    (blocks,) = [module for name, module in model.named_modules() if pattern.fullmatch(name)]
    assert isinstance(blocks, ModuleList)
    return blocks


@contextmanager
def switched_off(model: PreTrainedModel, stack: StackSpec, indices: Sequence[int]) -> Iterator[None]:
    """Within it, some blocks of a stack hand on what they are given, as if they were not there.

    All blocks stay where they are, because some know their place. Good for a forward pass without cache.
    """
    blocks = blocks_of(model, stack)
    hooks = [blocks[index].register_forward_hook(_handing_on(stack.states)) for index in indices]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _handing_on(states: int) -> Callable[[Any, tuple[Any, ...], Any], Any]:
    """A hook: the block's states as they came take the place of those it made. All else that it returns stays:
    T5's blocks hand on the table of positions that the first one has made.
    """

    def hand_on(block: object, given: tuple[Any, ...], result: Any) -> Any:
        return (*given[:states], *result[states:]) if isinstance(result, tuple) else given[0]

    return hand_on
