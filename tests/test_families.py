"""Every supported family: what is cut out of it is the parent less some layers, for people without lopside too."""

import json
import os
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lopside import pruning
from lopside.architectures import ARCHITECTURES, layer_counts, path_pattern, spec_of, with_layers
from lopside.errors import LopsideError
from lopside.models import load_model, read_config
from lopside.pruning import PruneRecord, VerificationError, prune
from tests.families import ALL, FAMILIES, Kept, build, save

NAMES = {family.name: family for family in FAMILIES}
CELLS = [(name, cell) for name, family in NAMES.items() for cell in family.cells if cell not in family.refused]
WITHOUT_LOPSIDE = [(name, cell) for name, cell in CELLS if cell == "3-2" or name in ("bart", "t5")]
"""Which of them are loaded by people without lopside: of most families the one that lacks layers of both stacks."""


class Zoo:
    """Parents and pruned models on disk, each made when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.records: dict[Path, PruneRecord] = {}
        self.models: dict[Any, Any] = {}

    def parent(self, name: str) -> Path:
        """The folder of a family's full model; config.json repeats counts wherever the family's files may do so."""
        folder = self.root / name
        if not folder.exists():
            save(build(NAMES[name]), folder)
            config = read_config(folder)
            for stack in spec_of(config).stacks:
                config |= dict.fromkeys(stack.mirrors, 6)
            if NAMES[name].untied:  # as the files are; transformers 5 always writes true
                assert config["tie_word_embeddings"] is True
                config["tie_word_embeddings"] = False
            (folder / "config.json").write_text(json.dumps(config, indent=2))
        return folder

    def model(self, name: str) -> Any:
        """A family's full model as it is read from its folder, once; undo what you change."""
        return self._load(self.parent(name))

    def pruned(self, name: str, cell: str, kept: Kept) -> Path:
        """The folder of a pruned model."""
        folder = self.root / f"{name} {cell}"
        if not folder.exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pruning, "load_model", self._load)
                self.records[folder] = prune(self.parent(name), folder, *kept)
        return folder

    def _load(self, folder: Path, *given: Any, **more: Any) -> Any:
        """`load_model`, but a parent is read once for all its cells: `prune` leaves it as it was."""
        if folder.parent != self.root or folder.name not in NAMES:
            return load_model(folder, *given, **more)
        key = folder, given, *more.items()
        if key not in self.models:
            self.models[key] = load_model(folder, *given, **more)
        return self.models[key]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("families"))


def _logits(model: Any) -> torch.Tensor:
    """Logits for a padded and a full random document, other ones than `prune` itself looks at."""
    generator = torch.Generator().manual_seed(11)
    source = torch.randint(3, 56, (2, 39), generator=generator)
    mask = torch.ones_like(source)
    mask[1, 33:] = 0
    summary = torch.randint(3, 56, (2, 9), generator=generator)
    with torch.inference_mode():
        logits: torch.Tensor = model(
            input_ids=source, attention_mask=mask, decoder_input_ids=summary, use_cache=False
        ).logits
    return logits


def _paths(model: Any) -> list[str]:
    """Where the lists of blocks are: encoder, decoder."""
    return [
        name
        for stack in spec_of(model.config.to_dict()).stacks
        for name, _ in model.named_modules()
        if path_pattern(stack).fullmatch(name)
    ]


