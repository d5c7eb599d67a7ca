"""Near-duplicate texts: candidates from MinHash, every one of them verified by true similarity.

Texts are compared by the Jaccard similarity of their character 5-grams. Instructions are short
(5 to 40 words): one word changed among eight breaks three of the six word trigrams but a third of
the 5-grams, so that thresholds between 0 and 1 mean something; an inflection is a small change;
and scripts without spaces need no case of their own. Covered: normalising, shingles, similar
pairs, components, and which texts to keep. Nothing depends on the order in which texts arrive.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module

from paft_ray.artifacts import fingerprint

_SHINGLE = 5
_PERMUTATIONS = 128
_SEED = 42
_RECALL = 0.995
"""Wanted share of the pairs exactly at the threshold; more similar ones are found more surely."""
_FEW = 400
"""Up to this many texts all pairs are compared: it takes under a second and misses nothing."""


@dataclass(frozen=True, slots=True)
class DedupResult:
    """Which of the texts to keep, by index."""

    kept: tuple[int, ...]
    """In ascending order."""
    dropped: Mapping[int, tuple[int, float]]
    """Index to the kept text that it repeats, and how similar the two are."""


def normalise(text: str) -> str:
    """A text without case, punctuation, accents' encodings and runs of white space."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return " ".join(re.sub(r"[\W_]+", " ", text.replace("'", "")).split())


def normalised_hash(text: str) -> str:
    """Sixteen hex digits, equal for texts that differ in nothing but case and punctuation."""
    return fingerprint(normalise(text))


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
    sets = [shingles(text) for text in texts]
    rows = _rows_per_band(threshold)
    if len(sets) <= _FEW or rows is None:
        candidates: Iterable[tuple[int, int]] = combinations(range(len(sets)), 2)
    else:
        candidates = _candidates(sets, rows, threshold)
    found = []
    for i, j in candidates:
        small, large = sorted((len(sets[i]), len(sets[j])))
        if small < threshold * large:  # even a subset is not similar enough
            continue
        if (similar := jaccard(sets[i], sets[j])) >= threshold:
            found.append((i, j, similar))
    return sorted(found)


def deduplicate(texts: Sequence[str], threshold: float) -> DedupResult:
    """Keep texts of which no two were found similar; what is dropped is similar to one kept.

    Texts are looked at in the order of their hashes. One is dropped only if it is itself similar
    to a text that is kept, never for being similar to another dropped one; of several, the most
    similar counts as the one that it repeats.
    """
    alike: dict[str, list[int]] = defaultdict(list)  # one text a thousand times is one text here
    for index in sorted(range(len(texts)), key=lambda i: (fingerprint(texts[i]), i)):
        alike[normalised_hash(texts[index])].append(index)
    groups = [alike[name] for name in sorted(alike)]
    neighbours: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for i, j, similar in similar_pairs([texts[group[0]] for group in groups], threshold):
        neighbours[j].append((-similar, i))
    kept: set[int] = set()
    dropped: dict[int, tuple[int, float]] = {}
    for place, (first, *others) in enumerate(groups):
        like = [found for found in neighbours[place] if found[1] in kept]
        if like:
            negative, other = min(like)
            dropped |= dict.fromkeys((first, *others), (groups[other][0], -negative))
        else:
            kept.add(place)
            dropped |= dict.fromkeys(others, (first, 1.0))
    return DedupResult(tuple(sorted(groups[place][0] for place in kept)), dropped)


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


def _rows_per_band(threshold: float) -> int | None:
    """Rows per band of the signature: the most that still give the wanted recall at the threshold.

    Two texts of similarity s share a band of r rows with probability s^r, and any of b bands with
    1 - (1 - s^r)^b. None where even single rows find too little.
    """
    for rows in range(_PERMUTATIONS, 0, -1):
        if 1 - (1 - threshold**rows) ** (_PERMUTATIONS // rows) >= _RECALL:
            return rows
    return None


def _candidates(
    sets: Sequence[frozenset[str]], rows: int, threshold: float
) -> Iterator[tuple[int, int]]:
    """Pairs whose MinHash signatures agree in a whole band, and in about enough places overall."""
    digests = np.array(
        RMinHash.digests_from_token_sets([sorted(s) for s in sets], _PERMUTATIONS, _SEED), np.uint32
    )
    bands = [
        _pairs_of_band(digests[:, start : start + rows])
        for start in range(0, _PERMUTATIONS - rows + 1, rows)
    ]
    pairs = np.unique(np.concatenate(bands))  # i * n + j
    # four standard deviations of the estimate below the threshold
    enough = threshold - 4 * (threshold * (1 - threshold) / _PERMUTATIONS) ** 0.5
    for chunk in np.array_split(pairs, len(pairs) // 100_000 + 1):
        i, j = np.divmod(chunk, len(sets))
        close = (digests[i] == digests[j]).mean(axis=1) >= enough
        yield from zip(i[close].tolist(), j[close].tolist(), strict=True)


def _pairs_of_band(band: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Pairs of equal rows, as i * n + j with i < j."""
    _, bucket = np.unique(band, axis=0, return_inverse=True)
    order = np.argsort(bucket, kind="stable").astype(np.int64)
    ends = np.flatnonzero(np.diff(bucket[order])) + 1
    found = [np.empty(0, np.int64)]
    for members in np.split(order, ends):
        if len(members) > 1:
            i, j = np.triu_indices(len(members), 1)
            found.append(members[i] * len(band) + members[j])
    return np.concatenate(found)
