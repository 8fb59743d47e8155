"""Where each family of models keeps its layers and counts: data, not code paths.

A new family is a new row of :data:`ARCHITECTURES` (CONTRIBUTING.md, "a model family"). Facts are those of transformers
5.23. A key of config.json within another object is written with dots, as in ``encoder.num_hidden_layers``.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lopside.errors import LopsideError


@dataclass(frozen=True)
class StackSpec:
    """One stack of blocks, encoder or decoder."""

    path: str  # attribute path of the list of blocks in the model with its head; * stands for any one name
    count: str  # key of config.json with the number of blocks
    mirrors: tuple[str, ...] = ()  # keys that repeat the count, kept in step where config.json has them
    fallback: str | None = None  # key whose count holds where `count` is absent or null
    aliases: tuple[str, ...] = ()  # other beginnings of tensor names in files, which the loader turns into `path`
    first_block_owns: tuple[str, ...] = ()  # attribute paths within block 0 that the first block kept must inherit
    per_block: tuple[str, ...] = ()  # keys with a list of one entry a block; a single number there holds for all blocks
    staggered: str | None = None  # key that, unless false, makes every odd block differ: a block may not change sides
    states: int = 1  # how many of the first arguments of a block are states that it changes and returns first
    time_first: bool = False  # states are of shape (tokens, documents, width), not (documents, tokens, width)


@dataclass(frozen=True)
class ArchitectureSpec:
    """One family: its two stacks and what is special about its files."""

    encoder: StackSpec
    decoder: StackSpec
    base_prefix: str = ""  # what tensor names lack in files that were saved without the head
    uneven: tuple[str, ...] = ()  # keys written with the decoder's count as soon as the two counts differ
    deeper_decoder: str = ""  # why more decoder than encoder layers are refused; empty: they are not
    halves: tuple[str, ...] = ()  # a model made of two: the model types that each of them may have
    refused: Mapping[str, str] = field(default_factory=dict)  # key of config.json -> why it is refused where set

    @property
    def stacks(self) -> tuple[StackSpec, StackSpec]:
        """Encoder, decoder."""
        return self.encoder, self.decoder


def _bart_like(base: str = "model", time_first: bool = False, **encoder: Any) -> ArchitectureSpec:
    """A family with the modules and keys of BART.

    base: the attribute that holds the model without its head. time_first: of both stacks. encoder: what the encoder has
    besides.
    """
    encoder |= {"count": "encoder_layers", "mirrors": ("num_hidden_layers",), "time_first": time_first}
    return ArchitectureSpec(
        encoder=StackSpec(f"{base}.encoder.layers", **encoder),
        decoder=StackSpec(f"{base}.decoder.layers", count="decoder_layers", time_first=time_first),
        base_prefix=f"{base}.",
    )


# Most of the T5 family shares one table of relative positions among all blocks of a stack, and block 0 holds it.
_POSITIONS = ("layer.0.SelfAttention.relative_attention_bias",)


def _t5_like(
    encoder_owns: tuple[str, ...] = _POSITIONS, decoder_owns: tuple[str, ...] = _POSITIONS
) -> ArchitectureSpec:
    """A family with the modules and keys of T5; the arguments are what the two first blocks own for all."""
    return ArchitectureSpec(
        encoder=StackSpec(
            "encoder.block", count="num_layers", mirrors=("num_hidden_layers",), first_block_owns=encoder_owns
        ),
        decoder=StackSpec(
            "decoder.block", count="num_decoder_layers", fallback="num_layers", first_block_owns=decoder_owns
        ),
        # generate() sizes its cache by the encoder's count unless it finds this key: with more decoder than encoder
        # layers it ends in an IndexError. The key cures it for people who load the model without lopside, too.
        uneven=("decoder_layers",),
    )


ARCHITECTURES: dict[str, ArchitectureSpec] = {
    "bart": _bart_like(),
    "mbart": _bart_like(),
    "plbart": _bart_like(),
    "pegasus": _bart_like(),
    "marian": _bart_like(),
    "m2m_100": _bart_like(),  # NLLB too
    "blenderbot": _bart_like(),
    "blenderbot-small": _bart_like(),
    "fsmt": _bart_like(time_first=True),
    # Block-sparse attention draws its random blocks from a seed that is the block's number, but only while it trains:
    # in evaluation mode the pruned model is its parent less some blocks.
    "bigbird_pegasus": _bart_like(),
    "led": _bart_like("led", per_block=("attention_window",)),
    # Blocks 1, 3, 5 ... attend to windows that are moved by half a window; the encoder carries global tokens along.
    "pegasus_x": _bart_like(staggered="stagger_local_blocks", states=2),
    "mvp": replace(
        _bart_like(),
        refused={
            "use_prompt": "its prompts are one tensor for all layers, and transformers 5.23 leaves out the encoder's"
        },
    ),
    "prophetnet": ArchitectureSpec(
        encoder=StackSpec("prophetnet.encoder.layers", count="num_encoder_layers"),
        decoder=StackSpec("prophetnet.decoder.layers", count="num_decoder_layers"),
        base_prefix="prophetnet.",
        deeper_decoder="generate() of transformers 5.23 makes a cache for as many layers as the encoder has",
    ),
    "t5": _t5_like(),  # FLAN-T5 and ByT5 too
    "mt5": _t5_like(),
    "umt5": _t5_like((), ()),  # every block has a table of positions of its own
    "longt5": _t5_like(
        encoder_owns=(
            "layer.0.LocalSelfAttention.relative_attention_bias",
            "layer.0.TransientGlobalSelfAttention.relative_attention_bias",
            "layer.0.TransientGlobalSelfAttention.global_relative_attention_bias",
        )
    ),
    "t5gemma": ArchitectureSpec(
        encoder=StackSpec(
            "model.encoder.layers", count="encoder.num_hidden_layers", per_block=("encoder.layer_types",)
        ),
        decoder=StackSpec(
            "model.decoder.layers", count="decoder.num_hidden_layers", per_block=("decoder.layer_types",)
        ),
        base_prefix="model.",
    ),
    "t5gemma2": ArchitectureSpec(
        encoder=StackSpec(
            "model.encoder.text_model.layers",
            count="encoder.text_config.num_hidden_layers",
            aliases=("model.encoder.layers",),
            per_block=("encoder.text_config.layer_types",),
        ),
        decoder=StackSpec(
            "model.decoder.layers", count="decoder.num_hidden_layers", per_block=("decoder.layer_types",)
        ),
        base_prefix="model.",
    ),
    # BERT2BERT and kin: * is the name that the decoder's class has for its model without head (bert, roberta).
    "encoder-decoder": ArchitectureSpec(
        encoder=StackSpec("encoder.encoder.layer", count="encoder.num_hidden_layers"),
        decoder=StackSpec("decoder.*.encoder.layer", count="decoder.num_hidden_layers"),
        halves=("bert", "bert-generation", "roberta"),
    ),
}

_SPARSE = "its sparse (mixture-of-experts) layers are placed by number, every so many layers: others cannot be kept"

REFUSED: dict[str, str] = {"switch_transformers": _SPARSE, "nllb-moe": _SPARSE}
"""Families that cannot lose a layer without loss -> the reason."""


def spec_of(config: Mapping[str, Any]) -> ArchitectureSpec:
    """The row for a model's config.json.

    Raises LopsideError for a family or a variant of one that is not supported; it names the supported ones, or the
    reason.
    """
    model_type = config.get("model_type")
    if model_type in REFUSED:
        raise LopsideError(f"config.json says model_type {model_type!r}, which is refused: {REFUSED[model_type]}")
    if model_type not in ARCHITECTURES:
        found = "has no model_type" if model_type is None else f"says model_type {model_type!r}, which is not supported"
        raise LopsideError(
            f"config.json {found}; supported: {', '.join(sorted(ARCHITECTURES))}. "
            "CONTRIBUTING.md says how a model family is added"
        )
    spec = ARCHITECTURES[model_type]
    for key, reason in spec.refused.items():
        if _get(config, key):
            raise LopsideError(f"config.json: {model_type} with {key} is refused: {reason}")
    for half in ("encoder.model_type", "decoder.model_type") if spec.halves else ():
        if _get(config, half) not in spec.halves:
            raise LopsideError(
                f"config.json: {model_type} with {half} {_get(config, half)!r} is not supported; "
                f"supported: {', '.join(spec.halves)}"
            )
    return spec


def layer_counts(config: Mapping[str, Any]) -> tuple[int, int]:
    """(encoder, decoder) layers by a model's config.json. Raises LopsideError for a count that is absent or none."""
    encoder, decoder = (_count(config, stack) for stack in spec_of(config).stacks)
    return encoder, decoder


