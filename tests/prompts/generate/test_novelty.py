"""Whether a text says something new."""

from paft_ray.prompts.generate.novelty import Novelty


def test_what_was_said_before_is_not_new_however_it_is_written():
    novelty = Novelty()
    assert novelty.add("Decide whether the review is positive or negative.")
    assert not novelty.add("decide whether the review is POSITIVE or negative")
    assert not novelty.add("Decide whether this review is positive or negative!")
    assert novelty.add("Would the writer watch the film a second time?")
    assert not novelty.add("Would the writer watch this film a second time?")


def test_thousands_of_different_texts_are_new_and_their_repetitions_are_not():
    texts = [f"{a}{b} {c}{a} asks about {b}{c}{b}" for a in NAMES for b in NAMES for c in NAMES]
    novelty = Novelty(similarity=0.8)
    first = [novelty.add(text) for text in texts]
    assert sum(first) > 0.9 * len(texts)
    assert not any(novelty.add(text) for text in texts)


NAMES = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india")
