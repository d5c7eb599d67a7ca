"""The choices that stand in a row: which they are, and which of them is the answer."""

import ast
import hashlib
import json
import string
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from paft_ray.config.errors import DataError
from paft_ray.config.task import RowChoices
from paft_ray.tasks.tables import Row, shown
from paft_ray.tasks.values import column_value, spellings, text_of

_MOST = len(string.ascii_uppercase)


def read_choices(
    row: Row, config: RowChoices, answer: str | None, once: bool = False
) -> tuple[tuple[str, ...], int | None]:
    """The texts of a row's choices, and the place of the right one.

    Args:
        row: The row.
        config: Where they stand.
        answer: Column of the answer; None where the row has none, and no choice is right.
        once: Leave out what is there before, since texts are answered, not letters.

    Raises:
        DataError: There are fewer than two, or too many for letters, or the answer is none of them.
    """
    cells = [column_value(row, name) for name in config.columns or ()]
    if config.column is not None:
        cells = _entries(row, config.column)
    texts = [" ".join((_text(row, cell) or "").split()) for cell in cells]
    place = None if answer is None else _place(row, config, answer, texts)
    if once and place is not None:
        place = next(n for n, text in enumerate(texts) if _same(text, texts[place]))
    kept = [
        number
        for number, text in enumerate(texts)
        if text and not (once and any(_same(text, earlier) for earlier in texts[:number]))
    ]
    if not 2 <= len(kept) <= _MOST:
        raise DataError(
            f"{row.where}: it has {len(kept)} choices, and needs 2 to {_MOST}: mend the row or "
            "remove it"
        )
    if config.shuffle:
        kept.sort(key=lambda number: _hash(texts, number))
    right = None if place is None else kept.index(place)
    return tuple(texts[number] for number in kept), right


def _place(row: Row, config: RowChoices, answer: str, texts: Sequence[str]) -> int:
    """The place of the right choice among all cells."""
    value = column_value(row, answer)
    named = _names(row, config, texts)
    said = list(spellings(value, frozenset(named or texts)))
    if named is None:
        text = " ".join(said[0].split())
        written = [" ".join(each.split()) for each in said]
        found = next(filter(None, (_places(texts, each) for each in written)), [])
        if len(found) > 1:
            raise DataError(
                f"{row.where}: the right choice {text[:80]!r} is there twice, so that no answer "
                "could tell which: mend the row or remove it"
            )
        if found:
            return found[0]
        if text.isdecimal():
            raise DataError(
                f"{row.where}: the answer (column {answer!r}) is {shown(value)}, which counts the "
                "choices from 0 or from 1: say which in task.choices.first"
            )
        named, said = list(string.ascii_uppercase), [text.upper()]
    known = next((each for each in said if each in named), None)
    if known is not None and named.count(known) > 1:
        raise DataError(
            f"{row.where}: {known!r} names {named.count(known)} of its choices, so that no answer "
            "could tell which is right: mend the row or remove it"
        )
    place = len(texts) if known is None else named.index(known)
    if value is None or place >= len(texts) or not texts[place]:
        raise DataError(
            f"{row.where}: the answer (column {answer!r}) is {shown(value)}, which is none of its "
            f"choices ({', '.join(filter(None, texts))[:200]}): mend the row, or say in "
            "task.choices what the column calls them (labels, first)"
        )
    return place


def _places(texts: Sequence[str], text: str) -> list[int]:
    return [place for place, own in enumerate(texts) if own and _same(own, text)]


def _names(row: Row, config: RowChoices, texts: Sequence[str]) -> list[str] | None:
    """What the answer column calls the choices; None for their texts or letters."""
    if config.labels is not None:
        return [(_text(row, label) or "").strip() for label in _entries(row, config.labels)]
    if config.first is not None:
        return [_counted(config.first, place) for place in range(len(texts))]
    return None


def _counted(first: int | str, place: int) -> str:
    return str(first + place) if isinstance(first, int) else chr(ord(first) + place)


def _entries(row: Row, column: str) -> list[Any]:
    above, _, name = column.rpartition(".")
    if above and column not in row.values:
        outer = _list(column_value(row, above))
        if isinstance(outer, list) and all(isinstance(entry, Mapping) for entry in outer):
            return [entry.get(name) for entry in outer]
    value = _list(column_value(row, column))
    if not isinstance(value, list):
        raise DataError(
            f"{row.where}: column {column!r} is {shown(value)}, which is no list: name a column "
            "that holds the choices of a row, or several in task.choices.columns"
        )
    return value


def _list(value: Any) -> Any:
    """A list, also where it is written as text; anything else as it is."""
    for parse in (json.loads, ast.literal_eval):
        if isinstance(value, str):
            try:
                value = parse(value)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
    return list(value) if isinstance(value, list | tuple) else value


def _text(row: Row, value: Any) -> str | None:
    if value is None or value != value:
        return None
    text = text_of(value)
    if text is None:
        raise DataError(
            f"{row.where}: the choice {shown(value)} is no single text or number: name an entry "
            "inside it, as in choices.text"
        )
    return text.encode("utf-8", "replace").decode()


def _same(one: str, other: str) -> bool:
    return unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)


def _hash(texts: Sequence[str], number: int) -> bytes:
    again = number if texts.count(texts[number]) > 1 else 0
    content = json.dumps([sorted(texts), texts[number], again])
    return hashlib.blake2b(content.encode(), digest_size=8).digest()
