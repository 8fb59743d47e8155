"""Trim a model's vocabulary to the tokens that its task uses.

The output layer has a row for each token and is computed whole for each token that is written: with one decoder layer
left, a vocabulary of 32,128 takes more weights than that layer. What stays are the tokens of the training text, the
special ones, and whatever single characters and bytes are spelt with, so that every text can still be written.

The training text is cut into the same tokens as before: a token that is used stays the best choice where others go, and
of BPE's merges all stay that led to one. Other texts may be spelt in more and shorter tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lopside.architectures import spec_of
from lopside.errors import LopsideError
from lopside.files import new_folder, write_json
from lopside.models import (
    GENERATION_CONFIG,
    WEIGHTS,
    copy_companions,
    load_model,
    load_tokenizer,
    read_config,
    weight_files,
)
from lopside.pruning import RECORD

TOKENIZER = "tokenizer.json"
SLOW = ("*.model", "*.spm", "*vocab*", "merges.txt", "bpe.codes", "added_tokens.json")
"""Files of other tokenizers than the one of `TOKENIZER`, which know the old ids."""
TOKEN_KEYS = re.compile(r"(.*_)?token_id|bad_words_ids|(begin_)?suppress_tokens")
"""Keys of config.json and generation_config.json that hold ids, alone or in lists."""


@dataclass(frozen=True)
class Trimmed:
    """What was trimmed of a model."""

    before: int
    """Tokens, in rows of the embeddings."""
    after: int
    parameters: int
    """How many fewer there are."""


def trim_vocabulary(source: str | Path, target: str | Path, texts: Sequence[str]) -> Trimmed:
    """Write the model in folder ``source``, with the tokens that ``texts`` use and no more, as folder ``target``.

    Ids change, in the tokenizer, the weights and both configs; the order of the tokens does not. ``target`` appears
    whole, in the place of what was there (``source`` itself, say), or not at all.

    Raises LopsideError for a tokenizer that is not in tokenizer.json, and for models with other than one vocabulary for
    documents and summaries.
    """
    source = Path(source)
    config = read_config(source)
    size = config.get("vocab_size")
    if not isinstance(size, int) or config.get("share_encoder_decoder_embeddings") is False:
        raise LopsideError(
            f"keep.vocabulary: task is refused for the model type {config.get('model_type')!r}: it has not one "
            "vocabulary for documents and summaries"
        )
    if not (source / TOKENIZER).is_file():
        raise LopsideError(
            f"keep.vocabulary: task is refused: {source} has no {TOKENIZER}, and no other can be trimmed"
        )
    tokenizer = load_tokenizer(source)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    configs = {name: json.loads((source / name).read_text(encoding="utf-8")) for name in _configs(source)}
    used = {token for ids in tokenizer(list(texts), verbose=False)["input_ids"] for token in ids}
    used |= {token for each in configs.values() for token in _ids_in(each)}
    kept = [token for token in kept_tokens(content, used) if token < size]
    places = {token: place for place, token in enumerate(kept)}
    with new_folder(target) as folder:
        copy_companions(source, folder)
        for path in [path for pattern in SLOW for path in folder.glob(pattern)]:
            path.unlink()
        write_json(folder / TOKENIZER, trimmed_content(content, places))
        for name, each in configs.items():
            write_json(folder / name, _with_places(each, places))
        write_json(folder / "config.json", read_config(folder) | {"vocab_size": len(kept)})
        before = _copy_rows(source, folder / WEIGHTS, size, kept)
        after = load_model(folder, align=False).num_parameters()  # raises where weights and config do not fit
        if (source / RECORD).exists():
            record = json.loads((source / RECORD).read_text(encoding="utf-8"))
            record["pruned"]["parameters"] = after
            write_json(folder / RECORD, record | {"vocabulary": {"parent": size, "pruned": len(kept)}})
        _check(tokenizer, load_tokenizer(folder), places, texts)
    return Trimmed(size, len(kept), before - after)


def kept_tokens(content: Mapping[str, Any], used: Iterable[int]) -> list[int]:
    """The ids that stay, in rising order.

    content: of tokenizer.json.

    Raises LopsideError for a kind of tokenizer that is not known here.
    """
    model = content["model"]
    kind, vocabulary = model["type"], model["vocab"]
    ids: dict[str, int] = (
        {piece: place for place, (piece, _) in enumerate(vocabulary)} if kind == "Unigram" else vocabulary
    )
    kept = {token["id"] for token in content["added_tokens"]} | set(used)
    if kind == "Unigram":
        kept |= {model["unk_id"]} if model["unk_id"] is not None else set()
        kept |= {place for piece, place in ids.items() if len(piece) == 1 or re.fullmatch("<0x[0-9A-F]{2}>", piece)}
    elif kind == "WordPiece":
        prefix = model["continuing_subword_prefix"]
        kept |= {ids[model["unk_token"]]}
        kept |= {place for piece, place in ids.items() if len(piece.removeprefix(prefix)) == 1}
    elif kind == "BPE":
        parts = {"".join(merge): merge for merge in map(_merge, model["merges"])}
        kept |= {place for piece, place in ids.items() if piece not in parts}
        pieces = {place: piece for piece, place in ids.items()}
        todo = [pieces[place] for place in kept if place in pieces]
        while todo:
            for part in parts.get(todo.pop(), ()):
                if ids[part] not in kept:
                    kept.add(ids[part])
                    todo.append(part)
    elif kind == "WordLevel":
        kept |= {ids[model["unk_token"]]}
    else:
        raise LopsideError(f"keep.vocabulary: task is refused: its tokenizer is of the kind {kind!r}")
    return sorted(kept)


def trimmed_content(content: Mapping[str, Any], places: Mapping[int, int]) -> dict[str, Any]:
    """tokenizer.json with the tokens of ``places`` alone, at their new ids."""
    trimmed: dict[str, Any] = json.loads(json.dumps(content))
    model = trimmed["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [model["vocab"][token] for token in places if token < len(model["vocab"])]
        model["unk_id"] = None if model["unk_id"] is None else places[model["unk_id"]]
    else:
        model["vocab"] = {piece: places[token] for piece, token in model["vocab"].items() if token in places}
    if model["type"] == "BPE":
        model["merges"] = [merge for merge in model["merges"] if "".join(_merge(merge)) in model["vocab"]]
    for token in trimmed["added_tokens"]:
        token["id"] = places[token["id"]]
    _move_specials(trimmed.get("post_processor"), places)
    return trimmed


def _merge(merge: str | Sequence[str]) -> tuple[str, ...]:
    """A merge's two parts; older files have them as one text."""
    return tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)


