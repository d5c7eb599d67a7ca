"""Deals examples into train, validation and test, so that no text is in two of them.

Texts are the same if they differ in no more than blanks, capitals and Unicode form. Examples with
the same fields stay together, whatever their answers, and so do those of one group (a user, a
document). Within each answer, what stays together is sorted by a hash of the seed and of its text
or group, and dealt in that order, which reordering rows does not change and adding rows only at
boundaries. Free text is dealt as one.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from paft_ray.tasks.example import Example, SplitName

_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
"""Soft hyphen, zero-width space, word joiner and byte order mark, which str.split leaves."""


def normalised(text: str) -> str:
    """A text without differences of blanks, capitals and Unicode form (NFKC)."""
    if not text.isascii():
        folded = unicodedata.normalize("NFKC", text.translate(_INVISIBLE)).casefold()
        return " ".join(unicodedata.normalize("NFKC", folded).split())
    return " ".join(text.lower().split())


def text_key(fields: Mapping[str, str]) -> bytes:
    """Sixteen bytes that fields have in common if they are the same text in every slot."""
    texts = [f"{slot}\x1e{normalised(text)}" for slot, text in sorted(fields.items())]
    return hashlib.blake2b("\x1f".join(texts).encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Rows:
    """Examples of one source by what ties them together; all by id."""

    examples: Mapping[str, Example]
    keys: Mapping[str, bytes]
    """Text keys."""
    groups: Mapping[str, Sequence[str]]
    """The groups of the rows that hold an example; empty where `task.group` is not set."""

    def without(self, others: "Rows") -> "Rows":
        """The rows that share neither text nor group with others."""
        texts = {others.keys[id] for id in others.examples}
        groups = {group for id in others.examples for group in others.groups.get(id, ())}
        kept = {
            id: example
            for id, example in self.examples.items()
            if self.keys[id] not in texts and groups.isdisjoint(self.groups.get(id, ()))
        }
        return replace(self, examples=kept)


@dataclass(frozen=True, slots=True)
class Tied:
    """Examples that stay together."""

    place: bytes
    """Hash that sorts it."""
    examples: Sequence[Example]


@dataclass(frozen=True, slots=True)
class Ties:
    """All examples of one source, tied."""

    units: Sequence[Tied]
    same_text: int
    """Examples whose text another example has as well."""
    contradicting: int
    """Of these, examples whose text has several answers."""
    groups: int
    """Groups of rows, 0 where `task.group` is not set."""


def tie(rows: Rows, seed: int) -> Ties:
    """Tie examples with the same text or group together."""
    by_text: dict[bytes, list[Example]] = {}
    for id, example in rows.examples.items():
        by_text.setdefault(rows.keys[id], []).append(example)
    same = [examples for examples in by_text.values() if len(examples) > 1]
    contradicting = [examples for examples in same if _contradict(examples)]
    grouped = _by_group(by_text, rows.groups) if rows.groups else by_text
    return Ties(
        [Tied(_hash(seed, key), examples) for key, examples in grouped.items()],
        sum(map(len, same)),
        sum(map(len, contradicting)),
        len({group for id in rows.examples for group in rows.groups.get(id, ())}),
    )


def _contradict(examples: Sequence[Example]) -> bool:
    """Return whether two of them, with the same choices where they have their own, differ."""
    rights: dict[tuple[str, ...], set[str]] = {}
    for example in examples:
        choices = tuple(sorted(map(normalised, example.options)))
        rights.setdefault(choices, set()).add(normalised(example.right))
    return any(len(right) > 1 for right in rights.values())


def _by_group(
    by_text: Mapping[bytes, Sequence[Example]], groups: Mapping[str, Sequence[str]]
) -> dict[bytes, list[Example]]:
    """Texts of one group together; groups that have a text in common are one."""
    parent: dict[str, str] = {}

    def root(group: str) -> str:
        while (above := parent.setdefault(group, group)) != group:
            parent[group] = parent[above]
            group = above
        return group

    first: dict[bytes, str] = {}
    for key, examples in by_text.items():
        roots = {root(group) for example in examples for group in groups[example.id]}
        first[key] = least = min(roots)
        for other in roots:
            parent[other] = least
    together: dict[bytes, list[Example]] = {}
    for key, examples in by_text.items():
        together.setdefault(root(first[key]).encode(), []).extend(examples)
    return together


def _hash(seed: int, key: bytes) -> bytes:
    return hashlib.blake2b(b"%d:split:" % seed + key, digest_size=16).digest()


def deal(
    units: Iterable[Tied],
    shares: Mapping[SplitName, float],
    choices: Sequence[str] | None,
) -> dict[SplitName, list[Example]]:
    """Deal units into the splits that have shares, and the rest into `train`.

    Every answer gets the shares to one example, and so do all together, where units hold one
    example each, and to one and a half after an answer that had too few; larger units come as near
    as whole ones allow. What one answer is short of or over goes to the next.
    """
    by_answer: dict[str, list[Tied]] = {}
    for unit in units:
        by_answer.setdefault(_main_answer(unit, choices), []).append(unit)
    dealt: dict[SplitName, list[Example]] = {"train": [], **{split: [] for split in shares}}
    left: list[Tied] = []
    owed = {split: Fraction(0) for split in shares}
    for answer in choices or ("",):
        ordered = sorted(by_answer.get(answer, ()), key=lambda unit: unit.place)
        count = sum(len(unit.examples) for unit in ordered)
        for split, share in shares.items():
            owed[split] += Fraction(str(share)) * count
            taken, ordered = _take(ordered, owed[split])
            owed[split] -= sum(len(unit.examples) for unit in taken)
            dealt[split] += [example for unit in taken for example in unit.examples]
        left += ordered
    large = [unit for unit in left if len(unit.examples) > 1]
    for split in shares:
        nearest = min(large, key=lambda unit: abs(len(unit.examples) - owed[split]), default=None)
        if nearest is not None and len(left) > 1 and _is_nearer(nearest, owed[split], dealt[split]):
            large.remove(nearest)
            left.remove(nearest)
            dealt[split] += nearest.examples
    dealt["train"] += [example for unit in left for example in unit.examples]
    return dealt


def _main_answer(unit: Tied, choices: Sequence[str] | None) -> str:
    """The answer that a unit is dealt by: its most frequent one, or none for free text."""
    if choices is None:
        return ""
    if len(unit.examples) == 1:
        return unit.examples[0].answer
    counts = Counter(example.answer for example in unit.examples)
    return max(choices, key=lambda choice: counts[choice])


def _take(units: Sequence[Tied], wanted: Fraction) -> tuple[list[Tied], list[Tied]]:
    """Take the first units that fit into a number of examples, to half of one; and the rest."""
    taken, rest = [], []
    room = int(wanted + Fraction(1, 2))
    for unit in units:
        if len(unit.examples) <= room:
            room -= len(unit.examples)
            taken.append(unit)
        else:
            rest.append(unit)
    return taken, rest


def first_of_each(
    examples: Sequence[Example], most: int, choices: Sequence[str] | None
) -> list[Example]:
    """The first so many examples of each answer, in their order; free text is one answer."""
    kept: list[Example] = []
    counts: Counter[str] = Counter()
    for example in examples:
        answer = "" if choices is None else example.answer
        counts[answer] += 1
        if counts[answer] <= most:
            kept.append(example)
    return kept


def _is_nearer(unit: Tied, owed: Fraction, members: Sequence[Example]) -> bool:
    """Return whether a split is nearer to its share with this unit, or has nothing without."""
    return not members or abs(len(unit.examples) - owed) < owed
