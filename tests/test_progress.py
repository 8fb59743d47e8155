import pytest

from lopside import progress as module
from lopside.progress import progress


class Clock:
    """A clock that is moved by hand."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def lines(clock: Clock, capsys: pytest.CaptureFixture[str], total: int, seconds: float) -> list[str]:
    for item in progress(range(total), total, "read"):
        assert item == clock.now / seconds
        clock.now += seconds
    return capsys.readouterr().err.splitlines()


def test_quick_loop_says_one_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(clock, capsys, 64, 1 / 128) == ["read: 64 of 64, 0 s"]


def test_a_line_every_tenth(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    said = lines(clock, capsys, 20, 2)
    assert said == [f"read: {done} of 20, {2 * done} s" for done in range(2, 21, 2)]


def test_slow_loop_says_more_than_ten(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(lines(clock, capsys, 100, 8)) == 50


def test_empty_loop(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(clock, capsys, 0, 1) == ["read: 0 of 0, 0 s"]
