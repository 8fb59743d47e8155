"""Linear layers whose weights lie in memory as the CPU multiplies them fastest, for as long as a model is only read."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from lopside.machine import has_fast_bfloat16


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Have the linear layers of a model on a CPU multiply by oneDNN, on a copy of their weights in its own order.

    torch itself takes MKL for float32, and for bfloat16 has oneDNN bring weights in order again for each product. The
    results may differ in their last digits. It needs the memory of the weights once more; nothing may train or change
    them meanwhile. Does nothing on a GPU, without oneDNN, in bfloat16 without instructions for it, and under autocast,
    which casts weights as it goes.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear] if _packable(model) else []
    for layer in layers:
        layer.forward = partial(_product, pack(layer.weight), layer.bias)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def pack(weights: torch.Tensor) -> torch.Tensor:
    """In the order that `_product` wants; what torch's compiler does to constant weights."""
    ordered: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weights.detach())
    return ordered


def _product(weights: torch.Tensor, bias: torch.Tensor | None, values: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(values, weights, bias, "none", [], "")
    return found


def _packable(model: nn.Module) -> bool:
    first = next(model.parameters(), torch.empty(0))
    return (
        first.device.type == "cpu"
        and (first.dtype == torch.float32 or (first.dtype == torch.bfloat16 and has_fast_bfloat16()))
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )
