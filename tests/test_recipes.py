"""The recipe of the built-in model, on a BERT of two layers."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BartForConditionalGeneration, BertConfig, BertModel

from lopside.docstrings import Pair
from lopside.errors import LopsideError
from recipes.base import evaluate
from recipes.base import train as recipe
from recipes.base.curve import MODELS, course, draw
from recipes.base.evaluate import MEASURES, ROWS, markdown, share_copying, with_other_bodies
from recipes.base.narrow import activity, cut
from recipes.base.text import to_learn
from recipes.base.train import Example, batches_of, collate, hidden, rate_at
from recipes.base.warmstart import SPECIAL, trimmed_tokenizer, warm_bart
from tests.projects import write_splits

WORDS = ["returns", "the", "cached", "value", "of", "a", "given", "key", "or", "raises", "an", "error", "for"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers, 16 wide, with a word-piece tokenizer that has its special tokens where BERT has them."""
    folder = tmp_path_factory.mktemp("bert")
    pieces = [SPECIAL[0], *WORDS, "##s", "x", "unused", *SPECIAL[1:]]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        layer_norm_eps=1e-5,  # BART's, so that nothing but arithmetic differs
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def test_the_encoder_carries_over_exactly(bert: Path) -> None:
    tokenizer, pieces = trimmed_tokenizer(bert, [" ".join(WORDS)] * 2, min_count=2)
    ids = tokenizer("Returns the key of this list")["input_ids"]
    parent = BertModel.from_pretrained(bert, attn_implementation="eager").eval()
    model = warm_bart(bert, pieces).eval()
    with torch.inference_mode():
        theirs = parent(torch.tensor([[pieces[i] for i in ids]])).last_hidden_state
        ours = model.model.encoder(torch.tensor([ids])).last_hidden_state
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_cross_attention_starts_from_the_self_attention_of_the_same_block(bert: Path) -> None:
    _, pieces = trimmed_tokenizer(bert, [" ".join(WORDS)] * 2, min_count=2)
    model, weights = warm_bart(bert, pieces), load_file(bert / "model.safetensors")
    for layer, block in enumerate(model.model.decoder.layers):
        query = weights[f"encoder.layer.{layer}.attention.self.query.weight"]
        assert torch.equal(block.encoder_attn.q_proj.weight, query)
        assert torch.equal(block.self_attn.q_proj.weight, query)
    assert model.lm_head.weight is model.model.shared.weight


def test_the_vocabulary_keeps_what_is_seen_and_spells_the_rest(bert: Path) -> None:
    tokenizer, pieces = trimmed_tokenizer(bert, ["the key", "the value x"], min_count=2)
    vocabulary = json.loads((bert / "tokenizer.json").read_text())["model"]["vocab"]
    assert tokenizer.convert_ids_to_tokens(list(range(len(pieces)))) == [*SPECIAL, "the", "x"]
    assert pieces == [vocabulary[piece] for piece in [*SPECIAL, "the", "x"]]
    assert tokenizer("The key")["input_ids"] == [2, 5, 1, 3]


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=60), st.integers(60, 300))
def test_batches_hold_each_example_once_within_the_limit(lengths: list[tuple[int, int]], tokens: int) -> None:
    examples = [Example(np.zeros(source), np.zeros(target)) for source, target in lengths]
    batches = batches_of(examples, tokens, np.random.default_rng(0))
    assert sorted(index for batch in batches for index in batch) == list(range(len(examples)))
    for batch in batches:
        padded = max(lengths[i][0] for i in batch) + max(lengths[i][1] for i in batch)
        assert padded * len(batch) <= tokens


@given(st.integers(8, 64), st.floats(0.1, 0.6), st.integers(0, 10**6))
def test_infilling_hides_about_the_share_and_no_two_masks_touch(length: int, share: float, seed: int) -> None:
    stretch = np.arange(100, 100 + length)
    masked = hidden(stretch, share, span=3, mask=7, generator=np.random.default_rng(seed))
    left = [token for token in masked if token != 7]
    assert left == sorted(left)
    assert set(left) <= set(stretch)
    assert length - len(left) >= share * length
    assert 1 <= list(masked).count(7) <= length - len(left)
    assert not any(first == second == 7 for first, second in itertools.pairwise(masked))


def small_bart(bert: Path) -> BartForConditionalGeneration:
    _, pieces = trimmed_tokenizer(bert, [" ".join(WORDS)] * 2, min_count=2)
    return warm_bart(bert, pieces).eval()


BATCH = {"input_ids": torch.tensor([[4, 5, 6, 7, 8]]), "decoder_input_ids": torch.tensor([[2, 9, 5, 4]])}


