"""Fine-tuning, on a tiny random model: what is written, that it is the same each time, and that a kill costs little."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import Seq2SeqTrainer
from transformers.trainer_pt_utils import LabelSmoother

from lopside.batches import LikeLengths
from lopside.inputs import Inputs
from lopside.models import load_tokenizer, read_config, trained_in
from lopside.params import TrainParams
from lopside.parts import Parts
from lopside.training import CURVE_COLUMNS, finetune

SETTINGS = TrainParams(
    dtype="float32",
    epochs=1.0,
    max_steps=4,
    batch_size=4,
    learning_rate=1e-2,
    scheduler="linear",
    warmup_steps=1,
    weight_decay=0.0,
    label_smoothing=0.0,
    evaluations=2,
    evaluation_documents=3,
)
INPUTS = Inputs(prefix="", max_source_tokens=24, max_target_tokens=12)


def pairs(count: int) -> pd.DataFrame:
    numbers = [str(number) * 3 for number in range(count)]
    return pd.DataFrame(
        {
            "document": [
                f"Return the item {number} of the list. " + "It is not copied. " * (int(number[0]) % 3)
                for number in numbers
            ],
            "summary": [f"Return item {number}." for number in numbers],
        }
    )


def run(source: Path, folder: Path, count: int = 10, **changed: Any) -> Path:
    """Fine-tune ``source`` on so many pairs into ``folder/model``, with the curve beside it."""
    settings = dataclasses.replace(SETTINGS, **changed)
    target = folder / "model"
    finetune(source, target, folder / "curve.csv", pairs(count), pairs(5), settings, INPUTS, seed=0, device="cpu")
    return target


@pytest.fixture(scope="module")
def trained(tiny_bart: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tiny_bart, tmp_path_factory.mktemp("trained"))


def test_the_result_is_a_model_folder_and_a_curve_and_nothing_else(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"training_args.bin", "optimizer.pt", "trainer_state.json"}
    assert (trained_in(trained), trained_in("no/such")) == ("float32 on cpu", "unknown")
    assert {path.name for path in trained.parent.iterdir()} == {"model", "curve.csv"}


def test_the_curve_has_its_figures_at_evenly_spaced_steps(trained: Path) -> None:
    curve = pd.read_csv(trained.parent / "curve.csv")
    assert tuple(curve.columns) == CURVE_COLUMNS
    evaluated = curve.dropna(subset=["validation_loss"])
    assert list(evaluated.step) == [2, 4]
    assert evaluated.validation_rouge2.between(0, 100).all()
    assert curve.train_loss.notna().all()


def test_training_learns(tiny_bart: Path, trained: Path, tmp_path: Path) -> None:
    longer = pd.read_csv(run(tiny_bart, tmp_path, max_steps=40).parent / "curve.csv")
    assert longer.validation_loss.iloc[-1] < 0.9 * pd.read_csv(trained.parent / "curve.csv").train_loss.iloc[0]


def test_equal_runs_give_equal_bytes_and_other_seeds_do_not(tiny_bart: Path, trained: Path, tmp_path: Path) -> None:
    again = run(tiny_bart, tmp_path)
    assert (again / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert (again.parent / "curve.csv").read_bytes() == (trained.parent / "curve.csv").read_bytes()
    other = tmp_path / "other"
    finetune(tiny_bart, other, tmp_path / "c.csv", pairs(10), pairs(5), SETTINGS, INPUTS, seed=1, device="cpu")
    assert (other / "model.safetensors").read_bytes() != (trained / "model.safetensors").read_bytes()


def test_without_max_steps_whole_epochs_are_trained(
    tiny_bart: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tiny_bart, tmp_path, max_steps=0, epochs=2.0, evaluations=1)
    assert "Writing model shards" not in capfd.readouterr().err  # no bar in a log
    assert pd.read_csv(tmp_path / "curve.csv").step.max() == 6  # two epochs of ceil(10 / 4) steps


@pytest.mark.parametrize("family", ["tiny_bart", "tiny_t5"])
@pytest.mark.parametrize(
    ("max_steps", "evaluations", "changed"),
    [(4, 2, {}), (6, 3, {}), (4, 2, {"batch_size": 32}), (4, 2, {"batch_size": 32, "dtype": "bfloat16"})],
)
def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_weights(
    request: pytest.FixtureRequest,
    threads_as_before: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    max_steps: int,
    evaluations: int,
    changed: dict[str, Any],
) -> None:
    """From within the first epoch, and from within the second; batches that go whole, and in parts, with dropout."""
    torch.set_num_threads(2)
    source = request.getfixturevalue(family)
    assert any(value == 0.1 for key, value in read_config(source).items() if "dropout" in key)
    how = {"max_steps": max_steps, "evaluations": evaluations, "count": 40 if changed else 10, **changed}
    whole = run(source, tmp_path / "whole", **how)
    folder = tmp_path / "killed"
    steps: list[int] = []
    real = Parts.backward

    def killed_at(limit: int) -> Any:
        def backward(self: Any, batch: Any, step: int) -> Any:
            steps.append(step)
            if len(steps) == limit:
                raise KeyboardInterrupt
            return real(self, batch, step)

        return backward

    monkeypatch.setattr(Parts, "backward", killed_at(max_steps))
    with pytest.raises(KeyboardInterrupt):
        run(source, folder, **how)
    assert not (folder / "model").exists()
    steps.clear()
    monkeypatch.setattr(Parts, "backward", killed_at(9))
    resumed = run(source, folder, **how)
    assert steps == [max_steps - 2, max_steps - 1]
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (resumed, whole))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert {path.name for path in folder.iterdir()} == {"model", "curve.csv"}


def test_a_checkpoint_is_taken_at_each_evaluation_but_the_last(
    tiny_bart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    real = Seq2SeqTrainer._save_checkpoint

    def save(self: Any, *args: Any, **kwargs: Any) -> Any:
        taken.append(self.state.global_step)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Seq2SeqTrainer, "_save_checkpoint", save)
    run(tiny_bart, tmp_path, max_steps=7, evaluations=3)
    assert taken == [3, 6]
    assert list(pd.read_csv(tmp_path / "curve.csv").dropna(subset=["validation_loss"]).step) == [3, 6, 7]
    taken.clear()
    run(tiny_bart, tmp_path, max_steps=6, evaluations=3)
    assert taken == [2, 4]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["tiny_t5", "tiny_nllb"])
def test_label_smoothing_is_that_of_transformers_in_float32(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, dtype: str
) -> None:
    """M2M100 makes its decoder's inputs from labels itself."""
    found: list[tuple[torch.Tensor, float]] = []
    real = Parts.backward

    def backward(self: Any, batch: Any, step: int) -> Any:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            self._model.eval()
            outputs = self._model(**batch)
            theirs = LabelSmoother(0.2)({"logits": outputs.logits.float()}, batch["labels"])
            found.append((self._loss(self._model, dict(batch)), float(theirs)))
        return real(self, batch, step)

    monkeypatch.setattr(Parts, "backward", backward)
    run(request.getfixturevalue(family), tmp_path, label_smoothing=0.2, dtype=dtype, evaluations=1)
    assert len(found) == 4
    for ours, theirs in found:
        assert ours.dtype == torch.float32
        assert float(ours) == pytest.approx(theirs, rel=1e-5)


