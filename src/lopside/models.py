"""Model folders: where they are, what is in them, and how they become models in memory."""

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lopside.errors import LopsideError
from lopside.files import copy_file

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Models that come with the repository: name -> folder, relative to its root.
BUILT_IN = {name: Path("models") / name for name in ("docs-bart-mini", "docs-bart-micro")}

# What belongs to a model beside config.json and weights: the settings of generate(), and tokenizers of all kinds.
GENERATION_CONFIG = "generation_config.json"
COMPANIONS = (
    GENERATION_CONFIG,
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "*vocab*",
    "merges.txt",
    "bpe.codes",
    "*.model",
    "*.spm",
    "*.tokenizer",
)

TRAINED = "training.json"
"""Beside a model that was trained here: the precision and the kind of device it was trained in."""

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def read_config(folder: str | Path) -> dict[str, Any]:
    """A model folder's config.json as it stands. Raises LopsideError where it is absent or no JSON object."""
    folder = Path(folder)
    if not folder.is_dir():
        raise LopsideError(f"{folder}: there is no such model folder")
    return _read_object(folder / "config.json")


def weight_files(folder: str | Path) -> list[Path]:
    """The safetensors files of a model folder: one, or the shards that its index names; each seen to be whole.

    Raises LopsideError that names the file which is missing, cut short or of another format.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        found = [folder / WEIGHTS]
    elif (folder / INDEX).is_file():
        found = _shards(folder / INDEX)
    else:
        others = sorted(path.name for pattern in OTHER_WEIGHTS for path in folder.glob(pattern))
        if not others:
            raise LopsideError(f"{folder / WEIGHTS}: the model's weights are missing")
        raise LopsideError(
            f"{folder / others[0]}: weights are read from safetensors files alone; load the model once where you trust "
            f"it and call its save_pretrained(), which writes {WEIGHTS}"
        )
    for path in found:
        _check_whole(path)
    return found


def check_model(folder: str | Path) -> None:
    """Raise LopsideError where config or weights are missing, or a file of the model is broken.

    Reads no weights, so it takes no time.
    """
    read_config(folder)
    if (Path(folder) / GENERATION_CONFIG).exists():  # transformers would pass over a broken one, and make one up
        _read_object(Path(folder) / GENERATION_CONFIG)
    weight_files(folder)


def check_kind(folder: str | Path, where: str = "") -> None:
    """Raise LopsideError where the model in ``folder`` (called ``where`` in the message) is no encoder-decoder."""
    config = read_config(folder)
    if config.get("is_encoder_decoder") is not True:
        raise LopsideError(
            f"{where or folder}: config.json says model_type {config.get('model_type')!r} and not is_encoder_decoder; "
            "a model with an encoder and a decoder is needed (BART, T5, Pegasus, Marian, ...)"
        )


def model_files(folder: str | Path) -> list[Path]:
    """What of a model folder belongs to the model: config, weights with their index, generation settings, tokenizer.

    Raises LopsideError where config or weights are missing or broken.
    """
    folder = Path(folder)
    check_model(folder)
    weights = weight_files(folder)
    index = [folder / INDEX] if weights[0].name != WEIGHTS else []
    return [folder / "config.json", *index, *weights, *_companions(folder)]


def trained_in(folder: str | Path) -> str:
    """The precision and the device that a model of ours was trained in, as in ``float32 on cpu``; else ``unknown``."""
    path = Path(folder) / TRAINED
    return "{dtype} on {device}".format(**_read_object(path)) if path.exists() else "unknown"


def copy_companions(source: Path, target: Path) -> None:
    """Copy generation settings and tokenizer files, unchanged, from one model folder to another."""
    for path in _companions(source):
        shutil.copyfile(path, target / path.name)


def copy_model(source: Path, target: Path) -> None:
    """Copy what a model needs, and nothing else that lies in its folder, into the existing folder ``target``.

    Raises LopsideError where config or weights are missing or broken.
    """
    for path in model_files(source):
        copy_file(path, target / path.name)


def load_model(
    folder: str | Path,
    dtype: "torch.dtype | None" = None,
    device: "str | torch.device" = "cpu",
    attention: str = "sdpa",
    align: bool = True,
) -> "PreTrainedModel":
    """The model in ``folder``, in evaluation mode, in ``dtype`` (None: float32, whatever the file's own).

    attention: "sdpa", which is plain attention in families that lack it, or another that transformers knows.
    align: copy weights to where kernels are as fast, and sum in the same order, for every file. Without it, weights
    stay in the file, mapped, as long as ``dtype`` is the file's own: memory holds what was used of them, once.

    Raises LopsideError where the folder is no model for summarising, or weights and model do not fit each other:
    nothing is ever left at random values.
    """
    folder = Path(folder)
    check_model(folder)

    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForSeq2SeqLM

    with _quiet():
        try:
            model, found = AutoModelForSeq2SeqLM.from_pretrained(
                folder,
                dtype=dtype or torch.float32,
                attn_implementation=None if attention == "sdpa" else attention,  # None: sdpa, or else eager
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are named, below, and refused
            )
        except (ValueError, RuntimeError, StrictDataclassError) as error:
            raise LopsideError(f"{folder}: cannot be loaded as a model: {_first_line(error)}") from error
    faults = {
        "lack": found["missing_keys"],
        "hold, unknown to the model,": found["unexpected_keys"],
        "hold, in a shape that config.json does not give,": {name for name, *_ in found["mismatched_keys"]},
    }
    for fault, names in faults.items():
        if names:
            raise LopsideError(f"{folder}: the weights {fault} {_some(names)}")
    if align:
        _align(model)
    loaded: PreTrainedModel = model.eval().to(device)
    return loaded


def stored_dtype(folder: str | Path) -> "torch.dtype":
    """The dtype that most floating-point tensors of a model folder's weights have. Raises LopsideError."""
    import torch
    from safetensors import safe_open

    dtypes: Counter[str] = Counter()
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            dtypes.update(tensors.get_slice(name).get_dtype() for name in tensors.keys())  # noqa: SIM118
    names = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    for name, _ in dtypes.most_common():
        if name in names:
            return names[name]
    raise LopsideError(f"{folder}: its weights are of {', '.join(dtypes) or 'no dtype'}; known: {', '.join(names)}")


def load_tokenizer(folder: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in ``folder``. Raises LopsideError where there is none."""
    folder = Path(folder)
    read_config(folder)
    if not any(path.name != GENERATION_CONFIG for path in _companions(folder)):
        # For some families transformers would make one up from the special tokens alone.
        raise LopsideError(f"{folder}: there is no tokenizer")

    from transformers import AutoTokenizer

    try:
        with warnings.catch_warnings():  # Marian's wants a package for a normaliser that it then never calls
            warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers says in many ways that a file is not what it should be
        raise LopsideError(f"{folder}: its tokenizer cannot be loaded: {_first_line(error)}") from error


def _companions(folder: Path) -> list[Path]:
    return sorted({path for pattern in COMPANIONS for path in folder.glob(pattern) if path.is_file()})


def _align(model: "PreTrainedModel") -> None:
    """Copy weights that do not begin at a multiple of 64 bytes to where they do.

    The loader maps the file, so where tensors begin depends on the length of its header: different for parent and
    pruned. CPU kernels for a batch of one then sum in another order, so that last digits (and times) would differ.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


def _shards(index: Path) -> list[Path]:
    read = _read_object(index)
    weight_map = read.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise LopsideError(f"{index}: has no weight_map from tensors to files")
    if "metadata" not in read:
        raise LopsideError(f"{index}: has no metadata, without which transformers cannot read it")
    shards = [index.parent / name for name in sorted(set(weight_map.values()))]
    for shard in shards:
        if not shard.is_file():
            raise LopsideError(f"{shard}: is missing, though {index.name} names it")
    return shards


def _check_whole(path: Path) -> None:
    """Raise LopsideError unless the file's header can be read and its size is what the header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise LopsideError(f"{path}: is not a whole safetensors file: {_first_line(error)}") from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LopsideError(f"{path}: is missing") from None
    except (OSError, ValueError) as error:
        raise LopsideError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise LopsideError(f"{path}: is not a JSON object")
    return value


def _first_line(error: Exception) -> str:
    """What an error says first; a line that ends in a colon takes the next one along."""
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first


def _some(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing bars and reports while it loads: what matters of them is raised instead.

    Its warning about FLAN-T5, that embeddings and output layer are not tied, would also alarm without a cause.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with without_bars():
            yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar for each file that it reads or writes."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()
