"""Values of a row: where a column's name leads, and a value as text.

Covered: nested values by a path (`answers.text[0]`), every kind of single value that files and
data sets hold, the ways to spell a label. Not covered: what a task does with them (`loading`).
"""

import ast
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from paft_ray.config.errors import DataError
from paft_ray.tasks.tables import Row, other_separator, shown

_INDEX = re.compile(r"\[(\d+)\]")
_WHOLE = re.compile(r"([+-]?\d+)\.0*")


@dataclass(frozen=True, slots=True)
class NamedLabel:
    """A label of a saved data set whose feature gives it a name (`ClassLabel`)."""

    number: int
    names: tuple[str, ...]
    """Names of all labels."""

    @property
    def name(self) -> str:
        """This label's name."""
        return self.names[self.number]


def column_value(row: Row, column: str) -> Any:
    """A row's value in a column, or inside one: `a.b[2]` is an entry of a list in a struct.

    A column whose name is literally that wins. Lists and structs may be written as text, in JSON or
    as Python shows them. None where the value, or what it would be inside of, is null or NaN.

    Raises:
        DataError: There is no such column or entry.
    """
    value = row.values[column] if column in row.values else _inside(row, row.values, column, column)
    is_null = value is None or value != value
    return None if is_null else value


def text_of(value: Any) -> str | None:
    """A value as text, whole floats as integers; None where it is no single value."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, NamedLabel):
        return value.name
    if isinstance(value, float):
        return None if math.isinf(value) else str(int(value) if value.is_integer() else value)
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() else None
    if isinstance(value, bytes):  # text that was written without its type
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return str(value) if isinstance(value, int | date | datetime | time | timedelta) else None


def composed(text: str) -> str:
    """A text with each character as one code point where Unicode has one (NFC)."""
    return unicodedata.normalize("NFC", text)


def spellings(value: Any, known: frozenset[str], form: Callable[[str], str] = str) -> Iterator[str]:
    """The texts that a label may be written as in a configuration, the likelier first.

    Args:
        value: The cell.
        known: Labels and choices of the configuration in that form; where they name all labels of
            a feature, names go before numbers.
        form: Gives the form in which texts are compared.
    """
    if isinstance(value, NamedLabel):
        both = form(value.name), str(value.number)
        yield from both if known.issuperset(map(form, value.names)) else both[::-1]
        return
    text = form((text_of(value) or "").strip())
    yield text
    yield form(str(value).strip())
    number = _WHOLE.fullmatch(text)
    if number is not None:
        yield number[1]
    elif text.lower() in ("true", "false"):
        yield from (text.lower(), text.capitalize(), text.upper())
    else:
        yield f"{text}.0"


def _inside(row: Row, value: Any, path: str, column: str) -> Any:
    """What `path` leads to from `value`; the longest name that fits is taken first."""
    if not path or value is None:
        return value
    if isinstance(value, str):
        value = _parsed(row, value, column)
    if isinstance(value, Mapping):
        name = path.removeprefix(".")
        for end in sorted({len(name), *(m.start() for m in re.finditer(r"[.\[]", name))})[::-1]:
            if name[:end] in value:
                return _inside(row, value[name[:end]], name[end:], column)
        if value is row.values:
            raise DataError(
                f"{row.where}: there is no column {column!r} among {_names(value)}; every row "
                f"needs it: mend the data, or name another column in task.fields, task.answer or "
                f"task.group{other_separator(value)}"
            )
    index = _INDEX.match(path)
    if isinstance(value, list | tuple) and index and int(index[1]) < len(value):
        return _inside(row, value[int(index[1])], path[index.end() :], column)
    raise DataError(
        f"{row.where}: column {column!r} leads to {shown(value)}, which has no entry "
        f"{path.strip('[].')}: every row needs one, in a list that is long enough"
    )


def _parsed(row: Row, text: str, column: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    raise DataError(
        f"{row.where}: column {column!r} leads to {shown(text)}, which is no list and no struct: "
        "write it as a JSON list or as ['a', 'b']"
    )


def _names(values: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, values)) if len(values) <= 12 else f"{len(values)} columns"
