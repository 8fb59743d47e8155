"""The authors' figures, against what is known of them."""

import pytest

from lopside import published
from lopside.grid import Pair


def test_all_that_is_published_is_there() -> None:
    assert sum(len(figures) for figures in published.rouge2().values()) == 60 - len(published.UNSOUND)
    speedups = [cells for batches in published.speedups().values() for cells in batches.values()]
    assert [len(cells) for cells in speedups] == [16] * 18


@pytest.mark.parametrize(
    ("model", "cell", "delta"),
    [
        (("small", "cnn_dailymail"), (6, 1), 11.3341 - 17.5532),
        (("large", "cnn_dailymail"), (6, 1), 19.4871 - 21.1534),
        (("base", "xsum"), (6, 1), 13.7311 - 15.6867),
        (("large", "cnn_dailymail"), (6, 2), 20.6726 - 21.1534),
    ],
)
def test_losses(model: published.Model, cell: Pair, delta: float) -> None:
    assert published.deltas()[model][cell] == pytest.approx(delta)


def test_without_a_sound_full_model_there_is_no_loss() -> None:
    assert set(published.deltas()) == {
        ("small", "cnn_dailymail"),
        ("small", "xsum"),
        ("base", "xsum"),
        ("large", "cnn_dailymail"),
    }
    assert (6, 3) not in published.rouge2()["base", "cnn_dailymail"]


def test_speedups() -> None:
    small = published.speedups()["small", "cnn_dailymail"]
    # Means of 7 repeats: 138 ms (spread 5.05) and 45.7 ms (0.106); Student's t for 6 degrees of freedom is 2.447.
    width = 2.44691 / 7**0.5 * ((5.05 / 138) ** 2 + (0.106 / 45.7) ** 2) ** 0.5
    value = 138 / 45.7
    assert small[1][6, 1] == pytest.approx((value, value * (1 - width), value * (1 + width)), rel=1e-5)
    assert small[8][6, 6] == (1, 1, 1)


def test_at_batch_16_one_encoder_layer_is_faster_than_one_decoder_layer_in_five_of_six() -> None:
    batches = [batches[16] for batches in published.speedups().values()]
    assert sum(cells[1, 6].value > cells[6, 1].value for cells in batches) == 5
    assert len(batches) == 6
