"""Makes a task's section of a configuration from its rows and what a user says of the columns.

A column that is not named is guessed where there is only one sensible way; every guess is said in a
line. Not covered: whether all rows fit, which loading the task shows.
"""

import itertools
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from paft_ray.config import CustomTaskConfig
from paft_ray.config.errors import ConfigError, DataError
from paft_ray.tasks.loading import task_outline
from paft_ray.tasks.sources import open_source
from paft_ray.tasks.tables import Row, shown
from paft_ray.tasks.values import NamedLabel, column_value, text_of

_ANSWERS = (
    "answer", "answer_key", "answerkey", "answers", "category", "class", "completion",
    "correct_answer", "gold", "intent", "label", "labels", "output", "sentiment", "target",
)  # fmt: skip
_CHOICES = ("answer_choices", "candidates", "choices", "endings", "options")
_BESIDE = (
    "guid", "id", "idx", "ind", "index", "key", "qid", "question_id", "source", "split", "uid",
    "uuid",
)  # fmt: skip
"""Columns that say nothing of a question."""
_TOGETHER = (
    {"premise", "hypothesis"}, {"question", "context"}, {"question", "passage"},
    {"sentence1", "sentence2"}, {"text1", "text2"},
)  # fmt: skip
"""Columns that are shown together."""
READ = 20_000
"""Rows that are looked at."""
_FEW, _MOST = 2, 12
"""How many different values of an answer column are choices."""
_LONGEST_CHOICE = 40
_ROWS_PER_CHOICE = 3
_NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Said:
    """What a user says of a task's columns."""

    fields: tuple[str, ...] = ()
    """Columns with texts, each as it stands or as `slot=column`."""
    answer: str | None = None
    """The answer's column."""
    choices: tuple[str, ...] = ()
    """All allowed answers, each as it stands or as `value=choice`."""
    choices_column: str | None = None
    """A column with a list of each row's choices."""
    choices_columns: tuple[str, ...] = ()
    """Columns with one choice each."""
    description: str | None = None
    """What the model has to do."""

    @property
    def options(self) -> list[str]:
        """The command's options that were given."""
        known = {
            "--field": self.fields, "--answer": self.answer, "--choices": self.choices,
            "--choices-column": self.choices_column, "--choices-columns": self.choices_columns,
            "--description": self.description,
        }  # fmt: skip
        return [option for option, value in known.items() if value]


@dataclass(frozen=True, slots=True)
class Guess:
    """A task's section, and what was guessed, in lines."""

    section: Mapping[str, Any]
    notes: tuple[str, ...]


def guess_task(path: str, said: Said) -> Guess:
    """The section of a task of type `custom` for some rows.

    Args:
        path: See `task.path`.
        said: What is known of the columns.

    Raises:
        DataError: The rows cannot be read.
        ConfigError: A column cannot be guessed, or does not exist.
    """
    return guess(Look.read(path), said)


def guess(look: "Look", said: Said) -> Guess:
    """As `guess_task`, for rows that were read."""
    notes: list[str] = []
    listed = look.listed(said)
    if listed != said.choices_column:
        notes.append(f"choices of each row: column {listed} (--choices-column)")
    answer = said.answer
    if answer is None:
        answer = look.answer(listed)
        notes.append(f"answer: column {answer} (--answer)")
    named = [field.rpartition("=")[2] for field in said.fields]
    look.require([answer, *named, *said.choices_columns, *([listed] if listed else [])])
    look.refuse_single_answer(answer, listed, said)
    taken = {answer, listed, *said.choices_columns}
    fields = dict(_slot_and_column(field) for field in said.fields)
    if not fields:
        found = look.texts(taken)
        fields = dict(_slot_and_column(name) for name in found)
        notes.append(f"shown to the model: column {', '.join(found)} (--field)")
    choices, more = look.choices(answer, listed, said)
    notes += more
    if answer in look.values(answer):
        notes.append(
            f"the first row is taken for the columns' names, and {answer!r} is an answer too: if "
            "it is data, put a row with names above it"
        )
    what = " and ".join(slot.replace("_", " ") for slot in fields)
    section = {
        "type": "custom",
        "name": short_name(look.path),
        "description": said.description or _description(what, choices, answer),
        "path": look.path,
        "fields": fields,
        "answer": answer,
        **choices,
    }
    if not choices:
        numbers = all(_NUMBER.fullmatch(text) for text in look.values(answer))
        section["grade"] = "number" if numbers else "contains"
        how = "the last number of a text is the answer's" if numbers else "a text has the answer"
        notes.append(f"answers are free texts, right where {how} (task.grade={section['grade']})")
    return Guess(section, tuple(notes))