def _outside(model: Any, named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of the tensors that belong to no block."""
    within = tuple(f"{path}." for path in _paths(model))
    return {name: tensor for name, tensor in named.items() if not name.startswith(within)}


def _ties(model: Any) -> list[list[str]]:
    """Groups of names, outside the blocks, that are one weight."""
    groups = defaultdict(list)
    for name, weight in _outside(model, dict(model.named_parameters(remove_duplicate=False))).items():
        groups[id(weight)].append(name)
    return sorted(group for group in groups.values() if len(group) > 1)


def _skip(patch: pytest.MonkeyPatch, block: Any, states: int) -> None:
    """Make a block change nothing, where it stands: its states go out as they came in."""
    forward = block.forward

    def skip(*given: Any, **more: Any) -> Any:
        result = forward(*given, **more)
        return given[0] if isinstance(result, torch.Tensor) else (*given[:states], *result[states:])

    patch.setitem(vars(block), "forward", skip)


def _dropped(model: Any, kept: Kept) -> int:
    """How many parameters of the parent go with its other blocks; what only block 0 has stays."""
    dropped = 0
    for path, indices in zip(_paths(model), kept, strict=True):
        blocks = [dict(block.named_parameters()) for block in model.get_submodule(path)]
        shared = blocks[1].keys()
        dropped += sum(
            blocks[index][name].numel() for index in range(len(blocks)) if index not in indices for name in shared
        )
    return dropped


def test_the_table_has_every_family() -> None:
    assert {family.model_type for family in FAMILIES} == set(ARCHITECTURES)
    halves = {family.settings["encoder"]["model_type"] for family in FAMILIES if family.model_type == "encoder-decoder"}
    assert halves == set(ARCHITECTURES["encoder-decoder"].halves)


@pytest.mark.parametrize("name", NAMES)
def test_keeping_all_gives_the_same_logits_to_the_bit(zoo: Zoo, name: str) -> None:
    pruned = zoo.pruned(name, "6-6", (ALL, ALL))
    assert read_config(pruned) == read_config(zoo.parent(name))
    assert torch.equal(_logits(load_model(pruned)), _logits(zoo.model(name)))


@pytest.mark.parametrize(("name", "cell"), CELLS)
def test_the_pruned_model_is_its_parent_less_some_blocks(
    zoo: Zoo, name: str, cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, kept = NAMES[name], NAMES[name].cells[cell]
    folder = zoo.pruned(name, cell, kept)
    parent = zoo.model(name)
    pruned: Any = load_model(folder)
    counts = tuple(len(indices) for indices in kept)

    config = read_config(folder)
    assert layer_counts(config) == layer_counts(pruned.config.to_dict()) == counts
    assert {config[mirror] for mirror in spec_of(config).encoder.mirrors} <= {counts[0]}
    assert [len(pruned.get_submodule(path)) for path in _paths(pruned)] == list(counts)
    assert pruned.config.get_text_config(decoder=True).num_hidden_layers >= counts[1]

    assert _ties(pruned) == _ties(parent)
    assert not (family.untied and any("lm_head.weight" in group for group in _ties(pruned)))
    was, now = (_outside(model, model.state_dict()) for model in (parent, pruned))
    assert was.keys() == now.keys()
    # Tables of positions are among them. Some families compute theirs: T5Gemma 2, those of the kinds of layers it has.
    was |= dict(parent.named_buffers())
    now |= dict(pruned.named_buffers())
    assert all(torch.equal(tensor, was[table]) for table, tensor in now.items())

    record = zoo.records[folder]
    assert record.parent.parameters == sum(weight.numel() for weight in parent.parameters())
    assert record.pruned.parameters == sum(weight.numel() for weight in pruned.parameters())
    assert record.pruned.parameters == record.parent.parameters - _dropped(parent, kept)

    untouched = _logits(parent)
    for stack, path, indices in zip(spec_of(config).stacks, _paths(parent), kept, strict=True):
        for index, block in enumerate(parent.get_submodule(path)):
            if index not in indices:
                _skip(monkeypatch, block, stack.states)
    reference, logits = _logits(parent), _logits(pruned)
    if family.tolerance:
        assert (logits - reference).abs().max() <= family.tolerance * reference.abs().max()
    else:
        assert torch.equal(logits, reference)
    assert (untouched - reference).abs().max() > 0.01 * reference.abs().max()


@pytest.mark.parametrize(("name", "cell"), [(name, cell) for name, family in NAMES.items() for cell in family.refused])
def test_a_cell_that_a_family_cannot_have_is_refused_by_name(zoo: Zoo, tmp_path: Path, name: str, cell: str) -> None:
    with pytest.raises(LopsideError, match=f"^{NAMES[name].refused[cell]}"):
        prune(zoo.parent(name), tmp_path / "pruned", *NAMES[name].cells[cell])
    assert not list(tmp_path.iterdir())


def test_both_spellings_of_names_in_files_are_known(zoo: Zoo, tmp_path: Path) -> None:
    """transformers 5.23 reads T5Gemma 2's text encoder under the name of its module and under an older one."""
    source, kept = zoo.parent("t5gemma2"), NAMES["t5gemma2"].cells["3-2"]
    logits = _logits(load_model(zoo.pruned("t5gemma2", "3-2", kept)))
    for spelling in ("model.encoder.text_model.", "model.encoder."):
        weights = {
            re.sub(r"^model\.encoder\.(text_model\.)?(?=layers|norm|embed_tokens)", spelling, name): tensor
            for name, tensor in load_file(source / "model.safetensors").items()
        }
        assert f"{spelling}layers.0.mlp.up_proj.weight" in weights
        renamed = shutil.copytree(source, tmp_path / spelling)
        save_file(weights, renamed / "model.safetensors", metadata={"format": "pt"})
        prune(renamed, tmp_path / "pruned", *kept)
        assert torch.equal(_logits(load_model(tmp_path / "pruned")), logits)


def test_settings_of_other_layers_are_caught(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that all fit, and windows of attention that belong to other layers."""
    monkeypatch.setattr(
        pruning,
        "with_layers",
        lambda config, encoder, decoder: with_layers(config, encoder, decoder) | {"attention_window": [4, 8, 8]},
    )
    with pytest.raises(VerificationError, match="its logits differ"):
        prune(zoo.parent("led"), tmp_path / "pruned", (0, 1, 3), (0,))  # 4, 16, 8
    assert not list(tmp_path.iterdir())


# --- without lopside --------------------------------------------------------------------------------------------------

# Reads, for each folder, where its lists of blocks are. Prints: names that did not fit; blocks; ties; and the ids
# generated with one and three beams, with and without cache, and after the model was saved once more.
USER = """
import json, sys, traceback
from collections import defaultdict
import torch
from transformers import AutoModelForSeq2SeqLM
from transformers.utils import logging

logging.disable_progress_bar()
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(5)
source = torch.randint(3, 56, (2, 30), generator=generator)
mask = torch.ones_like(source)
mask[1, 23:] = 0
settings = {"min_new_tokens": 8, "max_new_tokens": 8, "no_repeat_ngram_size": 2, "decoder_start_token_id": 2}


def answer(folder, paths):
    model, info = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    model.save_pretrained(folder + " again")
    again = AutoModelForSeq2SeqLM.from_pretrained(folder + " again", dtype=torch.float32)
    ids = {}
    for name, each, beams, cache in (
        ("1 cached", model, 1, True),
        ("1 uncached", model, 1, False),
        ("1 saved again", again, 1, True),
        ("3 cached", model, 3, True),
        ("3 uncached", model, 3, False),
    ):
        each_settings = settings | {"num_beams": beams, "use_cache": cache}
        ids[name] = each.generate(input_ids=source, attention_mask=mask, **each_settings).tolist()
    ties = defaultdict(list)
    for name, weight in model.named_parameters(remove_duplicate=False):
        if not name.startswith(tuple(path + "." for path in paths)):
            ties[id(weight)].append(name)
    return {
        "faults": sum((list(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), []),
        "layers": [len(model.get_submodule(path)) for path in paths],
        "ties": sorted(group for group in ties.values() if len(group) > 1),
        "ids": ids,
    }


answers = {}
for folder, paths in json.load(sys.stdin).items():
    try:
        answers[folder] = answer(folder, paths)
    except Exception:
        answers[folder] = {"faults": [traceback.format_exc()]}
assert not any(name.split(".")[0] == "lopside" for name in sys.modules)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(request: pytest.FixtureRequest, zoo: Zoo, fork: str) -> dict[str, Any]:
    """What one process without lopside says of the pruned models of all families whose tests are to run."""
    items: list[Any] = request.session.items
    asked = [item.callspec.params for item in items if "answers" in getattr(item, "fixturenames", ())]
    folders = {
        str(zoo.pruned(params["name"], params["cell"], NAMES[params["name"]].cells[params["cell"]])): _paths(
            zoo.model(params["name"])
        )
        for params in asked
    }
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [fork, "-c", USER],
        input=json.dumps(folders),
        cwd=zoo.root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    said: dict[str, Any] = json.loads(run.stdout)
    return said


@pytest.mark.parametrize(("name", "cell"), WITHOUT_LOPSIDE)
def test_pruned_models_work_without_lopside(zoo: Zoo, answers: dict[str, Any], name: str, cell: str) -> None:
    kept = NAMES[name].cells[cell]
    folder = zoo.pruned(name, cell, kept)
    answer = answers[str(folder)]
    assert answer["faults"] == []
    assert answer["layers"] == [len(indices) for indices in kept]
    assert answer["ties"] == _ties(zoo.model(name))
    assert layer_counts(read_config(f"{folder} again")) == layer_counts(read_config(folder))
    ids = answer["ids"]
    assert ids["1 cached"] == ids["1 saved again"]
    if NAMES[name].same_uncached:
        assert ids["1 cached"] == ids["1 uncached"]
        assert ids["3 cached"] == ids["3 uncached"]
    first, second = ids["1 cached"]
    assert len(set(first)) > 3
    assert first != second


@pytest.mark.parametrize("name", NAMES)
def test_where_the_dense_model_gives_the_same_without_cache(zoo: Zoo, name: str) -> None:
    """As generate() takes it in: token by token with cache, at once without; float64 tells a cause from noise."""
    model: Any = load_model(zoo.parent(name), torch.float64)
    source, summary = torch.arange(3, 37)[None], torch.arange(4, 14)[None]
    with torch.inference_mode():
        given = {"encoder_outputs": model.get_encoder()(source)}
        whole = model(decoder_input_ids=summary, use_cache=False, **given).logits
        past, steps = None, []
        for token in summary.T:
            step = model(decoder_input_ids=token[None], past_key_values=past, use_cache=True, **given)
            past = step.past_key_values
            steps.append(step.logits)
    difference = (whole - torch.cat(steps, dim=1)).abs().max().item()
    assert (difference < NAMES[name].uncached_tolerance) is NAMES[name].same_uncached, difference
