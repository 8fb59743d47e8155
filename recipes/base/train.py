"""Train docs-bart-mini and docs-bart-micro, in rounds.

The first round starts from MiniLM: text infilling, then summaries with the encoder frozen, then with all of it. The
second goes on from the first with all of it, over every pair and then over those of the default data alone; the third
does so with the pairs that the second has not come to. The round ``micro`` goes on from what `recipes.base.narrow` cuts
out of docs-bart-mini.

A loop of our own rather than the Trainer: bf16 weights beside float32 masters, batches of a fixed number of tokens and
an encoder that is let go part of the way together made a step several times faster on a CPU.
Killed at any moment, it goes on from its last checkpoint: the batch of a step depends on the seed and the step alone.
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import pandas as pd
import torch
import yaml
from transformers import BartForConditionalGeneration, PreTrainedTokenizerFast

from lopside.errors import LopsideError
from lopside.files import new_file, new_folder, sha256_of
from lopside.generation import generate
from lopside.machine import choose_dtype, keep_memory
from lopside.models import copy_companions, load_model, load_tokenizer
from lopside.rouge import score
from lopside.splits import read_split
from recipes.base.warmstart import minilm_folder, trimmed_tokenizer, warm_bart

HERE = Path(__file__).parent
PAIRS = HERE / "outputs/pairs.parquet"
ROUNDS: dict[str, Path | None] = {
    "first": None,
    "second": HERE / "outputs/first",
    "third": HERE / "outputs/second",
    "micro": HERE / "outputs/narrow",
}
"""Round -> the folder of the model that it starts from; None: MiniLM."""
TRAINED_ON = "trained_on.npy"
IGNORED = -100
SHORTEST_STRETCH = 8
"""Tokens; what is shorter gives infilling nothing to go by."""
COLUMNS = ["step", "tokens", "seconds", "train_loss", "validation_loss", "validation_rouge2"]


@dataclass(frozen=True)
class Example:
    """Token ids; ``target`` is without the start token."""

    source: np.ndarray
    target: np.ndarray


def examples_of(tokenizer: PreTrainedTokenizerFast, pairs: pd.DataFrame, lengths: dict[str, int]) -> list[Example]:
    """The pairs as token ids, cut at ``lengths``."""

    def encode(texts: pd.Series, longest: int) -> list[list[int]]:
        return cast(list[list[int]], tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"])

    ids = zip(encode(pairs.document, lengths["source"]), encode(pairs.summary, lengths["target"]), strict=True)
    return [Example(np.array(source), np.array(target)) for source, target in ids]


def batches_of(examples: list[Example], tokens: int, generator: np.random.Generator) -> list[list[int]]:
    """Indices of ``examples`` in batches of alike lengths, at most ``tokens`` padded tokens each, in random order."""
    order = generator.permutation(len(examples))
    batches: list[list[int]] = []
    for pool in np.array_split(order, max(1, len(order) // 8192)):
        batch: list[int] = []
        source = target = 0
        for index in sorted(pool, key=lambda i: (len(examples[i].source), len(examples[i].target))):
            longer = max(source, len(examples[index].source)), max(target, len(examples[index].target))
            if batch and sum(longer) * (len(batch) + 1) > tokens:
                batches.append(batch)
                batch, longer = [], (len(examples[index].source), len(examples[index].target))
            batch.append(int(index))
            source, target = longer
        batches.append(batch)
    return [batches[i] for i in generator.permutation(len(batches))]


def hidden(stretch: np.ndarray, share: float, span: float, mask: int, generator: np.random.Generator) -> np.ndarray:
    """``stretch`` with about ``share`` of its tokens gone, one mask a span: text infilling (BART, 1910.13461, 2.2)."""
    gone = np.zeros(len(stretch), dtype=bool)
    while gone.sum() < share * len(stretch):
        start = generator.integers(len(stretch))
        gone[start : start + max(1, generator.poisson(span))] = True
    first = gone & ~np.concatenate([[False], gone[:-1]])
    return np.where(first, mask, stretch)[~gone | first]


def collate(examples: list[Example], pad: int, start: int) -> dict[str, torch.Tensor]:
    """Padded ids (documents, tokens) and labels; the decoder's input is the target moved one to the right."""
    source = np.full((len(examples), max(len(e.source) for e in examples)), pad)
    target = np.full((len(examples), max(len(e.target) for e in examples)), pad)
    for row, example in enumerate(examples):
        source[row, : len(example.source)] = example.source
        target[row, : len(example.target)] = example.target
    shifted = np.concatenate([np.full((len(examples), 1), start), target[:, :-1]], axis=1)
    return {
        "input_ids": torch.from_numpy(source),
        "attention_mask": torch.from_numpy((source != pad).astype(np.int64)),
        "decoder_input_ids": torch.from_numpy(shifted),
        "labels": torch.from_numpy(np.where(target == pad, IGNORED, target)),
    }


