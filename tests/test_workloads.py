"""The three settings, and what an engine does in a call."""

from pathlib import Path
from typing import Any, ClassVar

import pytest

from lopside import workloads
from lopside.errors import LopsideError
from lopside.flops import count_flops
from lopside.generation import generate
from lopside.inputs import Inputs
from lopside.models import load_model, load_tokenizer
from lopside.pairs import Done, WallClock
from lopside.workloads import CudaClock, Setting, choose_clock, fixed, natural, paper, source_rows, transformers_calls
from tests.families import FAMILIES, Family, build

DOCUMENTS = ["parse the header of a file", "return the number of rows", "", "open a socket and wait for data"]
EACH_FAMILY = pytest.mark.parametrize("family", ["tiny_bart", "tiny_t5"])


@pytest.fixture
def folder(request: pytest.FixtureRequest, family: str) -> Path:
    found: Path = request.getfixturevalue(family)
    return found


class Spied:
    """A model whose inputs and steps are written down."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = load_model(folder)
        self.encoded: list[tuple[int, ...]] = []
        self.decoded: list[tuple[int, ...]] = []
        self.masks: list[Any] = []
        self.model.get_encoder().register_forward_hook(self._encoder, with_kwargs=True)
        self.model.get_decoder().register_forward_hook(self._decoder, with_kwargs=True)
        self.call = transformers_calls(self.model, load_tokenizer(folder).pad_token_id, WallClock())

    def _encoder(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        self.encoded.append(tuple(kwargs["input_ids"].shape))
        self.masks += [kwargs["attention_mask"].tolist()] if "attention_mask" in kwargs else []

    def _decoder(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        self.decoded.append(tuple(kwargs["input_ids"].shape))


# The settings


@EACH_FAMILY
@pytest.mark.parametrize("tokens", [5, 16, 61])
def test_fixed_rows_have_exactly_the_tokens_and_no_padding(folder: Path, tokens: int) -> None:
    tokenizer = load_tokenizer(folder)
    setting = fixed(tokenizer, DOCUMENTS, size=3, source_tokens=tokens, new_tokens=7)
    assert (setting.name, setting.new_tokens, setting.forced) == ("fixed", 7, True)
    whole = tokenizer(DOCUMENTS[0])["input_ids"]
    bare = tokenizer(DOCUMENTS[0], add_special_tokens=False)["input_ids"]
    at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    before, after = whole[:at], whole[at + len(bare) :]
    assert before + after, "the tiny tokenizers have special tokens"

    assert [len(row) for row in setting.rows] == [tokens] * 3
    texts = [list(row[len(before) : tokens - len(after)]) for row in setting.rows]
    assert [before + text + after for text in texts] == setting.rows
    stream = [id for text in DOCUMENTS for id in tokenizer(text, add_special_tokens=False)["input_ids"]]
    joined = [id for text in texts for id in text]
    assert joined == (stream * len(joined))[: len(joined)]  # starts again where the documents end


def test_no_room_beside_special_tokens(tiny_bart: Path) -> None:
    with pytest.raises(LopsideError, match=r"time\.source_tokens: 1 leaves no room"):
        source_rows(load_tokenizer(tiny_bart), DOCUMENTS, rows=1, tokens=1)


@pytest.mark.parametrize("documents", [[], ["", ""]])
def test_documents_without_text(tiny_bart: Path, documents: list[str]) -> None:
    with pytest.raises(LopsideError, match="no text"):
        source_rows(load_tokenizer(tiny_bart), documents, rows=1, tokens=8)


@EACH_FAMILY
def test_paper_takes_the_first_documents_cut_without_mask(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(folder)
    setting = paper(tokenizer, DOCUMENTS, size=2, source_tokens=9)
    assert setting.rows == [tokenizer(text, truncation=True, max_length=9)["input_ids"] for text in DOCUMENTS[:2]]
    assert [len(row) for row in setting.rows] == [9, 9]
    # max_length=20 as the authors had it counts the start token: 19 are left.
    assert (setting.new_tokens, setting.forced, setting.masked, setting.beams) == (19, False, False, 1)

    spied = Spied(folder)
    given: list[dict[str, Any]] = []
    really = spied.model.generate

    def generate_and_tell(**settings: Any) -> Any:
        given.append(settings)
        return really(**settings)

    monkeypatch.setattr(spied.model, "generate", generate_and_tell)
    done = spied.call(setting, 2)()
    assert "attention_mask" not in given[0]
    assert given[0]["input_ids"].tolist() == setting.rows
    assert given[0]["generation_config"].max_new_tokens == 19
    assert done is not None
    assert 2 <= done.tokens <= 38


@EACH_FAMILY
@pytest.mark.parametrize("beams", [1, 2])
def test_natural_is_what_generate_does(folder: Path, beams: int) -> None:
    """The same rows and masks, and as many tokens as `generate` counts, for each batch of documents in turn."""
    tokenizer = load_tokenizer(folder)
    inputs = Inputs("tl: ", 12, 8)
    setting = natural(tokenizer, DOCUMENTS, inputs, new_tokens=8, beams=beams)
    sources = [tokenizer(text, truncation=True, max_length=12)["input_ids"] for text in inputs.sources(DOCUMENTS)]
    assert sorted(map(list, setting.rows)) == sorted(sources)
    assert len({len(row) for row in sources}) > 1
    assert setting.rows != sources  # in no order that the data may have

    by_row = dict(zip(map(tuple, sources), inputs.sources(DOCUMENTS), strict=True))
    spied = Spied(folder)
    call = spied.call(setting, 2)
    assert setting.leaving is (beams == 1)
    for number in (0, 1, 0):
        rows = setting.batches(2)[number]
        spied.masks.clear()
        done = call()
        generated = generate(
            load_model(folder),
            tokenizer,
            [by_row[tuple(row)] for row in rows],
            max_source_tokens=12,
            max_new_tokens=8,
            num_beams=beams,
        )
        assert done is not None
        assert done.tokens == sum(each.tokens for each in generated)
        longest = max(map(len, rows))
        assert spied.masks == [[[1] * len(row) + [0] * (longest - len(row)) for row in rows]]


def test_natural_takes_a_sample_and_always_the_same(tiny_bart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "NATURAL_DOCUMENTS", 5)
    documents = [f"text {number}" for number in range(40)]
    tokenizer = load_tokenizer(tiny_bart)
    one, two = (natural(tokenizer, documents, Inputs("", 20, 8), new_tokens=8, beams=1) for _ in range(2))
    assert one.rows == two.rows
    assert len({tuple(row) for row in one.rows}) == 5
    texts = tokenizer.batch_decode(list(map(list, one.rows)), skip_special_tokens=True)
    assert max(documents.index(text) for text in texts) > 5


def test_batches() -> None:
    rows = [[1], [2], [3]]
    assert Setting("same", rows, 1).batches(2) == [[[1], [2]]]
    assert Setting("same", rows, 1).batches(7) == [[[1], [2], [3], [1], [2], [3], [1]]]
    assert Setting("fresh", rows, 1, fresh=True).batches(2) == [[[1], [2]], [[3], [1]]]
    assert Setting("fresh", rows, 1, fresh=True).batches(1) == [[[1]], [[2]], [[3]]]


# The engine


@EACH_FAMILY
def test_fixed_is_one_encoding_and_one_cached_step_a_token(folder: Path) -> None:
    """Whatever the model's own settings say: beams, an early end, a shortest length."""
    spied = Spied(folder)
    spied.model.generation_config.num_beams = 3
    spied.model.generation_config.max_length = 4
    spied.model.generation_config.no_repeat_ngram_size = 2
    call = spied.call(Setting("fixed", [[5] * 9], 7, forced=True), 2)
    for _ in range(2):
        spied.encoded.clear()
        spied.decoded.clear()
        done = call()
        assert done is not None
        assert done.tokens == 14
        assert spied.encoded == [(2, 9)]
        assert spied.decoded == [(2, 1)] * 7