def _move_specials(processor: Any, places: Mapping[int, int]) -> None:
    """Give the tokens that are put around a text their new ids, in whatever kinds of post-processors there are."""
    if not isinstance(processor, dict):
        return
    for inner in processor.get("processors", ()):
        _move_specials(inner, places)
    for name in ("sep", "cls"):
        if isinstance(processor.get(name), list):
            processor[name][1] = places[processor[name][1]]
    if isinstance(processor.get("special_tokens"), dict):
        for token in processor["special_tokens"].values():
            token["ids"] = [places[each] for each in token["ids"]]


def _configs(source: Path) -> list[str]:
    return [name for name in ("config.json", GENERATION_CONFIG) if (source / name).exists()]


def _ids_in(config: Mapping[str, Any]) -> set[int]:
    found: set[int] = set()

    def note(token: int) -> int:
        found.add(token)
        return token

    _each_id(config, note)
    return found


def _with_places(config: Mapping[str, Any], places: Mapping[int, int]) -> dict[str, Any]:
    moved: dict[str, Any] = _each_id(config, places.__getitem__)
    return moved


def _each_id(config: Any, change: Callable[[int], int], inside: bool = False) -> Any:
    """The config with ``change`` done to each id of a token in it."""
    if isinstance(config, Mapping):
        return {key: _each_id(value, change, bool(TOKEN_KEYS.fullmatch(key))) for key, value in config.items()}
    if isinstance(config, list):
        return [_each_id(value, change, inside) for value in config]
    if inside and isinstance(config, int) and not isinstance(config, bool) and config >= 0:
        return change(config)
    return config


def _copy_rows(source: Path, path: Path, size: int, kept: Sequence[int]) -> int:
    """Write the weights with the kept rows of embeddings and output layer, all else as it is.

    Returns the number of parameters of the model in ``source``.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    model, base = load_model(source, align=False), spec_of(read_config(source)).base_prefix
    inputs = (each.get_input_embeddings() for each in (model, model.get_encoder(), model.get_decoder()))
    modules = [*inputs, model.get_output_embeddings()]
    if any(module.weight.shape[0] != size for module in modules):
        raise LopsideError("keep.vocabulary: task is refused: the model's embeddings are not all of vocab_size rows")
    rows = {f"{name}.weight" for name, module in model.named_modules(remove_duplicate=False) if module in modules}
    chosen = torch.tensor(kept)
    tensors = {}
    for file in weight_files(source):
        with safe_open(file, framework="pt") as read:
            for name in read.keys():  # noqa: SIM118
                tensor = read.get_tensor(name)
                if {name, f"{base}{name}"} & rows:
                    tensor = tensor[chosen]
                elif name == "final_logits_bias":
                    tensor = tensor[:, chosen]
                tensors[name] = tensor.contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    return int(model.num_parameters())


def _check(before: Any, after: Any, places: Mapping[int, int], texts: Sequence[str], sample: int = 1000) -> None:
    """Raise RuntimeError where texts are not cut into the tokens that they were cut into before."""
    for old, new in zip(
        *(tokenizer(list(texts[:sample]), verbose=False)["input_ids"] for tokenizer in (before, after)), strict=True
    ):
        if [places[token] for token in old] != new:
            raise RuntimeError(f"the trimmed tokenizer reads {after.decode(new)!r} as other tokens than before")
