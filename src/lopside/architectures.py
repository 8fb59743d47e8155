"""Where each family of models keeps its layers and counts: data, not code paths.

A new family is a new row of :data:`ARCHITECTURES`. Facts are those of transformers 5.23.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lopside.errors import LopsideError


@dataclass(frozen=True)
class StackSpec:
    """One stack of blocks, encoder or decoder."""

    path: str  # attribute path of the list of blocks in the model with its head; tensor names begin with it
    count: str  # key of config.json with the number of blocks
    mirrors: tuple[str, ...] = ()  # keys that repeat the count, kept in step where config.json has them
    fallback: str | None = None  # key whose count holds where `count` is absent or null
    first_block_owns: tuple[str, ...] = ()  # attribute paths within block 0 that the first block kept must inherit


@dataclass(frozen=True)
class ArchitectureSpec:
    """One family: its two stacks and what is special about its files."""

    encoder: StackSpec
    decoder: StackSpec
    base_prefix: str = ""  # what tensor names lack in files that were saved without the head
    uneven: tuple[str, ...] = ()  # keys written with the decoder's count as soon as the two counts differ

    @property
    def stacks(self) -> tuple[StackSpec, StackSpec]:
        """Encoder, decoder."""
        return self.encoder, self.decoder


# T5 shares one table of relative positions among all blocks of a stack, and block 0 holds it.
_T5_FIRST_BLOCK = ("layer.0.SelfAttention.relative_attention_bias", "layer.0.SelfAttention.has_relative_attention_bias")

ARCHITECTURES: dict[str, ArchitectureSpec] = {
    "bart": ArchitectureSpec(
        encoder=StackSpec("model.encoder.layers", count="encoder_layers", mirrors=("num_hidden_layers",)),
        decoder=StackSpec("model.decoder.layers", count="decoder_layers"),
        base_prefix="model.",
    ),
    "t5": ArchitectureSpec(
        encoder=StackSpec(
            "encoder.block", count="num_layers", mirrors=("num_hidden_layers",), first_block_owns=_T5_FIRST_BLOCK
        ),
        decoder=StackSpec(
            "decoder.block", count="num_decoder_layers", fallback="num_layers", first_block_owns=_T5_FIRST_BLOCK
        ),
        # generate() sizes its cache by the encoder's count unless it finds this key: with more decoder than encoder
        # layers it ends in an IndexError. The key cures it for people who load the model without lopside, too.
        uneven=("decoder_layers",),
    ),
}


def spec_of(config: Mapping[str, Any]) -> ArchitectureSpec:
    """The row for a model's config.json. Raises LopsideError that names the supported families."""
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        found = "has no model_type" if model_type is None else f"says model_type {model_type!r}, which is not supported"
        raise LopsideError(f"config.json {found}; supported: {', '.join(sorted(ARCHITECTURES))}")
    return ARCHITECTURES[model_type]


def layer_counts(config: Mapping[str, Any]) -> tuple[int, int]:
    """(encoder, decoder) layers by a model's config.json. Raises LopsideError for a count that is absent or none."""
    encoder, decoder = (_count(config, stack) for stack in spec_of(config).stacks)
    return encoder, decoder


def with_layer_counts(config: Mapping[str, Any], encoder: int, decoder: int) -> dict[str, Any]:
    """A copy of a model's config.json with other layer counts, every repetition of them included; key order stays."""
    spec = spec_of(config)
    edited = dict(config)
    for stack, count in zip(spec.stacks, (encoder, decoder), strict=True):
        edited[stack.count] = count
        edited.update({key: count for key in stack.mirrors if key in config})
    edited.update({key: decoder for key in spec.uneven if key in config or encoder != decoder})
    return edited


def _count(config: Mapping[str, Any], stack: StackSpec) -> int:
    value = config.get(stack.count)
    if value is None and stack.fallback is not None:
        value = config.get(stack.fallback)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise LopsideError(f"config.json: {stack.count} is {value!r}, not a number of layers of 1 or more")
    return value
