"""Leaks between prompts: which is most alike, and which has the wording or layout of another."""

import pytest

from paft_ray.prompts.dedup.similarity import shingles, similarity
from paft_ray.prompts.leakage import first_like, nearest
from paft_ray.prompts.split import Piece

ASKED = "Say whether the review is positive."
OTHERS = [
    "Name the capital of the country.",
    "Say whether this review is positive.",
    "Add them up.",
]


def test_nearest_is_the_most_similar_and_the_first_of_equals():
    place, similar = nearest(shingles(ASKED), map(shingles, OTHERS))
    assert (place, similar) == (1, similarity(ASKED, OTHERS[1]))
    assert nearest(shingles(ASKED), map(shingles, [OTHERS[0], ASKED, ASKED.upper()])) == (1, 1.0)
    assert nearest(shingles(ASKED), []) == (-1, 0.0)


@pytest.mark.parametrize(
    ("layout", "limit", "found"),
    [("own", 0.5, 1), ("own", 0.99, None), ("layout 2", 0.99, 2), ("layout 2", 0.5, 1)],
)
def test_first_like_has_the_layout_or_a_similar_wording(layout, limit, found):
    others = [Piece(text, f"layout {number}") for number, text in enumerate(OTHERS)]
    expected = None if found is None else others[found]
    assert first_like(Piece(ASKED, layout), others, limit) is expected
