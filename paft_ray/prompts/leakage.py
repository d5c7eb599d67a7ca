"""Leakage: whether prompts of two sets share a wording or a layout, as held-out ones must not.

Wordings are compared as `dedup.similarity.similarity` does. Callers that compare many make each
one's shingles once.
"""

from collections.abc import Iterable
from typing import Protocol, TypeVar

from paft_ray.prompts.dedup.similarity import jaccard, shingles


class Worded(Protocol):
    """A prompt, as far as it is compared."""

    @property
    def instruction(self) -> str:
        """The wording without slots and layout."""
        ...

    @property
    def layout(self) -> str | None:
        """Key of the layout, if it has one."""
        ...


_Prompt = TypeVar("_Prompt", bound=Worded)


def nearest(own: frozenset[str], others: Iterable[frozenset[str]]) -> tuple[int, float]:
    """Place and similarity of the most similar of other wordings, the first of several.

    Args:
        own: Shingles of a wording.
        others: Shingles of the others; where there are none, the place is -1 and the similarity 0.
    """
    found = ((jaccard(own, other), -place) for place, other in enumerate(others))
    similar, place = max(found, default=(0.0, 1))
    return -place, similar


def first_like(prompt: Worded, others: Iterable[_Prompt], limit: float) -> _Prompt | None:
    """The first of others with the layout of a prompt, or with a wording as similar as `limit`."""
    own = shingles(prompt.instruction)
    for other in others:
        if prompt.layout == other.layout or jaccard(own, shingles(other.instruction)) >= limit:
            return other
    return None
