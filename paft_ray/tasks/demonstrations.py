"""Demonstrations: training examples that are shown, solved, in front of a question."""

import hashlib
from collections.abc import Sequence

import numpy as np

from paft_ray.config.task import CHOICES_SLOT
from paft_ray.config.variation import DemonstrationsVariation
from paft_ray.tasks.example import Example, Task
from paft_ray.tasks.split import first_of_each, text_key


def demonstration_pool(
    task: Task, shown: DemonstrationsVariation, source: Sequence[Example]
) -> list[Example]:
    """The examples that demonstrations are drawn from."""
    if shown.examples_per_class is None:
        return list(source)
    return first_of_each(source, shown.examples_per_class, task.choices)


def draw_demonstrations(
    pool: Sequence[Example],
    shown: DemonstrationsVariation,
    example: Example | None,
    *position: int | str,
) -> tuple[Example, ...]:
    """Draw demonstrations, never `example` itself nor one with its text (see `split`)."""
    own = example and _text(example)
    rng = generator("demonstrations", *position)
    drawn: list[Example] = []
    seen: set[int] = set()
    while len(drawn) < shown.shots and len(seen) < len(pool):
        index = int(rng.integers(len(pool)))
        if index in seen:
            continue
        seen.add(index)
        other = pool[index]
        if example is None or (other.id != example.id and _text(other) != own):
            drawn.append(other)
    return tuple(drawn)


def _text(example: Example) -> bytes:
    """Its text; that of its choices does not count, which may stand in another order."""
    fields = {slot: text for slot, text in example.fields.items() if slot != CHOICES_SLOT}
    return text_key(fields if example.options else example.fields)


def generator(*position: int | str) -> np.random.Generator:
    """Random numbers that are a function of a position alone."""
    digest = hashlib.blake2b(repr(position).encode(), digest_size=16).digest()
    key = [int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")]
    return np.random.Generator(np.random.Philox(key=key))
