"""`task`: a data set, its fields, its answer, its splits."""

import re
import unicodedata
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from paft_ray.config.base import NOTHING, Section, affects
from paft_ray.config.grade import ChoiceGrade, GradeConfigs

PUBLISHED_TASKS = ("boolq", "gsm8k", "hellaswag", "piqa", "race", "sst2", "winogrande")
FREE_TEXT_TASKS = ("gsm8k",)
"""Those of them without choices."""


def earlier_answer_end(task: Any) -> str:
    """What versions without `task.answer_end` did: only free text was trained with its end."""
    return "ignored" if task.has_choices else "scored"


CHOICES_SLOT = "choices"
"""Slot that shows the choices of a row."""
DEMONSTRATIONS_SLOT = "demonstrations"
"""Slot where solved examples stand; no field of a task."""
Paths = str | Annotated[tuple[str, ...], Field(min_length=1)]
"""A path, a pattern, or a list of these."""


class RowChoices(Section, affects="run"):
    """The choices of each example, which stand in its row."""

    column: str | None = None
    """A column that holds a list of them; `a.b` is one inside a struct."""
    columns: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """Columns that hold one each; where one is empty, that row has fewer."""
    labels: str | None = None
    """A column that holds a list of what the answer column calls them, as ARC does."""
    first: int | str | None = None
    """What the answer column says for the first choice: 0, 1 or A; the next one is 1, 2 or B. By
    default it holds the text of a choice, or a letter."""
    shuffle: bool = False
    """Put the choices of each row in an order of its own, for data whose right one is always first.
    It depends on the row alone."""

    @model_validator(mode="after")
    def _come_from_one_place(self) -> Self:
        if (self.column is None) == (self.columns is None):
            raise ValueError("choices stand in one column or in several: give column or columns")
        if self.labels is not None and (self.columns is not None or self.first is not None):
            raise ValueError("choices.labels goes with column alone: leave columns and first out")
        first = self.first
        if isinstance(first, str) and not (len(first) == 1 and first.isalpha() and first.isascii()):
            raise ValueError(f"choices.first is {first!r}: give 0, 1 or a letter")
        return self


Choices = Annotated[
    Annotated[tuple[str, ...], Field(min_length=2), Tag("[list]")]
    | Annotated[RowChoices, Tag("[RowChoices]")],
    Discriminator(lambda v: "[RowChoices]" if isinstance(v, Mapping | RowChoices) else "[list]"),
]
"""A list, or the places of the choices of each row."""


