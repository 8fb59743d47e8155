"""What a model is given of each pair: a prefix and the document, both sides cut at a number of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lopside.errors import LopsideError
from lopside.known import NUMBERED_BEHIND_PADDING, PREFIXED_TYPES, known_dataset
from lopside.models import read_config

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

IGNORED = -100
"""A label where the reference has no token: torch's cross entropy passes over it."""


@dataclass(frozen=True)
class Inputs:
    """How pairs become inputs of one model."""

    prefix: str
    """Put before each document, as it stands; may be empty."""
    max_source_tokens: int
    """Documents, prefix included, are cut here; special tokens count."""
    max_target_tokens: int
    """References are cut here in training; special tokens count."""

    def sources(self, documents: Iterable[str]) -> list[str]:
        """The documents with the prefix."""
        return [self.prefix + document for document in documents]


def choose_inputs(model: str | Path, dataset: str, prefix: str, source_tokens: int, target_tokens: int) -> Inputs:
    """The inputs that params.yaml asks for, for the model in a folder.

    Args:
        model: its folder, of which config.json is read.
        dataset: its name, as in params.yaml.
        prefix: ``auto``: what is known of the data set, for models of `PREFIXED_TYPES`, none for others.
        source_tokens: 0: what is known of the data set, or the model's positions where they are fewer.
        target_tokens: likewise; the start token takes one position.

    Raises:
        LopsideError: the folder is no model, or a length is beyond its positions; names the key.
    """
    config, known = read_config(model), known_dataset(dataset)
    if prefix == "auto":
        prefix = known.prefix if config.get("model_type") in PREFIXED_TYPES else ""
    source, target = positions(config, "encoder"), positions(config, "decoder")
    return Inputs(
        prefix,
        _length("data.max_source_tokens", source_tokens, known.source_tokens, source),
        _length("data.max_target_tokens", target_tokens, known.target_tokens, target and target - 1),
    )


def check_first_token(tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig) -> None:
    """Raise LopsideError unless summaries are made to begin as references do.

    A model of many languages is told the target language by the first token: where it learns, by its tokenizer, which
    puts it before references (``tgt_lang``; without it NLLB's takes the source language); where it writes, by
    ``forced_bos_token_id``. Nothing fails where only one of them is set, or they differ: figures would just be bad.
    """
    try:
        first = tokenizer(text_target="a")["input_ids"][0]
    except KeyError:  # M2M-100's tokenizer, where it has no target language
        first = None
    forced = settings.forced_bos_token_id
    usual = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.unk_token_id, settings.decoder_start_token_id)
    language = first in tokenizer.all_special_ids and first not in usual
    if first is None or (first != forced if forced is not None else language):
        said = "no known token" if first is None else tokenizer.convert_ids_to_tokens(first)
        made = "any" if forced is None else tokenizer.convert_ids_to_tokens(forced)
        raise LopsideError(
            f"model: its tokenizer begins references with {said}, and forced_bos_token_id of generation_config.json "
            f"lets summaries begin with {made}: both must name the target language (README, 'Languages')"
        )


def _length(key: str, given: int, known: int, positions: int | None) -> int:
    if positions is not None and given > positions:
        raise LopsideError(f"{key}: {given} is refused; the model takes {positions} tokens at most")
    return given or (known if positions is None else min(known, positions))


def positions(config: Mapping[str, Any], side: str) -> int | None:
    """How many positions a side has; None: no end of them is known (T5's are relative)."""
    inner = config.get(side)  # encoder-decoder: a config of its own for each side
    for found in (inner if isinstance(inner, dict) else {}, config):
        for name in (f"max_{side}_position_embeddings", "max_position_embeddings"):
            if isinstance(found.get(name), int):
                behind = found.get("model_type") in NUMBERED_BEHIND_PADDING
                return int(found[name]) - (found.get("pad_token_id", 1) + 1 if behind else 0)
    return None
