"""Importance: scores against models really pruned, layers that do nothing go first, what is left when one is kept."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lopside.errors import LopsideError
from lopside.importance import BATCH, MEASURES, Ranking, rank_layers
from lopside.models import load_model, load_tokenizer
from lopside.pruning import prune
from lopside.selection import Stack
from tests.conftest import TEXTS
from tests.families import FAMILIES, build, save

DOCUMENTS, SUMMARIES = list(TEXTS), [text.split(",")[0] for text in reversed(TEXTS)]
LENGTHS: dict[str, Any] = {"max_source_tokens": 30, "max_target_tokens": 20}


def rank(folder: Path, stack: Stack, measure: str = "loss", count: int = 1) -> Ranking:
    return rank_layers(
        load_model(folder), load_tokenizer(folder), DOCUMENTS, SUMMARIES, stack, count, measure=measure, **LENGTHS
    )


def loss_of(folder: Path) -> float:
    """Nats a target token over all pairs, each by itself, without padding."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    total, tokens = 0.0, 0
    for document, summary in zip(DOCUMENTS, SUMMARIES, strict=True):
        source = tokenizer(document, truncation=True, max_length=30, return_tensors="pt")
        labels = tokenizer(text_target=summary, truncation=True, max_length=20, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            total += model(**source, labels=labels).loss.item() * labels.numel()
        tokens += labels.numel()
    return total / tokens


@pytest.mark.parametrize("family", ["tiny_bart", "tiny_t5"])
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_scores_are_the_losses_of_models_that_are_really_pruned(
    family: str, stack: Stack, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    parent: Path = request.getfixturevalue(family)
    ranking = rank(parent, stack, count=2)
    everything = range(6)

    def pruned(kept: list[int]) -> float:
        sides = (kept, everything) if stack == "encoder" else (everything, kept)
        prune(parent, tmp_path / "pruned", *sides)
        return loss_of(tmp_path / "pruned")

    assert ranking.whole == pytest.approx(loss_of(parent), rel=1e-5)
    assert len(ranking.removed) == 4
    left = list(everything)
    for gone, scores in zip(ranking.removed, ranking.scores, strict=True):
        assert sorted(scores) == left
        assert scores[gone] == min(scores.values())
        left.remove(gone)
        assert scores[gone] == pytest.approx(pruned(left), rel=1e-5)
    assert ranking.kept == tuple(left)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_layers_that_do_nothing_are_found(tiny_t5: Path, tmp_path: Path, stack: Stack) -> None:
    folder = tmp_path / "idle"
    shutil.copytree(tiny_t5, folder)
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():  # a residual block whose last products are nought hands its input on
        if name.startswith((f"{stack}.block.1.", f"{stack}.block.4.")) and name.endswith((".o.weight", ".wo.weight")):
            tensor.zero_()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    influence = rank(folder, stack, "influence", count=4)
    assert sorted(influence.removed) == [1, 4]
    assert influence.kept == (0, 2, 3, 5)
    for gone, scores in zip(influence.removed, influence.scores, strict=True):
        assert scores[gone] == pytest.approx(0, abs=1e-6)
    loss = rank(folder, stack, "loss")  # in a random model others may do harm, and go before
    for layer, score in loss.scores[0].items():
        assert (abs(score - loss.whole) < 1e-6) == (layer in (1, 4))


def test_influence_is_one_minus_the_cosine_of_input_and_output(tiny_bart: Path) -> None:
    model, tokenizer = load_model(tiny_bart), load_tokenizer(tiny_bart)
    ranking = rank_layers(model, tokenizer, DOCUMENTS[:1], SUMMARIES[:1], "encoder", 1, measure="influence", **LENGTHS)
    source = tokenizer(DOCUMENTS[0], truncation=True, max_length=30, return_tensors="pt")
    with torch.inference_mode():
        states = model.get_encoder()(**source, output_hidden_states=True).hidden_states
    for layer in range(6):
        before, after = (state[0].double() for state in states[layer : layer + 2])
        cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(before, after, strict=True)]
        assert ranking.scores[0][layer] == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-6)


def test_the_model_is_as_before_and_the_ranking_the_same_again(tiny_bart: Path) -> None:
    model, tokenizer = load_model(tiny_bart), load_tokenizer(tiny_bart)
    first, second = (
        rank_layers(model, tokenizer, DOCUMENTS, SUMMARIES, "decoder", 1, measure="influence", **LENGTHS) for _ in "ab"
    )
    assert first == second
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("count", [4, 1])
def test_nothing_is_measured_that_does_not_decide(tiny_bart: Path, measure: str, count: int) -> None:
    """A pass for the whole model, then those of as many rounds as there are layers to go; one where one stays."""
    model = load_model(tiny_bart)
    calls: list[object] = []
    model.register_forward_hook(lambda *given: calls.append(given))
    pairs = DOCUMENTS, SUMMARIES
    ranking = rank_layers(model, load_tokenizer(tiny_bart), *pairs, "decoder", count, measure=measure, **LENGTHS)
    rounds = [6, 5] if count == 4 else [6]
    assert [len(scores) for scores in ranking.scores] == rounds
    batches = math.ceil(len(DOCUMENTS) / BATCH)
    assert len(calls) == batches * (1 + (sum(rounds) if measure == "loss" else len(rounds)))


