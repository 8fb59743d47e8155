"""Model folders: what is refused, what is copied, and that loading changes nothing."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

from lopside.architectures import ARCHITECTURES
from lopside.errors import LopsideError
from lopside.models import check_kind, copy_model, load_model, load_tokenizer, read_config, weight_files


@pytest.fixture
def folder(tiny_bart: Path, tmp_path: Path) -> Path:
    """A copy of the tiny BART that a test may break."""
    return shutil.copytree(tiny_bart, tmp_path / "model")


def _cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _shard_lost(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "model: there is no such model folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: is missing"),
    "config cut short": (lambda f: _cut(f / "config.json", 0.5), "config.json: cannot be read as JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "config.json: is not a JSON object"),
    "generation settings cut short": (
        lambda f: _cut(f / "generation_config.json", 0.5),
        "generation_config.json: cannot be read as JSON",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: the model's weights are missing"),
    "weights a pickle": (_pickle, "pytorch_model.bin: weights are read from safetensors .*save_pretrained"),
    "weights cut in the header": (lambda f: _cut(f / "model.safetensors", 0.01), "model.safetensors: is not a whole"),
    "weights cut at the end": (lambda f: _cut(f / "model.safetensors", 0.99), "model.safetensors: is not a whole"),
    "weights empty": (lambda f: _cut(f / "model.safetensors", 0), "model.safetensors: is not a whole"),
    "weights a git-lfs pointer": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "model.safetensors: is not a whole",
    ),
    "a shard lost": (_shard_lost, "model-00002-of-00002.safetensors: is missing, though model.safetensors.index.json"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_by_file(folder: Path, tmp_path: Path, case: str) -> None:
    break_it, message = BROKEN[case]
    break_it(folder)
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(LopsideError, match=f"/{message}"):
        copy_model(folder, target)
    assert not list(target.iterdir())
    with pytest.raises(LopsideError, match=f"/{message}"):
        load_model(folder)


@pytest.mark.parametrize("case", ["lost", "stray", "misshapen"])
def test_weights_that_do_not_fit_are_refused_by_tensor(folder: Path, case: str) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "model.decoder.layers.5.fc1.bias"
    if case == "stray":
        name = "model.decoder.layers.6.fc1.bias"
    lost = weights.pop(name, torch.zeros(24))
    if case != "lost":
        weights[name] = lost if case == "stray" else torch.zeros(3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LopsideError, match=f"model: the weights .*{name}$"):
        load_model(folder)


def test_a_model_of_another_kind_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(LopsideError, match=r"model: cannot be loaded as a model: .*GPT2Config"):
        load_model(folder)
    with pytest.raises(LopsideError, match=r"model: config.json says model_type 'gpt2' and not is_encoder_decoder"):
        check_kind(folder)


def test_a_config_that_is_not_valid_is_refused_by_key(folder: Path) -> None:
    config = read_config(folder)
    (folder / "config.json").write_text(json.dumps(config | {"d_model": "wide"}))
    with pytest.raises(LopsideError, match=r"model: cannot be loaded as a model: .* field 'd_model': TypeError"):
        load_model(folder)


def test_a_folder_without_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(LopsideError, match="model: its tokenizer cannot be loaded"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(LopsideError, match="model: there is no tokenizer"):
        load_tokenizer(folder)


@pytest.mark.parametrize("content", ["", "{}", '{"added_tokens": [', "[]"])
def test_a_broken_tokenizer_is_refused(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(LopsideError, match=r"model: its tokenizer cannot be loaded: \S"):
        load_tokenizer(folder)


def test_a_tokenizer_that_wants_another_package_says_which(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacremoses", None)  # not installed
    config = {"model_type": "fsmt", "src_vocab_size": 9, "tgt_vocab_size": 9, "langs": ["en", "de"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "FSMTTokenizer"}))
    for name in ("vocab-src.json", "vocab-tgt.json"):
        (folder / name).write_text("{}")
    with pytest.raises(LopsideError, match=r"model: its tokenizer cannot be loaded: .*install sacremoses"):
        load_tokenizer(folder)


@pytest.mark.parametrize("model_type", [*ARCHITECTURES, "bert", "roberta", "bert-generation", "nllb", "mbart50"])
def test_every_file_of_a_familys_tokenizer_is_copied(folder: Path, tmp_path: Path, model_type: str) -> None:
    tokenizer: Any = tokenizer_class_from_name(TOKENIZER_MAPPING_NAMES.get(model_type) or "ByT5Tokenizer")
    names = set(tokenizer.vocab_files_names.values())
    for name in names:
        (folder / name).touch()
    (tmp_path / "target").mkdir()
    copy_model(folder, tmp_path / "target")
    assert names <= {path.name for path in (tmp_path / "target").iterdir()}


def test_only_what_a_model_needs_is_copied(folder: Path, tmp_path: Path) -> None:
    for name in ("README.md", "training_args.bin", "optimizer.pt", "lopside.json", "trained_on.npy"):
        (folder / name).write_text("x")
    (folder / "merges.txt").write_text("a b")
    target = tmp_path / "target"
    target.mkdir()
    copy_model(folder, target)
    kept = ["config.json", "generation_config.json", "merges.txt"]
    kept += ["model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in target.iterdir()) == kept
    for name in kept:
        assert (target / name).read_bytes() == (folder / name).read_bytes()
        assert not (target / name).samefile(folder / name)  # a link would let DVC change the user's own file


def test_shards_are_copied_with_their_index(folder: Path, tmp_path: Path) -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weights = sorted(load_file(folder / "model.safetensors").items())
    save_file(dict(weights[:9]), folder / shards[0])
    save_file(dict(weights[9:]), folder / shards[1])
    (folder / "model.safetensors").unlink()
    index = {name: shards[place >= 9] for place, (name, _) in enumerate(weights)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    target = tmp_path / "target"
    target.mkdir()
    copy_model(folder, target)
    assert [path.name for path in weight_files(target)] == shards
    assert load_model(target).config.encoder_layers == 6


def test_weights_are_float32_whatever_the_file_holds_unless_asked(folder: Path) -> None:
    path = folder / "model.safetensors"
    half = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(half, path, metadata={"format": "pt"})
    model = load_model(folder)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert not model.training
    for name, tensor in half.items():
        assert torch.equal(model.state_dict()[name], tensor.float())
    assert {tensor.dtype for tensor in load_model(folder, torch.bfloat16).parameters()} == {torch.bfloat16}


def test_every_weight_begins_at_a_multiple_of_64_bytes(folder: Path) -> None:
    path = folder / "model.safetensors"
    for note in ("x", "x" * 9, "x" * 17):  # a longer header moves all tensors of the file
        save_file(load_file(path), path, metadata={"format": "pt", "note": note})
        assert {tensor.data_ptr() % 64 for tensor in load_model(folder).state_dict().values()} == {0}


def test_ties_are_as_in_the_file(tiny_bart: Path, tiny_t5: Path, tiny_t5_tied: Path) -> None:
    models: list[Any] = [load_model(folder) for folder in (tiny_bart, tiny_t5, tiny_t5_tied)]
    bart, gated, tied = models
    assert bart.lm_head.weight is bart.model.shared.weight is bart.model.encoder.embed_tokens.weight
    assert tied.lm_head.weight is tied.shared.weight is tied.decoder.embed_tokens.weight
    assert gated.shared.weight is gated.encoder.embed_tokens.weight
    assert not torch.equal(gated.lm_head.weight, gated.shared.weight)
    assert torch.equal(gated.lm_head.weight, load_file(tiny_t5 / "model.safetensors")["lm_head.weight"])
    assert (gated.config.scale_decoder_outputs, tied.config.scale_decoder_outputs) == (False, True)


def test_tokenizers_go_there_and_back(tiny_bart: Path, tiny_t5: Path) -> None:
    for folder in (tiny_bart, tiny_t5):
        tokenizer = load_tokenizer(folder)
        ids = tokenizer("Read the whole file.")["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        assert max(ids) < read_config(folder)["vocab_size"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == "Read the whole file."