def test_nothing_is_lost_where_all_is_kept(bert: Path) -> None:
    model = small_bart(bert)

    whole = cut(model, activity(model, [BATCH]), width=16, inner=32)

    assert torch.equal(whole(**BATCH).logits, model(**BATCH).logits)
    assert whole.lm_head.weight is whole.model.shared.weight


def test_neurons_that_do_nothing_are_the_first_to_go(bert: Path) -> None:
    model, silent = small_bart(bert), [0, 3, 7, 8, 20, 21, 30, 31]
    for layer in [*model.model.encoder.layers, *model.model.decoder.layers]:
        layer.fc1.weight.data[silent], layer.fc1.bias.data[silent] = 0, 0

    narrow = cut(model, activity(model, [BATCH, BATCH]), width=16, inner=24)

    assert narrow.config.encoder_ffn_dim == narrow.config.decoder_ffn_dim == 24
    assert torch.allclose(narrow(**BATCH).logits, model(**BATCH).logits, atol=1e-6)


def test_channels_and_heads_go_together_in_every_layer(bert: Path) -> None:
    model = small_bart(bert)
    active = activity(model, [BATCH])
    active["channels"] = torch.tensor([1.0, 0.0] * 8)  # every second one stays
    for name in active:
        if name.endswith("out_proj"):
            active[name] = torch.tensor([0.0] * 8 + [1.0] * 8)  # and the second head

    narrow = cut(model, active, width=8, inner=32)

    assert narrow.config.d_model == 8
    assert narrow.config.encoder_attention_heads == narrow.config.decoder_attention_heads == 1
    assert torch.equal(narrow.model.shared.weight, model.model.shared.weight[:, ::2])
    ours, theirs = (each.model.decoder.layers[1].encoder_attn for each in (narrow, model))
    assert torch.equal(ours.k_proj.weight, theirs.k_proj.weight[8:, ::2])
    assert torch.equal(ours.out_proj.weight, theirs.out_proj.weight[::2, 8:])
    assert torch.equal(ours.out_proj.bias, theirs.out_proj.bias[::2])
    assert torch.equal(ours.q_proj.bias, theirs.q_proj.bias[8:])
    assert narrow(**BATCH).logits.shape == model(**BATCH).logits.shape


def pair_of_words(summary: str, body: str) -> Pair:
    return Pair(f"name: {body}".rstrip(), body, summary, "thing==1 thing")


LONG = "the value is kept for as long as the key is there and then it is thrown away"


def test_pairs_with_hardly_a_body_are_learnt_from_once_each_summary() -> None:
    long, short = pair_of_words("Return the kept value", LONG), pair_of_words("Remove a given key", "")
    found = [long, short, pair_of_words("Remove a given key", "or not"), pair_of_words("Return the kept value", "")]

    assert {(pair.summary, pair.body) for pair in to_learn(found, [])} in (
        {("Return the kept value", LONG), ("Remove a given key", body)} for body in ("", "or not")
    )


def test_no_summary_of_a_held_out_pair_is_learnt_in_nearly_the_same_words() -> None:
    held_out = pair_of_words("Return the mean of all given values", LONG)
    same, near, other = (
        pair_of_words(summary, "")
        for summary in ("Return the mean of all given values", "Return the mean of given values", "Return the mean")
    )

    assert to_learn([same, near, other], [held_out]) == [other]


def test_the_decoder_reads_the_target_moved_by_one() -> None:
    batch = collate(
        [Example(np.array([2, 9, 3]), np.array([2, 8, 3])), Example(np.array([2, 3]), np.array([2, 3]))], 0, 3
    )
    assert batch["input_ids"].tolist() == [[2, 9, 3], [2, 3, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["decoder_input_ids"].tolist() == [[3, 2, 8], [3, 2, 3]]
    assert batch["labels"].tolist() == [[2, 8, 3], [2, 3, -100]]


def test_the_learning_rate_rises_and_falls() -> None:
    settings = {"warmup": 4, "steps": 104, "learning_rate": 1.0}
    assert [rate_at(step, settings) for step in (0, 3, 4, 54)] == [0.25, 1.0, 1.0, 0.5]
    assert rate_at(103, settings) == 0.02


def test_other_bodies_keep_the_name_and_are_never_the_own() -> None:
    test = pd.DataFrame(
        {"document": [f"name {i}: body {i}" for i in range(9)], "body": [f"body {i}" for i in range(9)]}
    )
    mixed = with_other_bodies(test, seed=0)
    assert [document.split(": ")[0] for document in mixed] == [f"name {i}" for i in range(9)]
    assert sorted(document.split(": ")[1] for document in mixed) == sorted(test.body)
    assert not any(document == own for document, own in zip(mixed, test.document, strict=True))


TINY: dict[str, Any] = {
    "seed": 0,
    "vocabulary": {"min_count": 1},
    "lengths": {"source": 16, "target": 8, "stretch": 8},
    "rounds": {
        "first": {
            "seed": 0,
            "steps": 6,
            "tokens": 64,
            "infill": 0.34,
            "own": 0.34,
            "freeze": 0.5,
            "encoder_rate": 0.5,
            "learning_rate": 0.01,
            "warmup": 1,
            "weight_decay": 0.01,
            "clip": 1.0,
            "mask": 0.3,
            "span": 2,
        }
    },
    "evaluate": {"every": 2, "documents": 2},
}


OWN = {f"{i:016x}" for i in range(1, 9)}


def made_pairs(count: int) -> pd.DataFrame:
    bodies = [" ".join(WORDS[(i * 3 + j) % len(WORDS)] for j in range(10)) for i in range(count)]
    summaries = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(4)) for i in range(count)]
    ids = [f"{i:016x}" for i in range(count, 0, -1)]
    return pd.DataFrame({"id": ids, "document": [f"name: {b}" for b in bodies], "body": bodies, "summary": summaries})