def loss_of(model: BartForConditionalGeneration, batch: dict[str, torch.Tensor], frozen: bool) -> torch.Tensor:
    """Mean cross-entropy of the target tokens; the output layer is applied to these alone."""
    with torch.set_grad_enabled(not frozen and torch.is_grad_enabled()):
        encoded = model.model.encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    decoded = model.model.decoder(
        input_ids=batch["decoder_input_ids"],
        encoder_hidden_states=encoded,
        encoder_attention_mask=batch["attention_mask"],
        use_cache=False,
    )[0]
    wanted = batch["labels"] != IGNORED
    logits = model.lm_head(decoded[wanted])
    return torch.nn.functional.cross_entropy(logits.float(), batch["labels"][wanted])


class Masters:
    """AdamW on float32 copies of a model's weights; the model itself may be bf16.

    Two groups: what belongs to the encoder alone (it can rest, and has its own rate) and everything else.
    """

    def __init__(self, model: torch.nn.Module, weight_decay: float) -> None:
        names = dict(model.named_parameters())
        self.encoder = [p for name, p in names.items() if name.startswith("model.encoder.")]
        self.rest = [p for name, p in names.items() if not name.startswith("model.encoder.")]
        self.copies = {p: p.detach().float().clone() for p in self.encoder + self.rest}
        self.optimizer = torch.optim.AdamW(
            [{"params": [self.copies[p] for p in group]} for group in (self.encoder, self.rest)],
            betas=(0.9, 0.98),
            weight_decay=weight_decay,
            fused=True,
        )

    def step(self, rate: float, encoder_rate: float, clip: float) -> None:
        active = self.rest + (self.encoder if encoder_rate else [])
        for parameter in active:
            self.copies[parameter].grad = parameter.grad.float() if parameter.grad is not None else None
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_([self.copies[p] for p in active], clip)
        self.optimizer.param_groups[0]["lr"], self.optimizer.param_groups[1]["lr"] = encoder_rate, rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for parameter in active:
                parameter.copy_(self.copies[parameter])

    def state(self) -> dict[str, Any]:
        return {"copies": list(self.copies.values()), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for (parameter, copy), saved in zip(self.copies.items(), state["copies"], strict=True):
                copy.copy_(saved)
                parameter.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])


def rate_at(step: int, settings: dict[str, Any]) -> float:
    """Linear warm-up, then linear decay to a fiftieth."""
    if step < settings["warmup"]:
        return float(settings["learning_rate"]) * (step + 1) / settings["warmup"]
    left = 1 - (step - settings["warmup"]) / (settings["steps"] - settings["warmup"])
    return float(settings["learning_rate"]) * max(left, 0.02)


