"""Decides in turns which of many distinct texts to keep.

A text is dropped only if it is similar to one that is kept and comes before it. Pairs are looked
for in partitions of the bands' keys, and the decision is made from the verified pairs of all
partitions. A crowded bucket, of thousands of texts alike or with the same boilerplate, is not
compared all with all: its texts are compared with its first ones, then with those that are kept so
far, until no others are kept. That yields what all pairs would have: whatever is kept was compared
with everything after it. Only of more than `_EXACT` texts, and if more than `_WIDE` texts of a
bucket are kept, is each compared with no more than `_WIDE` neighbours, by signature. All of it
depends on the texts alone: never on partitions or the order of rows.

N distinct texts, numbered in the order of their hashes; P pairs.
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paft_ray.prompts.dedup.similarity import Pairs, Proposed, Sketches, bucket_pairs, verify

_CROWD = 64
"""Up to this many texts of a bucket are compared all with all."""
_FIRST = 8
"""Of a larger bucket, the texts that all others are compared with at first."""
_WIDE = 512
"""Up to this many kept texts of a bucket are compared with all of it; not fewer than `FEW`."""
_EXACT = 20_000
"""Up to this many texts, all kept texts of a bucket are compared with all of it."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """The distinct texts."""

    texts: pa.LargeStringArray
    """[N] normalised."""
    sketches: Sketches


@dataclass(frozen=True, slots=True)
class Choice:
    """The kept ones of N texts."""

    kept: NDArray[np.bool_]
    """[N]"""
    repeats: NDArray[np.int64]
    """[N] the kept text that a dropped one repeats; -1 at kept ones."""
    similar: NDArray[np.float64]
    """[N] how similar these two are; 0 at kept ones."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The state of the decision after a round of comparisons."""

    choice: Choice
    compared: NDArray[np.bool_]
    """[N] kept in this turn or an earlier one: compared with all after it, or about to be."""
    new: NDArray[np.bool_]
    """[N] kept in this turn for the first time."""


def compare(
    corpus: Corpus, threshold: float, part: int, parts: int, turn: Turn | None
) -> tuple[Pairs, bool]:
    """Verified pairs from the band keys of one partition, and whether any bucket is crowded."""
    sketches, n = corpus.sketches, len(corpus.texts)
    wide = n if n <= _EXACT else _WIDE
    crowded = []

    def propose() -> Proposed:
        for band, keys in enumerate(sketches.bands):
            members, sizes = _buckets(keys, part, parts)
            many = sizes > _CROWD
            crowded.append(many.any())
            ends = np.cumsum(sizes)
            buckets = [
                members[end - size : end] for size, end in zip(sizes[many], ends[many], strict=True)
            ]
            if turn is None:
                few = members[np.repeat(~many, sizes)]
                yield from bucket_pairs(few, keys[few])
                yield from chain(*map(_from_first, buckets))
            else:
                for bucket in buckets:
                    yield from propose_from_kept(bucket, turn, sketches, band, wide)

    pairs = verify(corpus.texts, sketches, _together(propose()), threshold)
    return pairs, any(crowded)


def _buckets(
    keys: NDArray[np.uint64], part: int, parts: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The texts of one partition, those with equal keys side by side, and how many these are."""
    # the keys' upper halves, dealt into equal ranges
    mine = np.flatnonzero((keys >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32) == part)
    members = mine[np.argsort(keys[mine], kind="stable")]
    keys = keys[members]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return members, np.diff(np.append(starts, len(keys)))


def _from_first(bucket: NDArray[np.int64]) -> Proposed:
    """A bucket's first texts, in the order of hashes, with all after them."""
    for place in range(_FIRST):
        after = bucket[place + 1 :]
        yield np.full(len(after), bucket[place]), after


def propose_from_kept(
    bucket: NDArray[np.int64], turn: Turn, sketches: Sketches, band: int, wide: int
) -> Proposed:
    """A bucket's newly kept texts with all after them, or with neighbours where many are kept.

    Args:
        bucket: Its texts, ascending.
        turn: Which texts are kept, and which newly.
        sketches: Of all texts.
        band: Which band the bucket is of.
        wide: Up to this many kept texts are compared with all after them, more with this many.

    Yields:
        Pairs, the smaller number first, in arrays no longer than the bucket.
    """
    kept = bucket[turn.choice.kept[bucket]]
    if len(kept) <= wide:
        for place in np.flatnonzero(turn.new[bucket]):
            after = bucket[place + 1 :]
            yield np.full(len(after), bucket[place]), after
        return
    # sorted by what follows the band in the signature, similar texts are close: an LSH forest
    digests = sketches.digests[kept].view(np.uint8)
    start = (band + 1) * (digests.shape[1] // len(sketches.bands))
    first, second = np.roll(digests, -start, axis=1)[:, :16].copy().view(">u8").T
    line = kept[np.lexsort((second, first))]
    for distance in range(1, wide + 1):
        a, b = line[:-distance], line[distance:]
        fresh = turn.new[a] | turn.new[b]
        yield np.minimum(a, b)[fresh], np.maximum(a, b)[fresh]


def _together(pairs: Proposed, enough: int = 1 << 16) -> Proposed:
    """The same pairs in fewer, larger arrays."""
    lows: list[NDArray[np.int64]] = []
    highs: list[NDArray[np.int64]] = []
    held = 0
    for low, high in pairs:
        lows.append(low)
        highs.append(high)
        held += len(low)
        if held >= enough:
            yield np.concatenate(lows), np.concatenate(highs)
            lows, highs, held = [], [], 0
    if lows:
        yield np.concatenate(lows), np.concatenate(highs)


def decide(corpus: Corpus, turn: Turn | None, *found: Pairs) -> tuple[Turn, bool]:
    """Choose by the pairs found so far; the next turn, and whether any text is newly kept."""
    n = len(corpus.texts)
    low, high, similar = (np.concatenate(column) for column in zip(*found, strict=True))
    choice = choose(n, low, high, similar)
    compared = np.zeros(n, bool) if turn is None else turn.compared
    new = choice.kept & ~compared
    return Turn(choice, compared | new, new), bool(new.any())


def choose(
    n: int, i: NDArray[np.int64], j: NDArray[np.int64], similar: NDArray[np.float64]
) -> Choice:
    """Go through texts 0 to n - 1 in order and drop each that is similar to one kept before it.

    Args:
        n: Number of texts.
        i: [P] first text of every similar pair, smaller than the second.
        j: [P] second text.
        similar: [P] how similar they are; a pair may be listed more than once.
    """
    kept = np.ones(n, bool)
    kept[j] = False
    open_ = ~kept  # not decided yet
    low, high = i, j
    while len(low):
        open_[high[kept[low]]] = False
        waits = open_[low] & open_[high]
        ready = open_.copy()
        ready[high[waits]] = False
        kept |= ready
        open_ &= ~ready
        left = open_[high]
        low, high = low[left], high[left]
    valid = kept[i] & ~kept[j]
    i, j, similar = i[valid], j[valid], similar[valid]
    order = np.lexsort((i, -similar, j))
    dropped, first = np.unique(j[order], return_index=True)
    best = order[first]
    repeats, value = np.full(n, -1, np.int64), np.zeros(n)
    repeats[dropped], value[dropped] = i[best], similar[best]
    return Choice(kept, repeats, value)