def test_settings_may_be_called_in_turn(tiny_bart: Path) -> None:
    """What one call sets, or was stored with the model, is not left to another: here the model wants to end at once."""
    spied = Spied(tiny_bart)
    spied.model.final_logits_bias[0, 2] = 1e4
    spied.model.generation_config.min_length = 6
    forced = spied.call(Setting("fixed", [[5] * 9], 7, forced=True), 1)
    free = spied.call(Setting("natural", [[5] * 9], 8), 1)
    counts = [done.tokens for done in (free(), forced(), free(), forced()) if done]
    assert counts == [1, 7, 1, 7]


def test_another_number_of_tokens_is_an_error(tiny_bart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    spied = Spied(tiny_bart)
    monkeypatch.setattr(spied.model, "generate", lambda **settings: torch.zeros(1, 4))
    with pytest.raises(RuntimeError, match="3 tokens were generated where 7 were forced"):
        spied.call(Setting("fixed", [[5] * 9], 7, forced=True), 1)()


class Ticks:
    """A clock of which every mark is a second later than the one before, and more where someone says so."""

    def __init__(self) -> None:
        self.now = 0

    def mark(self) -> int:
        self.now += 1
        return self.now

    def seconds(self, start: int, end: int) -> float:
        return end - start


@EACH_FAMILY
def test_where_the_time_goes_is_noted_in_the_call_itself(folder: Path) -> None:
    clock = Ticks()
    model: Any = load_model(folder)

    def pass_time(seconds: int) -> Any:
        def hook(*_: Any) -> None:
            clock.now += seconds

        return hook

    model.get_encoder().register_forward_hook(pass_time(100))
    model.get_decoder().register_forward_hook(pass_time(1000))
    call = transformers_calls(model, 0, clock)(Setting("fixed", [[5] * 9], 7, forced=True), 1)
    for _ in range(2):
        start = clock.now
        # Marks: beginning, encoder begins, encoder ends (after 100 of its own), first token (after 1,000 more).
        assert call() == Done(tokens=7, encoder=101, first=1103)
        assert clock.now == start + 4 + 100 + 7000


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_every_family_can_be_forced_and_tells_where_its_time_goes(family: Family) -> None:
    model = build(family).eval()
    pad = family.settings.get("pad_token_id", 0)
    done = transformers_calls(model, pad, WallClock())(Setting("fixed", [[5] * 8], 3, forced=True), 2)()
    assert done is not None
    assert done.tokens == 6
    assert done.encoder is not None
    assert done.first is not None
    assert 0 < done.encoder < done.first


# Floating-point operations


def test_bart_takes_as_many_operations_as_by_hand(tiny_bart: Path) -> None:
    model = load_model(tiny_bart)
    source, new, wide, inner, layers = 9, 5, 16, 24, 6
    vocabulary = model.config.vocab_size
    encoder = source * (4 * wide * wide + 2 * wide * inner) + 2 * source * source * wide
    step = 4 * wide * wide + 2 * wide * wide + 2 * source * wide + 2 * wide * inner  # without attention to itself
    decoder = 2 * source * wide * wide + new * step + sum(2 * length * wide for length in range(1, new + 1))
    expected = 2 * (layers * (encoder + decoder) + new * wide * vocabulary)
    call = transformers_calls(model, 1, WallClock())(Setting("fixed", [[5] * source], new, forced=True), 1)
    assert count_flops(call) == expected


def test_t5_takes_as_many_operations_as_by_hand(tiny_t5: Path) -> None:
    model = load_model(tiny_t5)
    source, new, wide, inner, layers = 11, 4, 16, 24, 6
    vocabulary = model.config.vocab_size
    encoder = source * (4 * wide * wide + 3 * wide * inner) + 2 * source * source * wide
    step = 4 * wide * wide + 2 * wide * wide + 2 * source * wide + 3 * wide * inner
    decoder = 2 * source * wide * wide + new * step + sum(2 * length * wide for length in range(1, new + 1))
    expected = 2 * (layers * (encoder + decoder) + new * wide * vocabulary)
    call = transformers_calls(model, 0, WallClock())(Setting("fixed", [[5] * source], new, forced=True), 2)
    assert count_flops(call) == 2 * expected  # two documents


# A GPU's clock


class Gpu:
    """What torch.cuda.Event is to us: a mark that is set when the GPU comes to it, on a GPU of ours."""

    now = 0.0
    waited: ClassVar[list["Gpu"]] = []

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing
        self.at: float | None = None

    def record(self) -> None:
        self.at = Gpu.now

    def synchronize(self) -> None:
        Gpu.waited.append(self)

    def elapsed_time(self, end: "Gpu") -> float:
        assert end in Gpu.waited, "a time was asked for before its end had come"
        assert self.at is not None
        assert end.at is not None
        return end.at - self.at


def test_on_a_gpu_events_are_waited_for_and_told_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.Event", Gpu)
    clock = choose_clock("cuda")
    assert isinstance(clock, CudaClock)
    start = clock.mark()
    Gpu.now += 1250.0  # milliseconds
    end = clock.mark()
    assert Gpu.waited == []  # marking does not hold up the work
    assert clock.seconds(start, end) == 1.25
    assert isinstance(choose_clock("cpu"), WallClock)


def test_a_call_on_a_gpu_is_timed_by_events_throughout(tiny_bart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the model on the CPU, and a GPU's time that passes in its encoder and decoder alone."""
    from lopside.pairs import time_pairs

    monkeypatch.setattr("torch.cuda.Event", Gpu)
    model: Any = load_model(tiny_bart)

    def pass_time(milliseconds: float) -> Any:
        def hook(*_: Any) -> None:
            Gpu.now += milliseconds

        return hook

    model.get_encoder().register_forward_hook(pass_time(30.0))
    model.get_decoder().register_forward_hook(pass_time(10.0))
    clock = choose_clock("cuda")
    call = transformers_calls(model, 1, clock)(Setting("fixed", [[5] * 9], 4, forced=True), 1)
    timing = time_pairs(call, call, min_pairs=6, max_seconds=0.1, precision=0.02, clock=clock)
    assert timing.seconds("dense") == pytest.approx([0.07] * 6)
    told = [done for _, done in timing.told("pruned")]
    assert [done.tokens for done in told] == [4] * 6
    assert [done.encoder for done in told] == pytest.approx([0.03] * 6)
    assert [done.first for done in told] == pytest.approx([0.04] * 6)
