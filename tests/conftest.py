"""Tiny random models, each a folder with weights, config and a tokenizer of its own, as users have them.

The fixtures last for the whole run: copy a folder before you change it.
"""

import gc
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tests.families import randomise, save
from tests.preloaded import preloaded_python
from tests.projects import ENVIRONMENT

# A busy machine is no fault of the code: what a test may take is judged over the whole run.
settings.register_profile("lopside", deadline=None)
settings.load_profile("lopside")

# One thread, set before torch is imported: threads of so small models do nothing but wait for each other, in a loop,
# so that on a busy machine tests take ten times as long. Where the code under test asks for more they wait asleep.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Likewise the threads that transformers reads weights with.
os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")

# Libraries make millions of objects, none of them garbage: look through them rarely.
gc.set_threshold(50_000, 20, 100)

SLOWEST = ("test_sweep.py", "test_own_data.py", "test_repro.py", "test_families.py")
"""Files of a minute and more. They begin first, as a file's tests stay in one process and the others fill the gaps."""


FORK = "LOPSIDE_TESTS_FORK"


def pytest_configure(config: pytest.Config) -> None:
    if FORK not in os.environ:  # one for all processes of the run
        stack = ExitStack()
        config.add_cleanup(stack.close)
        os.environ[FORK] = str(stack.enter_context(preloaded_python()))
        stack.callback(os.environ.pop, FORK)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: SLOWEST.index(item.path.name) if item.path.name in SLOWEST else len(SLOWEST))


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests of sweeps spend much of their time waiting for DVC's queue."""
    return (os.cpu_count() or 1) + 1


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

TEXTS = (
    "Return the number of items in the list, or zero where there is none.",
    "Read the whole file and return its lines as a list of strings.",
    "The path of the folder that holds the settings of the user.",
    "Raise an error if the given value is not a number of the allowed range.",
    "Write a dictionary to a file, one key and one value to a line.",
)

PARALLEL = [
    (
        f"The {thing} rose on day {day} and the school stayed shut.",
        f"{ding} stieg am Tag {day}, und die Schule blieb zu.",
    )
    for day in range(20)
    for thing, ding in (("river", "Der Fluss"), ("price of bread", "Der Brotpreis"), ("sun", "Die Sonne"))
]
"""English and German."""

_TINY: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 128,
}


@pytest.fixture
def threads_as_before() -> Iterator[None]:
    """For tests of what sets torch's number of threads."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def fork() -> str:
    """A `python` whose programs are forks of a process with torch and transformers: see tests/preloaded.py."""
    return os.environ[FORK]


@pytest.fixture(scope="module")
def preloaded(fork: str) -> Iterator[None]:
    """Stages that DVC runs for `tests.projects.run` need not import their libraries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "PATH", f"{Path(fork).parent}{os.pathsep}{ENVIRONMENT['PATH']}")
        yield


@pytest.fixture(scope="session")
def tiny_bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BART, 6 + 6 layers, 16 wide, output layer tied to the embeddings, byte-level tokenizer (<s> text </s>)."""
    from transformers import BartConfig, BartForConditionalGeneration

    tokenizer = _byte_level_tokenizer()
    config = BartConfig(
        **_TINY,
        vocab_size=len(tokenizer),
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )
    return _save(tmp_path_factory.mktemp("tiny_bart"), lambda: BartForConditionalGeneration(config), tokenizer)


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """T5 as FLAN-T5 is: 6 + 6 layers, gated GELU, output layer of its own; tokenizer with word marks (text </s>)."""
    from torch.nn import Parameter
    from transformers import T5ForConditionalGeneration

    tokenizer = _word_mark_tokenizer()
    config = _t5_config(len(tokenizer), 6, 6, feed_forward_proj="gated-gelu", tie_word_embeddings=False)

    def build() -> "PreTrainedModel":
        model = T5ForConditionalGeneration(config)
        model.lm_head.weight = Parameter(model.lm_head.weight.detach().clone())  # transformers 5 has tied it
        return model

    folder = _save(tmp_path_factory.mktemp("tiny_t5"), build, tokenizer)
    _say_untied(folder / "config.json")
    return folder


@pytest.fixture(scope="session")
def tiny_t5_tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first T5: 5 encoder and 4 decoder layers, ReLU, output layer tied to the embeddings."""
    from transformers import T5ForConditionalGeneration

    tokenizer = _word_mark_tokenizer()
    config = _t5_config(len(tokenizer), 5, 4)
    return _save(tmp_path_factory.mktemp("tiny_t5_tied"), lambda: T5ForConditionalGeneration(config), tokenizer)


