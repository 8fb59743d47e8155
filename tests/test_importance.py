"""Importance: scores against models really pruned, layers that do nothing go first, what is left when one is kept."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lopside.errors import LopsideError
from lopside.importance import Ranking, rank_layers
from lopside.models import load_model, load_tokenizer
from lopside.pruning import prune
from lopside.selection import Stack
from tests.conftest import TEXTS

DOCUMENTS, SUMMARIES = list(TEXTS), [text.split(",")[0] for text in reversed(TEXTS)]
LENGTHS = {"max_source_tokens": 30, "max_target_tokens": 20}


def rank(folder: Path, stack: Stack, measure: str = "loss") -> Ranking:
    return rank_layers(
        load_model(folder), load_tokenizer(folder), DOCUMENTS, SUMMARIES, stack, measure=measure, **LENGTHS
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
    ranking = rank(parent, stack)
    everything = range(6)

    def pruned(kept: list[int]) -> float:
        sides = (kept, everything) if stack == "encoder" else (everything, kept)
        prune(parent, tmp_path / "pruned", *sides)
        return loss_of(tmp_path / "pruned")

    assert ranking.whole == pytest.approx(loss_of(parent), rel=1e-5)
    assert len(ranking.removed) == 5
    left = list(everything)
    for gone, scores in zip(ranking.removed, ranking.scores, strict=True):
        assert sorted(scores) == left
        assert scores[gone] == min(scores.values())
        left.remove(gone)
        assert scores[gone] == pytest.approx(pruned(left), rel=1e-5)
    assert ranking.alone[3] == pytest.approx(pruned([3]), rel=1e-5)
    assert ranking.alone[left[0]] == pytest.approx(ranking.scores[-1][ranking.removed[-1]], rel=1e-6)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_layers_that_do_nothing_are_found(tiny_t5: Path, tmp_path: Path, stack: Stack) -> None:
    folder = tmp_path / "idle"
    shutil.copytree(tiny_t5, folder)
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():  # a residual block whose last products are nought hands its input on
        if name.startswith((f"{stack}.block.1.", f"{stack}.block.4.")) and name.endswith((".o.weight", ".wo.weight")):
            tensor.zero_()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    influence = rank(folder, stack, "influence")
    assert sorted(influence.removed[:2]) == [1, 4]
    assert influence.keep(4) == (0, 2, 3, 5)
    for gone, scores in zip(influence.removed[:2], influence.scores[:2], strict=True):
        assert scores[gone] == pytest.approx(0, abs=1e-6)
    loss = rank(folder, stack, "loss")  # in a random model others may do harm, and go before
    for layer, score in loss.scores[0].items():
        assert (abs(score - loss.whole) < 1e-6) == (layer in (1, 4))


def test_influence_is_one_minus_the_cosine_of_input_and_output(tiny_bart: Path) -> None:
    model, tokenizer = load_model(tiny_bart), load_tokenizer(tiny_bart)
    ranking = rank_layers(model, tokenizer, DOCUMENTS[:1], SUMMARIES[:1], "encoder", measure="influence", **LENGTHS)
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
        rank_layers(model, tokenizer, DOCUMENTS, SUMMARIES, "decoder", measure="influence", **LENGTHS) for _ in "ab"
    )
    assert first == second
    assert not any(module._forward_hooks for module in model.modules())


RANKING = Ranking("loss", 1.0, (3, 0, 2), (), {0: 5.0, 1: 4.0, 2: 2.5, 3: 3.0})


def test_layers_kept_by_hand() -> None:
    assert [RANKING.keep(count) for count in (4, 3, 2)] == [(0, 1, 2, 3), (0, 1, 2), (1, 2)]


def test_one_layer_alone_is_the_best_alone_not_the_last_to_go() -> None:
    assert RANKING.keep(1) == (2,)


def test_bad_input_is_named(tiny_bart: Path) -> None:
    with pytest.raises(LopsideError, match=r"keep.measure: 'los' is unknown; did you mean 'loss'"):
        rank(tiny_bart, "encoder", "los")
    model, tokenizer = load_model(tiny_bart), load_tokenizer(tiny_bart)
    with pytest.raises(LopsideError, match="no calibration document"):
        rank_layers(model, tokenizer, [], [], "encoder", measure="loss", **LENGTHS)


def test_losses_are_finite(tiny_bart: Path) -> None:
    ranking = rank(tiny_bart, "decoder", "influence")
    assert all(math.isfinite(loss) for loss in [ranking.whole, *ranking.alone.values()])
