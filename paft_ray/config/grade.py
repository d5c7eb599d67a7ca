"""`task.grade`: what a prediction is worth; `paft_ray.tasks.grading` has the graders."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from paft_ray.config.base import NOTHING, Section

Normalisation = Literal["squad", "case", "none"]
"""What two texts may differ in and still be the same answer. `squad`: capitals, punctuation, the
articles a, an and the, and blanks (Rajpurkar et al., arXiv 1606.05250). `case`: capitals and blanks
around them. `none`: blanks around them."""


class ChoiceGrade(Section, affects="scores"):
    """1 where the likeliest choice is the answer."""

    type: Literal["choice"]
    length_normalised: bool = False
    """Whether log-likelihoods are divided by the choice's characters, as acc_norm of
    lm-evaluation-harness does, which leaves out the end token."""

    @property
    def label(self) -> str:
        """Its name among figures."""
        return "choice_norm" if self.length_normalised else "choice"


class TextGrade(Section, affects="scores"):
    """The grade of a text that a model wrote."""

    type: str

    @property
    def label(self) -> str:
        """Its name among figures."""
        return self.type


class ExactGrade(TextGrade, affects="scores"):
    """1 where the text is the answer."""

    type: Literal["exact"]  # pyright: ignore[reportIncompatibleVariableOverride]
    normalisation: Normalisation = "squad"
    """What the two may differ in."""


class F1Grade(TextGrade, affects="scores"):
    """The harmonic mean of precision and recall of words, normalised as SQuAD does."""

    type: Literal["f1"]  # pyright: ignore[reportIncompatibleVariableOverride]


class ContainsGrade(TextGrade, affects="scores"):
    """1 where the text holds the answer as whole words."""

    type: Literal["contains"]  # pyright: ignore[reportIncompatibleVariableOverride]
    normalisation: Normalisation = "squad"
    """What the two may differ in."""


class NumberGrade(TextGrade, affects="scores"):
    """1 where the last number of the text, or the first one after `####`, is the answer's."""

    type: Literal["number"]  # pyright: ignore[reportIncompatibleVariableOverride]
    tolerance: float = Field(default=0, ge=0)
    """Most that the two may differ by."""


class PatternGrade(TextGrade, affects="scores"):
    """1 where what a regular expression finds in the text is what it finds in the answer."""

    type: Literal["pattern"]  # pyright: ignore[reportIncompatibleVariableOverride]
    pattern: str
    """With one group, whose last match counts. Where it finds nothing in the answer of a row, that
    answer counts as it stands."""
    normalisation: Normalisation = "case"
    """What the two may differ in."""

    @field_validator("pattern")
    @classmethod
    def _has_one_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        if groups != 1:
            raise ValueError(
                f"{pattern!r} has {groups} groups: put parentheses around what is the answer, and "
                "(?:...) around anything else"
            )
        return pattern


class PythonGrade(TextGrade, affects="scores"):
    """What a function of your own returns, between 0 and 1."""

    type: Literal["python"]  # pyright: ignore[reportIncompatibleVariableOverride]
    path: Annotated[str, NOTHING]
    """File and function, as in `grade.py:score`. It is called as `score(fields, answer, text)`,
    with the example's fields by slot, its answer and what the model wrote, in a process of its own
    beside each worker. The file is sent to workers by itself: it may import installed packages, and
    no other file of yours."""
    timeout_s: Annotated[float, NOTHING] = Field(default=10, gt=0)
    """Seconds that one call may take."""

    @field_validator("path")
    @classmethod
    def _names_a_function(cls, path: str) -> str:
        file, _, function = path.rpartition(":")
        if not file.endswith(".py") or not function.isidentifier():
            raise ValueError(f"{path!r} names no file and function, as in grade.py:score")
        return path


def listed(tree: Any) -> Any:
    """Read `exact` as `{type: exact}`, and one grade as a list of one."""
    if tree is None:
        return ()
    grades = tree if isinstance(tree, list | tuple) else (tree,)
    return tuple({"type": each} if isinstance(each, str) else each for each in grades)


GradeConfig = Annotated[
    ChoiceGrade | ExactGrade | F1Grade | ContainsGrade | NumberGrade | PatternGrade | PythonGrade,
    Field(discriminator="type"),
]
GradeConfigs = Annotated[tuple[GradeConfig, ...], BeforeValidator(listed)]
"""One grade, its name, or a list of them."""
BETWEEN = (F1Grade, PythonGrade)
"""Grades that may lie between 0 and 1."""
