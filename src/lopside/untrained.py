"""Models of a published shape with weights drawn at random: enough to time them at fixed lengths, without a hub."""

from __future__ import annotations

from pathlib import Path

from lopside.files import new_folder, write_json
from lopside.models import read_config, without_bars

_FLAN_T5: dict[str, int | str] = {
    "vocab_size": 32128,
    "d_kv": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
    "eos_token_id": 1,
}
SHAPES: dict[str, dict[str, int | str]] = {
    "flan-t5-small": {**_FLAN_T5, "d_model": 512, "d_ff": 1024, "num_heads": 6, "num_layers": 8},
    "flan-t5-base": {**_FLAN_T5, "d_model": 768, "d_ff": 2048, "num_heads": 12, "num_layers": 12},
    "flan-t5-large": {**_FLAN_T5, "d_model": 1024, "d_ff": 2816, "num_heads": 16, "num_layers": 24},
}
"""Name, as in `lopside.known.HUB_MODELS` -> what its config.json on the hub says of shapes."""


def write_untrained(shape: str, folder: str | Path) -> None:
    """Write a model folder of that name in `SHAPES`, in float32, equal bytes at each call.

    It comes with a tokenizer that knows tokens by their numbers alone, such as <17>, which is all that engines need.
    The output layer has weights of its own, as FLAN-T5's has.
    """
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    config = T5Config(**SHAPES[shape])  # type: ignore[arg-type]
    numbers = Tokenizer(WordLevel({f"<{number}>": number for number in range(config.vocab_size)}, unk_token="<2>"))
    numbers.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=numbers, pad_token="<0>", eos_token="<1>", unk_token="<2>")
    with torch.random.fork_rng(devices=[]):  # transformers draws from the global generator of the CPU
        torch.default_generator.manual_seed(0)
        model = T5ForConditionalGeneration(config)
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))  # transformers 5 ties all T5
    with new_folder(folder) as target, without_bars():
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        write_json(target / "config.json", read_config(target) | {"tie_word_embeddings": False})
