"""Build the smaller model: keep some blocks of each stack, copy their weights, prove that nothing else changed."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lopside import __version__
from lopside.architectures import (
    ArchitectureSpec,
    StackSpec,
    block_pattern,
    layer_counts,
    spec_of,
    with_layers,
)
from lopside.blocks import blocks_of, switched_off
from lopside.errors import LopsideError
from lopside.files import new_folder, sha256_of, write_json
from lopside.models import WEIGHTS, copy_companions, load_model, read_config, stored_dtype, weight_files
from lopside.selection import check_kept

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

RECORD = "lopside.json"
# A document of 24 tokens and a summary of 8: enough to pass every block, small beside reading the weights.
VERIFICATION_SHAPES = ((1, 24), (1, 8))
TENSORS_AT_ONCE = 16
"""How many are compared before the files are opened anew."""


@dataclass(frozen=True)
class Size:
    """How large a model is; a weight that two tensors share is one parameter."""

    encoder_layers: int
    decoder_layers: int
    parameters: int


@dataclass(frozen=True)
class PruneRecord:
    """What was done to the parent: written as lopside.json beside the pruned weights."""

    encoder_kept: tuple[int, ...]
    decoder_kept: tuple[int, ...]
    strategy: str
    importance: Mapping[str, Any] | None  # what was measured, a stack each; see lopside.importance.Ranking
    parent: Size
    pruned: Size
    parent_sha256: dict[str, str]  # weights file -> SHA-256
    lopside: str  # version


class VerificationError(RuntimeError):
    """The pruned model is not its parent less some blocks: a fault of lopside, never to be passed over."""


def prune(
    source: str | Path,
    target: str | Path,
    encoder_kept: Sequence[int],
    decoder_kept: Sequence[int],
    *,
    strategy: str = "explicit",
    importance: Mapping[str, Any] | None = None,
) -> PruneRecord:
    """Write the model in folder ``source``, less the blocks that are not kept, as a model folder ``target``.

    encoder_kept, decoder_kept: zero-based indices of the blocks that stay, in rising order.
    strategy, importance: how they were chosen and what was measured for it, for the record only.

    config.json is edited, tensors are copied one by one as they are (no model is built from the edited config: that
    would tie FLAN-T5's output layer to its embeddings), generation settings and tokenizer are copied unchanged. Then
    the result is read again and compared with the parent: every tensor to the bit, and the logits to within rounding
    of those that the parent gives when its other blocks hand on what they were given. ``target`` appears whole, in the
    place of what was there, or not at all.

    Memory: weights are mapped from their files, in the files' dtype, one model at a time: at its highest about the
    size of the parent's weights, all of them pages that the system may take back.

    Raises LopsideError for a family that is not supported, indices that are not there or that the family's config.json
    cannot express, and weights that do not fit config.json; VerificationError where the result differs from the
    parent's kept blocks.
    """
    source, target = Path(source), Path(target)
    if source.resolve() == target.resolve():
        raise LopsideError(f"{target}: the pruned model would take the place of its parent")
    config = read_config(source)
    spec = spec_of(config)
    layers = layer_counts(config)
    kept = (
        check_kept(encoder_kept, layers[0], "encoder_kept"),
        check_kept(decoder_kept, layers[1], "decoder_kept"),
    )
    edited = with_layers(config, *kept)
    files = weight_files(source)
    origins = _origins(spec, layers, kept, files)

    with new_folder(target) as folder:
        write_json(folder / "config.json", edited)
        _copy_tensors(origins, folder / WEIGHTS)
        copy_companions(source, folder)
        parameters = _verify(source, folder, spec, kept, origins)
        record = PruneRecord(
            *kept,
            strategy=strategy,
            importance=importance,
            parent=Size(*layers, parameters[0]),
            pruned=Size(len(kept[0]), len(kept[1]), parameters[1]),
            parent_sha256={file.name: sha256_of(file) for file in files},
            lopside=__version__,
        )
        write_json(folder / RECORD, asdict(record))
    return record


@dataclass(frozen=True)
class _Origin:
    """Where a tensor of the pruned model comes from."""

    file: Path
    name: str


def _origins(
    spec: ArchitectureSpec, layers: tuple[int, int], kept: tuple[tuple[int, ...], tuple[int, ...]], files: list[Path]
) -> dict[str, _Origin]:
    """Name in the pruned model -> tensor of the parent; tensors of dropped blocks are left out.

    Raises LopsideError unless each stack's tensors are those of as many blocks as config.json counts.
    """
    from safetensors import safe_open

    found: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            found.update(dict.fromkeys(tensors.keys(), file))

    renames = []
    for stack, count, indices in zip(spec.stacks, layers, kept, strict=True):
        pattern = block_pattern(spec, stack)
        blocks = {int(match["block"]) for match in map(pattern.fullmatch, found) if match}
        if blocks != set(range(count)):
            raise LopsideError(
                f"{files[0]}: holds {len(blocks)} blocks of {stack.path}, where config.json says {stack.count}: {count}"
            )
        renames.append(_renaming(pattern, stack, indices))

    origins = {}
    for name, file in found.items():
        renamed: str | None = name
        for rename in renames:
            renamed = renamed and rename(renamed)
        if renamed:
            origins[renamed] = _Origin(file, name)
    return origins


def _renaming(pattern: re.Pattern[str], stack: StackSpec, kept: tuple[int, ...]) -> Callable[[str], str | None]:
    """A function from a tensor's name in the parent to its name in the pruned model; None: it goes with its block."""

    def rename(name: str) -> str | None:
        match = pattern.fullmatch(name)
        if not match:
            return name
        block = int(match["block"])
        if block == 0 and any(match["rest"].startswith(f"{owned}.") for owned in stack.first_block_owns):
            return f"{match['head']}0.{match['rest']}"
        return f"{match['head']}{kept.index(block)}.{match['rest']}" if block in kept else None

    return rename


def _copy_tensors(origins: dict[str, _Origin], path: Path) -> None:
    """Write the tensors as one safetensors file. They are views of the mapped parent: memory holds no second copy."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors = {}
    for file in sorted({origin.file for origin in origins.values()}):
        with safe_open(file, framework="pt") as read:
            tensors.update({name: read.get_tensor(at.name) for name, at in origins.items() if at.file == file})
    save_file(tensors, path, metadata={"format": "pt"})


def _verify(
    source: Path,
    folder: Path,
    spec: ArchitectureSpec,
    kept: tuple[tuple[int, ...], tuple[int, ...]],
    origins: dict[str, _Origin],
) -> tuple[int, int]:
    """Compare the pruned model in ``folder`` with its parent; one is in memory after the other.

    Returns the number of parameters of parent and pruned. Raises VerificationError.
    """
    import torch

    _compare_tensors(folder, origins)
    dtype = stored_dtype(source)
    parent_parameters, reference = _reference(source, dtype, spec, kept)
    if not torch.isfinite(reference).all() and dtype == torch.float16:  # its range is too small for some models
        dtype = torch.float32
        parent_parameters, reference = _reference(source, dtype, spec, kept)
    if not torch.isfinite(reference).all():
        raise LopsideError(f"{source}: its kept layers give logits that are not finite")

    try:
        model = load_model(folder, dtype, align=False)
    except LopsideError as error:
        raise VerificationError(str(error)) from error
    counts = layer_counts(model.config.to_dict())
    if counts != (len(kept[0]), len(kept[1])):
        raise VerificationError(f"{folder}: reads back with {counts[0]} encoder and {counts[1]} decoder layers")
    cached = model.config.get_text_config(decoder=True).num_hidden_layers
    if cached < counts[1]:
        raise VerificationError(f"{folder}: generate() would make a cache for {cached} decoder layers, not {counts[1]}")
    difference = (_logits(model) - reference).abs().max() / reference.abs().max()
    # The same sums, but maybe in another order: kernels go by where in memory a tensor begins, and LED by the widest
    # window of all blocks. A wrong block, or one in the wrong place, differs by about 1.
    if not difference <= torch.finfo(dtype).eps ** 0.5:
        raise VerificationError(f"{folder}: its logits differ from those of the parent's kept blocks")
    return parent_parameters, _parameters(model)


def _compare_tensors(folder: Path, origins: dict[str, _Origin]) -> None:
    """Raise VerificationError where a tensor in ``folder`` is not to the bit the one that it was copied from.

    A few at a time: what was read of a file counts as memory for as long as the file is mapped.
    """
    import torch
    from safetensors import safe_open

    names = list(origins)
    for begin in range(0, len(names), TENSORS_AT_ONCE):
        some = {name: origins[name] for name in names[begin : begin + TENSORS_AT_ONCE]}
        with ExitStack() as stack:
            files = {
                file: stack.enter_context(safe_open(file, framework="pt"))
                for file in {folder / WEIGHTS, *(origin.file for origin in some.values())}
            }
            for name, origin in some.items():
                # As bytes, so that NaN equals NaN.
                ours, theirs = (
                    files[file].get_tensor(tensor).reshape(-1).view(torch.uint8)
                    for file, tensor in ((folder / WEIGHTS, name), (origin.file, origin.name))
                )
                if not torch.equal(ours, theirs):
                    raise VerificationError(f"{folder}: {name} differs from the parent's {origin.name}")


def _reference(
    source: Path, dtype: "torch.dtype", spec: ArchitectureSpec, kept: tuple[tuple[int, ...], tuple[int, ...]]
) -> "tuple[int, torch.Tensor]":
    """The parent's number of parameters, and the logits of its kept blocks, the others switched off."""
    model = load_model(source, dtype, align=False)
    with ExitStack() as off:
        for stack, indices in zip(spec.stacks, kept, strict=True):
            dropped = [index for index in range(len(blocks_of(model, stack))) if index not in indices]
            off.enter_context(switched_off(model, stack, dropped))
        return _parameters(model), _logits(model)


def _logits(model: "PreTrainedModel") -> "torch.Tensor":
    """Logits for the same random document and summary whatever the model, shape (1, 8, vocabulary), float32."""
    import torch

    generator = torch.Generator().manual_seed(0)
    # From the second quarter of the vocabulary: special tokens, which some models mask, stand at its ends.
    source, summary = (
        torch.randint(size // 4, size // 2, shape, generator=generator)
        for size, shape in zip(_vocabularies(model), VERIFICATION_SHAPES, strict=True)
    )
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=source, decoder_input_ids=summary, use_cache=False).logits
    return logits.float()


def _vocabularies(model: "PreTrainedModel") -> tuple[int, int]:
    """How many tokens the encoder and the decoder know."""
    encoder: Any = model.get_input_embeddings()
    decoder: Any = model.get_output_embeddings()
    return encoder.weight.shape[0], decoder.weight.shape[0]


def _parameters(model: "PreTrainedModel") -> int:
    return sum(parameter.numel() for parameter in model.parameters())