def with_layers(config: Mapping[str, Any], encoder_kept: Sequence[int], decoder_kept: Sequence[int]) -> dict[str, Any]:
    """A copy of a model's config.json for a model that has only the layers kept.

    encoder_kept, decoder_kept: zero-based indices, in rising order.

    Counts, every repetition of them, and lists of one entry a layer are edited; all else and the order of keys stay.
    Raises LopsideError for layers that no config.json of the family can express: the model would not be its parent
    less some layers.
    """
    spec = spec_of(config)
    encoder, decoder = len(encoder_kept), len(decoder_kept)
    if spec.deeper_decoder and decoder > encoder:
        raise LopsideError(
            f"{config['model_type']}: {decoder} decoder layers behind {encoder} encoder layers are refused: "
            f"{spec.deeper_decoder}. Keep at least as many encoder layers as decoder layers"
        )
    edited = copy.deepcopy(dict(config))
    for name, stack, kept in zip(("encoder", "decoder"), spec.stacks, (encoder_kept, decoder_kept), strict=True):
        if stack.staggered and _get(config, stack.staggered) is not False:
            _check_sides(f"{config['model_type']}: {name} layers", kept, stack.staggered)
        for key in stack.per_block:
            _set(edited, key, _entries(_get(config, key), _count(config, stack), kept, key))
        _set(edited, stack.count, len(kept))
        for key in stack.mirrors:
            if _get(config, key) is not None:
                _set(edited, key, len(kept))
    edited.update({key: decoder for key in spec.uneven if key in config or encoder != decoder})
    return edited


