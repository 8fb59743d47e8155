"""How much memory `prune` takes beside the parent's weights: ``python -m tests.memory [--flan-t5-large] FOLDER``.

Writes a T5-shaped model of random float32 weights to FOLDER (167 MB, or 3.1 GB in FLAN-T5-large's shape, and as much
again when it is pruned), prunes it in a fresh process, and prints that process's peak of resident memory, beyond what
it held before, over the size of the weights file. Resident memory counts pages of mapped files too, though the system
may take those back. /proc is read, so Linux only.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SMALL = {"vocab_size": 4000, "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_heads": 8, "num_layers": 6}
# config.json of google/flan-t5-large, as far as it gives shapes.
FLAN_T5_LARGE = {"vocab_size": 32128, "d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_heads": 16, "num_layers": 24}

# Prunes a small model first, so that what is imported and set up once does not count.
MEASURE = """
import os, sys
from pathlib import Path
from lopside.pruning import prune

small, source, target, *counts = sys.argv[1:]
prune(small, target + "-small", (0,), (1,))

def resident(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if name in line)

for kept in counts:  # each in a fork, to which the memory of the others is unknown
    child = os.fork()
    if child == 0:
        encoder, decoder = map(int, kept.split("-"))
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident("VmRSS")
        prune(source, f"{target}-{kept}", range(encoder), range(decoder))
        print((resident("VmHWM") - before) * 1024 / (Path(source) / "model.safetensors").stat().st_size)
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0
"""


def write_t5(folder: Path, shape: dict[str, int]) -> None:
    """A gated T5 with untied output layer, as FLAN-T5 is, of random float32 weights, written tensor by tensor."""
    import numpy as np

    d_model, inner, d_ff = shape["d_model"], shape["num_heads"] * shape["d_kv"], shape["d_ff"]
    shapes: dict[str, tuple[int, ...]]
    shapes = dict.fromkeys(("shared.weight", "lm_head.weight"), (shape["vocab_size"], d_model))
    for stack, attentions in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
        for block in range(shape["num_layers"]):
            base = f"{stack}.block.{block}.layer"
            for place, attention in enumerate(attentions):
                shapes |= {f"{base}.{place}.{attention}.{name}.weight": (inner, d_model) for name in "qkv"}
                shapes[f"{base}.{place}.{attention}.o.weight"] = (d_model, inner)
            dense = f"{base}.{len(attentions)}.DenseReluDense"
            shapes |= {f"{dense}.wi_{place}.weight": (d_ff, d_model) for place in (0, 1)}
            shapes[f"{dense}.wo.weight"] = (d_model, d_ff)
            shapes |= {f"{base}.{place}.layer_norm.weight": (d_model,) for place in range(len(attentions) + 1)}
        shapes[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, shape["num_heads"])
        shapes[f"{stack}.final_layer_norm.weight"] = (d_model,)

    header, end = {}, 0
    for name, size in shapes.items():
        begin, end = end, end + 4 * int(np.prod(size))
        header[name] = {"dtype": "F32", "shape": size, "data_offsets": (begin, end)}
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    with open(folder / "model.safetensors", "wb") as file:
        text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
        text += b" " * (-len(text) % 8)
        file.write(struct.pack("<Q", len(text)) + text)
        for name, size in shapes.items():
            values = generator.standard_normal(size, dtype=np.float32)
            file.write((values / np.float32(20) + np.float32("norm" in name)).tobytes())
    config = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, **shape}
    (folder / "config.json").write_text(json.dumps(config | {"num_decoder_layers": shape["num_layers"]}))


def peaks(
    small: Path, source: Path, target: Path, counts: Sequence[tuple[int, int]], python: str = sys.executable
) -> list[float]:
    """Peak memory of pruning ``source`` to its first layers, so many, over the size of its weights file."""
    arguments = [str(small), str(source), str(target), *(f"{encoder}-{decoder}" for encoder, decoder in counts)]
    run = subprocess.run(
        [python, "-c", MEASURE, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return [float(line) for line in run.stdout.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--flan-t5-large", action="store_true")
    arguments = parser.parse_args()
    shape = FLAN_T5_LARGE if arguments.flan_t5_large else SMALL
    small, source = arguments.folder / "small", arguments.folder / "parent"
    write_t5(small, SMALL | {"vocab_size": 100, "d_model": 64, "d_ff": 64})
    write_t5(source, shape)
    layers = shape["num_layers"]
    counts = [(layers, layers), (layers, layers // 6)]
    shares = peaks(small, source, arguments.folder / "pruned", counts)
    for (encoder, decoder), share in zip(counts, shares, strict=True):
        print(f"{encoder} + {decoder} of {layers} + {layers} layers: {share:.2f}")


if __name__ == "__main__":
    main()
