"""Keep some layers of the parent: the pruned model, before it is fine-tuned."""

from pathlib import Path

from lopside.architectures import layer_counts
from lopside.cli import stage
from lopside.models import read_config
from lopside.params import Params
from lopside.pruning import prune
from lopside.selection import keep_layers

SOURCE = Path("outputs/parent")
TARGET = Path("outputs/prune")


@stage
def main(params: Params) -> None:
    """Keep enc of the encoder's layers and dec of the decoder's, in keep.unit, as outputs/prune."""
    encoder, decoder = layer_counts(read_config(SOURCE))
    strategy, unit = params.keep.strategy, params.keep.unit
    record = prune(
        SOURCE,
        TARGET,
        keep_layers(encoder, params.enc, strategy, params.keep.encoder, "encoder", unit),
        keep_layers(decoder, params.dec, strategy, params.keep.decoder, "decoder", unit),
        strategy=strategy,
    )
    print(f"encoder keeps {_some(record.encoder_kept)} of {encoder} layers")
    print(f"decoder keeps {_some(record.decoder_kept)} of {decoder} layers")
    print(f"{record.parent.parameters:,} parameters become {record.pruned.parameters:,}")


def _some(kept: tuple[int, ...]) -> str:
    return ", ".join(str(index) for index in kept)


if __name__ == "__main__":
    main()
