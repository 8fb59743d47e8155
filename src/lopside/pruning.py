"""Build the smaller model: keep some blocks of each stack, copy their weights, prove that nothing else changed."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lopside import __version__
from lopside.architectures import ArchitectureSpec, StackSpec, layer_counts, spec_of, with_layer_counts
from lopside.errors import LopsideError
from lopside.files import new_folder, sha256_of, write_json
from lopside.models import WEIGHTS, copy_companions, load_model, read_config, weight_files
from lopside.selection import check_kept

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

RECORD = "lopside.json"
# Two documents of 12 tokens and two summaries of 8: enough to pass every block, small beside loading the weights.
VERIFICATION_SHAPES = ((2, 12), (2, 8))


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
    the result is loaded again and compared with the parent, block by block and in its logits. ``target`` appears
    whole, in the place of what was there, or not at all.

    Raises LopsideError for a family that is not supported, indices that are not there and weights that do not fit
    config.json; VerificationError where the result differs from the parent's kept blocks.
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
    files = weight_files(source)
    origins = _origins(spec, layers, kept, files)

    with new_folder(target) as folder:
        write_json(folder / "config.json", with_layer_counts(config, len(kept[0]), len(kept[1])))
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
        pattern = _block_pattern(spec, stack)
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


def _block_pattern(spec: ArchitectureSpec, stack: StackSpec) -> re.Pattern[str]:
    """Matches a tensor of a block: ``head`` (with the dot), ``block`` (its number), ``rest`` (the name within it)."""
    base = re.escape(spec.base_prefix)
    path = re.escape(stack.path.removeprefix(spec.base_prefix))
    return re.compile(rf"(?P<head>(?:{base})?{path}\.)(?P<block>\d+)\.(?P<rest>.+)")


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
    from safetensors.torch import save_file

    save_file(dict(_read(origins)), path, metadata={"format": "pt"})


def _read(origins: dict[str, _Origin]) -> "list[tuple[str, torch.Tensor]]":
    from safetensors import safe_open

    read = []
    for file in sorted({origin.file for origin in origins.values()}):
        with safe_open(file, framework="pt") as tensors:
            read += [(name, tensors.get_tensor(origin.name)) for name, origin in origins.items() if origin.file == file]
    return read


def _verify(
    source: Path,
    folder: Path,
    spec: ArchitectureSpec,
    kept: tuple[tuple[int, ...], tuple[int, ...]],
    origins: dict[str, _Origin],
) -> tuple[int, int]:
    """Compare the pruned model in ``folder`` with its parent; both are read in float32, one after the other.

    Returns the number of parameters of parent and pruned. Raises VerificationError.
    """
    import torch

    model = load_model(source)
    parent_parameters = _parameters(model)
    for stack, indices in zip(spec.stacks, kept, strict=True):
        _reduce(model, stack, indices)
    reference = _logits(model)
    if not torch.isfinite(reference).all():
        raise LopsideError(f"{source}: its kept layers give logits that are not finite")
    del model

    try:
        model = load_model(folder)
    except LopsideError as error:
        raise VerificationError(str(error)) from error
    counts = layer_counts(model.config.to_dict())
    if counts != (len(kept[0]), len(kept[1])):
        raise VerificationError(f"{folder}: reads back with {counts[0]} encoder and {counts[1]} decoder layers")
    cached = model.config.get_text_config(decoder=True).num_hidden_layers
    if cached != counts[1]:
        raise VerificationError(f"{folder}: generate() would make a cache for {cached} decoder layers, not {counts[1]}")
    weights = model.state_dict()
    for name, tensor in _read(origins):
        loaded = weights.get(name, weights.get(spec.base_prefix + name))
        # Some old files hold a tensor that the model knows of and ignores: the loader has refused all others.
        if loaded is not None and not torch.equal(loaded, tensor.to(loaded.dtype)):
            raise VerificationError(f"{folder}: {name} differs from the parent's {origins[name].name}")
    if not torch.equal(_logits(model), reference):
        raise VerificationError(f"{folder}: its logits differ from those of the parent's kept blocks")
    return parent_parameters, _parameters(model)


def _reduce(model: "PreTrainedModel", stack: StackSpec, kept: tuple[int, ...]) -> None:
    """Leave only the kept blocks in a loaded model. Good for a forward without cache alone: blocks know their place."""
    from torch.nn import ModuleList

    blocks = model.get_submodule(stack.path)
    assert isinstance(blocks, ModuleList)
    first = blocks[kept[0]]
    for path in stack.first_block_owns:
        holder, _, name = path.rpartition(".")
        setattr(first.get_submodule(holder), name, getattr(blocks[0].get_submodule(holder), name))
    holder, _, name = stack.path.rpartition(".")
    setattr(model.get_submodule(holder), name, ModuleList(blocks[index] for index in kept))


def _logits(model: "PreTrainedModel") -> "torch.Tensor":
    """Logits for the same random documents and summaries whatever the model, shape (2, 8, vocabulary)."""
    import torch

    generator = torch.Generator().manual_seed(0)
    source, summary = (
        torch.randint(model.config.vocab_size, shape, generator=generator) for shape in VERIFICATION_SHAPES
    )
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=source, decoder_input_ids=summary, use_cache=False).logits
    return logits


def _parameters(model: "PreTrainedModel") -> int:
    return sum(parameter.numel() for parameter in model.parameters())
