"""Prompts that may be nonsense: those of which many words stand nowhere else.

A word is known where it stands in the wordings that come with the package, in an example, or in
another prompt's instruction. That finds prompts which a small model filled with a text of its own,
and not those that are good English about something else. It takes no model and no dictionary, so
that it says nothing where it does not know the language: if it doubts a quarter of all prompts, it
is silent.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from paft_ray.prompts.stock import all_wordings
from paft_ray.report.files import RunFiles

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_ENDINGS = ("'s", "’s", "s", "d", "ed", "ing", "ly", "es", "er")
_FEWEST = 3
"""Fewest unknown words of a prompt that is doubted."""
_SHARE = 0.35
"""Share of unknown words from which a prompt is doubted."""
_MOST_DOUBTED = 0.25
_SLOT = re.compile(r"\{\w+\}")


def odd_prompts(run: RunFiles) -> dict[str, tuple[str, ...]]:
    """The prompts of a run that may be nonsense: id to their unknown words, in order."""
    instructions = {row["prompt_id"]: _instruction(row) for row in run.prompts}
    return odd_among(
        instructions, (value for row in run.examples.values() for value in _fields(row))
    )


def odd_among(
    instructions: Mapping[str, str], shown: Iterable[str] = ()
) -> dict[str, tuple[str, ...]]:
    """The instructions that may be nonsense: id to their unknown words, in order.

    Args:
        instructions: Prompt id to its wording.
        shown: Texts of examples.
    """
    distinct = {text: frozenset(_words(text)) for text in instructions.values()}
    counts = Counter(word for words in distinct.values() for word in words)
    known = {word for text in (*all_wordings(), *shown) for word in _words(text)}
    known |= {word for word, count in counts.items() if count > 1}
    odd = {text: found for text in distinct if (found := _unknown(text, known))}
    if len(odd) > _MOST_DOUBTED * len(distinct):
        return {}
    return {id: odd[text] for id, text in instructions.items() if text in odd}


def _instruction(row: Mapping[str, Any]) -> str:
    return row.get("instruction") or _SLOT.sub(" ", row["text"])


def _fields(row: Mapping[str, str]) -> list[str]:
    return [str(value) for value in json.loads(row.get("fields") or "{}").values()]


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _unknown(text: str, known: Collection[str]) -> tuple[str, ...]:
    """The unknown words of a text where they are many; empty otherwise."""
    words = _words(text)
    unknown = [word for word in words if not _is_known(word, known)]
    many = len(unknown) >= _FEWEST and len(unknown) >= _SHARE * len(words)
    return tuple(dict.fromkeys(unknown)) if many else ()


def _is_known(word: str, known: Collection[str]) -> bool:
    stems = [word.removesuffix(ending) for ending in _ENDINGS if word.endswith(ending)]
    return any(form in known for stem in (word, *stems) for form in (stem, stem + "e"))
