"""Tiny random models, each a folder with weights, config and a tokenizer of its own, as users have them.

The fixtures last for the whole run: copy a folder before you change it.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tests.families import randomise, save

# A busy machine is no fault of the code: what a test may take is judged over the whole run.
settings.register_profile("lopside", deadline=None)
settings.load_profile("lopside")

# One thread, set before torch is imported: threads of so small models do nothing but wait for each other, and wait in a
# loop, so that on a busy machine tests take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TEXTS = (
    "Return the number of items in the list, or zero where there is none.",
    "Read the whole file and return its lines as a list of strings.",
    "The path of the folder that holds the settings of the user.",
    "Raise an error if the given value is not a number of the allowed range.",
    "Write a dictionary to a file, one key and one value to a line.",
)


@pytest.fixture(scope="session")
def tiny_bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BART, 6 + 6 layers, 16 wide, output layer tied to the embeddings, byte-level tokenizer (<s> text </s>)."""
    from transformers import BartConfig, BartForConditionalGeneration

    tokenizer = _byte_level_tokenizer()
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=128,
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


def _save(folder: Path, build: Callable[[], "PreTrainedModel"], tokenizer: "PreTrainedTokenizerFast") -> Path:
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
