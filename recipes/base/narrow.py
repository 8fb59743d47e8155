"""Cut a narrower model out of docs-bart-mini, as its second round leaves it.

It has as many layers, with fewer channels, heads and inner neurons each. What stays is what is most active on
calibration documents, as in Minitron (Muralidharan et al. 2024, 2407.14679, 2.2): channels by the mean absolute output
of all layer norms, the same ones everywhere, since all layers add to one stream; heads and neurons layer by layer, by
their mean absolute output. The round ``micro`` then trains what is left.
"""

import copy
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import click
import pandas as pd
import torch
from transformers import BartForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.bart.modeling_bart import BartAttention

from lopside.files import new_folder
from lopside.machine import keep_memory
from lopside.models import copy_companions, load_model, load_tokenizer
from recipes.base.train import PAIRS, TRAINED_ON, collate, examples_of, read_params

HERE = Path(__file__).parent
SOURCE = HERE / "outputs/second"
TARGET = HERE / "outputs/narrow"


def activity(
    model: BartForConditionalGeneration, batches: Sequence[dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Mean absolute value of each channel (``channels``), head and neuron (by module name), over unpadded batches."""
    sums: dict[str, Any] = defaultdict(float)

    def add(name: str, states: torch.Tensor) -> None:
        sums[name] = sums[name] + states.detach().abs().flatten(0, -2).mean(0)

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            hooks.append(module.register_forward_hook(lambda _, __, states: add("channels", states)))
        elif name.endswith((".out_proj", ".fc2")):
            hooks.append(module.register_forward_pre_hook(lambda _, given, name=name: add(name, given[0])))
    with torch.no_grad():
        for batch in batches:
            model(**batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    return dict(sums)


def cut(
    model: BartForConditionalGeneration, active: dict[str, torch.Tensor], width: int, inner: int
) -> BartForConditionalGeneration:
    """A model of that width, with the most active of everything; heads stay as wide as they are."""
    head = model.model.encoder.layers[0].self_attn.head_dim
    config = copy.deepcopy(model.config)
    config.update({"d_model": width, "encoder_ffn_dim": inner, "decoder_ffn_dim": inner})
    config.update({f"{stack}_attention_heads": width // head for stack in ("encoder", "decoder")})
    narrow = BartForConditionalGeneration(config)
    narrow.generation_config = copy.deepcopy(model.generation_config)
    channels = _most(active["channels"], width)
    inside: dict[str, torch.Tensor] = {}  # a layer's own channels: those of its heads, or its neurons
    for name, module in model.named_modules():
        if isinstance(module, BartAttention):
            heads = _most(active[f"{name}.out_proj"].unflatten(0, (-1, head)).mean(1), width // head)
            dims = (heads[:, None] * head + torch.arange(head)).flatten()
            inside |= {f"{name}.{part}": dims for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
        elif name.endswith(".fc2"):
            inside[name] = inside[name.removesuffix("2") + "1"] = _most(active[name], inner)
    weights = model.state_dict()
    with torch.no_grad():
        for name, parameter in narrow.named_parameters():
            module, _, kind = name.rpartition(".")
            ends = module.endswith((".out_proj", ".fc2"))  # back to the stream of channels
            rows = inside[module] if module in inside and not ends else channels
            kept = weights[name]
            if kind == "bias" or kept.dim() == 1:
                kept = kept[rows]
            elif module in inside:
                kept = kept[rows][:, inside[module] if ends else channels]
            else:  # embeddings: a row a token or position
                kept = kept[:, channels]
            parameter.copy_(kept)
    return narrow


def _most(active: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the greatest values, in rising order."""
    return active.topk(count).indices.sort().values


@click.command()
def main() -> None:
    """Write outputs/narrow, cut from outputs/second."""
    keep_memory()
    params = read_params()
    settings = params["narrow"]
    model = cast(BartForConditionalGeneration, load_model(SOURCE, dtype=torch.float32))
    tokenizer = cast(PreTrainedTokenizerFast, load_tokenizer(SOURCE))
    pairs = pd.read_parquet(PAIRS).sample(settings["documents"], random_state=0)
    examples = examples_of(tokenizer, pairs, params["lengths"])
    batches = [collate([example], tokenizer.pad_token_id, tokenizer.eos_token_id) for example in examples]
    for batch in batches:
        del batch["labels"]
    narrow = cut(model, activity(model, batches), settings["width"], settings["inner"])
    print(f"{narrow.num_parameters():,} of {model.num_parameters():,} parameters")
    with new_folder(TARGET) as folder:
        narrow.bfloat16().save_pretrained(folder)
        copy_companions(SOURCE, folder)
        shutil.copy(SOURCE / TRAINED_ON, folder)


if __name__ == "__main__":
    main()
