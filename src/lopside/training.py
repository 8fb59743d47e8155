"""Fine-tune a sequence-to-sequence model with Hugging Face's Seq2SeqTrainer.

Dense and pruned go through the same function with the same settings, so they see the same batches in the same order and
differ in nothing but their layers.
"""

import csv
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from lopside.batches import LikeLengths
from lopside.files import new_file, new_folder, sha256_of, write_json
from lopside.generation import generate
from lopside.inputs import IGNORED, Inputs, check_first_token
from lopside.machine import choose_dtype
from lopside.models import TRAINED, load_model, load_tokenizer, without_bars
from lopside.params import TrainParams
from lopside.parts import Parts
from lopside.rouge import score

CURVE_COLUMNS = ("step", "train_loss", "validation_loss", "validation_rouge2")


def finetune(
    source: Path,
    target: Path,
    curve: Path,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    settings: TrainParams,
    inputs: Inputs,
    seed: int,
    device: str,
) -> None:
    """Train the model in folder ``source`` on ``train`` and write it to folder ``target``.

    Weights are kept in float32 throughout; ``settings.dtype`` is the precision of the forward and backward passes. A
    run that was killed goes on from its last checkpoint, kept beside ``target`` until the run is complete: one is taken
    at each evaluation but the last.

    Args:
        source: folder of the model and its tokenizer.
        target: folder to write: weights, configs, tokenizer, training.json (and lopside.json where there is one).
        curve: CSV file to write, columns ``CURVE_COLUMNS``: mean training loss since the row before, loss per token
            and greedy ROUGE-2 (0 to 100) on the first ``settings.evaluation_documents`` of ``validation``. Losses are
            smoothed where ``settings.label_smoothing`` is not 0.
        train: columns ``document`` and ``summary``. Where the steps need fewer pairs, a sample by ``seed`` is taken.
        validation: likewise.
        settings: see params.yaml, group ``train``.
        inputs: the prefix of documents, and where they and references are cut, in tokens.
        seed: of the order of the batches, of dropout and of the sample.
        device: ``cpu`` or ``cuda``.
    """
    set_seed(seed)
    if device == "cuda":
        # Equal runs give equal weights, as they do on a CPU: else 6-6 would differ from dense.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    tokenizer, padder = load_tokenizer(source), load_tokenizer(source)
    padder.padding_side = "right"  # some pad on the left, where a decoder takes padding for text
    # The backward of sdpa's flash attention on a CPU takes several times as long as plain attention's.
    model = load_model(source, dtype=torch.float32, device=device, attention="eager" if device == "cpu" else "sdpa")
    check_first_token(tokenizer, model.generation_config)
    model.train()
    validation = validation.iloc[: settings.evaluation_documents]
    steps = settings.max_steps or math.ceil(settings.epochs * math.ceil(len(train) / settings.batch_size))
    if steps * settings.batch_size < len(train):
        # Batches of all pairs, so few of them, would have a few lengths alone; those of a sample have all.
        print(f"a sample of {steps * settings.batch_size:,} of {len(train):,} training pairs")
        train = train.sample(steps * settings.batch_size, random_state=seed)
    every = max(1, math.ceil(steps / settings.evaluations))
    dtype = choose_dtype(settings.dtype, device)
    checkpoints = _checkpoint_folder(source, target, train, replace(settings, dtype=dtype), inputs, seed, device)
    # Without its cache of weights cast, which is one for all threads and gains nothing: most are used once a pass.
    autocast = partial(torch.autocast, device, dtype=torch.bfloat16, enabled=dtype == "bfloat16", cache_enabled=False)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=min(settings.warmup_steps, steps),
        weight_decay=settings.weight_decay,
        use_cpu=device == "cpu",
        prediction_loss_only=True,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=1,
        logging_strategy="steps",
        logging_steps=max(1, math.ceil(every / 5)),
        disable_tqdm=not sys.stderr.isatty(),
        report_to=[],
        seed=seed,
        data_seed=seed,
    )
    if device == "cuda":
        arguments._n_gpu = 1  # the Trainer would take all that there are, a batch for each

    class Trainer(Seq2SeqTrainer):
        """Pairs in the order of `LikeLengths`, gradients by `Parts`; an evaluation has greedy ROUGE-2, too."""

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return LikeLengths(_lengths(self.train_dataset), settings.batch_size, seed)

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            with autocast():
                loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            if settings.label_smoothing:
                # transformers' own would take the labels from the model, and stay in bfloat16 on a CPU.
                logits = outputs["logits"].float().flatten(0, 1)
                loss = cross_entropy(logits, inputs["labels"].flatten(), label_smoothing=settings.label_smoothing)
            return (loss, outputs) if return_outputs else loss

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
            model.train()
            return parts.backward(self._prepare_inputs(inputs), self.state.global_step)

        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            metrics = super().evaluate(*args, **kwargs)
            # On a CPU in float32: autocast is for one thread, and generation has several.
            with autocast(cache_enabled=True) if device == "cuda" else nullcontext():
                outputs = generate(
                    model,
                    tokenizer,
                    inputs.sources(validation.document),
                    max_source_tokens=inputs.max_source_tokens,
                    max_new_tokens=inputs.max_target_tokens,
                    batch_size=settings.batch_size,
                )
            scored = score(list(validation.summary), [output.summary for output in outputs], resamples=100)
            self.log({"eval_rouge2": scored.means["rouge2"]})
            return metrics | {"eval_rouge2": scored.means["rouge2"]}

    class NoLastCheckpoint(TrainerCallback):
        """The last step's would be taken after the last evaluation, only to be removed."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_save &= state.global_step < state.max_steps

    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=_tokenised(train, tokenizer, inputs),
        eval_dataset=_tokenised(validation, tokenizer, inputs),
        data_collator=DataCollatorForSeq2Seq(padder, model=model, label_pad_token_id=IGNORED),
        processing_class=tokenizer,
        callbacks=[NoLastCheckpoint()],
    )
    parts = Parts(model, trainer.compute_loss, seed)
    with without_bars():
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(checkpoints)) if checkpoints.exists() else None)
    _write_curve(curve, trainer.state.log_history)
    with new_folder(target) as folder, without_bars():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / TRAINED, {"dtype": dtype, "device": device})
        if (source / "lopside.json").exists():
            shutil.copy2(source / "lopside.json", folder)
    shutil.rmtree(checkpoints, ignore_errors=True)


def _tokenised(pairs: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, inputs: Inputs) -> Dataset:
    """Token ids of sources and references, tokenised once."""
    encoded = tokenizer(inputs.sources(pairs.document), truncation=True, max_length=inputs.max_source_tokens)
    labels = tokenizer(text_target=list(pairs.summary), truncation=True, max_length=inputs.max_target_tokens)
    return Dataset.from_dict(
        {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "labels": labels["input_ids"],
        }
    )


def _lengths(tokenised: Dataset) -> list[tuple[int, int]]:
    """Tokens of source and reference."""
    return [
        (len(source), len(target)) for source, target in zip(tokenised["input_ids"], tokenised["labels"], strict=True)
    ]


def _checkpoint_folder(
    source: Path, target: Path, train: pd.DataFrame, settings: TrainParams, inputs: Inputs, seed: int, device: str
) -> Path:
    """A folder beside ``target`` that only an equal run shares; those of other runs are removed."""
    run = {
        "weights": {path.name: sha256_of(path) for path in sorted(source.glob("*.safetensors"))},
        "train": hashlib.sha256("\0".join([*train.document, *train.summary]).encode()).hexdigest(),
        "settings": asdict(settings),
        "inputs": asdict(inputs),
        "seed": seed,
        "device": device,
        "threads": torch.get_num_threads() if device == "cpu" else None,
    }
    key = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:12]
    folder = target.with_name(f".{target.name}-checkpoints-{key}")
    for stale in target.parent.glob(f".{target.name}-checkpoints-*"):
        if stale != folder:
            shutil.rmtree(stale, ignore_errors=True)
    return folder


def _write_curve(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """One row a step at which something was logged; empty where that row has no such figure."""
    names = {"loss": "train_loss", "eval_loss": "validation_loss", "eval_rouge2": "validation_rouge2"}
    rows: dict[int, dict[str, float]] = {}
    for entry in history:
        figures = {ours: round(entry[theirs], 4) for theirs, ours in names.items() if theirs in entry}
        if figures:
            rows.setdefault(entry["step"], {}).update(figures)
    with new_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CURVE_COLUMNS)
        writer.writeheader()
        for step in sorted(rows):
            writer.writerow({"step": step, **rows[step]})
