"""A tiny random model of every supported family: the table that tests/test_families.py runs over.

6 + 6 layers, 16 wide, so that (6, 1), (1, 6) and (3, 2) layers can be kept. Lists of one entry a layer are irregular on
purpose: no other kept set has the same ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lopside.models import without_bars

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Kept = tuple[tuple[int, ...], tuple[int, ...]]

ALL = tuple(range(6))
CELLS: dict[str, Kept] = {"6-1": (ALL, (5,)), "1-6": ((3,), ALL), "3-2": ((1, 3, 4), (0, 4))}


@dataclass(frozen=True)
class Family:
    """One row: how the model is made, and what is true of it that is not true of all."""

    name: str
    model_type: str
    settings: Mapping[str, Any]
    untied: bool = False  # give the output layer a weight of its own, as FLAN-T5's files do, whatever the config says
    cells: Mapping[str, Kept] = field(default_factory=lambda: CELLS)
    refused: Mapping[str, str] = field(default_factory=dict)  # cell -> why
    tolerance: float = 0.0  # largest difference of logits, as a share of the largest; 0: equal to the bit
    same_uncached: bool = True  # False: the dense model itself gives other logits without cache than with it
    uncached_tolerance: float = 1e-9  # in float64, of a model that gives the same


_TOKENS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
_BART = _TOKENS | {
    "vocab_size": 64,
    "d_model": 16,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
}
_T5 = {
    "vocab_size": 64,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 6,
    "num_decoder_layers": 6,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}
_GATED = _T5 | {"feed_forward_proj": "gated-gelu"}
_GEMMA = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "max_position_embeddings": 64,
    "sliding_window": 4,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_ENCODER_KINDS = {"layer_types": [_FULL, _SLIDING, _FULL, _SLIDING, _FULL, _FULL]}
_DECODER_KINDS = {"layer_types": [_SLIDING, _FULL, _SLIDING, _SLIDING, _FULL, _SLIDING]}
_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def _halves(model_type: str, **tokens: int) -> dict[str, Any]:
    half = {
        "model_type": model_type,
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 66,
        **tokens,
    }
    decoder = half | {"is_decoder": True, "add_cross_attention": True}
    return {"encoder": half, "decoder": decoder, "decoder_start_token_id": 2, "pad_token_id": tokens["pad_token_id"]}


FAMILIES = (
    Family("bart", "bart", _BART),
    Family("bart untied", "bart", _BART | {"tie_word_embeddings": False}),
    Family("mbart", "mbart", _BART),
    Family("plbart", "plbart", _BART),
    Family("mvp", "mvp", _BART),
    Family("pegasus", "pegasus", _BART),
    # Its blocks keep their sides: even ones behind an even number of blocks.
    Family(
        "pegasus_x",
        "pegasus_x",
        _BART | {"num_global_tokens": 3, "block_size": 8},
        cells=CELLS | {"1-6": ((2,), ALL), "3-2": ((0, 3, 4), (0, 4))},
    ),
    Family("bigbird_pegasus", "bigbird_pegasus", _BART | {"block_size": 4, "num_random_blocks": 1}),
    # The widest window of all blocks says how far a document is padded. Where it was tried, logits are equal to the bit
    # all the same, but kernels may sum in another order where a matrix has another size.
    Family(
        "led",
        "led",
        _BART
        | {
            "max_encoder_position_embeddings": 64,
            "max_decoder_position_embeddings": 64,
            "attention_window": [4, 16, 4, 8, 4, 8],
        },
        tolerance=1e-6,
    ),
    Family("marian", "marian", _BART | {"pad_token_id": 63, "decoder_start_token_id": 63, "eos_token_id": 0}),
    Family(
        "marian with two vocabularies",
        "marian",
        _BART | {"decoder_vocab_size": 56, "share_encoder_decoder_embeddings": False},
    ),
    Family("m2m_100", "m2m_100", _BART),
    Family("blenderbot", "blenderbot", _BART),
    Family("blenderbot-small", "blenderbot-small", _BART),
    Family(
        "prophetnet",
        "prophetnet",
        {
            "pad_token_id": 0,  # positions are counted from here, and only from 0 are they counted right
            "bos_token_id": 1,
            "eos_token_id": 2,
            "vocab_size": 64,
            "hidden_size": 16,
            "num_encoder_layers": 6,
            "num_decoder_layers": 6,
            "num_encoder_attention_heads": 2,
            "num_decoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "max_position_embeddings": 64,
            "num_buckets": 8,
            "relative_max_distance": 16,
        },
        same_uncached=False,  # without cache, tables of relative positions are read in another order of rows
        refused={"1-6": "prophetnet: 6 decoder layers behind 1 encoder layers are refused: generate"},
    ),
    Family(
        "fsmt",
        "fsmt",
        {key: value for key, value in _BART.items() if key != "vocab_size"}
        | {"src_vocab_size": 64, "tgt_vocab_size": 56},
        same_uncached=False,  # without cache, generate() goes without causal mask
    ),
    Family("t5", "t5", _T5),
    Family("flan-t5", "t5", _GATED | {"tie_word_embeddings": False}, untied=True),
    Family("mt5", "mt5", _GATED | {"tie_word_embeddings": False}, untied=True),
    Family("umt5", "umt5", _GATED | {"tie_word_embeddings": False}, untied=True),
    Family("longt5 local", "longt5", _T5 | {"local_radius": 3}),
    Family(
        "longt5 transient-global",
        "longt5",
        _GATED | {"local_radius": 3, "encoder_attention_type": "transient-global", "global_block_size": 4},
    ),
    Family(
        "t5gemma",
        "t5gemma",
        {"vocab_size": 64, "encoder": _GEMMA | _ENCODER_KINDS, "decoder": _GEMMA | _DECODER_KINDS},
        # Its cosines of positions are float32 all the same, and on some processors other for many at once than for one.
        uncached_tolerance=4e-5,
    ),
    Family(
        "t5gemma2",
        "t5gemma2",
        {
            "encoder": {
                "text_config": _GEMMA | _ENCODER_KINDS,
                "vision_config": _VISION,
                "mm_tokens_per_image": 4,
                "boi_token_index": 60,
                "eoi_token_index": 61,
                "image_token_index": 62,
            },
            "decoder": _GEMMA | _DECODER_KINDS,
            "image_token_index": 62,
        },
    ),
    Family("bert2bert", "encoder-decoder", _halves("bert", pad_token_id=0)),
    Family("roberta2roberta", "encoder-decoder", _halves("roberta", pad_token_id=1)),
    Family("bert-generation", "encoder-decoder", _halves("bert-generation", pad_token_id=0)),
)


def build(family: Family) -> "PreTrainedModel":
    """The row's model with random weights."""
    import torch
    from torch.nn import Parameter
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    config = AutoConfig.for_model(family.model_type, **family.settings)
    with torch.random.fork_rng():
        model = AutoModelForSeq2SeqLM.from_config(config)
    if family.untied:
        model.lm_head.weight = Parameter(model.lm_head.weight.detach().clone())  # transformers 5 has tied it
    randomise(model)
    return model


def save(model: "PreTrainedModel", folder: Path) -> None:
    """``save_pretrained`` without a progress bar."""
    with without_bars():
        model.save_pretrained(folder)


def randomise(model: "PreTrainedModel") -> None:
    """Random weights large enough that every layer shows in what is generated."""
    import torch

    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if parameter.dim() == 2:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(0.1 * noise + ("norm" in name.lower() and name.endswith("weight")))
