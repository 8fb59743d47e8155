"""How far a loop is: a bar on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

STEP = 0.1
"""A line at every tenth of the way ..."""
PAUSE = 15.0
"""... or, on a long way, after this many seconds ..."""
REST = 1.0
"""... but never within this many seconds of the line before it."""


def progress(iterable: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Yield the items of ``iterable`` and say on stderr how many of ``total`` are done.

    An item counts as done when the next one is asked for. On a terminal this is tqdm's bar; elsewhere a line at the
    end, and now and then before it (see STEP, PAUSE, REST).
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(iterable, total=total, desc=label, dynamic_ncols=True)
        return
    start = said_at = time.monotonic()
    said = done = 0
    for done, item in enumerate(iterable, start=1):
        yield item
        now = time.monotonic()
        silence = now - said_at
        if done < total and silence >= REST and (done - said >= STEP * total or silence >= PAUSE):
            said, said_at = done, now
            print(f"{label}: {done} of {total}, {now - start:.0f} s", file=sys.stderr, flush=True)
    print(f"{label}: {done} of {total}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
