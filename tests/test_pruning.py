"""The pruned model is its parent less some blocks, and works for people who do not have lopside."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import lopside
from lopside import pruning
from lopside.architectures import ARCHITECTURES
from lopside.errors import LopsideError
from lopside.models import load_model, read_config
from lopside.pruning import VerificationError, prune

MODELS = ("tiny_bart", "tiny_t5", "tiny_t5_tied")
T5_BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"


@pytest.fixture(params=MODELS)
def parent(request: pytest.FixtureRequest) -> Path:
    """Each of the tiny models in turn."""
    folder = request.getfixturevalue(request.param)
    assert isinstance(folder, Path)
    return folder


def _logits(model: Any) -> torch.Tensor:
    """Logits for padded random documents, other ones than `prune` itself looks at."""
    generator = torch.Generator().manual_seed(11)
    source = torch.randint(3, model.config.vocab_size, (3, 20), generator=generator)
    mask = torch.ones_like(source)
    mask[1, 14:] = 0
    summary = torch.randint(3, model.config.vocab_size, (3, 9), generator=generator)
    with torch.inference_mode():
        logits: torch.Tensor = model(
            input_ids=source, attention_mask=mask, decoder_input_ids=summary, use_cache=False
        ).logits
    return logits


def _switch_off(model: Any, encoder_kept: tuple[int, ...], decoder_kept: tuple[int, ...]) -> None:
    """Make the other blocks of a full model add nothing, by another way than `prune` checks itself by."""
    if model.config.model_type == "t5":  # a residual branch whose last matrix is zero adds exactly nothing
        for stack, kept in ((model.encoder, encoder_kept), (model.decoder, decoder_kept)):
            for index in set(range(len(stack.block))) - set(kept):
                for name, parameter in stack.block[index].named_parameters():
                    if name.endswith((".o.weight", ".wo.weight")):
                        torch.nn.init.zeros_(parameter)
    else:
        for stack, kept in ((model.model.encoder, encoder_kept), (model.model.decoder, decoder_kept)):
            for index in set(range(len(stack.layers))) - set(kept):
                stack.layers[index].forward = lambda hidden_states, *_, **__: hidden_states


@pytest.mark.parametrize(
    ("encoder_kept", "decoder_kept"), [((0, 2), (3,)), ((1, 4), (1, 2, 3)), ((3,), (0, 3))], ids=str
)
def test_logits_are_those_of_the_parent_with_its_other_blocks_switched_off(
    parent: Path, tmp_path: Path, encoder_kept: tuple[int, ...], decoder_kept: tuple[int, ...]
) -> None:
    prune(parent, tmp_path / "pruned", encoder_kept, decoder_kept)
    full = load_model(parent)
    untouched = _logits(full)
    _switch_off(full, encoder_kept, decoder_kept)
    reference = _logits(full)
    assert torch.equal(_logits(load_model(tmp_path / "pruned")), reference)
    assert not torch.allclose(reference, untouched)


def test_keeping_all_changes_no_byte_of_the_weights(parent: Path, tmp_path: Path) -> None:
    encoder, decoder = (5, 4) if "tied" in parent.name else (6, 6)
    record = prune(parent, tmp_path / "pruned", range(encoder), range(decoder))
    name = "model.safetensors"
    assert (tmp_path / "pruned" / name).read_bytes() == (parent / name).read_bytes()
    assert record.pruned == record.parent


def test_the_record_tells_what_was_done(tiny_t5: Path, tmp_path: Path) -> None:
    prune(tiny_t5, tmp_path / "pruned", (1, 4), (5,), strategy="uniform")
    parent, pruned = (load_file(folder / "model.safetensors") for folder in (tiny_t5, tmp_path / "pruned"))
    assert json.loads((tmp_path / "pruned" / "lopside.json").read_text()) == {
        "encoder_kept": [1, 4],
        "decoder_kept": [5],
        "strategy": "uniform",
        "importance": None,
        "parent": {
            "encoder_layers": 6,
            "decoder_layers": 6,
            "parameters": sum(tensor.numel() for tensor in parent.values()),
        },
        "pruned": {
            "encoder_layers": 2,
            "decoder_layers": 1,
            "parameters": sum(tensor.numel() for tensor in pruned.values()),
        },
        "parent_sha256": {
            "model.safetensors": hashlib.sha256((tiny_t5 / "model.safetensors").read_bytes()).hexdigest()
        },
        "lopside": lopside.__version__,
    }


def test_a_tied_weight_is_one_parameter(tiny_bart: Path, tmp_path: Path) -> None:
    record = prune(tiny_bart, tmp_path / "pruned", (0,), (0,))
    d, f, vocabulary, positions = 16, 24, 360, 128 + 2
    attention, norm, feed_forward = 4 * (d * d + d), 2 * d, d * f + f + f * d + d
    outside = vocabulary * d + 2 * positions * d + 2 * norm
    blocks = (attention + norm + feed_forward + norm) + (2 * (attention + norm) + feed_forward + norm)
    assert read_config(tiny_bart)["vocab_size"] == vocabulary
    assert (record.pruned.parameters, record.parent.parameters) == (outside + blocks, outside + 6 * blocks)


def test_the_same_twice_gives_the_same_bytes(parent: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        prune(parent, tmp_path / name, (0, 3), (2,))
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted([*(path.name for path in parent.iterdir()), "lopside.json"])
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_config_changes_in_its_counts_alone(tiny_t5: Path, tmp_path: Path) -> None:
    prune(tiny_t5, tmp_path / "pruned", (5,), (0, 1))
    changed = {"num_layers": 1, "num_decoder_layers": 2, "decoder_layers": 2}
    assert read_config(tmp_path / "pruned") == read_config(tiny_t5) | changed
    assert read_config(tmp_path / "pruned")["tie_word_embeddings"] is False


def test_the_first_block_kept_inherits_the_positions(tiny_t5: Path, tmp_path: Path) -> None:
    prune(tiny_t5, tmp_path / "pruned", (2, 3), (4,))
    parent, pruned = (load_file(folder / "model.safetensors") for folder in (tiny_t5, tmp_path / "pruned"))
    for stack in ("encoder", "decoder"):
        assert torch.equal(pruned[f"{stack}.block.0.{T5_BIAS}"], parent[f"{stack}.block.0.{T5_BIAS}"])
        assert sum(name.startswith(stack) and name.endswith(T5_BIAS) for name in pruned) == 1
    wo = "layer.1.DenseReluDense.wo.weight"
    assert torch.equal(pruned[f"encoder.block.1.{wo}"], parent[f"encoder.block.3.{wo}"])
    for name in ("shared.weight", "lm_head.weight"):
        assert torch.equal(pruned[name], parent[name])


def test_bfloat16_stays_as_it_is(tiny_bart: Path, tmp_path: Path) -> None:
    source = _with_weights(
        tiny_bart, tmp_path / "half", {name: t.bfloat16() for name, t in _weights(tiny_bart).items()}
    )
    prune(source, tmp_path / "pruned", (0, 5), (5,))
    parent, pruned = _weights(source), _weights(tmp_path / "pruned")
    assert {tensor.dtype for tensor in pruned.values()} == {torch.bfloat16}
    name = "fc1.weight"
    assert torch.equal(pruned[f"model.encoder.layers.1.{name}"], parent[f"model.encoder.layers.5.{name}"])
    assert torch.equal(pruned["model.shared.weight"], parent["model.shared.weight"])


def test_shards_give_the_same_file_as_one(tiny_t5: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    shutil.copytree(tiny_t5, sharded)
    (sharded / "model.safetensors").unlink()
    load_model(tiny_t5).save_pretrained(sharded, max_shard_size="50KB")
    shutil.copyfile(tiny_t5 / "config.json", sharded / "config.json")
    shards = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert len(shards) > 2
    record = prune(sharded, tmp_path / "from_shards", (0, 4), (3,))
    assert sorted(record.parent_sha256) == shards
    prune(tiny_t5, tmp_path / "from_one", (0, 4), (3,))
    pruned = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("from_shards", "from_one")]
    assert pruned[0] == pruned[1]


def test_names_without_the_base_prefix_are_known(tiny_bart: Path, tmp_path: Path) -> None:
    bare = {name.removeprefix("model."): tensor for name, tensor in _weights(tiny_bart).items()}
    prune(_with_weights(tiny_bart, tmp_path / "bare", bare), tmp_path / "from_bare", (1, 2), (3,))
    prune(tiny_bart, tmp_path / "pruned", (1, 2), (3,))
    assert torch.equal(_logits(load_model(tmp_path / "from_bare")), _logits(load_model(tmp_path / "pruned")))


@pytest.mark.parametrize("decoder_kept", [(0, 5), (1,)], ids=str)
def test_old_t5_files_are_read(tiny_t5: Path, tmp_path: Path, decoder_kept: tuple[int, ...]) -> None:
    """They say nothing of decoder layers, and hold a table of positions for the cross-attention that no one reads."""
    weights = _weights(tiny_t5)
    weights["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(8, 2)
    source = _with_weights(tiny_t5, tmp_path / "old", weights)
    config = read_config(source)
    del config["num_decoder_layers"]
    (source / "config.json").write_text(json.dumps(config))
    prune(source, tmp_path / "pruned", (0, 1, 2), decoder_kept)
    assert load_model(tmp_path / "pruned").config.num_decoder_layers == len(decoder_kept)


# --- what is refused, and what verification catches -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (((0, 6), (0,)), r"encoder_kept: \[0, 6\] .* 0 to 5"),
        (((0,), ()), "decoder_kept: is empty"),
        (((0,), (2, 1)), r"decoder_kept: \[2, 1\] .* rising order"),
    ],
)
def test_layers_that_are_not_there_are_refused(
    tiny_bart: Path, tmp_path: Path, kept: tuple[tuple[int, ...], tuple[int, ...]], message: str
) -> None:
    with pytest.raises(LopsideError, match=f"^{message}"):
        prune(tiny_bart, tmp_path / "pruned", *kept)
    assert not list(tmp_path.iterdir())


def test_weights_of_another_number_of_blocks_are_refused(tiny_t5: Path, tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in _weights(tiny_t5).items() if not name.startswith("decoder.block.5.")}
    source = _with_weights(tiny_t5, tmp_path / "short", weights)
    with pytest.raises(LopsideError, match=r"holds 5 blocks of decoder.block, .* num_decoder_layers: 6"):
        prune(source, tmp_path / "pruned", (0,), (0,))
    assert not (tmp_path / "pruned").exists()


def test_weights_that_are_not_finite_are_refused(tiny_bart: Path, tmp_path: Path) -> None:
    weights = _weights(tiny_bart)
    weights["model.decoder.layers.0.fc1.weight"][0, 0] = torch.nan
    source = _with_weights(tiny_bart, tmp_path / "broken", weights)
    with pytest.raises(LopsideError, match=r"broken: .* not finite"):
        prune(source, tmp_path / "pruned", (0,), (0,))
    prune(source, tmp_path / "pruned", (0,), (1,))  # the block that is at fault goes


def test_float16_that_overflows_is_checked_in_float32(tiny_t5: Path, tmp_path: Path) -> None:
    weights = {name: tensor.half() for name, tensor in _weights(tiny_t5).items()}
    weights["lm_head.weight"] *= 2e4
    source = _with_weights(tiny_t5, tmp_path / "half", weights)
    assert not torch.isfinite(_logits(load_model(source, torch.float16))).all()
    prune(source, tmp_path / "pruned", (1, 4), (5,))
    assert {tensor.dtype for tensor in _weights(tmp_path / "pruned").values()} == {torch.float16}


def test_the_parent_is_not_overwritten(tiny_bart: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_bart, tmp_path / "model")
    with pytest.raises(LopsideError, match="model: the pruned model would take the place of its parent"):
        prune(source, source, (0,), (0,))


def _flip_a_weight(origins: Any, path: Path) -> None:
    COPY(origins, path)
    weights = load_file(path)
    weights["encoder.block.1.layer.1.DenseReluDense.wo.weight"] = torch.zeros(16, 24)
    save_file(weights, path, metadata={"format": "pt"})


def _swap_two_blocks(*arguments: Any) -> Any:
    swapped = {
        "encoder.block.0.layer.1": "encoder.block.1.layer.1",
        "encoder.block.1.layer.1": "encoder.block.0.layer.1",
    }
    return {swapped.get(name[:23], name[:23]) + name[23:]: origin for name, origin in ORIGINS(*arguments).items()}


COPY = pruning._copy_tensors
ORIGINS = pruning._origins
T5_SPEC = ARCHITECTURES["t5"]
FAULTS: dict[str, tuple[str, Any, str]] = {
    "a changed weight": ("_copy_tensors", _flip_a_weight, "encoder.block.1.layer.1.DenseReluDense.wo.weight differs"),
    "blocks in the wrong order": ("_origins", _swap_two_blocks, "its logits differ"),
    "positions left behind": (
        "spec_of",
        lambda config: replace(T5_SPEC, encoder=replace(T5_SPEC.encoder, first_block_owns=())),
        "lack encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    "no cache for all decoder layers": (
        "with_layers",
        lambda config, encoder, decoder: config | {"num_layers": len(encoder), "num_decoder_layers": len(decoder)},
        r"generate\(\) would make a cache for 2 decoder layers, not 3",
    ),
    "counts as before": ("with_layers", lambda config, encoder, decoder: config, "lack decoder.block.3"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_in_pruning_is_caught_and_leaves_what_was_there(
    tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    name, fault, message = FAULTS[case]
    (tmp_path / "pruned").mkdir()
    (tmp_path / "pruned" / "earlier").write_text("one")
    monkeypatch.setattr(pruning, name, fault)
    with pytest.raises(VerificationError, match=message):
        prune(tiny_t5, tmp_path / "pruned", (1, 4), (0, 2, 3))
    assert [path.name for path in tmp_path.rglob("*")] == ["pruned", "earlier"]


# --- without lopside --------------------------------------------------------------------------------------------------

# Prints, for each folder given: counts read back, whether the output layer is tied, and the ids generated with one and
# three beams, with and without cache, and after the model was saved once more.
USER = """
import json, sys
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

