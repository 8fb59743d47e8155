"""Write what the engine needs of a fine-tuned model."""

from pathlib import Path

import click

from lopside.cli import stage
from lopside.params import Params

MODELS = Path("outputs/finetune")
EXPORTED = Path("outputs/export")


@stage(click.argument("side", type=click.Choice(["dense", "pruned"])))
def main(params: Params, side: str) -> None:
    """Export outputs/finetune/SIDE to outputs/export/SIDE for the engine that params.yaml names."""
    from lopside.engines import export

    export(MODELS / side, EXPORTED / side, params.engine, params.dtype)


if __name__ == "__main__":
    main()