def test_a_killed_training_goes_on_to_the_same_weights(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "choose_dtype", lambda *_: "float32")
    monkeypatch.setattr(recipe, "minilm_folder", lambda: bert)
    pairs, validation = tmp_path / "pairs.parquet", made_pairs(3)
    made_pairs(24).to_parquet(pairs)

    def run(name: str) -> Path:
        folder = tmp_path / name / "model"
        folder.parent.mkdir(exist_ok=True)
        recipe.train(TINY, "first", pairs, OWN, validation, None, folder, tmp_path / name / "log.csv")
        return folder

    whole = run("whole")
    assert np.load(whole / "trained_on.npy").tolist() == list(range(1, 25))

    steps_done = 0
    real = recipe.loss_of

    def killed(*arguments: Any, **named: Any) -> torch.Tensor:
        nonlocal steps_done
        steps_done += torch.is_grad_enabled()
        if steps_done == 6:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "loss_of", killed)
        with pytest.raises(KeyboardInterrupt):
            run("killed")
    assert not (tmp_path / "killed/model").exists()
    resumed = run("killed")
    weights, expected = (load_file(folder / "model.safetensors") for folder in (resumed, whole))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    ours, theirs = (pd.read_csv(tmp_path / name / "log.csv").drop(columns="seconds") for name in ("killed", "whole"))
    assert list(ours.step) == [2, 4, 6]
    pd.testing.assert_frame_equal(ours, theirs)

    other = TINY | {"vocabulary": {"min_count": 2}}
    with pytest.raises(LopsideError, match=r"model-checkpoint\.pt: was made with other params"):
        recipe.train(other, "first", pairs, OWN, validation, None, whole, tmp_path / "log.csv")


def test_a_round_goes_on_from_the_one_before(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "choose_dtype", lambda *_: "float32")
    monkeypatch.setattr(recipe, "minilm_folder", lambda: bert)
    pairs, validation = tmp_path / "pairs.parquet", made_pairs(3)
    made_pairs(24).to_parquet(pairs)
    recipe.train(TINY, "first", pairs, OWN, validation, None, tmp_path / "first", tmp_path / "first.csv")

    rounds = {"second": TINY["rounds"]["first"] | {"infill": 0.0, "own": 0.0, "steps": 1, "learning_rate": 0.0}}
    again = tmp_path / "again.parquet"
    made_pairs(26).to_parquet(again)
    second = tmp_path / "second"
    recipe.train(
        TINY | {"rounds": rounds}, "second", again, OWN, validation, tmp_path / "first", second, tmp_path / "second.csv"
    )
    weights, before = (load_file(tmp_path / name / "model.safetensors") for name in ("second", "first"))
    assert all(torch.equal(weights[name], before[name]) for name in before)
    assert np.load(second / "trained_on.npy").tolist() == list(range(1, 27))
    assert (second / "tokenizer.json").read_bytes() == (tmp_path / "first/tokenizer.json").read_bytes()