answers = {}
for folder in sys.argv[1:]:
    model, info = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["Return the number of items.", "Read the file and"], padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    model.save_pretrained(folder + "-again")
    ids = {}
    again = AutoModelForSeq2SeqLM.from_pretrained(folder + "-again", dtype=torch.float32)
    settings = {"min_new_tokens": 12, "max_new_tokens": 12, "no_repeat_ngram_size": 2}
    for name, each, beams, cache in (
        ("1 cached", model, 1, True),
        ("1 uncached", model, 1, False),
        ("1 saved again", again, 1, True),
        ("3 cached", model, 3, True),
        ("3 uncached", model, 3, False),
    ):
        ids[name] = each.generate(**batch, **settings, num_beams=beams, use_cache=cache).tolist()
    keys = {"missing_keys", "unexpected_keys", "mismatched_keys"}
    answers[folder] = {
        "ids": ids,
        "faults": sum((list(info[key]) for key in keys), []),
        "cache_layers": model.config.get_text_config(decoder=True).num_hidden_layers,
        "layers": [len(model.get_encoder().block if hasattr(model, "shared") else model.get_encoder().layers),
                   len(model.get_decoder().block if hasattr(model, "shared") else model.get_decoder().layers)],
        "mirror": model.config.num_hidden_layers,
        "tied": model.get_input_embeddings().weight is model.get_output_embeddings().weight,
        "output_sum": model.get_output_embeddings().weight.double().sum().item(),
    }
