"""How many floating-point operations a call takes."""

from collections.abc import Callable


def count_flops(call: Callable[[], object]) -> int:
    """Call, and return the operations of its matrix products, two for each multiplication with its addition.

    torch counts them by the shapes it computes with. All else (normalisation, activations, softmax) is a small share of
    a transformer's operations and is left out, as is usual.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    # torch knows the formula for GPUs' kernels of attention, but not that the CPU's is the same.
    on_cpu = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
            lambda query, key, value, *rest, **more: sdpa_flop_count(query, key, value)
        )
    }
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        call()
    return int(counter.get_total_flops())
