"""Keep some layers of the parent: the pruned model, before it is fine-tuned."""

import csv
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lopside.architectures import layer_counts
from lopside.cli import stage
from lopside.errors import LopsideError
from lopside.files import new_file
from lopside.models import read_config
from lopside.params import Params
from lopside.pruning import prune
from lopside.selection import SHARE, Stack, keep_layers, kept_count

if TYPE_CHECKING:
    from lopside.importance import Ranking

SOURCE = Path("outputs/parent")
TARGET = Path("outputs/prune")
PLOT = Path("metrics/plots/layers.csv")
MISSED = {
    "loss": "loss of the whole model without the layer, in nats a token, untrained",
    "influence": "influence of the layer in the whole model, 1 - cosine",
}


@stage
def main(params: Params) -> None:
    """Keep enc of the encoder's layers and dec of the decoder's, in keep.unit, as outputs/prune."""
    encoder, decoder = layer_counts(read_config(SOURCE))
    layers: dict[Stack, int] = {"encoder": encoder, "decoder": decoder}
    strategy, unit = params.keep.strategy, params.keep.unit
    shares: dict[Stack, int] = {"encoder": params.enc, "decoder": params.dec}
    explicit = {"encoder": params.keep.encoder, "decoder": params.keep.decoder}
    rankings: dict[Stack, Ranking] = {}
    if strategy == "importance":
        counts = {stack: kept_count(layers[stack], shares[stack], unit, SHARE[stack]) for stack in layers}
        rankings = _measure(params, {stack: count for stack, count in counts.items() if count < layers[stack]})
        kept = {
            stack: rankings[stack].kept if stack in rankings else tuple(range(count)) for stack, count in counts.items()
        }
    else:
        kept = {
            stack: keep_layers(layers[stack], shares[stack], strategy, explicit[stack], stack, unit) for stack in layers
        }
    record = prune(
        SOURCE,
        TARGET,
        kept["encoder"],
        kept["decoder"],
        strategy=strategy,
        importance={stack: asdict(ranking) for stack, ranking in rankings.items()} or None,
    )
    parameters = record.pruned.parameters
    if params.keep.vocabulary == "task":
        try:
            parameters -= _trim(params)
        except LopsideError:
            shutil.rmtree(TARGET)  # whole, but not what was asked for
            raise
    _write_plot(layers, kept, rankings)
    for stack in layers:
        print(f"{stack} keeps {_some(kept[stack])} of {layers[stack]} layers")
        if stack in rankings and len(kept[stack]) == 1:
            scores = rankings[stack].scores[0]
            ends = {"first": 0, "last": layers[stack] - 1, "kept": kept[stack][0]}
            said = ", ".join(f"{end} ({layer}) {scores[layer]:.3f}" for end, layer in ends.items())
            print(f"  {MISSED[params.keep.measure]}: {said}")
    print(f"{record.parent.parameters:,} parameters become {parameters:,}")


def _trim(params: Params) -> int:
    """Leave the pruned model the tokens of the training split; returns how many parameters that saved."""
    from lopside.inputs import choose_inputs
    from lopside.splits import read_split
    from lopside.vocabulary import trim_vocabulary

    pairs = read_split("train")
    inputs = choose_inputs(
        SOURCE, params.dataset, params.data.prefix, params.data.max_source_tokens, params.data.max_target_tokens
    )
    trimmed = trim_vocabulary(TARGET, TARGET, [*inputs.sources(pairs["document"]), *pairs["summary"]])
    print(f"{trimmed.after:,} of {trimmed.before:,} tokens stay")
    return trimmed.parameters


def _measure(params: Params, counts: Mapping[Stack, int]) -> "dict[Stack, Ranking]":
    """The stacks that lose layers, down to ``counts``, on a sample of training pairs, whatever the seed."""
    if not counts:
        return {}
    from lopside.inputs import choose_inputs
    from lopside.machine import choose_device, keep_memory, set_threads
    from lopside.splits import read_split

    pairs = read_split("train")
    inputs = choose_inputs(
        SOURCE, params.dataset, params.data.prefix, params.data.max_source_tokens, params.data.max_target_tokens
    )
    pairs = pairs.sample(min(params.keep.documents, len(pairs)), random_state=params.data.limits.seed)
    keep_memory()
    device = choose_device(params.device)
    set_threads(0)
    from lopside.importance import rank_layers
    from lopside.models import load_model, load_tokenizer

    model, tokenizer = load_model(SOURCE, device=device), load_tokenizer(SOURCE)
    return {
        stack: rank_layers(
            model,
            tokenizer,
            inputs.sources(pairs["document"]),
            pairs["summary"].tolist(),
            stack,
            count,
            measure=params.keep.measure,
            max_source_tokens=inputs.max_source_tokens,
            max_target_tokens=inputs.max_target_tokens,
        )
        for stack, count in counts.items()
    }


def _write_plot(
    layers: Mapping[Stack, int], kept: Mapping[Stack, tuple[int, ...]], rankings: "Mapping[Stack, Ranking]"
) -> None:
    """A row a layer: whether it is kept and, where that was measured, its score while all layers were there."""
    with new_file(PLOT) as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["layer", "kept", "importance"])
        for stack, count in layers.items():
            scores = rankings[stack].scores[0] if stack in rankings else {}
            for layer in range(count):
                score = f"{scores[layer]:.5g}" if layer in scores else ""
                writer.writerow([f"{stack} {layer}", int(layer in kept[stack]), score])


def _some(kept: tuple[int, ...]) -> str:
    return ", ".join(str(index) for index in kept)


if __name__ == "__main__":
    main()
