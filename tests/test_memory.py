"""Pruning takes about as much memory as the parent's weights take on disk; `tests.memory` measures large models."""

import sys
from pathlib import Path

import pytest

from tests.memory import SMALL, peak, write_t5


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("encoder", "decoder"), [(6, 6), (6, 1)])
def test_pruning_needs_at_most_1_3_times_the_weights(tmp_path: Path, encoder: int, decoder: int) -> None:
    write_t5(tmp_path / "small", SMALL | {"vocab_size": 100, "d_model": 64, "d_ff": 64})
    write_t5(tmp_path / "parent", SMALL)
    share = peak(tmp_path / "small", tmp_path / "parent", tmp_path / "pruned", encoder, decoder)
    assert 0.3 < share <= 1.3
