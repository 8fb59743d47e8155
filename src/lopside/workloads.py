"""What is timed: three settings, and how one of them becomes a call of an engine.

torch and transformers are imported by the functions that need them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice
from typing import TYPE_CHECKING, Any

from lopside.engines import CTranslate2
from lopside.errors import LopsideError
from lopside.generation import Engine, Transformers, generation_settings, written_tokens
from lopside.inputs import Inputs
from lopside.pairs import Call, Clock, Done, WallClock

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PAPER_SOURCE_TOKENS = 1024
PAPER_NEW_TOKENS = 19
"""The authors' ``max_length=20``, of which the start token is one."""
NATURAL_DOCUMENTS = 256
"""A sample of this size, and again from its beginning where the time allows more."""


@dataclass(frozen=True)
class Setting:
    """Documents and how they are summarised. What an engine needs to know, and nothing of any engine."""

    name: str
    rows: Sequence[Sequence[int]]
    """Token ids of each document, special ones included."""
    new_tokens: int
    """Tokens that may come out, the start token not counted."""
    forced: bool = False
    """Whether so many come out, no matter what the model would do."""
    masked: bool = True
    """Whether the model is told which tokens are padding."""
    fresh: bool = False
    """Whether each call takes the next documents; else all take the first ones."""
    beams: int = 1
    leaving: bool = False
    """Whether what has ended leaves the batch, as greedy in `generate`, or is computed on as long as the longest."""

    def batches(self, size: int) -> list[list[Sequence[int]]]:
        """The batches of this many rows that calls take in turn. What is lacking is filled up from the first rows."""
        rows = cycle(self.rows)
        number = math.ceil(len(self.rows) / size) if self.fresh else 1
        return [list(islice(rows, size)) for _ in range(number)]


Prepare = Callable[[Setting, int], Call]
"""Prepares a setting at a batch size for one model: all that is done once is done here, not in the call."""


def paper(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], *, size: int, source_tokens: int) -> Setting:
    """As the authors timed: the first ``size`` documents as they are, no mask, and at most 20 tokens out.

    The start token is one of the 20, and the model may stop before. Documents are cut at ``source_tokens``, the
    authors' `PAPER_SOURCE_TOKENS` or the model's own limit where that is less. A batch is padded to its longest
    document, and without a mask the padding counts as text.
    Source: the notebooks of github.com/spacemanidol/Efficient-Web-Scale-Absractive-Summarization.
    """
    rows = tokenizer(list(documents[:size]), truncation=True, max_length=source_tokens)["input_ids"]
    return Setting("paper", rows, PAPER_NEW_TOKENS, masked=False)


def fixed(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], *, size: int, source_tokens: int, new_tokens: int
) -> Setting:
    """The same work for every model: exactly ``source_tokens`` in, of documents joined, and ``new_tokens`` out."""
    rows = source_rows(tokenizer, documents, rows=size, tokens=source_tokens)
    return Setting("fixed", rows, new_tokens, forced=True)


def natural(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], inputs: Inputs, *, new_tokens: int, beams: int
) -> Setting:
    """What `generate` does: real documents with prefix and mask, cut where ``inputs`` says; the model stops by itself.

    Each call takes the next documents of a sample of `NATURAL_DOCUMENTS`, the same one at every run.
    """
    chosen = random.Random(0).sample(list(documents), min(len(documents), NATURAL_DOCUMENTS))
    rows = tokenizer(inputs.sources(chosen), truncation=True, max_length=inputs.max_source_tokens)["input_ids"]
    return Setting("natural", rows, new_tokens, fresh=True, beams=beams, leaving=beams == 1)


def source_rows(
    tokenizer: PreTrainedTokenizerBase, documents: Iterable[str], *, rows: int, tokens: int
) -> list[list[int]]:
    """``rows`` lists of exactly ``tokens`` ids: documents joined and cut, special tokens where the tokenizer puts them.

    Starts again at the first document where there are too few. Raises LopsideError where ``tokens`` leaves no room
    beside the special tokens, or where the documents hold no text.
    """
    documents = list(documents)
    before, after = _special_tokens(tokenizer, next((document for document in documents if document.strip()), "text"))
    room = tokens - len(before) - len(after)
    if room < 1:
        raise LopsideError(
            f"time.source_tokens: {tokens} leaves no room for text; give {tokens - room + 1} or more, "
            "for the special tokens count too"
        )
    stream: list[int] = []
    for number in count():
        if len(stream) >= rows * room:
            break
        if number >= len(documents) and not stream:
            raise LopsideError("time: the test documents hold no text to time with")
        stream += tokenizer(documents[number % len(documents)], add_special_tokens=False, verbose=False)["input_ids"]
    return [[*before, *stream[row * room : (row + 1) * room], *after] for row in range(rows)]