assert not any(name.split(".")[0] == "lopside" for name in sys.modules)
print(json.dumps(answers))
"""


def test_pruned_models_work_without_lopside(
    tiny_bart: Path, tiny_t5: Path, tiny_t5_tied: Path, tmp_path: Path, fork: str
) -> None:
    six = range(6)
    kept: dict[str, tuple[Path, list[tuple[Sequence[int], Sequence[int]]]]] = {
        "bart": (tiny_bart, [(six, (5,)), ((0, 3, 5), (0, 5))]),
        "t5": (tiny_t5, [((0,), six), ((1, 3, 5), (0, 5))]),
        "tied": (tiny_t5_tied, [((4,), range(4)), ((0, 2, 4), (1, 3))]),
    }
    layers = {}
    for name, (source, cells) in kept.items():
        for encoder, decoder in cells:
            target = tmp_path / f"{name}-{len(encoder)}-{len(decoder)}"
            prune(source, target, tuple(encoder), tuple(decoder))
            layers[target.name] = [len(encoder), len(decoder)]

    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    run = subprocess.run([fork, "-c", USER, *layers], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    answers = json.loads(run.stdout)
    assert answers.keys() == layers.keys()
    for name, answer in answers.items():
        assert answer["faults"] == []
        assert answer["layers"] == layers[name]
        assert (answer["mirror"], answer["cache_layers"]) == tuple(layers[name])
        assert answer["tied"] is not name.startswith("t5")
        ids = answer["ids"]
        assert ids["1 cached"] == ids["1 uncached"] == ids["1 saved again"], name
        assert ids["3 cached"] == ids["3 uncached"], name
        first, second = ids["1 cached"]
        assert len(set(first)) > 3, name
        assert first != second, name
        if name.startswith("t5"):
            output = load_file(tiny_t5 / "model.safetensors")["lm_head.weight"].double().sum().item()
            assert answer["output_sum"] == output


# --- the stages -------------------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tiny_bart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and the tiny BART in the place of the built-in model; we are in it."""
    shutil.copytree(tiny_bart, tmp_path / "models" / "docs-bart-mini")
    shutil.copyfile(Path(__file__).parents[1] / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _set(values: Mapping[str, Any]) -> None:
    """Change keys of params.yaml; of a group only those that are given."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    for key, value in values.items():
        params[key] = params[key] | value if isinstance(value, dict) else value
    Path("params.yaml").write_text(yaml.safe_dump(params))


def test_parent_and_prune_follow_params(workspace: Path) -> None:
    from stages import parent
    from stages import prune as prune_stage

    done = CliRunner().invoke(parent.main, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in Path("outputs/parent").iterdir()) == sorted(
        path.name for path in Path("models/docs-bart-mini").iterdir()
    )

    kept = {}
    cells: dict[str, dict[str, Any]] = {
        "6-3": {"enc": 6, "dec": 3, "keep": {"strategy": "uniform"}},
        "1-1": {"enc": 1, "dec": 1},
        "counts": {"enc": 5, "dec": 2, "keep": {"unit": "layers"}},
        "explicit": {"keep": {"strategy": "explicit", "encoder": [1, 2], "decoder": [4]}},
    }
    for cell, params in cells.items():
        _set(params)
        done = CliRunner().invoke(prune_stage.main, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        record = json.loads(Path("outputs/prune/lopside.json").read_text())
        kept[cell] = record["strategy"], record["encoder_kept"], record["decoder_kept"]
    assert kept == {
        "6-3": ("uniform", [0, 1, 2, 3, 4, 5], [0, 3, 5]),
        "1-1": ("uniform", [0], [5]),
        "counts": ("uniform", [0, 1, 3, 4, 5], [0, 5]),
        "explicit": ("explicit", [1, 2], [4]),
    }

    plot = pd.read_csv("metrics/plots/layers.csv")
    assert plot["layer"].tolist() == [f"{stack} {layer}" for stack in ("encoder", "decoder") for layer in range(6)]
    assert plot["layer"][plot["kept"] == 1].tolist() == ["encoder 1", "encoder 2", "decoder 4"]
    assert plot["importance"].isna().all()

    refusals: dict[str, dict[str, Any]] = {
        "keep.strategy: 'published' has tables for stacks of 8, 12, 24 layers, and this one has 6": {
            "keep": {"strategy": "published", "encoder": [], "decoder": []}
        },
        "dec: 7 is not a whole number of layers from 1 to 6": {
            "dec": 7,
            "keep": {"strategy": "first", "unit": "layers", "encoder": [], "decoder": []},
        },
    }
    for message, params in refusals.items():
        _set(params)
        done = CliRunner().invoke(prune_stage.main)
        assert done.exit_code == 1
        assert message in done.output


@pytest.mark.parametrize("measure", ["loss", "influence"])
def test_importance_decides_and_is_written_down(workspace: Path, measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages import prune as prune_stage

    monkeypatch.setattr("lopside.machine.keep_memory", lambda: None)  # for good, in this process
    monkeypatch.setattr("lopside.machine.set_threads", lambda count: None)
    shutil.copytree("models/docs-bart-mini", "outputs/parent")
    Path("data/splits").mkdir(parents=True)
    texts = [f"Return item {number} of the list." for number in range(5)]
    pairs = {"id": list("abcde"), "document": texts, "body": texts, "summary": texts[::-1], "source": list("abcde")}
    pd.DataFrame(pairs).to_parquet("data/splits/train.parquet")
    keep = {"strategy": "importance", "measure": measure, "documents": 3}
    _set({"enc": 3, "dec": 1, "device": "cpu", "keep": keep})

    done = CliRunner().invoke(prune_stage.main, catch_exceptions=False)

    assert done.exit_code == 0, done.output
    record = json.loads(Path("outputs/prune/lopside.json").read_text())
    rankings = record["importance"]
    assert {stack: ranking["measure"] for stack, ranking in rankings.items()} == dict.fromkeys(
        ("encoder", "decoder"), measure
    )
    assert record["encoder_kept"] == sorted(set(range(6)) - set(rankings["encoder"]["removed"]))
    (scores,) = rankings["decoder"]["scores"]
    assert record["decoder_kept"] == [int(max(scores, key=lambda layer: scores[layer]))]
    said = f"first (0) {scores['0']:.3f}, last (5) {scores['5']:.3f}, kept ({record['decoder_kept'][0]})"
    assert said in done.output
    plot = pd.read_csv("metrics/plots/layers.csv").set_index("layer")
    assert plot["importance"]["decoder 2"] == pytest.approx(scores["2"], rel=1e-4)
    first = Path("outputs/prune/lopside.json").read_bytes()
    _set({"seed": 1})  # is of the training, not of the sample that importance is measured on
    assert CliRunner().invoke(prune_stage.main).exit_code == 0
    assert Path("outputs/prune/lopside.json").read_bytes() == first

    _set({"enc": 6, "dec": 1})
    assert CliRunner().invoke(prune_stage.main, catch_exceptions=False).exit_code == 0
    whole = json.loads(Path("outputs/prune/lopside.json").read_text())
    assert whole["encoder_kept"] == list(range(6))
    assert whole["importance"] == {"decoder": rankings["decoder"]}  # where nothing goes nothing is measured
    plot = pd.read_csv("metrics/plots/layers.csv").set_index("layer")
    assert plot["importance"].isna().tolist() == [True] * 6 + [False] * 6


def test_the_vocabulary_is_trimmed_to_the_training_split(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages import prune as prune_stage

    shutil.copytree("models/docs-bart-mini", "outputs/parent")
    Path("data/splits").mkdir(parents=True)
    texts = ["Return the item of the list.", "Return the list."]
    pairs = {"id": list("ab"), "document": texts, "body": texts, "summary": texts[::-1], "source": list("ab")}
    pd.DataFrame(pairs).to_parquet("data/splits/train.parquet")
    _set({"enc": 3, "dec": 1, "keep": {"vocabulary": "task"}})

    done = CliRunner().invoke(prune_stage.main, catch_exceptions=False)

    assert done.exit_code == 0, done.output
    record = json.loads(Path("outputs/prune/lopside.json").read_text())
    assert record["vocabulary"]["pruned"] < record["vocabulary"]["parent"]
    assert f"{record['vocabulary']['pruned']:,} of {record['vocabulary']['parent']:,} tokens stay" in done.output
    parameters = load_model(Path("outputs/prune")).num_parameters()
    assert f"parameters become {parameters:,}" in done.output
    assert record["pruned"]["parameters"] == parameters

    def refuse(*_: Any) -> None:
        raise LopsideError("keep.vocabulary: task is refused: its tokenizer is of the kind 'WordLevel'")

    monkeypatch.setattr("lopside.vocabulary.trim_vocabulary", refuse)
    refused = CliRunner().invoke(prune_stage.main)
    assert refused.exit_code == 1
    assert "of the kind 'WordLevel'" in refused.output
    assert not Path("outputs/prune").exists()  # not the model with all its tokens either


def test_parent_without_weights_is_one_line(workspace: Path) -> None:
    from stages import parent

    Path("models/docs-bart-mini/model.safetensors").unlink()
    done = CliRunner().invoke(parent.main)
    assert done.exit_code == 1
    assert done.output == "error: models/docs-bart-mini/model.safetensors: the model's weights are missing\n"
    assert not Path("outputs").exists()


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def _with_weights(source: Path, target: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A copy of a model folder with other weights."""
    shutil.copytree(source, target)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target
