"""What the columns of some rows hold, for a person: kinds, lengths, how often each value stands."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median_low
from typing import Literal

from paft_ray.config.errors import DataError
from paft_ray.tasks.guessing import Look
from paft_ray.tasks.tables import Row
from paft_ray.tasks.values import column_value, text_of

_SHOWN_VALUES = 6
_SHOWN_COLUMNS = 30
_LONGEST_VALUE = 24

Kind = Literal["text", "labels", "list", "values", "empty"]
_KINDS = {"text": "text", "labels": "labels", "list": "lists", "values": "values", "empty": "empty"}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the rows that were read."""

    name: str
    kind: Kind
    """`text` of several words; `labels`, few values that come again; `list` or a struct; other
    single `values`; or `empty`."""
    missing: int
    """Rows without a value."""
    distinct: int
    """Different values, as texts."""
    often: tuple[tuple[str, int], ...]
    """The commonest values of `labels`, and their rows."""
    words: tuple[int, int, int] | None
    """Fewest, middle and most words of a `text`."""

    @property
    def described(self) -> str:
        """What is in it, in one line."""
        if self.kind == "labels":
            total = sum(count for _, count in self.often)
            said = ", ".join(
                f"{_cut(v)} {n:,} ({n / total:.0%})" for v, n in self.often[:_SHOWN_VALUES]
            )
            said += f", {len(self.often) - _SHOWN_VALUES} more" * (len(self.often) > _SHOWN_VALUES)
        elif self.words is not None:
            fewest, middle, most = self.words
            said = f"{fewest:,} to {most:,} words, half of them up to {middle:,}"
            said = f"{most:,} words each" if fewest == most else said
        elif self.kind == "empty":
            return "no value"
        else:
            said = "" if self.kind == "list" else f"{self.distinct:,} different values"
        missing = f"{self.missing:,} rows without" if self.missing else ""
        return ", ".join(filter(None, (said, missing)))


def describe_columns(look: Look) -> list[Column]:
    """Look at every column of some rows."""
    return [_describe(look, name) for name in look.columns]


def column_lines(columns: Sequence[Column]) -> Iterator[str]:
    """A line for each column."""
    shown = columns[:_SHOWN_COLUMNS]
    width = max(len(column.name) for column in shown)
    kinds = max(len(_KINDS[column.kind]) for column in shown)
    for column in shown:
        yield f"{column.name:<{width}}  {_KINDS[column.kind]:<{kinds}}  {column.described}".rstrip()
    if (more := len(columns) - len(shown)) > 0:
        yield f"and {more} more columns"


def characters_of(look: Look, columns: Sequence[str]) -> list[int]:
    """How many characters each row has in some columns together; lists count as Python shows
    them.
    """
    return [sum(map(len, _texts(row, columns))) for row in look.rows]


def _describe(look: Look, name: str) -> Column:
    values = [row.values.get(name) for row in look.rows]
    texts = Counter(text for row in look.rows if (text := _text(row, name)))
    filled = sum(value not in (None, "") and value == value for value in values)
    kind: Kind = "values"
    if any(isinstance(value, list | tuple | dict) for value in values):
        kind = "list"
    elif not texts:
        kind = "empty"
    elif look.is_chosen(name):
        kind = "labels"
    elif look.is_text(name):
        kind = "text"
    words = sorted(len(text.split()) for text in texts.elements()) if kind == "text" else []
    return Column(
        name,
        kind,
        len(values) - (filled if kind == "list" else texts.total()),
        len(texts),
        tuple(texts.most_common()) if kind == "labels" else (),
        (words[0], median_low(words), words[-1]) if words else None,
    )


def _texts(row: Row, columns: Sequence[str]) -> Iterator[str]:
    for name in columns:
        with suppress(DataError):  # this row lacks the column
            yield str(column_value(row, name))


def _text(row: Row, name: str) -> str:
    try:
        return (text_of(column_value(row, name)) or "").strip()
    except DataError:  # this row lacks the column
        return ""


def _cut(value: str) -> str:
    return value if len(value) <= _LONGEST_VALUE else f"{value[: _LONGEST_VALUE - 3]}..."