def calls_of(engine: Engine, clock: Clock) -> Prepare:
    """What is timed of an engine."""
    if isinstance(engine, Transformers):
        return transformers_calls(engine.model, engine.pad, clock)
    assert isinstance(engine, CTranslate2)
    return ctranslate2_calls(engine)


def ctranslate2_calls(engine: CTranslate2) -> Prepare:
    """Translator.translate_batch. It knows how long each row is: what shall count as text is written out as padding."""

    def prepare(setting: Setting, size: int) -> Call:
        limits = {"max_decoding_length": setting.new_tokens}
        limits |= {"min_decoding_length": setting.new_tokens} if setting.forced else {}
        batches = [
            engine.texts(rows if setting.masked else _filled(rows, engine.pad)) for rows in setting.batches(size)
        ]
        turns = cycle(batches)

        def call() -> Done:
            rows = engine.translate(next(turns), setting.beams, **limits)
            if setting.forced and any(len(row) != setting.new_tokens for row in rows):
                raise RuntimeError(
                    f"{max(map(len, rows))} tokens were generated where {setting.new_tokens} were forced"
                )
            return Done(sum(len(row) - engine.given for row in rows))

        return call

    return prepare


def transformers_calls(model: PreTrainedModel, pad: int, clock: Clock) -> Prepare:
    """`model.generate`; no stored setting of the model's own has a say but its token ids (`lopside.generation`).

    ``pad`` is the token that fills rows up on the right. Calls tell their encoder's seconds and those to the first
    token: hooks on encoder and model note when each has returned, in the very calls that are timed. The model's
    generation settings are changed, and the hooks stay.
    """
    import torch

    from lopside.decoding import greedy

    marks = _Marks(model, clock)

    def prepare(setting: Setting, size: int) -> Call:
        settings = generation_settings(model, setting.new_tokens, setting.beams)
        given = int(settings.forced_bos_token_id is not None)
        settings.min_new_tokens = setting.new_tokens if setting.forced else None
        batches = cycle([_padded(rows, pad, setting.masked, model.device) for rows in setting.batches(size)])
        how: Any = {"generation_config": settings, "custom_generate": greedy if setting.leaving else None}

        def call() -> Done:
            batch = next(batches)
            model.generation_config = settings
            marks.begin()
            with torch.inference_mode():
                outputs: Any = model.generate(**batch, **how)  # type: ignore[operator]
            generated = outputs.shape[1] - 1  # the start token is not generated
            if setting.forced and generated != setting.new_tokens:
                raise RuntimeError(f"{generated} tokens were generated where {setting.new_tokens} were forced")
            rows = outputs.tolist()
            chosen = (generated if setting.forced else len(written_tokens(row, settings)) - given for row in rows)
            encoder = marks.between("encoder begins", "encoder ends")
            return Done(sum(chosen), encoder, first=marks.between("begin", "first token"))

        return call

    return prepare


def choose_clock(device: str) -> Clock:
    """CUDA events on a GPU, the wall clock elsewhere."""
    return CudaClock() if device == "cuda" else WallClock()


class CudaClock:
    """Marks on the GPU's own stream of work, so that a mark comes when the work before it is done.

    Marking does not wait. Telling the seconds does, so no work is left over to whoever is timed next.
    """

    def mark(self) -> torch.cuda.Event:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000  # from milliseconds


class _Marks:
    """When, within a call, the encoder began and ended and the first token's scores were there."""

    def __init__(self, model: PreTrainedModel, clock: Clock) -> None:
        self._clock = clock
        self._at: dict[str, Any] = {}
        encoder = model.get_encoder()
        encoder.register_forward_pre_hook(lambda *_: self._note("encoder begins"))
        encoder.register_forward_hook(lambda *_: self._note("encoder ends"))
        model.register_forward_hook(lambda *_: self._note("first token"))

    def begin(self) -> None:
        self._at = {}
        self._note("begin")

    def between(self, start: str, end: str) -> float:
        return self._clock.seconds(self._at[start], self._at[end])

    def _note(self, name: str) -> None:
        if name not in self._at:
            self._at[name] = self._clock.mark()


def _padded(rows: Sequence[Sequence[int]], pad: int, masked: bool, device: torch.device) -> dict[str, torch.Tensor]:
    """What `model.generate` is given: token ids and, if ``masked``, mask, each (rows, tokens of the longest)."""
    import torch

    filled = _filled(rows, pad)
    inputs = {"input_ids": torch.tensor(filled, device=device)}
    if masked:
        mask = [[1] * len(row) + [0] * (len(filled[0]) - len(row)) for row in rows]
        inputs["attention_mask"] = torch.tensor(mask, device=device)
    return inputs


def _filled(rows: Sequence[Sequence[int]], pad: int) -> list[list[int]]:
    """The rows, all as long as the longest."""
    longest = max(map(len, rows))
    return [[*row, *[pad] * (longest - len(row))] for row in rows]


def _special_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after a text."""
    whole = tokenizer(text)["input_ids"]
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]