class Batches:
    """The batch of any step, made from the round's seed and the step alone: infilling, all pairs, own pairs."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        train: pd.DataFrame,
        own: Collection[str],
        lengths: dict[str, int],
        settings: dict[str, Any],
    ) -> None:
        self.tokenizer, self.lengths, self.settings = tokenizer, lengths, settings
        self.pairs = examples_of(tokenizer, train, lengths)
        bodies, summaries = (
            tokenizer(list(texts), add_special_tokens=False)["input_ids"] for texts in (train.body, train.summary)
        )
        stretches = [ids[i : i + lengths["stretch"]] for ids in bodies for i in range(0, len(ids), lengths["stretch"])]
        self.stretches = [np.array(ids) for ids in stretches + summaries if len(ids) >= SHORTEST_STRETCH]
        steps = settings["steps"]
        self.infill_steps, own_steps = round(steps * settings["infill"]), round(steps * settings["own"])
        used = settings.get("used", {"pairs": 0, "own": 0})
        every = np.arange(len(self.pairs))
        self.of_pairs = self._batches(every, 1, used["pairs"], steps - self.infill_steps - own_steps)
        self.of_pairs += self._batches(np.flatnonzero(train.id.isin(list(own))), 2, used["own"], own_steps)

    def _batches(self, chosen: np.ndarray, part: int, used: int, steps: int) -> list[list[int]]:
        """So many batches of the chosen pairs, behind those that are used: as many epochs as that takes."""
        examples, batches = [self.pairs[i] for i in chosen], list[list[int]]()
        if steps and not examples:
            raise LopsideError("recipes/base/params.yaml: own: none of the pairs is one of the default data's")
        while len(batches) < used + steps:
            generator = np.random.default_rng([self.settings["seed"], part, len(batches)])
            epoch = batches_of(examples, self.settings["tokens"], generator)
            batches += [[int(chosen[i]) for i in batch] for batch in epoch]
        return batches[used : used + steps]

    def of(self, step: int) -> dict[str, torch.Tensor]:
        settings, tokenizer = self.settings, self.tokenizer
        if step >= self.infill_steps:
            examples = [self.pairs[i] for i in self.of_pairs[step - self.infill_steps]]
        else:
            generator = np.random.default_rng([settings["seed"], 0, step])
            count = settings["tokens"] // (2 * self.lengths["stretch"])
            examples = []
            for index in generator.integers(len(self.stretches), size=count):
                stretch = self.stretches[index]
                masked = hidden(stretch, settings["mask"], settings["span"], tokenizer.mask_token_id, generator)
                ends = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
                examples.append(
                    Example(np.concatenate([ends[0], masked, ends[1]]), np.concatenate([ends[0], stretch, ends[1]]))
                )
        return collate(examples, tokenizer.pad_token_id, tokenizer.eos_token_id)


def evaluate(
    model: BartForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, pairs: pd.DataFrame, params: dict[str, Any]
) -> tuple[float, float]:
    """Loss per token and greedy ROUGE-2 on validation pairs."""
    lengths = params["lengths"]
    model.eval()
    with torch.no_grad():
        total, count = 0.0, 0
        for start in range(0, len(pairs), 50):
            part = pairs.iloc[start : start + 50]
            examples = examples_of(tokenizer, part, lengths)
            tokens = sum(len(e.target) for e in examples)
            batch = collate(examples, tokenizer.pad_token_id, tokenizer.eos_token_id)
            total += loss_of(model, batch, frozen=True).item() * tokens
            count += tokens
    summaries = generate(
        model,
        tokenizer,
        list(pairs.document),
        max_source_tokens=lengths["source"],
        max_new_tokens=lengths["target"],
        num_beams=1,
        batch_size=64,
    )
    rouge = score(list(pairs.summary), [s.summary for s in summaries], resamples=10, confidence=0.95, seed=0)
    model.train()
    return total / count, rouge.means["rouge2"]


def read_params() -> dict[str, Any]:
    """recipes/base/params.yaml."""
    return cast(dict[str, Any], yaml.safe_load((HERE / "params.yaml").read_text(encoding="utf-8")))


def begin(
    start: Path | None, texts: list[str], min_count: int
) -> tuple[BartForConditionalGeneration, PreTrainedTokenizerFast]:
    """Model and tokenizer that a round starts from: those in folder ``start``, or new ones from MiniLM."""
    if start is None:
        parent = minilm_folder()
        tokenizer, pieces = trimmed_tokenizer(parent, texts, min_count)
        model = warm_bart(parent, pieces)
    else:
        model = cast(BartForConditionalGeneration, load_model(start, dtype=torch.float32))
        tokenizer = cast(PreTrainedTokenizerFast, load_tokenizer(start))
    model.set_attn_implementation("eager")  # the backward of sdpa is far slower on a CPU
    return model, tokenizer


def check_room(folder: Path, parameters: int) -> None:
    """Raise LopsideError where the disk has no room for what a training of so many parameters writes.

    That is two checkpoints at once (the new one is whole before the old one goes), each with float32 weights and both
    of AdamW's averages, and the model in bf16.
    """
    needed, free = parameters * (2 * 3 * 4 + 2), shutil.disk_usage(folder).free
    if free < needed:
        raise LopsideError(f"{folder}: {free / 1e6:,.0f} MB are free there, and training needs {needed / 1e6:,.0f} MB")


def train(
    params: dict[str, Any],
    name: str,
    pairs: Path,
    own: Collection[str],
    validation: pd.DataFrame,
    start: Path | None,
    model_folder: Path,
    log: Path,
) -> None:
    """Train the round ``name`` on the Parquet file ``pairs``; write a model folder and a CSV log.

    ``own`` are the ids of the pairs that its last steps learn from alone. A checkpoint lies beside ``model_folder``,
    written at every evaluation and kept at the end. Where one is found, the training goes on from it.

    Raises:
        LopsideError: the checkpoint was made with other params, pairs or start; there is no room on the disk.
    """
    settings = params["rounds"][name]
    torch.manual_seed(settings["seed"])
    dtype = getattr(torch, choose_dtype("auto", "cpu"))
    checkpoint = model_folder.with_name(f"{model_folder.name}-checkpoint.pt")
    recipe = json.dumps(
        {
            "params": {**{key: params[key] for key in params if key != "narrow"}, "rounds": {name: settings}},
            "pairs": sha256_of(pairs),
            "own": hashlib.sha256("".join(sorted(own)).encode()).hexdigest(),
            "start": sha256_of(start / "model.safetensors") if start else None,
        },
        sort_keys=True,
    )
    saved = _load(checkpoint, recipe) if checkpoint.exists() else None
    table = pd.read_parquet(pairs)
    model, tokenizer = begin(start, [*table.document, *table.summary], params["vocabulary"]["min_count"])
    check_room(model_folder.parent, model.num_parameters())
    masters = Masters(model, settings["weight_decay"])
    model.to(dtype).train()
    step, tokens, seconds, rows = 0, 0, 0.0, list[list[float]]()
    if saved:
        masters.load(saved["masters"])
        step, tokens, seconds, rows = (saved[name] for name in ("step", "tokens", "seconds", "rows"))
    batches = Batches(tokenizer, table, own, params["lengths"], settings)
    print(
        f"{model.num_parameters():,} parameters, {len(tokenizer):,} word pieces, "
        f"{len(table):,} pairs, {dtype}, step {step} of {settings['steps']}",
        flush=True,
    )
    started, losses = time.monotonic() - seconds, list[float]()
    while step < settings["steps"]:
        frozen = step < settings["freeze"] * settings["steps"]
        batch = batches.of(step)
        loss = loss_of(model, batch, frozen)
        loss.backward()
        rate = rate_at(step, settings)
        masters.step(rate, 0.0 if frozen else rate * settings["encoder_rate"], settings["clip"])
        losses.append(loss.item())
        tokens += int(batch["attention_mask"].sum()) + int((batch["labels"] != IGNORED).sum())
        step += 1
        if step % 20 == 0:
            speed = tokens / (time.monotonic() - started)
            print(f"step {step} loss {np.mean(losses[-20:]):.3f} {speed:.0f} tokens/s", flush=True)
        if step % params["evaluate"]["every"] == 0 or step == settings["steps"]:
            seconds = time.monotonic() - started
            validation_loss, rouge2 = evaluate(model, tokenizer, validation, params)
            figures = float(np.mean(losses)), validation_loss, rouge2
            rows.append([step, tokens, round(seconds), *(round(figure, 4) for figure in figures)])
            print(dict(zip(COLUMNS, rows[-1], strict=True)), flush=True)
            losses = []
            _save(
                checkpoint, recipe=recipe, masters=masters.state(), step=step, tokens=tokens, seconds=seconds, rows=rows
            )
            with new_file(log) as temporary:
                pd.DataFrame(rows, columns=COLUMNS).astype({"step": int, "tokens": int}).to_csv(temporary, index=False)
    with new_folder(model_folder) as folder:
        model.bfloat16().save_pretrained(folder)
        if start:
            copy_companions(start, folder)
        else:
            tokenizer.save_pretrained(folder)
        np.save(folder / TRAINED_ON, _trained_on(table, start))


def _trained_on(table: pd.DataFrame, start: Path | None) -> np.ndarray:
    """The ids that the model has learnt from, in this round and those before it, as sorted numbers of 64 bits."""
    seen = np.array([int(i, 16) for i in table.id], dtype=np.uint64)
    return np.unique(seen) if start is None else np.union1d(seen, np.load(start / TRAINED_ON))


def _load(checkpoint: Path, recipe: str) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    if saved["recipe"] != recipe:
        raise LopsideError(f"{checkpoint}: was made with other params or other pairs; remove it to start anew")
    return saved


def _save(checkpoint: Path, **state: Any) -> None:
    with new_file(checkpoint) as temporary:
        torch.save(state, temporary)


@click.command()
@click.argument("name", metavar="ROUND", type=click.Choice(list(ROUNDS)))
def main(name: str) -> None:
    """Train a round of docs-bart-mini, or go on from the checkpoint that is there."""
    try:
        keep_memory()
        params = read_params()
        own, validation = set(read_split("train").id), read_split("validation").iloc[: params["evaluate"]["documents"]]
        train(
            params, name, PAIRS, own, validation, ROUNDS[name], HERE / "outputs" / name, HERE / f"training-{name}.csv"
        )
    except LopsideError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