class Letters:
    """A tokenizer for the random models of tests.families: a token a letter, no special ones."""

    all_special_ids = ()
    bos_token_id = cls_token_id = unk_token_id = None

    def __call__(self, text: list[str] | None = None, text_target: Any = None, max_length: int = 99, **_: Any) -> Any:
        texts = text or text_target
        if isinstance(texts, str):
            return {"input_ids": [self.code(letter) for letter in texts]}
        ids = [torch.tensor([self.code(letter) for letter in each[:max_length]]) for each in texts]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=1)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(each) for each in ids], batch_first=True)
        return {"input_ids": padded, "attention_mask": mask}

    @staticmethod
    def code(letter: str) -> int:
        return 3 + ord(letter) % 50


# These pad documents to whole windows, carry further streams along, or put time first and make no input of labels.
@pytest.mark.parametrize("name", ["led", "pegasus_x", "prophetnet", "fsmt"])
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_families_of_another_make_are_measured_too(name: str, stack: Stack, tmp_path: Path) -> None:
    (family,) = (family for family in FAMILIES if family.name == name)
    save(build(family), tmp_path / "model")
    model, letters = load_model(tmp_path / "model"), Letters()
    documents, summaries = ["the river rose in may", "the sun"], ["river rose", "sun"]

    def measured(part: slice, measure: str) -> Ranking:
        given: Any = (model, letters, documents[part], summaries[part], stack, 5)
        return rank_layers(*given, measure=measure, **LENGTHS)

    both, *alone = (measured(part, "influence") for part in (slice(2), slice(1), slice(1, 2)))
    # Tokens alone count: two pairs together are the mean of each by itself, weighted by its tokens.
    tokens = [len(text) for text in (documents if stack == "encoder" else summaries)]
    for layer, score in both.scores[0].items():
        apart = [ranking.scores[0][layer] * count for ranking, count in zip(alone, tokens, strict=True)]
        assert score == pytest.approx(sum(apart) / sum(tokens), rel=1e-4)
    # The loss is that of the summary, which the decoder is given one token late.
    whole = measured(slice(1), "loss").whole
    source, labels = letters(documents[:1])["input_ids"], letters(text_target=summaries[:1])["input_ids"]
    late = labels.roll(1)
    late[0, 0] = model.config.decoder_start_token_id if name != "fsmt" else labels[0, -1]
    with torch.inference_mode():
        logits = model(input_ids=source, decoder_input_ids=late, use_cache=False).logits
    assert whole == pytest.approx(torch.nn.functional.cross_entropy(logits[0], labels[0]).item(), rel=1e-4)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_fewer_stay_the_more_go_in_one_order(tiny_bart: Path, measure: str) -> None:
    removed = {count: rank(tiny_bart, "encoder", measure, count).removed for count in (5, 4, 3, 2)}
    assert all(removed[2][: 6 - count] == gone for count, gone in removed.items())


@pytest.mark.parametrize("measure", MEASURES)
def test_one_layer_alone_is_the_one_that_the_whole_model_misses_most(tiny_bart: Path, measure: str) -> None:
    ranking = rank(tiny_bart, "decoder", measure, count=1)
    (scores,) = ranking.scores
    assert ranking.kept == (max(scores, key=lambda layer: scores[layer]),)
    assert [*ranking.removed, *ranking.kept] == sorted(scores, key=lambda layer: scores[layer])
    assert scores == rank(tiny_bart, "decoder", measure, count=4).scores[0]


def test_bad_input_is_named(tiny_bart: Path) -> None:
    with pytest.raises(LopsideError, match=r"keep.measure: 'los' is unknown; did you mean 'loss'"):
        rank(tiny_bart, "encoder", "los")
    model, tokenizer = load_model(tiny_bart), load_tokenizer(tiny_bart)
    with pytest.raises(LopsideError, match="no calibration document"):
        rank_layers(model, tokenizer, [], [], "encoder", 1, measure="loss", **LENGTHS)
    for count in (0, 6):
        with pytest.raises(LopsideError, match=f"{count} of 6 encoder layers cannot be chosen: 1 to 5 can"):
            rank(tiny_bart, "encoder", count=count)


def test_scores_are_finite(tiny_bart: Path) -> None:
    ranking = rank(tiny_bart, "decoder", "influence")
    assert all(math.isfinite(score) for score in [ranking.whole, *ranking.scores[0].values()])
