"""How similar texts are, and which pairs of many texts are similar."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paft_ray.prompts.dedup.similarity import (
    components,
    normalise,
    shingles,
    similar_pairs,
    similarity,
)

WORDS = ["read", "the", "review", "and", "choose", "which", "answer", "fits", "best", "option"]
texts = st.lists(
    st.lists(st.sampled_from(WORDS), max_size=7).map(" ".join) | st.text(max_size=8), max_size=14
)
thresholds = st.floats(0.05, 1)


def test_similarity_case_punctuation_and_quotes_do_not_count():
    assert similarity("Don't stop — READ it!", "don’t stop read it") == 1
    assert normalise("Read it.") == normalise("read  IT")
    assert normalise("Read it.") != normalise("Read this.")


def test_similarity_one_word_changed_among_eight_is_high_but_not_one():
    base = "Decide whether the following review is positive today"
    assert 0.6 < similarity(base, base.replace("review", "comment")) < 0.9
    assert similarity(base, "What would you say the author thinks of it?") < 0.2


def test_similarity_texts_without_letters_equal_only_each_other():
    assert (similarity("?!", "..."), similarity("?!", "a")) == (1, 0)
    assert similarity("判断这句话的情感", "判断这句话的情绪") > 0.4


@settings(deadline=None)
@given(texts, thresholds)
def test_similar_pairs_few_texts_are_exactly_the_pairs_at_the_threshold(some, threshold):
    expected = [
        (i, j, similarity(some[i], some[j]))
        for i in range(len(some))
        for j in range(i + 1, len(some))
        if similarity(some[i], some[j]) >= threshold
    ]
    assert similar_pairs(some, threshold) == expected


@pytest.mark.parametrize("threshold", [0.4, 0.8])
def test_similar_pairs_many_texts_nearly_all_are_found_and_none_is_wrong(threshold):
    rng = random.Random(7)
    vocabulary = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 8))) for _ in range(300)]
    many = []
    for _ in range(85):
        base = rng.choices(vocabulary, k=rng.randint(8, 20))
        for _ in range(5):
            swapped = [rng.choice(vocabulary) if rng.random() < 0.1 else word for word in base]
            many.append(" ".join(swapped))
    sets = [shingles(text) for text in many]
    true = {
        (i, j)
        for i in range(len(many))
        for j in range(i + 1, len(many))
        if len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j])
    }
    found = similar_pairs(many, threshold)
    assert len(true) > 80
    assert len({(i, j) for i, j, _ in found} & true) >= 0.99 * len(true)
    for i, j, similar in found:
        assert i < j
        assert similar == similarity(many[i], many[j]) >= threshold


def test_components_are_named_by_their_smallest_member():
    assert components(6, [(4, 2), (2, 1), (5, 3)]) == [0, 1, 1, 3, 1, 3]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=20),
    st.randoms(use_true_random=False),
)
def test_components_edges_in_another_order_give_the_same(edges, rng):
    labels = components(12, edges)
    assert all(labels[i] == labels[j] for i, j in edges)
    assert labels == components(12, rng.sample(edges, len(edges)))
