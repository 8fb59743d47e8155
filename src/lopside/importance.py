"""Which layers a model can spare, measured on calibration documents: the strategy ``importance``.

Each stack is measured by itself, with the other one whole. Layers go one after the other, the least important first,
and after each removal the rest is measured again, because layers that do the same work look dispensable only while both
are there. So a layer that is kept stays kept where more are kept, one layer alone excepted.

Where one layer stays, it is the one that the whole model misses most. An untrained model of one layer tells nothing (in
docs-bart-mini its loss is near that of guessing), and going down to one by it kept a layer that learnt far less than
the last one of the decoder (docs/strategies.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lopside.architectures import StackSpec, spec_of
from lopside.blocks import blocks_of, switched_off
from lopside.errors import LopsideError
from lopside.inputs import IGNORED, check_first_token
from lopside.progress import progress
from lopside.selection import Stack, unknown

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MEASURES = ("loss", "influence")
BATCH = 16
"""Pairs a forward pass."""


@dataclass(frozen=True)
class Ranking:
    """How the layers of one stack were found to matter."""

    measure: str
    whole: float
    """Loss of the whole model, in nats a target token."""
    scores: tuple[Mapping[int, float], ...]
    """For each round the scores of the layers that were still there: the lowest goes, the first of equals."""
    removed: tuple[int, ...]
    """Layers in the order in which they go, the least important first."""

    @property
    def kept(self) -> tuple[int, ...]:
        """The layers that stay, sorted."""
        return tuple(layer for layer in sorted(self.scores[0]) if layer not in self.removed)


def rank_layers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    summaries: Sequence[str],
    stack: Stack,
    count: int,
    *,
    measure: str,
    max_source_tokens: int,
    max_target_tokens: int,
) -> Ranking:
    """Measure how much each layer of one stack matters, and choose the ``count`` that stay.

    Args:
        model: a sequence-to-sequence model in evaluation mode, on the device where it shall run; unchanged on return.
        tokenizer: the model's own.
        documents, summaries: calibration pairs, at least one, from the training split.
        stack: which one is measured.
        count: layers that stay, at least one and fewer than there are.
        measure: one of :data:`MEASURES`.
            loss: the score of a layer is the loss without it, in nats a target token (leave one out).
            influence: 1 - cosine between its input and its output, mean over tokens (block influence: ShortGPT,
            arXiv 2403.03853, equation 1).
        max_source_tokens, max_target_tokens: where documents and summaries are cut, special tokens included.

    Deterministic on one machine. Raises LopsideError for an unknown measure, a count out of range, and where there is
    no pair.
    """
    import torch

    if measure not in MEASURES:
        raise LopsideError(unknown("keep.measure", measure, MEASURES))
    if not documents:
        raise LopsideError("there is no calibration document: at least one is needed")
    check_first_token(tokenizer, model.generation_config)
    spec: StackSpec = getattr(spec_of(model.config.to_dict()), stack)
    layers = range(len(blocks_of(model, spec)))
    if not 1 <= count < len(layers):
        raise LopsideError(f"{count} of {len(layers)} {stack} layers cannot be chosen: 1 to {len(layers) - 1} can")
    rounds = 1 if count == 1 else len(layers) - count
    total = 1 + (sum(range(len(layers), len(layers) - rounds, -1)) if measure == "loss" else rounds)
    passes = iter(progress(range(total), total, f"measure {stack} layers"))

    def loss(kept: Sequence[int]) -> float:
        next(passes, None)
        return _loss(model, batches, spec, [layer for layer in layers if layer not in kept])

    with torch.inference_mode():
        batches = list(_batches(model, tokenizer, documents, summaries, max_source_tokens, max_target_tokens))
        if stack == "decoder":  # what the encoder says is the same every time
            for batch in batches:  # input_ids stay: without them FSMT would leave out the decoder's causal mask
                batch["encoder_outputs"] = model.get_encoder()(batch["input_ids"], batch["attention_mask"])
        whole = loss(layers)
        left, removed, scores = list(layers), list[int](), list[dict[int, float]]()
        for _ in range(rounds):
            if measure == "loss":
                found = {layer: loss([other for other in left if other != layer]) for layer in left}
            else:
                next(passes, None)
                found = _influence(model, batches, spec, left, stack)
            scores.append(found)
            going = sorted(left, key=lambda layer: found[layer])
            removed += going[:-1] if count == 1 else going[:1]
            left = [layer for layer in layers if layer not in removed]
        next(passes, None)  # lets the progress say that it is through
    return Ranking(measure, whole, tuple(scores), tuple(removed))


def _batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    summaries: Sequence[str],
    max_source_tokens: int,
    max_target_tokens: int,
) -> Iterator[dict[str, Any]]:
    """Padded batches on the model's device, in the order of the documents."""
    for start in range(0, len(documents), BATCH):
        part = slice(start, start + BATCH)
        cut = {"truncation": True, "padding": True, "padding_side": "right", "return_tensors": "pt"}
        sources = tokenizer(list(documents[part]), max_length=max_source_tokens, **cut)
        targets = tokenizer(text_target=list(summaries[part]), max_length=max_target_tokens, **cut)
        labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, IGNORED)
        batch = {"input_ids": sources["input_ids"], "attention_mask": sources["attention_mask"], "labels": labels}
        shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if shift:  # as in training; FSMT does not do it by itself, and writes into what it is given
            batch["decoder_input_ids"] = shift(labels=labels.clone())
        yield {name: tensor.to(model.device) for name, tensor in batch.items()}


def _loss(model: PreTrainedModel, batches: Sequence[dict[str, Any]], spec: StackSpec, off: Sequence[int]) -> float:
    """Mean loss a target token, in nats, with the blocks ``off`` switched off."""
    import torch

    total, tokens = 0.0, 0
    with switched_off(model, spec, off):
        for batch in batches:
            logits = model(**batch, use_cache=False).logits.float()
            labels = batch["labels"]
            summed = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
            total += summed.item()
            tokens += int((labels != IGNORED).sum())
    return total / tokens


def _influence(
    model: PreTrainedModel, batches: Sequence[dict[str, Any]], spec: StackSpec, left: Sequence[int], stack: Stack
) -> dict[int, float]:
    """Block influence of the layers that are left, the others switched off."""
    import torch

    blocks = blocks_of(model, spec)
    sums = dict.fromkeys(left, 0.0)
    tokens = 0

    def listen(layer: int, mask: torch.Tensor) -> Any:
        def hook(block: object, given: tuple[Any, ...], result: Any) -> None:
            before, after = given[0], result[0] if isinstance(result, tuple) else result
            cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
            cosine = cosine.T if spec.time_first else cosine
            # Behind the tokens may be more: LED and Pegasus-X pad to whole windows, ProphetNet's decoder has a stream
            # for each n-gram.
            sums[layer] += ((1 - cosine[:, : mask.shape[1]]) * mask).sum().item()

        return blocks[layer].register_forward_hook(hook)

    off = [layer for layer in range(len(blocks)) if layer not in left]
    for batch in batches:
        mask = batch["attention_mask"] != 0 if stack == "encoder" else batch["labels"] != IGNORED
        tokens += int(mask.sum())
        with switched_off(model, spec, off):
            hooks = [listen(layer, mask) for layer in left]
            try:
                model(**batch, use_cache=False)
            finally:
                for hook in hooks:
                    hook.remove()
    return {layer: total / tokens for layer, total in sums.items()}
