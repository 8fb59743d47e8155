"""What a smaller vocabulary gains: ``python -m tests.vocabulary_check [--shape flan-t5-small] [--cell 6-1]``.

A model of the shape, its weights drawn at random, is pruned to the cell; the same with fewer tokens, as
``keep.vocabulary: task`` leaves it, is timed against it, call by call: one document of 512 tokens, 64 out, batch 1.
Prints for each number of tokens how many times as fast it is, with a 95% interval, and from that the share of the time
that the whole output layer takes.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lopside.architectures import layer_counts
from lopside.engines import export, load_engine
from lopside.grid import grid_cells
from lopside.machine import keep_memory, set_threads
from lopside.models import read_config
from lopside.pairs import Call, time_pairs, warm_up
from lopside.pruning import prune
from lopside.selection import kept_count
from lopside.untrained import SHAPES, write_untrained
from lopside.vocabulary import Trimmed, trim_vocabulary
from lopside.workloads import Setting, calls_of, choose_clock

SOURCE_TOKENS, NEW_TOKENS = 512, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="flan-t5-small")
    parser.add_argument("--cell", default="6-1")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16_000, 8_000])
    parser.add_argument("--engine", default="transformers")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each number of tokens at most")
    parser.add_argument("--precision", type=float, default=0.01)
    arguments = parser.parse_args()
    keep_memory()
    threads = set_threads(0)
    (cell,) = grid_cells(arguments.cell)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_untrained(arguments.shape, folder / "dense")
        layers = layer_counts(read_config(folder / "dense"))
        encoder, decoder = (kept_count(count, share, "sixths") for count, share in zip(layers, cell, strict=True))
        prune(folder / "dense", folder / "whole", range(encoder), range(decoder))

        def call_of(model: Path) -> Call:
            exported = model.with_name(f"{model.name}-exported")
            export(model, exported, arguments.engine, arguments.dtype)
            engine = load_engine(model, exported, "cpu", threads)
            rows = [[5 + place % 50 for place in range(SOURCE_TOKENS)]]
            setting = Setting("fixed", rows, NEW_TOKENS, forced=True)
            return calls_of(engine, choose_clock("cpu"))(setting, 1)

        whole = call_of(folder / "whole")
        print(
            f"{arguments.shape} {arguments.cell} by {arguments.engine} {arguments.dtype}, {threads} threads", flush=True
        )
        for tokens in arguments.tokens:
            target = folder / f"{tokens}"
            trimmed = trim_vocabulary(folder / "whole", target, [" ".join(f"<{token}>" for token in range(tokens))])
            call = call_of(target)
            warm_up(whole, call, least=2, max_seconds=5)
            timing = time_pairs(whole, call, min_pairs=6, max_seconds=arguments.seconds, precision=arguments.precision)
            interval = timing.speedup, timing.low, timing.high
            shares = [(1 - 1 / ratio) / (1 - trimmed.after / trimmed.before) for ratio in interval]
            print(in_words(trimmed, interval, shares), flush=True)


def in_words(trimmed: Trimmed, ratio: Sequence[float], share: Sequence[float]) -> str:
    return (
        "{:,} of {:,} tokens: {:.3f} [{:.3f}, {:.3f}] times as fast; the whole output layer takes "
        "{:.1%} [{:.1%}, {:.1%}] of the time".format(trimmed.after, trimmed.before, *ratio, *share)
    )


if __name__ == "__main__":
    main()