@pytest.fixture(scope="session")
def tiny_marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Marian, 6 + 6 layers, with a vocabulary and embeddings of its own for English and for German (text </s>)."""
    from transformers import MarianConfig, MarianMTModel, MarianTokenizer

    files = tmp_path_factory.mktemp("marian_tokenizer")
    sizes = [
        _write_sentencepiece(files, "source.spm", "vocab.json", [english for english, _ in PARALLEL]),
        _write_sentencepiece(files, "target.spm", "target_vocab.json", [german for _, german in PARALLEL]),
    ]
    names = ("source.spm", "target.spm", "vocab.json", "target_vocab.json")
    source, target, vocabulary, target_vocabulary = (str(files / name) for name in names)
    with warnings.catch_warnings(action="ignore"):  # wants sacremoses, and never uses it
        tokenizer = MarianTokenizer(source, target, vocabulary, target_vocabulary, separate_vocabs=True)
    config = MarianConfig(
        **_TINY,
        vocab_size=sizes[0],
        decoder_vocab_size=sizes[1],
        share_encoder_decoder_embeddings=False,
        eos_token_id=0,
        forced_eos_token_id=0,
        pad_token_id=2,
        decoder_start_token_id=2,
    )
    return _save(tmp_path_factory.mktemp("tiny_marian"), lambda: MarianMTModel(config), tokenizer)


@pytest.fixture(scope="session")
def tiny_nllb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NLLB, 6 + 6 layers, told to translate from English to German (eng_Latn text </s> to deu_Latn text </s>)."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    trained.train_from_iterator([text for pair in PARALLEL for text in pair], trainer)
    pieces = json.loads(trained.to_str())["model"]
    tokenizer = NllbTokenizer(
        vocab=pieces["vocab"],
        merges=[tuple(merge) for merge in pieces["merges"]],  # type: ignore[misc]
        extra_special_tokens=["eng_Latn", "deu_Latn"],
        src_lang="eng_Latn",
        tgt_lang="deu_Latn",
    )
    config = M2M100Config(**_TINY, vocab_size=len(tokenizer))

    def build() -> "PreTrainedModel":
        model = M2M100ForConditionalGeneration(config)
        model.generation_config.forced_bos_token_id = tokenizer.convert_tokens_to_ids("deu_Latn")
        return model

    return _save(tmp_path_factory.mktemp("tiny_nllb"), build, tokenizer)


def _write_sentencepiece(folder: Path, model: str, vocabulary: str, texts: Sequence[str]) -> int:
    """Write a SentencePiece model of the texts, and its pieces as Marian numbers them; return how many there are."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=out,
        model_type="bpe",
        vocab_size=80,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / model).write_bytes(out.getvalue())
    read = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    special = ["</s>", "<unk>", "<pad>"]
    pieces = [piece for piece in map(read.IdToPiece, range(read.vocab_size())) if piece not in ("<s>", *special)]
    (folder / vocabulary).write_text(json.dumps({piece: code for code, piece in enumerate([*special, *pieces])}))
    return len(special) + len(pieces)


def _t5_config(vocabulary: int, encoder_layers: int, decoder_layers: int, **more: Any) -> Any:
    from transformers import T5Config

    settings: dict[str, Any] = {"decoder_start_token_id": 0, **more}  # extra keys, which T5Config takes untyped
    return T5Config(
        vocab_size=vocabulary,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=encoder_layers,
        num_decoder_layers=decoder_layers,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        **settings,
    )


def _save(folder: Path, build: Callable[[], "PreTrainedModel"], tokenizer: "PreTrainedTokenizerBase") -> Path:
    import torch

    with torch.random.fork_rng():
        model = build()
    randomise(model)
    save(model, folder)
    tokenizer.save_pretrained(folder)
    return folder


def _say_untied(config: Path) -> None:
    """Write config.json as FLAN-T5's is; transformers 5 always writes true."""
    text = config.read_text()
    assert '"tie_word_embeddings": true' in text
    config.write_text(text.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false'))


def _byte_level_tokenizer() -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=360, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=128,
    )


def _word_mark_tokenizer() -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=200,
            special_tokens=["<pad>", "</s>", "<unk>"],
            initial_alphabet=[chr(code) for code in range(33, 127)],
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
