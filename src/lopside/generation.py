"""Documents to summaries, the same way for every model and for every engine that computes them.

torch and transformers are imported by the functions that need them, so that a command which finds a fault in its input
says so at once.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lopside.errors import LopsideError
from lopside.machine import shared_threads
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


Batch = Sequence[Sequence[int]]
"""Sources, each as token ids."""
Answers = Generator[list[list[int]], None, None]
"""Of one batch after the other, the rows of token ids that came out."""


@dataclass(frozen=True)
class Generated:
    """What came out for one document."""

    summary: str
    """Decoded without special tokens, white space at both ends removed; may be empty."""
    tokens: int
    """Tokens that the model chose, up to and including the end token; a forced first one is not counted."""
    cut: bool
    """Whether the document was longer than ``max_source_tokens``."""


class Engine(Protocol):
    """A model with what computes its answers; token ids in, token ids out."""

    name: str
    """Engine and precision, for people and for a signature."""
    config: Any
    """The model's configuration, as transformers has it."""
    given: int
    """Tokens at the start of each answer that were forced, not chosen (BART's ``forced_bos_token_id``): 0 or 1."""

    def answers(self, batches: Sequence[Batch], max_new_tokens: int, num_beams: int) -> Answers:
        """Batch by batch, in their order, what comes out for each source: see `written_tokens`.

        Greedy (``num_beams`` 1) or beam search without sampling; no stored setting but SPECIAL has a say.
        """
        ...


class Transformers:
    """transformers' `generate`, in the precision and on the device of the model given; greedy by `lopside.decoding`.

    On a CPU linear layers are packed (`lopside.packed`), and two batches are at work at a time, with half of the
    threads each: while one is in Python, or in a product too small to be shared, the other computes.

    The model's mode (training or not), generation settings and weights are as before after the last answer.
    """

    at_once = 2
    packs = True

    def __init__(self, model: PreTrainedModel, pad: int) -> None:
        self.model, self.pad, self.config = model, pad, model.config
        self.given = int(model.generation_config.forced_bos_token_id is not None)
        self.name = f"transformers {str(model.dtype).removeprefix('torch.')}"

    def answers(self, batches: Sequence[Batch], max_new_tokens: int, num_beams: int) -> Answers:
        import torch

        from lopside.packed import packed

        settings = generation_settings(self.model, max_new_tokens, num_beams)

        def answer(sources: Batch) -> list[list[int]]:
            return self._answer(sources, settings)

        at_once = 1
        if self.model.device.type == "cpu":
            at_once = min(self.at_once, len(batches), torch.get_num_threads())
        with _applied(self.model, settings), packed(self.model) if self.packs else nullcontext():
            if at_once == 1:
                yield from map(answer, batches)
                return
            with shared_threads(at_once) as pool:
                yield from pool.map(answer, batches)

    def _answer(self, sources: Batch, settings: GenerationConfig) -> list[list[int]]:
        import torch

        from lopside.decoding import greedy

        longest = max(map(len, sources))
        padded = [[*source, *[self.pad] * (longest - len(source))] for source in sources]
        mask = [[1] * len(source) + [0] * (longest - len(source)) for source in sources]
        with torch.inference_mode():
            rows: Any = self.model.generate(  # type: ignore[operator]
                input_ids=torch.tensor(padded, device=self.model.device),
                attention_mask=torch.tensor(mask, device=self.model.device),
                generation_config=settings,
                custom_generate=greedy if settings.num_beams == 1 else None,
            )
        return [written_tokens(row, settings) for row in rows.tolist()]


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], **how: Any
) -> list[Generated]:
    """`summarise` by transformers, with a model on the device where it shall run."""
    return summarise(Transformers(model, tokenizer.pad_token_id), tokenizer, documents, **how)


def summarise(
    engine: Engine,
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

    Documents of like length share a batch, the longest first. Nothing is drawn at random. In float32 the summaries do
    not depend on ``batch_size``, but for near ties between two tokens.

    Args:
        engine: a sequence-to-sequence model and what computes it.
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
    if not documents:
        raise LopsideError("there is no document to summarise: at least one is needed")
    _check_positions(engine.config, max_source_tokens, max_new_tokens)
    sources = tokenizer(list(documents), truncation=True, max_length=max_source_tokens)["input_ids"]
    cut = _cut(tokenizer, documents, sources, max_source_tokens)
    order = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    generated: dict[int, Generated] = {}
    sources_of = [[sources[index] for index in batch] for batch in batches]
    with closing(engine.answers(sources_of, max_new_tokens, num_beams)) as answers:
        rows_of = answers if progress is None else shown(answers, len(batches), progress)
        for batch, rows in zip(batches, rows_of, strict=True):
            summaries = tokenizer.batch_decode(rows, skip_special_tokens=True)
            for index, row, summary in zip(batch, rows, summaries, strict=True):
                generated[index] = Generated(summary.strip(), len(row) - engine.given, cut[index])
    return [generated[index] for index in range(len(documents))]


def written_tokens(row: Sequence[int], settings: GenerationConfig) -> list[int]:
    """What was written in ``row``, one sequence as `model.generate` returns it.

    From behind the start token up to and including the first end token that was not forced to be first; without an end
    token, up to the padding. The end token counts also where the length limit forced it (BART's
    ``forced_eos_token_id``).
    """
    tokens = list(row[1:])
    forced = settings.forced_bos_token_id is not None and tokens[:1] == [settings.forced_bos_token_id]
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    for place, token in enumerate(tokens):
        if token in ends and not (forced and place == 0):
            return tokens[: place + 1]
    while tokens and tokens[-1] == settings.pad_token_id:
        tokens.pop()
    return tokens


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
def _applied(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """These settings in place of the model's, and the model in evaluation mode; both are put back afterwards."""
    stored, training = model.generation_config, model.training
    model.generation_config = settings
    model.eval()
    try:
        yield
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
