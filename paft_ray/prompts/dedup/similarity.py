"""Similarity of texts, and the similar pairs of many texts: proposed by MinHash, then verified.

Texts are compared by the Jaccard similarity of their character 5-grams. Instructions are short
(5 to 40 words): one word changed among eight breaks three of the six word trigrams but a third of
the 5-grams, so that thresholds between 0 and 1 mean something; an inflection is a small change;
and scripts without spaces need no case of their own. Covered: normalising, shingles, sketches,
similar pairs and components. Not covered: which of similar texts to keep, see `decision`. Nothing
depends on the order in which texts arrive.

N texts, S shingles of the longest of a group, P pairs.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module

_SHINGLE = 5
_PERMUTATIONS = 128
_SEED = 42
_RECALL = 0.995
"""Wanted share of the pairs exactly at the threshold; more similar ones are found more surely."""
FEW = 400
"""Up to this many texts all pairs are compared: it takes under a second and misses nothing."""

_NONE = np.uint64(2**64 - 1)
"""Stands where a row of hashed shingles has no further one."""
_WEIGHTS = np.array(
    [
        0x9E3779B97F4A7C15,
        0xBF58476D1CE4E5B9,
        0x94D049BB133111EB,
        0xD6E8FEB86659FD93,
        0xA0761D6478BD642F,
    ],
    np.uint64,
)
"""One odd number per character of a shingle."""


Proposed = Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Arrays of first and of second texts of pairs."""


class Pairs(NamedTuple):
    """Pairs of texts that are similar."""

    low: NDArray[np.int64]
    """[P]"""
    high: NDArray[np.int64]
    """[P] the text of the pair with the larger number."""
    similar: NDArray[np.float64]
    """[P] between the threshold and 1."""


@dataclass(frozen=True, slots=True)
class Sketches:
    """Digests of N texts, by which similar ones are found."""

    bands: NDArray[np.uint64]
    """[bands, N] hashes of the signatures' bands; texts that share one are candidates."""
    shingles: NDArray[np.uint32]
    """[N] how many distinct ones."""
    digests: NDArray[np.uint64]
    """[N, words] a byte of every place of the signatures."""


def normalise(text: str) -> str:
    """A text without case, punctuation, accents' encodings and runs of white space."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return " ".join(re.sub(r"[\W_]+", " ", text.replace("'", "")).split())


def shingles(text: str) -> frozenset[str]:
    """The character 5-grams of a normalised text, its ends marked; empty without any letter."""
    normal = normalise(text)
    if not normal:
        return frozenset()
    marked = f" {normal} "
    return frozenset(marked[i : i + _SHINGLE] for i in range(max(1, len(marked) - _SHINGLE + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Share of what two sets have together that both have; two empty sets are equal."""
    shared = len(a & b)
    union = len(a) + len(b) - shared
    return shared / union if union else 1.0


def similarity(a: str, b: str) -> float:
    """Jaccard similarity of two texts' shingles, between 0 and 1."""
    return jaccard(shingles(a), shingles(b))


def similar_pairs(texts: Sequence[str], threshold: float) -> list[tuple[int, int, float]]:
    """Pairs (i, j, similarity) with i < j and a true similarity of at least `threshold`, sorted.

    Beyond some hundred texts, only pairs that MinHash proposes are looked at: of those exactly at
    the threshold about 1 in 200 is missed, of more similar ones fewer. None is wrongly listed.
    """
    normal = [normalise(text) for text in texts]
    rows = sketch(normal, threshold)
    sketches = in_columns(propose_all(rows) if len(normal) <= FEW else rows)
    rankings = (np.argsort(keys, kind="stable") for keys in sketches.bands)
    in_bands = zip(rankings, sketches.bands, strict=True)
    proposed = chain.from_iterable(bucket_pairs(order, keys[order]) for order, keys in in_bands)
    pairs = verify(pa.array(normal, pa.large_string()), sketches, proposed, threshold)
    return list(zip(*(column.tolist() for column in pairs), strict=True))


