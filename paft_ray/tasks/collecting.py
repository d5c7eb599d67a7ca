"""Rows of a source as examples: columns into fields and answers, each content once.

An example's id comes from its fields and answer alone. A row without an answer becomes an
unlabelled example where these are asked for, and is refused elsewhere.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from paft_ray.config.errors import DataError
from paft_ray.config.task import CHOICES_SLOT
from paft_ray.tasks.builtin import TaskOutline
from paft_ray.tasks.example import Example, lettered, letters
from paft_ray.tasks.row_choices import read_choices
from paft_ray.tasks.split import Rows, text_key
from paft_ray.tasks.tables import Row, shown
from paft_ray.tasks.values import column_value, composed, spellings, text_of


def example_id(fields: Mapping[str, str], answer: str, options: Sequence[str] = ()) -> str:
    """Sixteen hex digits that name an example by its content."""
    content = json.dumps(
        {"answer": answer, "fields": dict(fields), **({"choices": options} if options else {})},
        sort_keys=True,
        ensure_ascii=False,
        separators=(",", ":"),
    )
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Collected:
    """The rows of one source as examples."""

    rows: Rows
    unlabelled: Rows
    """Those without an answer."""
    duplicates: int
    """Rows that repeat another one."""
    empty_fields: int
    """Fields without a value, which are read as empty."""


def collect(
    rows: Iterable[Row], outline: TaskOutline, group: str | None, unlabelled: bool = False
) -> Collected:
    """The examples of rows, each once; with `unlabelled`, also of rows without an answer.

    Raises:
        DataError: A row does not fit the task.
    """
    labelled: dict[str, Example] = {}
    without: dict[str, Example] = {}
    keys: dict[str, bytes] = {}
    groups: dict[str, list[str]] = {}
    count = empty = 0
    for row in rows:
        count += 1
        found = {slot: _field(row, column, outline) for slot, column in outline.columns.items()}
        fields = {slot: text or "" for slot, text in found.items()}
        found_fields = dict(fields)
        if not any(fields.values()):
            raise DataError(
                f"{row.where}: column {', '.join(map(repr, outline.columns.values()))} holds no "
                "value or is empty; an example needs a text: fill it in or remove the row"
            )
        empty += sum(text is None for text in found.values())
        answered = not (unlabelled and _lacks_answer(row, outline.answer))
        options: tuple[str, ...] = ()
        if outline.row_choices is not None:
            column = outline.answer if answered else None
            once = not outline.shows_choices
            options, place = read_choices(row, outline.row_choices, column, once)
            names = options
            if outline.shows_choices:
                fields[CHOICES_SLOT] = lettered(options)
                names = letters(len(options))
            answer = "" if place is None else names[place]
        else:
            answer = _answer(row, outline) if answered else ""
        identity = example_id(fields, answer, options)
        examples = labelled if answer else without
        if identity not in examples:
            examples[identity] = Example(identity, fields, answer, row.where, options)
            keys[identity] = text_key(found_fields)
        if group is not None:
            groups.setdefault(identity, []).append(_group(row, group))
    return Collected(
        Rows(labelled, keys, groups),
        Rows(without, keys, groups),
        count - len(labelled) - len(without),
        empty,
    )


def _lacks_answer(row: Row, column: str | None) -> bool:
    if column is None:
        return True
    value = column_value(row, column)
    return value is None or (isinstance(value, str) and not value.strip())


def _group(row: Row, column: str) -> str:
    value = column_value(row, column)
    text = (text_of(value) or "").strip()
    if not text:
        raise DataError(
            f"{row.where}: the group (column {column!r}) is {shown(value)}; task.group needs a "
            "text or number in every row: mend the row, or name another column"
        )
    return text


def _field(row: Row, column: str, outline: TaskOutline) -> str | None:
    value = column_value(row, column)
    text = None if value is None else text_of(value)
    if text is None and value is not None:
        raise DataError(
            f"{row.where}: column {column!r} is {shown(value)}, which is no single text or number; "
            f"name one entry of it, as in {column}[0] or {column}.name"
        )
    return None if text is None else _rewrite(text, outline.field_rewrites)


def _answer(row: Row, outline: TaskOutline) -> str:
    assert outline.answer is not None
    value = column_value(row, outline.answer)
    text = None if value is None else text_of(value)
    if text is None or not text.strip():
        found = "holds no value" if value is None else f"is {shown(value)}"
        raise DataError(
            f"{row.where}: the answer (column {outline.answer!r}) {found}; it must be a text that "
            "is not empty: fill it in, mend the row or remove it; train.objective.type consensus "
            "and prefix learn from training rows without one"
        )
    text = _choice(value, text.strip(), outline)
    if outline.choices is not None:
        if text not in outline.choices:
            raise DataError(
                f"{row.where}: the answer (column {outline.answer!r}) is {shown(value)}, which is "
                f"none of {', '.join(outline.choices)}: mend the row, or map it in task.labels"
            )
        return text
    text = _rewrite(text, outline.answer_rewrites)
    if outline.answer_pattern is not None and not re.search(outline.answer_pattern, text):
        raise DataError(
            f"{row.where}: the answer (column {outline.answer!r}) is {shown(value)}, in which "
            f"{outline.answer_pattern!r} finds no final answer: mend the row or remove it"
        )
    return text


def _choice(value: object, text: str, outline: TaskOutline) -> str:
    """The choice that an answer stands for, or its text where it stands for none.

    Characters that Unicode composes in two ways are the same, as in what two systems wrote.
    """
    if outline.choices is None:
        return outline.labels.get(text, text)
    if isinstance(value, str) and not outline.labels and text in outline.choices:
        return text
    for form in (str, composed):  # to the letter first
        labels = {form(label): form(choice) for label, choice in outline.labels.items()}
        choices = {form(choice): choice for choice in outline.choices[::-1]}
        said = list(spellings(value, frozenset((*labels, *choices)), form))
        mapped = [labels[each] for each in said if each in labels]
        if (
            found := next((each for each in (*mapped, *said) if each in choices), None)
        ) is not None:
            return choices[found]
    return text


def _rewrite(text: str, rewrites: Iterable[tuple[str, str]]) -> str:
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate can be stored nowhere
    for pattern, replacement in rewrites:
        text = re.sub(pattern, replacement, text)
    return text.strip()
