"""Batches of pairs that are about as long, so that little of a training step is spent on padding."""

import random
from collections.abc import Iterator, Sequence

STRATA = 8
"""Into so many ranges the longest source is divided; within one, batches go by their targets."""


class LikeLengths:
    """The order in which a data loader takes pairs, a batch's next to each other; another one each epoch.

    Padding is to the longest source and the longest target of a batch, and few pairs agree in both. So pairs are sorted
    by source, roughly, and those of a range by target, up and down in turn: neighbours are then alike where one range
    ends and the next begins, too. Which of those that are alike share a batch is left to chance, and so is the order
    of the batches, but for the longest, which comes first (a lack of memory shows at once), and for the one that is
    not full, which must come last.

    transformers' own `LengthGroupedSampler` sorts 50 batches at a time, by one length, and keeps them sorted: from a
    full step to one of a few tokens, over and over.
    """

    def __init__(self, lengths: Sequence[tuple[int, int]], size: int, seed: int) -> None:
        """``lengths``: tokens of source and target, a pair each; ``size``: pairs a batch."""
        self._lengths, self._size, self._seed, self._epoch = lengths, size, seed, 0
        self._longest = max((source for source, _ in lengths), default=0)
        self._width = -(-self._longest // STRATA) or 1

    def set_epoch(self, epoch: int) -> None:
        """Told by the trainer before each epoch; one that goes on from a checkpoint gets the same order again."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        chance = random.Random(f"{self._seed} {self._epoch}")
        rows = list(range(len(self)))
        chance.shuffle(rows)
        rows.sort(key=self._key, reverse=True)
        batches = [rows[start : start + self._size] for start in range(0, len(rows), self._size)]
        between = batches[1:-1]
        chance.shuffle(between)
        for batch in [*batches[:1], *between, *batches[1:][-1:]]:
            yield from batch

    def _key(self, row: int) -> tuple[int, int]:
        source, target = self._lengths[row]
        # The ranges are counted from the longest, of which there are most: all that were cut.
        stratum = (self._longest - source) // self._width
        return -stratum, -target if stratum % 2 else target
