"""Fine-tune the parent (dense) or its pruned copy (pruned), both on the same batches."""

from pathlib import Path

import click

from lopside.cli import stage
from lopside.params import Params

SOURCES = {"dense": Path("outputs/parent"), "pruned": Path("outputs/prune")}


@stage(click.argument("side", type=click.Choice(list(SOURCES))))
def main(params: Params, side: str) -> None:
    """Train outputs/parent or outputs/prune into outputs/finetune/SIDE."""
    from lopside.inputs import choose_inputs
    from lopside.machine import choose_device, keep_memory, set_threads
    from lopside.splits import read_split

    train, validation = read_split("train"), read_split("validation")
    inputs = choose_inputs(
        SOURCES[side],
        params.dataset,
        params.data.prefix,
        params.data.max_source_tokens,
        params.data.max_target_tokens,
    )
    keep_memory()
    device = choose_device(params.device)
    set_threads(0)
    from lopside.training import finetune

    finetune(
        SOURCES[side],
        Path("outputs/finetune") / side,
        Path(f"metrics/plots/finetune-{side}.csv"),
        train,
        validation,
        params.train,
        inputs,
        params.seed,
        device,
    )


if __name__ == "__main__":
    main()
