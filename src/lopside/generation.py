"""Documents to summaries, the same way for every model.

torch and transformers are imported by the functions that need them, so that a command which finds a fault in its input
says so at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lopside.errors import LopsideError
from lopside.progress import progress as shown

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

SPECIAL = (
    "decoder_start_token_id",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
)
"""The model's own settings that are kept: what token starts, ends and fills, and which are never to come (Marian's
padding). All others, a stored length penalty or least length say, would make two models incomparable."""


@dataclass(frozen=True)
class Generated:
    """What came out for one document."""

    summary: str
    """Decoded without special tokens, white space at both ends removed; may be empty."""
    tokens: int
    """Tokens that the model chose, up to and including the end token; see `count_tokens`."""
    cut: bool
    """Whether the document was longer than ``max_source_tokens``."""


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    *,
    max_source_tokens: int,
    max_new_tokens: int,
    num_beams: int = 1,
    batch_size: int = 64,
    progress: str | None = None,
) -> list[Generated]:
    """Summarise the documents, in their order.

    Documents of like length share a batch, the longest first, padded on the right. Greedy or beam search without
    sampling: nothing is drawn at random, and no stored generation setting but SPECIAL has a say. In float32 the
    summaries do not depend on ``batch_size``, but for near ties between two tokens.

    Args:
        model: a sequence-to-sequence model, on the device where it shall run. Its mode (training or not), generation
            settings and weights are as before when this returns.
        tokenizer: the model's own.
        documents: at least one; an empty text is allowed.
        max_source_tokens: documents are cut here, special tokens included.
        max_new_tokens: at most as many tokens come out, the end token included, the start token not; a model with a
            forced first token (BART's ``forced_bos_token_id``) spends one on it.
        num_beams: 1 is greedy.
        batch_size: documents a batch.
        progress: label of the progress that is shown on stderr; None shows none.

    Raises:
        LopsideError: no document; or a limit beyond the positions that the model has.
    """
    import torch

    if not documents:
        raise LopsideError("there is no document to summarise: at least one is needed")
    _check_positions(model.config, max_source_tokens, max_new_tokens)
    sources = tokenizer(list(documents), truncation=True, max_length=max_source_tokens)["input_ids"]
    cut = _cut(tokenizer, documents, sources, max_source_tokens)
    order = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    pad = tokenizer.pad_token_id
    generated: dict[int, Generated] = {}
    with torch.inference_mode(), _applied(model, generation_settings(model, max_new_tokens, num_beams)) as settings:
        for batch in batches if progress is None else shown(batches, len(batches), progress):
            longest = max(len(sources[index]) for index in batch)
            padded = [sources[index] + [pad] * (longest - len(sources[index])) for index in batch]
            mask = [[1] * len(sources[index]) + [0] * (longest - len(sources[index])) for index in batch]
            outputs: Any = model.generate(  # type: ignore[operator]
                input_ids=torch.tensor(padded, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                generation_config=settings,
            )
            rows = outputs.tolist()
            summaries = tokenizer.batch_decode(rows, skip_special_tokens=True)
            for index, row, summary in zip(batch, rows, summaries, strict=True):
                generated[index] = Generated(summary.strip(), count_tokens(row, settings), cut[index])
    return [generated[index] for index in range(len(documents))]


def count_tokens(row: Sequence[int], settings: GenerationConfig) -> int:
    """Tokens that the model generated in ``row``, one sequence as `model.generate` returns it.

    From behind the start token, and behind the forced first token where the model has one (both were given, not
    chosen), up to and including the first end token; without an end token, up to the padding. The end token counts
    also where the length limit forced it (BART's ``forced_eos_token_id``).
    """
    tokens = list(row[1:])
    if settings.forced_bos_token_id is not None and tokens[:1] == [settings.forced_bos_token_id]:
        tokens = tokens[1:]
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    for place, token in enumerate(tokens):
        if token in ends:
            return place + 1
    while tokens and tokens[-1] == settings.pad_token_id:
        tokens.pop()
    return len(tokens)


def generation_settings(model: PreTrainedModel, max_new_tokens: int, num_beams: int = 1) -> GenerationConfig:
    """Settings of greedy or beam search without sampling: of those stored with the model, SPECIAL alone.

    `model.generate` fills whatever the settings passed leave open from ``model.generation_config``: only in its place
    nothing else can leak in.
    """
    from transformers import GenerationConfig

    special = {name: getattr(model.generation_config, name, None) for name in SPECIAL}
    return GenerationConfig(
        **special,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        do_sample=False,
        use_cache=True,
        length_penalty=1.0,
        early_stopping=False,
        no_repeat_ngram_size=0,
        repetition_penalty=1.0,
    )


@contextmanager
def _applied(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[GenerationConfig]:
    """These settings in place of the model's, and the model in evaluation mode; both are put back afterwards."""
    stored, training = model.generation_config, model.training
    model.generation_config = settings
    model.eval()
    try:
        yield settings
    finally:
        model.generation_config = stored
        model.train(training)


def _cut(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], sources: Sequence[Sequence[int]], limit: int
) -> list[bool]:
    """For each document whether it lost tokens. Only those at the limit can have: they are read with one token more."""
    cut = [False] * len(documents)
    full = [index for index, source in enumerate(sources) if len(source) >= limit]
    if full:
        longer = tokenizer([documents[index] for index in full], truncation=True, max_length=limit + 1)["input_ids"]
        for index, source in zip(full, longer, strict=True):
            cut[index] = len(source) > limit
    return cut


def _check_positions(config: Any, max_source_tokens: int, max_new_tokens: int) -> None:
    """Learned positions end somewhere; behind it a model fails with an error that names no key, or not at all."""
    both = getattr(config, "max_position_embeddings", None)
    source = getattr(config, "max_encoder_position_embeddings", both)
    target = getattr(config, "max_decoder_position_embeddings", both)
    if source is not None and max_source_tokens > source:
        raise LopsideError(f"data.max_source_tokens: {max_source_tokens} is refused; the model has {source} positions")
    if target is not None and max_new_tokens >= target:  # the start token takes one
        raise LopsideError(
            f"generate.max_new_tokens: {max_new_tokens} is refused; the model has {target} positions, one for the start"
        )
