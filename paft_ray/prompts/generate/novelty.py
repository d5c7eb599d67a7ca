"""Novelty of texts: whether one is unlike all texts before it."""

from collections import defaultdict

import numpy as np
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  # a compiled module

from paft_ray.prompts.dedup.similarity import jaccard, shingles

_PERMUTATIONS = 64
_ROWS = 2
_SEED = 42
_LOOKED_AT = 64
"""Earlier texts of one band that are compared; those of a large band are alike anyway."""


class Novelty:
    """The texts seen so far, one of every cluster."""

    def __init__(self, similarity: float = 0.5) -> None:
        """Start without texts.

        Args:
            similarity: Jaccard similarity of shingles from which two texts count as the same.
        """
        self._similarity = similarity
        self._known: list[frozenset[str]] = []
        self._bands: dict[tuple[int, bytes], list[int]] = defaultdict(list)

    def add(self, text: str) -> bool:
        """Return whether the text is unlike all before it; then it is known from now on."""
        own = shingles(text)
        [digest] = RMinHash.digests_from_token_sets([sorted(own)], _PERMUTATIONS, _SEED)
        values = np.array(digest, np.uint32)
        bands = [
            (start, values[start : start + _ROWS].tobytes())
            for start in range(0, _PERMUTATIONS, _ROWS)
        ]
        near = {index for band in bands for index in self._bands[band][:_LOOKED_AT]}
        if any(jaccard(own, self._known[index]) >= self._similarity for index in sorted(near)):
            return False
        for band in bands:
            self._bands[band].append(len(self._known))
        self._known.append(own)
        return True
