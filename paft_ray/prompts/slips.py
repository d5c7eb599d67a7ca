"""Slips in what people write: typing errors, capitals, spaces, punctuation; pure."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from paft_ray.config.variation import NoiseKind
from paft_ray.prompts.layouts import wording_spans
from paft_ray.prompts.template import Template, parse

if TYPE_CHECKING:
    from paft_ray.prompts.variation import Condition

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_BESIDE = {a: b for row in _ROWS for a, b in pairwise(row + row[-2])}
"""The key beside each key."""


def words(text: str) -> list[str]:
    """The words of a text, without capitals."""
    return [word.casefold() for word in _WORD.findall(text)]


def noisy_template(
    slots: Sequence[str],
    template: Template,
    condition: "Condition",
    rng: np.random.Generator,
    kept: frozenset[str],
) -> Template:
    """A template with slips in its instruction; see `noisy`."""
    text, end = "", 0
    for start, stop in wording_spans(template.text, slots):
        text += template.text[end:start]
        text += noisy(template.text[start:stop], condition, rng, kept)
        end = stop
    return parse(text + template.text[end:], slots)


def noisy(
    text: str, condition: "Condition", rng: np.random.Generator, kept: frozenset[str] = frozenset()
) -> str:
    """A text with slips in a share of its words; not in `kept`, and not in words with digits."""

    def slip(match: re.Match[str]) -> str:
        word = match[0]
        draw, kind, where, how = rng.random(4)
        if draw >= condition.noise_rate or word.casefold() in kept or re.search(r"\d", word):
            return word
        kinds = condition.noise_kinds
        return _SLIPS[kinds[int(kind * len(kinds))]](word, where, how)

    return _WORD.sub(slip, text)


def _typo(word: str, where: float, how: float) -> str:
    if len(word) < 3:
        return word + word[-1]
    place = 1 + int(where * (len(word) - 2))
    one, other = word[place], word[place + 1]
    if how < 0.25:
        return word[:place] + word[place + 1 :]
    if how < 0.5:
        return word[:place] + one + word[place:]
    if how < 0.75 and one != other:
        return word[:place] + other + one + word[place + 2 :]
    beside = _BESIDE.get(one.lower(), one * 2)
    return word[:place] + (beside.upper() if one.isupper() else beside) + word[place + 1 :]


def _case(word: str, where: float, how: float) -> str:
    changed = word.upper() if how < 0.5 else word.lower()
    return changed if changed != word else word.swapcase()


def _spaces(word: str, where: float, how: float) -> str:
    if how < 0.5 or len(word) < 4:
        return f" {word}"
    place = 1 + int(where * (len(word) - 1))
    return f"{word[:place]} {word[place:]}"


def _punctuation(word: str, where: float, how: float) -> str:
    return word + ",.;!"[int(how * 4)]


_SLIPS: Mapping[NoiseKind, Callable[[str, float, float], str]] = {
    "typos": _typo, "case": _case, "spaces": _spaces, "punctuation": _punctuation,
}  # fmt: skip
