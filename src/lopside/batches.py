"""Batches of pairs that are about as long, so that little of a training step is spent on padding."""

import random
from collections.abc import Iterator, Sequence

STRATA = 8
"""The longest source is divided into so many ranges: with fewer, sources are padded more, with more, targets."""


class LikeLengths:
    """The order in which a data loader takes pairs, a batch's next to each other; another one each epoch.

    Padding is to the longest source and the longest target of a batch, and few pairs agree in both. So pairs are sorted
    by source, roughly, and those of a range by target, up and down in turn: neighbours are then alike where one range
    ends and the next begins, too. Which of those that are alike share a batch is left to chance, and so is the order
    of the batches, but for the first, of the longest sources and their longest targets (a lack of memory shows at
    once, as a rule), and for one that is not full, which must come last.

    transformers' own `LengthGroupedSampler` sorts at most 50 batches at a time, by one length, and keeps them sorted:
    from the longest to the shortest, over and over.
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
        first, others = batches[:1], batches[1:]
        last = [others.pop()] if others and len(others[-1]) < self._size else []
        chance.shuffle(others)
        for batch in [*first, *others, *last]:
            yield from batch

    def _key(self, row: int) -> tuple[int, int]:
        source, target = self._lengths[row]
        # The ranges are counted from the longest, of which there are most: all that were cut.
        stratum = (self._longest - source) // self._width
        return -stratum, -target if stratum % 2 else target