def test_references_are_padded_on_the_right_whatever_the_tokenizer_does(
    tiny_bart: Path, trained: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_bart, source)
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(config | {"padding_side": "left"}))
    assert load_tokenizer(source).padding_side == "left"
    target = run(source, tmp_path)
    assert load_tokenizer(target).padding_side == "left"
    assert (target / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_pairs_are_taken_in_the_order_of_like_lengths_epoch_by_epoch(
    tiny_bart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, read = load_tokenizer(tiny_bart), list[str]()
    real = Parts.backward

    def backward(self: Any, batch: Any, step: int) -> Any:
        read.extend(tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True))
        return real(self, batch, step)

    monkeypatch.setattr(Parts, "backward", backward)
    run(tiny_bart, tmp_path, max_steps=0, epochs=2.0, evaluations=1)

    sources, targets = (
        tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
        for texts, limit in ((pairs(10).document, INPUTS.max_source_tokens), (pairs(10).summary, 12))
    )
    order = LikeLengths(
        [(len(one), len(other)) for one, other in zip(sources, targets, strict=True)], SETTINGS.batch_size, seed=0
    )
    rows: list[int] = []
    for epoch in range(2):
        order.set_epoch(epoch)
        rows += order
    assert read == tokenizer.batch_decode([sources[row] for row in rows], skip_special_tokens=True)
    assert rows[:10] != rows[10:]


def test_a_part_of_an_epoch_is_a_sample_of_it_by_seed(
    tiny_bart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of documents of any length; the Trainer's own order would begin with the longest."""
    tokenizer, read = load_tokenizer(tiny_bart), list[set[str]]()
    real = Parts.backward

    def backward(self: Any, batch: Any, step: int) -> Any:
        texts = tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
        read[-1].update(text.strip() for text in texts)
        return real(self, batch, step)

    monkeypatch.setattr(Parts, "backward", backward)
    settings = dataclasses.replace(SETTINGS, max_steps=5, evaluations=1)
    inputs = dataclasses.replace(INPUTS, max_source_tokens=100)
    for seed in (0, 0, 1):
        read.append(set())
        finetune(tiny_bart, tmp_path / "model", tmp_path / "c.csv", pairs(99), pairs(3), settings, inputs, seed, "cpu")
    chosen = [set(pairs(99).sample(20, random_state=seed).document.str.strip()) for seed in (0, 0, 1)]
    assert read == chosen
    assert chosen[0] != chosen[2]
