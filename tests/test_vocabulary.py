"""A trimmed vocabulary: the same tokens for the training text, a spelling for every other, the same logits."""

import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from lopside.errors import LopsideError
from lopside.models import load_model, load_tokenizer
from lopside.vocabulary import Trimmed, kept_tokens, trim_vocabulary, trimmed_content

CORPUS = [
    "the model reads a document and writes a summary",
    "a summary is shorter than the document that it is made of",
    "layers of the decoder are dropped, and the model writes faster",
    "what is read once need not be read again",
] * 5
TASK = ["the model reads a summary", "a layer is dropped"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=SPECIAL, unk_token="<unk>", initial_alphabet=list(string.ascii_lowercase)
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return tokenizer


def word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=110, special_tokens=SPECIAL, initial_alphabet=list(string.ascii_lowercase)
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def byte_pairs() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "Unigram": unigram,
    "WordPiece": word_pieces,
    "BPE": byte_pairs,
    "WordLevel": words,
}


@pytest.fixture(scope="module", params=list(KINDS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BART with a tokenizer of that kind, its mask token the last of the vocabulary."""
    raw = KINDS[request.param]()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer) + 3,  # rows to spare, as T5 has them
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=64,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )
    model = BartForConditionalGeneration(config)
    model.final_logits_bias.normal_()
    model.generation_config.suppress_tokens = [len(tokenizer) - 1]
    path = tmp_path_factory.mktemp("vocabulary")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_the_task_is_read_in_the_same_tokens_and_gets_the_same_logits(folder: Path, tmp_path: Path) -> None:
    trimmed = trim_vocabulary(folder, tmp_path / "task", TASK)

    old, new = load_tokenizer(folder), load_tokenizer(tmp_path / "task")
    before, after = load_model(folder), load_model(tmp_path / "task")
    assert trimmed == Trimmed(before.config.vocab_size, len(new), before.num_parameters() - after.num_parameters())
    assert len(new) < len(old)
    assert after.config.vocab_size == len(new)
    for text in TASK:
        ids = old(text)["input_ids"], new(text)["input_ids"]
        pieces = [tokenizer.convert_ids_to_tokens(each) for tokenizer, each in zip((old, new), ids, strict=True)]
        assert pieces[0] == pieces[1]
        logits = [
            model(input_ids=torch.tensor([each]), decoder_input_ids=torch.tensor([each])).logits.detach()
            for model, each in zip((before, after), ids, strict=True)
        ]
        kept = [old.convert_tokens_to_ids(new.convert_ids_to_tokens(token)) for token in range(len(new))]
        assert torch.allclose(logits[0][..., kept], logits[1], atol=1e-6)


def test_special_tokens_are_the_same_everywhere(folder: Path, tmp_path: Path) -> None:
    trim_vocabulary(folder, tmp_path / "task", TASK)

    old, new, model = load_tokenizer(folder), load_tokenizer(tmp_path / "task"), load_model(tmp_path / "task")
    assert new.all_special_tokens == old.all_special_tokens
    assert model.generation_config.suppress_tokens == [new.mask_token_id] != [old.mask_token_id]
    for name in ("bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id", "forced_eos_token_id"):
        assert new.convert_ids_to_tokens(getattr(model.generation_config, name)) == old.convert_ids_to_tokens(
            getattr(load_model(folder).generation_config, name)
        )


def test_t5s_own_tokenizer_is_trimmed_with_its_sentinels(tmp_path: Path) -> None:
    pieces = [tuple(piece) for piece in json.loads(unigram().to_str())["model"]["vocab"] if piece[0] not in SPECIAL]
    old = T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces], extra_ids=4)
    config = T5Config(vocab_size=len(old) + 28, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "old")
    old.save_pretrained(tmp_path / "old")

    trim_vocabulary(tmp_path / "old", tmp_path / "new", TASK)

    new = load_tokenizer(tmp_path / "new")
    assert isinstance(new, T5Tokenizer)
    assert len(new) == load_model(tmp_path / "new").config.vocab_size < len(old)
    for text in [*TASK, "<extra_id_3> a zebra"]:
        assert new.decode(new(text)["input_ids"]) == old.decode(old(text)["input_ids"])


@given(
    st.lists(st.sampled_from(CORPUS + TASK), min_size=1, max_size=3), st.text(string.ascii_lowercase + " ", max_size=30)
)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_can_still_be_spelt(folder: Path, task: list[str], text: str) -> None:
    old = load_tokenizer(folder)
    content = json.loads(old.backend_tokenizer.to_str())
    kept = kept_tokens(content, {token for ids in old(task)["input_ids"] for token in ids})
    new = Tokenizer.from_str(json.dumps(trimmed_content(content, {token: place for place, token in enumerate(kept)})))

    for each in task:
        assert [kept[place] for place in new.encode(each).ids] == old(each)["input_ids"]
    if content["model"]["type"] != "WordLevel":  # which knows whole words alone
        assert new.decode(new.encode(text).ids) == old.decode(old(text)["input_ids"], skip_special_tokens=True)


def test_the_record_says_what_was_trimmed_and_the_old_folder_is_replaced(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "model"
    shutil.copytree(folder, place)
    (place / "lopside.json").write_text('{"strategy": "uniform", "pruned": {"parameters": 0, "decoder_layers": 1}}')
    (place / "spiece.model").write_text("the old ids")

    trimmed = trim_vocabulary(place, place, TASK)

    assert json.loads((place / "lopside.json").read_text()) == {
        "strategy": "uniform",
        "pruned": {"parameters": load_model(place).num_parameters(), "decoder_layers": 1},
        "vocabulary": {"parent": trimmed.before, "pruned": trimmed.after},
    }
    assert not (place / "spiece.model").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "tokenizer.json").rename(folder / "vocab.json"), "has no tokenizer.json"),
        (lambda folder: _set(folder, vocab_size=None), "it has not one vocabulary"),
        (lambda folder: _set(folder, share_encoder_decoder_embeddings=False), "it has not one vocabulary"),
    ],
)
def test_what_cannot_be_trimmed_is_refused(
    change: Callable[[Path], Any], said: str, tiny_bart: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_bart, tmp_path / "model")
    change(tmp_path / "model")

    with pytest.raises(LopsideError, match=f"keep.vocabulary: task is refused.*{said}"):
        trim_vocabulary(tmp_path / "model", tmp_path / "task", TASK)
    assert not (tmp_path / "task").exists()


def _set(folder: Path, **changed: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