def block_pattern(spec: ArchitectureSpec, stack: StackSpec) -> re.Pattern[str]:
    """Matches a tensor of a block: ``head`` (with the dot), ``block`` (its number), ``rest`` (the name within it)."""
    base = re.escape(spec.base_prefix)
    paths = "|".join(_regex(path.removeprefix(spec.base_prefix)) for path in (stack.path, *stack.aliases))
    return re.compile(rf"(?P<head>(?:{base})?(?:{paths})\.)(?P<block>\d+)\.(?P<rest>.+)")


def path_pattern(stack: StackSpec) -> re.Pattern[str]:
    """Matches the attribute path of the stack's list of blocks."""
    return re.compile(_regex(stack.path))


def _regex(path: str) -> str:
    return re.escape(path).replace(r"\*", r"[^.]+")


def _count(config: Mapping[str, Any], stack: StackSpec) -> int:
    value = _get(config, stack.count)
    if value is None and stack.fallback is not None:
        value = _get(config, stack.fallback)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise LopsideError(f"config.json: {stack.count} is {value!r}, not a number of layers of 1 or more")
    return value


def _entries(value: object, count: int, kept: Sequence[int], key: str) -> object:
    """The entries of the blocks kept. What config.json leaves out would be filled in by position: it is refused."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, list) or len(value) != count:
        raise LopsideError(f"config.json: {key} is {value!r}, not a list of {count} entries, one a layer")
    return [value[index] for index in kept]


def _check_sides(what: str, kept: Sequence[int], key: str) -> None:
    if any(index % 2 != place % 2 for place, index in enumerate(kept)):
        raise LopsideError(
            f"{what} {list(kept)} are refused: with {key}, every odd layer is another kind than every even one, which "
            "follows from its place. Keep layers that are even, odd, even, odd ... (keep.strategy: explicit)"
        )


def _get(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None where it, or an object on the way to it, is absent."""
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _set(config: dict[str, Any], key: str, value: object) -> None:
    *path, last = key.split(".")
    for name in path:
        config = config[name]
    config[last] = value