def verify(
    texts: pa.LargeStringArray, sketches: Sketches, proposed: Proposed, threshold: float
) -> Pairs:
    """The proposed pairs that are truly similar, each once, in ascending order.

    Args:
        texts: [N] normalised.
        sketches: Of these texts.
        proposed: Pairs of texts, the smaller number first; any of them may come again.
        threshold: Least similarity.
    """
    n = len(texts)
    found = [np.empty(0, np.int64)]  # low * n + high
    for low, high in proposed:
        close = likely(sketches, low, high, threshold)
        found.append(low[close] * n + high[close])
    low, high = np.divmod(np.unique(np.concatenate(found)), max(1, n))
    used, at = np.unique(np.concatenate([low, high]), return_inverse=True)
    similar = similarities(texts.take(pa.array(used)).to_pylist(), *np.split(at, 2))
    true = similar >= threshold
    return Pairs(low[true], high[true], similar[true])


def components(n: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """The connected component of each of `n` nodes, named by its smallest member."""
    parent = list(range(n))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for i, j in pairs:
        a, b = sorted((root(i), root(j)))
        parent[b] = a
    return [root(node) for node in range(n)]


def sketch_type(threshold: float) -> np.dtype[np.void]:
    """One text's part of `Sketches`, as a record: its fields are called the same."""
    rows = _rows_per_band(threshold)
    bands = _PERMUTATIONS // rows if rows else 1
    fields = [("bands", "<u8", (bands,)), ("shingles", "<u4"), ("digests", "u1", (_PERMUTATIONS,))]
    return np.dtype(fields, align=True)


def sketch(texts: Sequence[str], threshold: float) -> NDArray[np.void]:
    """Sketches [N] of `sketch_type` of normalised texts."""
    rows = _rows_per_band(threshold)
    sketches = np.zeros(len(texts), sketch_type(threshold))
    bands = _PERMUTATIONS // rows if rows else 1
    for group in _of_like_size(np.array([len(text) for text in texts], np.int64)):
        hashes = _hashed_shingles([texts[int(index)] for index in group])
        real = hashes != _NONE
        counts = np.count_nonzero(real, axis=1)
        ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
        signatures = RMinHash.digest_matrix_from_flat_token_hashes(
            hashes[real], ends, _PERMUTATIONS, _SEED
        )
        digests = np.array(signatures.to_rows(), np.uint32).reshape(len(group), _PERMUTATIONS)
        sketches["shingles"][group] = counts
        sketches["digests"][group] = (digests * np.uint32(0x9E3779B1)) >> np.uint32(24)
        if rows:
            keys = np.zeros((len(group), bands), np.uint64)
            for row in range(rows):
                keys = _mixed(keys ^ digests[:, row : bands * rows : rows])
            sketches["bands"][group] = keys
    return sketches if rows else propose_all(sketches)


def in_columns(sketches: NDArray[np.void]) -> Sketches:
    """Records [N] of `sketch_type` as columns."""
    digests = np.ascontiguousarray(sketches["digests"]).view(np.uint64)
    bands = np.ascontiguousarray(sketches["bands"].T)
    return Sketches(bands, np.ascontiguousarray(sketches["shingles"]), digests)


def propose_all(sketches: NDArray[np.void]) -> NDArray[np.void]:
    """Sketches [N] that make every pair a candidate."""
    all_alike = np.zeros_like(sketches)
    all_alike["shingles"] = sketches["shingles"]
    return all_alike


def bucket_pairs(texts: NDArray[np.int64], keys: NDArray[np.uint64]) -> Proposed:
    """All pairs of texts with equal keys, in arrays no longer than the texts.

    Args:
        texts: [N] sorted by key, and ascending among equal keys.
        keys: [N] their keys.
    """
    place, distance = np.arange(len(texts)), 0
    while len(place):
        distance += 1
        place = place[: np.searchsorted(place, len(texts) - distance)]
        place = place[keys[place] == keys[place + distance]]
        yield texts[place], texts[place + distance]


def likely(
    sketches: Sketches, i: NDArray[np.int64], j: NDArray[np.int64], threshold: float
) -> NDArray[np.bool_]:
    """A mask [P] of pairs that can reach the threshold, by their size and signatures."""
    a, b = sketches.shingles.take(i), sketches.shingles.take(j)
    able = np.minimum(a, b) >= threshold * np.maximum(a, b) - 1e-9  # else not even a subset is
    # four standard deviations of the estimate below the threshold
    enough = threshold - 4 * (threshold * (1 - threshold) / _PERMUTATIONS) ** 0.5
    places = np.flatnonzero(able)
    for chunk in np.array_split(places, len(places) // 4096 + 1):
        # several times as fast as indexing
        first, second = (sketches.digests.take(place[chunk], axis=0) for place in (i, j))
        equal = (first.view(np.uint8) == second.view(np.uint8)).view(np.uint64)
        # bytes are added up side by side, then across the word: neither exceeds 128
        agree = (equal.sum(axis=1) * np.uint64(0x0101010101010101)) >> np.uint64(56)
        able[chunk] = agree >= enough * _PERMUTATIONS
    return able


def similarities(
    texts: Sequence[str], i: NDArray[np.int64], j: NDArray[np.int64]
) -> NDArray[np.float64]:
    """True similarities [P] of pairs of normalised texts.

    Shingles are told apart by 64 bits: of all pairs of a million distinct shingles, one is taken
    for equal with a probability of about 3e-8.
    """
    similar = np.ones(len(i))
    lengths = np.array([len(text) for text in texts], np.int64)
    for group in _of_like_size(np.maximum(lengths[i], lengths[j])):
        used, at = np.unique(np.concatenate([i[group], j[group]]), return_inverse=True)
        hashes = _hashed_shingles([texts[int(index)] for index in used])
        counts = np.count_nonzero(hashes != _NONE, axis=1)
        a, b = np.split(at, 2)
        both = np.concatenate([hashes[a], hashes[b]], axis=1)
        both.sort(axis=1)
        equal = (both[:, 1:] == both[:, :-1]) & (both[:, 1:] != _NONE)
        shared = np.count_nonzero(equal, axis=1)
        union = counts[a] + counts[b] - shared
        similar[group] = np.where(union > 0, shared / np.maximum(union, 1), 1.0)
    return similar


def _hashed_shingles(texts: Sequence[str]) -> NDArray[np.uint64]:
    """Hashes [N, S] of the shingles of normalised texts, each once, in any order among `_NONE`."""
    marked = [f" {text} ".ljust(_SHINGLE, "\0") if text else "" for text in texts]
    lengths = np.array([len(text) for text in marked], np.int64)
    width = max(_SHINGLE, int(lengths.max(initial=0)))
    inside = np.arange(width) < lengths[:, None]
    codes = np.zeros(inside.shape, np.uint64)
    encoded = "".join(marked).encode("utf-32-le", "surrogatepass")
    codes[inside] = np.frombuffer(encoded, np.uint32)
    starts = width - _SHINGLE + 1
    hashes = np.zeros((len(texts), starts), np.uint64)
    for place, weight in enumerate(_WEIGHTS):
        hashes += codes[:, place : place + starts] * weight
    hashes = _mixed(hashes)
    hashes[~inside[:, _SHINGLE - 1 :]] = _NONE
    hashes.sort(axis=1)
    again = hashes[:, 1:] == hashes[:, :-1]
    hashes[:, 1:][again] = _NONE
    return hashes


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Values whose every bit depends on every bit of what was given; one to one."""
    values = (values ^ (values >> np.uint64(31))) * _WEIGHTS[1]
    return values ^ (values >> np.uint64(29))


def _of_like_size(sizes: NDArray[np.int64], room: int = 1 << 19) -> list[NDArray[np.intp]]:
    """Indices [N] in groups, each of about `room` elements where all are as large as its largest.

    Sizes in a group are at most 1.5-fold apart, so that little is padding.
    """
    order = np.argsort(sizes, kind="stable")
    ascending = np.maximum(sizes[order], 16)
    step = np.floor(np.log(ascending) / np.log(1.5)).astype(np.int64)
    part = np.cumsum(ascending) // room
    cuts = np.flatnonzero((np.diff(step) > 0) | (np.diff(part) > 0)) + 1
    return [group for group in np.split(order, cuts) if len(group)]


def _rows_per_band(threshold: float) -> int | None:
    """Rows per band of the signature: the most that still give the wanted recall at the threshold.

    Two texts of similarity s share a band of r rows with probability s^r, and any of b bands with
    1 - (1 - s^r)^b. None where even single rows find too little.
    """
    for rows in range(_PERMUTATIONS, 0, -1):
        if 1 - (1 - threshold**rows) ** (_PERMUTATIONS // rows) >= _RECALL:
            return rows
    return None