def test_the_last_steps_of_a_round_see_the_own_pairs_alone(bert: Path) -> None:
    tokenizer, _ = trimmed_tokenizer(bert, [" ".join(WORDS)] * 2, min_count=2)
    train = made_pairs(24)
    settings = TINY["rounds"]["first"] | {"steps": 20, "infill": 0.0, "own": 0.75}
    batches = recipe.Batches(tokenizer, train, OWN, TINY["lengths"], settings)
    own = set(np.flatnonzero(train.id.isin(list(OWN))))
    seen = [set(batch) <= own for batch in batches.of_pairs]
    assert len(seen) == 20
    assert all(seen[5:])
    assert not all(seen[:5])
    assert {index for batch in batches.of_pairs[5:] for index in batch} == own

    # A round with the same seed that passes over what this one has used goes on where it ended.
    longer, rest = (
        recipe.Batches(tokenizer, train, OWN, TINY["lengths"], settings | more)
        for more in ({"steps": 40}, {"used": {"pairs": 5, "own": 15}})
    )
    assert longer.of_pairs == batches.of_pairs[:5] + rest.of_pairs[:5] + batches.of_pairs[5:] + rest.of_pairs[5:]

    with pytest.raises(LopsideError, match="own: none of the pairs"):
        recipe.Batches(tokenizer, train, {"f" * 16}, TINY["lengths"], settings)


def test_a_disk_without_room_is_told_before_the_training(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    recipe.check_room(tmp_path, 38_000)
    with pytest.raises(LopsideError, match=r"1 MB are free there, and training needs 26 MB"):
        recipe.check_room(tmp_path, 10**6)


def test_the_recipe_has_a_stage_for_each_module_and_round() -> None:
    stages = yaml.safe_load(Path("recipes/base/dvc.yaml").read_text())["stages"]
    commands = {name: stage.get("do", stage)["cmd"] for name, stage in stages.items()}
    assert {name: command.removeprefix("cd ../.. && ") for name, command in commands.items()} == {
        "text": "python -m recipes.base.text",
        "train": "python -m recipes.base.train ${key}",
        "narrow": "python -m recipes.base.narrow",
        "evaluate": "python -m recipes.base.evaluate models/${item}",
    }
    starts = {name: item["start"] for name, item in stages["train"]["foreach"].items()}
    assert all((recipe.HERE / starts[name]) == recipe.ROUNDS[name] for name in ("second", "third", "micro"))
    assert starts.keys() == recipe.ROUNDS.keys() == recipe.read_params()["rounds"].keys()
    assert {name for names in MODELS for name in names} == recipe.ROUNDS.keys()


def test_the_course_counts_on_from_round_to_round(tmp_path: Path) -> None:
    logs = {name: tmp_path / f"{name}.csv" for name in ("first", "second", "third")}
    header = ",".join(recipe.COLUMNS)
    logs["first"].write_text(f"{header}\n200,1000,60,5,5,0.5\n400,2000,120,4,4,1.5\n")
    logs["second"].write_text(f"{header}\n200,1500,30,3,3,2.5\n")
    table = course(logs)
    assert list(table.tokens) == [1000, 2000, 3500]
    assert list(table.minutes) == [1, 2, 2.5]
    assert list(table.validation_rouge2) == [0.5, 1.5, 2.5]
    draw(table, tmp_path / "a.png")
    draw(table, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_copy_is_a_whole_sentence_of_its_own_document() -> None:
    documents = ["Gets the key. Then more.", "Gets the key. Then more.", "Other. Words."]
    assert share_copying(["gets the KEY", "gets the", "."], documents) == 1 / 3


def test_the_card_gives_each_figure_with_its_interval() -> None:
    figure = {"mean": 1.0, "low": 0.5, "high": 2.0}
    texts = {name: dict.fromkeys(MEASURES, figure) for name in ROWS}
    above = {f"rouge2_above_{name}": figure for name in ("lead", "name", "other_body")}
    shares = {"distinct": 0.9, "empty": 0.0, "copying": 0.25, "repeating": 0.1}
    lines = markdown({**texts, **above, **shares}, "docs-bart-mini").splitlines()
    assert lines[2] == "| docs-bart-mini | 1.00 [0.50, 2.00] | 1.00 [0.50, 2.00] | 1.00 [0.50, 2.00] |"
    assert lines[-7] == "- above `lead`: 1.00 [0.50, 2.00]"
    assert lines[-4:-1] == [
        "- are distinct: 90.0%",
        "- are empty: 0.0%",
        "- copy a whole sentence of the document: 25.0%",
    ]


def test_a_model_fine_tuned_elsewhere_has_figures_of_its_own_name(
    tiny_bart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "HERE", tmp_path)
    write_splits(tmp_path, test=3)
    done = CliRunner().invoke(evaluate.main, [str(tiny_bart), "--name", "mini-elsewhere"], catch_exceptions=False)
    figures = json.loads((tmp_path / "figures-mini-elsewhere.json").read_text())
    assert markdown(figures, "mini-elsewhere") in done.stdout
    assert figures["documents"] == 3
    # "test function 0" beside "Return item 0 of the test list.": two words of three and of seven
    assert figures["name"]["rouge1"]["mean"] == pytest.approx(100 * 2 * 2 / (3 + 7), abs=0.01)