def _rows(path: str) -> list[Row]:
    """The first rows of the training split, or of the only one."""
    config = CustomTaskConfig(
        type="custom", name="rows", description="Rows alone.", path=path, fields={"x": "x"},
        answer="x",
    )  # fmt: skip
    source = open_source(config, task_outline(config), with_test=False)
    rows = list(itertools.islice(source.rows, READ))
    if not rows:
        raise DataError(f"{path}: there are no rows; name a source that has some")
    return rows


@dataclass(frozen=True, slots=True)
class Look:
    """The first rows of some data, with their columns."""

    path: str
    rows: Sequence[Row]
    columns: Sequence[str]

    @classmethod
    def read(cls, path: str) -> Self:
        """Read the first rows of what `task.path` names.

        Raises:
            DataError: They cannot be read, or there are none.
        """
        rows = _rows(path)
        return cls(
            path, rows, list(dict.fromkeys(name for row in rows[:100] for name in row.values))
        )

    def refuse(self, what: str, option: str) -> ConfigError:
        """An error that names the columns and the option that helps."""
        named = ", ".join(self.columns[:20]) + (", ..." if len(self.columns) > 20 else "")
        return ConfigError(f"{self.path}: {what}; its columns are {named}: give {option}")

    def require(self, columns: Sequence[str]) -> None:
        """Refuse columns that the first row does not have."""
        for column in columns:
            try:
                column_value(self.rows[0], column)
            except DataError as error:
                raise self.refuse(f"there is no column {column!r}", "one of them") from error

    def listed(self, said: Said) -> str | None:
        """The column with a list of each row's choices: the one that is said, or the only one that
        has such a name; None where there is none or several.
        """
        if said.choices_column or said.choices or said.choices_columns:
            return said.choices_column
        names = [name for name in self.columns if name.lower() in _CHOICES and name != said.answer]
        lists = [name for name in names if _entries(self.rows[0], name) is not None]
        return lists[0] if len(lists) == 1 else None

    def refuse_single_answer(self, answer: str, listed: str | None, said: Said) -> None:
        """Refuse an answer column with one value, of which nothing can be learned or measured."""
        chosen_of_each_row = listed is not None or said.choices_columns
        values = self.values(answer)
        if len(values) < 2 and not (said.choices or chosen_of_each_row):
            found = f"only the value {shown(next(iter(values)))}" if values else "no value"
            raise self.refuse(f"the answer column {answer} holds {found}", "another --answer")

    def values(self, column: str) -> Counter[str]:
        """The texts of a column, and how often each stands there."""
        values = (column_value(row, column) for row in self.rows)
        texts = (text_of(value) for value in values if value is not None)
        return Counter(text.strip() for text in texts if text and text.strip())

    def answers(self, listed: str | None) -> list[str]:
        """The columns that may be the answer's: by name, else by their few values."""
        names = [name for name in self.columns if name != listed]
        found = [name for name in names if name.lower() in _ANSWERS]
        return found or [n for n in self.useful(names) if self.is_chosen(n)]

    def useful(self, names: Iterable[str]) -> list[str]:
        """Those of some columns that say something of a question."""
        return [name for name in names if name.lower() not in _BESIDE]

    def answer(self, listed: str | None) -> str:
        """The answer's column."""
        found = self.answers(listed)
        if len(self.columns) == 1:
            raise ConfigError(
                f"{self.path}: its only column is {self.columns[0]}, and a row holds a question "
                "and its answer: add a column"
            )
        if len(found) != 1:
            what = f"several columns may be the answer ({', '.join(found)})"
            raise self.refuse(what if found else "no column looks like the answer", "--answer")
        return found[0]

    def all_texts(self, taken: Container[str | None]) -> tuple[list[str], bool]:
        """The columns with texts, and whether it is clear that these are shown to the model."""
        found = [n for n in self.useful(self.columns) if n not in taken and self.is_text(n)]
        return found, len(found) == 1 or {name.lower() for name in found} in _TOGETHER

    def texts(self, taken: Container[str | None]) -> list[str]:
        """The columns that are shown to the model."""
        found, clear = self.all_texts(taken)
        if clear:
            return found
        several = f"several columns hold texts ({', '.join(found)})"
        what = several if found else "no column holds texts"
        raise self.refuse(f"{what}, and which the model is to see is not clear", "--field")

    def choices(
        self, answer: str, listed: str | None, said: Said
    ) -> tuple[dict[str, Any], list[str]]:
        """The entries of a section about choices, and what was guessed."""
        if listed is not None or said.choices_columns:
            return {"choices": self._of_rows(answer, listed, said.choices_columns)}, []
        if said.choices:
            pairs = [choice.partition("=") for choice in said.choices]
            labels = {value: choice for value, equals, choice in pairs if equals}
            named = [choice if equals else value for value, equals, choice in pairs]
            values = self.values(answer)
            if len(self.rows) < READ and (missing := [v for v in labels if v not in values]):
                raise self.refuse(
                    f"no row has {missing[0]!r} in column {answer}, which has "
                    f"{', '.join(list(values)[:8])}",
                    "--choices VALUE=ANSWER, the column's value first",
                )
            return {"choices": named, **({"labels": labels} if labels else {})}, []
        if not self.is_chosen(answer):
            return {}, []
        first = column_value(self.rows[0], answer)
        values = self.values(answer)
        order = first.names if isinstance(first, NamedLabel) else sorted(values)
        found = [value for value in order if value in values]
        said_so = f"choices: {', '.join(found)}, all values of column {answer} (--choices)"
        return {"choices": found}, [said_so]

    def _of_rows(self, answer: str, listed: str | None, columns: Sequence[str]) -> dict[str, Any]:
        if listed is None:
            section: dict[str, Any] = {"columns": list(columns)}
            if answer in columns:
                return {**section, "shuffle": True}  # it would always stand at the same place
        else:
            section = {"column": listed}
            value = column_value(self.rows[0], listed)
            if isinstance(value, Mapping) and "text" in value:
                section = {"column": f"{listed}.text"}
                if "label" in value:
                    return {**section, "labels": f"{listed}.label"}
        answers = self.values(answer)
        if not all(text.isdecimal() for text in answers):
            return section
        entries = columns or _entries(self.rows[0], section["column"]) or ()
        counted = {int(text) for text in answers}
        if 0 in counted:
            return {**section, "first": 0}
        if len(entries) in counted:
            return {**section, "first": 1}
        return section  # loading says what has to be told

    def is_chosen(self, column: str) -> bool:
        """Return whether a column has a few short values, each of them often enough."""
        try:
            values = self.values(column)
        except DataError:
            return False
        return (
            _FEW <= len(values) <= _MOST
            and max(map(len, values)) <= _LONGEST_CHOICE
            and values.total() >= _ROWS_PER_CHOICE * len(values)
        )

    def is_text(self, column: str) -> bool:
        """Return whether a column mostly holds several words."""
        values = [row.values.get(column) for row in self.rows[:200]]
        texts = [value for value in values if isinstance(value, str)]
        return sum(len(text.split()) > 1 for text in texts) > len(values) / 2


def _entries(row: Row, column: str) -> Sequence[Any] | None:
    """The entries of a list, or of the list in a struct; None where there is none."""
    value = column_value(row, column)
    if isinstance(value, Mapping):
        value = value.get("text")
    return value if isinstance(value, list | tuple) else None


def _slot_and_column(field: str) -> tuple[str, str]:
    slot, equals, column = field.partition("=")
    if equals:
        return slot, column
    word = re.sub(r"\W+", "_", field).strip("_").lower() or "field"
    return (f"field_{word}" if word[0].isdigit() else word), field


def short_name(path: str) -> str:
    """A name of small letters and digits after the last part of a path."""
    stem = re.split(r"[\\/]", path.rstrip("/\\"))[-1].partition(".")[0].lower()
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:30].strip("-") or "data"


def _description(what: str, choices: Mapping[str, Any], answer: str) -> str:
    if not choices:
        return f"Answer what the {what} asks."
    if isinstance(choices["choices"], Mapping):
        return f"Say which of the given choices is right for the {what}."
    *head, last = choices["choices"]
    return f"Say which {answer} the {what} has: {', '.join(head)} or {last}."