class TaskOptions(Section, affects="run"):
    """The split of a task's examples, and their lengths in tokens."""

    max_length: Annotated[int, affects("weights", "scores")] = Field(default=512, ge=16)
    """Longest example, in tokens of prompt and answer."""
    overlong: Annotated[Literal["refuse", "trim"], affects("weights", "scores")] = "refuse"
    """What happens to a longer one: the run stops, or its longest field is cut and counted. The
    choices of a row and demonstrations are never cut."""
    answer_end: Annotated[
        Literal["scored", "ignored"], affects("weights", "scores", neutral=earlier_answer_end)
    ] = "scored"
    """Whether the end token after a choice is trained and scored with it. `ignored`, as in
    lm-evaluation-harness, never finds a choice likelier than one that it begins with."""
    stop: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...], affects("scores", neutral=())
    ] = ()
    """Texts at the first of which a free-text answer ends, as it does at the end token."""
    grade: Annotated[GradeConfigs, affects("scores", neutral=())] = ()
    """What an answer is worth, between 0 and 1. By default the likeliest choice counts; where there
    are none, the whole text, or what the built-in task finds in it. Of a list the first one decides
    wherever something is chosen, the others stand beside it in the results."""
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the examples kept for choosing (single prompt, Tune)."""
    test_share: float = Field(default=0.2, gt=0, lt=1)
    """Share kept for the final figure, unless the source has a test split of its own."""
    max_train_examples: int | None = Field(default=None, ge=1)
    """Use at most this many training examples (in an order given by id and seed)."""
    examples_per_class: Annotated[int | None, affects("run", neutral=None)] = Field(
        default=None, ge=1
    )
    """Train on the first so many training examples of each answer only (in the same order), as
    few-shot papers do; demonstrations are drawn from them too."""
    group: Annotated[str | None, affects("run", neutral=None)] = None
    """A column (user, document, conversation) whose rows stay together in one split."""

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share + test_share leave nothing to train on: lower them")
        return self

    @property
    @abstractmethod
    def has_choices(self) -> bool:
        """Return whether answers are chosen; otherwise they are free text."""

    @property
    def generates(self) -> bool:
        """Return whether texts that the model writes are graded."""
        return not self.has_choices or any(not isinstance(g, ChoiceGrade) for g in self.grade)

    @property
    def _ranking(self) -> bool:
        return any(isinstance(grade, ChoiceGrade) for grade in self.grade)

    @property
    def has_classes(self) -> bool:
        """Return whether all rows have the same answers to choose from, or letters."""
        return self.has_choices

    @model_validator(mode="after")
    def _classes_are_known(self) -> Self:
        if self.examples_per_class is not None and not self.has_classes:
            raise ValueError(
                f"examples_per_class: {self.examples_per_class} of each answer, but rows of this "
                "task do not share their answers: give max_train_examples"
            )
        return self

    @model_validator(mode="after")
    def _grades_fit(self) -> Self:
        labels = [grade.label for grade in self.grade]
        if len(set(labels)) < len(labels):
            raise ValueError(f"grade: {labels} names a grade twice: remove one")
        if self._ranking and not self.has_choices:
            raise ValueError(
                "grade: choice ranks choices, and this task has none: give choices, or grade the "
                "text (exact, f1, contains, number, pattern or python)"
            )
        return self

    @model_validator(mode="after")
    def _answers_end(self) -> Self:
        if not self.generates and self.stop:
            raise ValueError(
                f"stop: {list(self.stop)} ends generated answers, and this task has choices, which "
                "are ranked: leave it out"
            )
        if not self.has_choices and self.answer_end == "ignored":
            raise ValueError(
                "answer_end: ignored is for choices; a free-text answer that is not trained to end "
                "goes on to evaluation.max_new_tokens: leave it out"
            )
        return self


class BuiltinTaskConfig(TaskOptions, affects="run"):
    """One of the tasks that `paft_ray` describes as data, see `paft_ray.tasks.builtin`."""

    type: Literal["builtin"] = "builtin"
    name: Literal[PUBLISHED_TASKS]  # pyright: ignore[reportInvalidTypeForm]
    """Which task."""
    path: Annotated[str | None, NOTHING] = None
    """A local copy (file or saved Hugging Face data set; `pkg:NAME/inner/path` looks inside an
    installed Python package); without it the Hugging Face hub is read."""

    @property
    def has_choices(self) -> bool:
        """Return whether answers are chosen; otherwise they are free text."""
        return self.name not in FREE_TEXT_TASKS


class CustomTaskConfig(TaskOptions, affects="run"):
    """A user's own data: a file or saved data set whose columns are mapped to slots."""

    type: Literal["custom"]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """A short name, for reports."""
    description: str = Field(min_length=10)
    """What the model has to do, in one or two sentences; LLMs that write prompts read it."""
    path: Annotated[Paths, NOTHING]
    """JSONL, JSON, CSV, TSV (also .gz, .bz2, .xz, .zst) or Parquet, or a folder saved by Hugging
    Face `datasets`; a path, a pattern (`data/*.parquet`), or a list of these."""
    fields: dict[str, str] = Field(min_length=1)
    """Slot name to column name; each slot may be used in templates as `{slot}`. `a.b[0]` is a value
    inside a column."""
    answer: str | None
    """The column that holds the answer. Where objectives learn without answers (`consensus`,
    `prefix`), cells of training rows may be empty, and null says that there is no such column."""
    choices: Choices | None = None
    """All allowed answers, as the model should write them; without them the answer is free text.
    Where each row has its own, `{column: choices.text}` or `{columns: [a, b, c]}`."""
    choices_as: Annotated[Literal["letters", "texts"], affects("run", neutral="letters")] = (
        "letters"
    )
    """How choices of a row are given: `letters` are answered and stand before the choices in the
    slot `{choices}`, `texts` are answered themselves, without being shown (cloze)."""
    labels: dict[str, str] | None = None
    """Value of the answer column, as text, to one of `choices`, where the two differ."""
    instructions: tuple[str, ...] = ()
    """A few instructions written by hand, which few-shot requests show to LLMs."""
    test_path: Annotated[Paths | None, NOTHING] = None
    """Separate files with the test examples; without it they are split off `path`."""
    splits: Annotated[
        dict[Literal["train", "validation", "test"], str] | None, affects("nothing", neutral=None)
    ] = None
    """What each split of a saved data set is for, such as `{train: train, validation: dev}`; what
    is not named is split off the training rows."""

    @field_validator("fields")
    @classmethod
    def _slots_are_words(cls, fields: dict[str, str]) -> dict[str, str]:
        for slot in fields:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", slot):
                raise ValueError(f"slot {slot!r} is not a word: use letters, digits and _")
        if DEMONSTRATIONS_SLOT in fields:
            raise ValueError(
                f"{DEMONSTRATIONS_SLOT} is the slot where solved examples stand, and no field: "
                f"give it another name, as in shown: {fields[DEMONSTRATIONS_SLOT]}"
            )
        return fields

    @property
    def has_choices(self) -> bool:
        """Return whether answers are chosen; otherwise they are free text."""
        return self.choices is not None

    @property
    def has_classes(self) -> bool:
        """Return whether all rows have the same answers to choose from, or letters."""
        return self.has_choices and self.choices_as == "letters"

    @property
    def row_choices(self) -> RowChoices | None:
        """The places of the choices, where each row has its own."""
        return self.choices if isinstance(self.choices, RowChoices) else None

    @model_validator(mode="after")
    def _choices_are_shown(self) -> Self:
        if self.row_choices is None:
            if self.choices_as == "texts":
                raise ValueError(
                    "choices_as: texts is for choices of each row; all rows have the same here: "
                    "leave it out"
                )
        elif self.choices_as == "letters" and CHOICES_SLOT in self.fields:
            raise ValueError(
                f"fields.{CHOICES_SLOT} has the name of the slot that shows the choices of a row: "
                "give it another one"
            )
        elif self.labels is not None:
            raise ValueError(
                "labels are for choices that all rows have: name the column of labels in "
                "choices.labels, or say choices.first"
            )
        return self

    @field_validator("choices")
    @classmethod
    def _choices_differ(
        cls, choices: tuple[str, ...] | RowChoices | None
    ) -> tuple[str, ...] | RowChoices | None:
        seen: dict[str, str] = {}
        for choice in choices if isinstance(choices, tuple) else ():
            text = " ".join(unicodedata.normalize("NFC", choice).split())
            if not text:
                raise ValueError(f"{choice!r} is an empty choice: name what the model should write")
            if text in seen:
                raise ValueError(
                    f"{seen[text]!r} and {choice!r} do not differ in more than blanks or Unicode "
                    "form, so that no answer could tell them apart: remove one"
                )
            seen[text] = choice
        return choices

    @model_validator(mode="after")
    def _held_out_is_graded(self) -> Self:
        held_out = {"test_path": self.test_path}
        held_out |= {f"splits.{name}": found for name, found in (self.splits or {}).items()}
        named = [place for place, found in held_out.items() if found and place != "splits.train"]
        if self.answer is None and named:
            raise ValueError(
                f"{named[0]} holds rows to grade, and answer: null names no column of answers: "
                "name one, and leave its cells empty in training rows that have none"
            )
        return self

    @model_validator(mode="after")
    def _splits_differ(self) -> Self:
        if self.splits is None:
            return self
        if self.test_path is not None and "test" in self.splits:
            raise ValueError("test rows come from test_path or from splits.test: remove one")
        if "train" not in self.splits:
            raise ValueError("splits names no train split: add splits.train")
        if len(set(self.splits.values())) < len(self.splits):
            raise ValueError(
                f"splits {self.splits} uses one split twice, so that the same rows would be "
                "trained and tested on: name each once"
            )
        return self

    @model_validator(mode="after")
    def _labels_name_choices(self) -> Self:
        allowed = self.choices if isinstance(self.choices, tuple) else ()
        for label, choice in (self.labels or {}).items():
            if choice not in allowed:
                raise ValueError(f"labels.{label} is {choice!r}, which is not one of choices")
        return self


def shows_choices(task: TaskOptions) -> bool:
    """Return whether the slot `{choices}` shows those of each row."""
    return (
        isinstance(task, CustomTaskConfig)
        and task.row_choices is not None
        and task.choices_as == "letters"
    )


TaskConfig = Annotated[BuiltinTaskConfig | CustomTaskConfig, Field(discriminator="type")]
