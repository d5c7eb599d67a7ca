"""Graders: what a prediction is worth, from 0 to 1, by `task.grade`.

`RankedGrader` reads the log-likelihoods of choices, every other grader a text that a model wrote.
"""

import re
import string
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from paft_ray.config.errors import ConfigError
from paft_ray.config.grade import (
    ChoiceGrade,
    ContainsGrade,
    ExactGrade,
    F1Grade,
    GradeConfig,
    Normalisation,
    NumberGrade,
    PatternGrade,
    PythonGrade,
)
from paft_ray.tasks.grade_process import UserCode, call_user

if TYPE_CHECKING:
    from paft_ray.tasks.example import Example


@dataclass(frozen=True, slots=True)
class Grade:
    """What one prediction is worth."""

    value: float
    """From 0 to 1."""
    prediction: str
    """What the grader read; empty where it read nothing."""
    begins_right: bool | None = None
    """Whether the text begins with the right answer and goes on, which is wrong; None where a
    grader looks for the answer inside the text."""


@dataclass(frozen=True, slots=True)
class RankedGrader:
    """Grades the likeliest choice."""

    label: str = "choice"
    length_normalised: bool = False

    def grade(
        self,
        example: "Example",
        choices: Sequence[str],
        whole: Sequence[float],
        text: Sequence[float],
    ) -> Grade:
        """Grade the log-likelihoods of the choices, with their end and of their text alone."""
        values = whole
        if self.length_normalised:
            values = [value / len(c) for value, c in zip(text, choices, strict=True)]
        prediction = choices[best_choice(values)]
        return Grade(float(prediction == example.answer), prediction)


@dataclass(frozen=True, slots=True)
class TextGrader(ABC):
    """Grades a text that a model wrote."""

    label: str

    @abstractmethod
    def grade(self, example: "Example", text: str, where: str) -> Grade:
        """Grade the text; `where` names the example and its prompt in errors.

        Raises:
            GradeError: A function of the user's failed.
        """

    def reads(self, answer: str) -> bool:
        """Return whether a text could be as right as this answer."""
        return bool(answer.strip())


@dataclass(frozen=True, slots=True)
class EqualGrader(TextGrader):
    """1 where the whole text is the answer."""

    normalisation: Normalisation

    def grade(self, example: "Example", text: str, where: str) -> Grade:
        """Compare both as a whole."""
        prediction = normalise(text, self.normalisation)
        expected = normalise(example.answer, self.normalisation)
        right = bool(prediction) and prediction == expected
        return Grade(float(right), prediction, prediction.startswith(expected) and not right)

    def reads(self, answer: str) -> bool:
        """Return whether anything is left of the answer."""
        return bool(normalise(answer, self.normalisation))


@dataclass(frozen=True, slots=True)
class FoundGrader(TextGrader):
    """1 where the last match of a built-in task's pattern is the answer's."""

    pattern: str

    def grade(self, example: "Example", text: str, where: str) -> Grade:
        """Compare what the pattern finds."""
        prediction = extract_answer(text, self.pattern)
        right = bool(prediction) and prediction == extract_answer(example.answer, self.pattern)
        return Grade(float(right), prediction)


@dataclass(frozen=True, slots=True)
class PatternGrader(TextGrader):
    """1 where the group of a pattern's last match is the answer's."""

    pattern: str
    normalisation: Normalisation

    def grade(self, example: "Example", text: str, where: str) -> Grade:
        """Compare what the pattern finds."""
        prediction = self._found(text)
        right = bool(prediction) and prediction == self._expected(example.answer)
        return Grade(float(right), prediction)

    def reads(self, answer: str) -> bool:
        """Return whether the pattern finds something in the answer, or it is something itself."""
        return bool(self._expected(answer))

    def _found(self, text: str) -> str:
        found = [match.group(1) or "" for match in re.finditer(self.pattern, text)]
        return normalise(found[-1], self.normalisation) if found else ""

    def _expected(self, answer: str) -> str:
        return self._found(answer) or normalise(answer, self.normalisation)


@dataclass(frozen=True, slots=True)
class NumberGrader(TextGrader):
    """1 where the number that a text ends with is the answer's, or near enough."""

    tolerance: Fraction

    def grade(self, example: "Example", text: str, where: str) -> Grade:
        """Compare the last numbers."""
        found, expected = last_number(text), last_number(example.answer)
        if found is None or expected is None:
            return Grade(0.0, "")
        return Grade(float(abs(found - expected) <= self.tolerance), _shown(found))

    def reads(self, answer: str) -> bool:
        """Return whether the answer has a number."""
        return last_number(answer) is not None


@dataclass(frozen=True, slots=True)
class F1Grader(TextGrader):
    """The F1 of the words that text and answer share, as SQuAD computes it."""

    def grade(self, example: "Example", text: str, where: str) -> Grade:
        """Compare the words, as often as they occur."""
        prediction = normalise(text, "squad")
        said, wanted = prediction.split(), normalise(example.answer, "squad").split()
        shared = (Counter(said) & Counter(wanted)).total()
        return Grade(2 * shared / (len(said) + len(wanted)) if shared else 0.0, prediction)

    def reads(self, answer: str) -> bool:
        """Return whether any word is left of the answer."""
        return bool(normalise(answer, "squad"))


@dataclass(frozen=True, slots=True)
class ContainsGrader(TextGrader):
    """1 where the text holds the answer as whole words."""

    normalisation: Normalisation

    def grade(self, example: "Example", text: str, where: str) -> Grade:
        """Look for the answer."""
        said = normalise(text, self.normalisation)
        expected = normalise(example.answer, self.normalisation)
        if re.search(rf"(?<!\w){re.escape(expected)}(?!\w)", said):
            return Grade(1.0, expected)
        return Grade(0.0, said)

    def reads(self, answer: str) -> bool:
        """Return whether anything is left of the answer."""
        return bool(normalise(answer, self.normalisation))


@dataclass(frozen=True, slots=True)
class PythonGrader(TextGrader):
    """What a function of the user's returns."""

    code: UserCode
    timeout_s: float

    def grade(self, example: "Example", text: str, where: str) -> Grade:
        """Call the function, in a process of its own."""
        arguments = (dict(example.fields), example.answer, text)
        return Grade(call_user(self.code, arguments, self.timeout_s, where), text.strip())


Grader = RankedGrader | TextGrader


def open_graders(
    configs: Sequence[GradeConfig], choices: bool, pattern: str | None
) -> tuple[Grader, ...]:
    """The graders of a task, the one that decides first.

    Args:
        configs: Those of `task.grade`; the task's own without any.
        choices: Whether the task has choices.
        pattern: `TaskOutline.answer_pattern`.

    Raises:
        ConfigError: The file of a grade cannot be read, or has no such function.
    """
    if configs:
        return tuple(open_grader(config, "task.grade") for config in configs)
    if choices:
        return (RankedGrader(),)
    return (EqualGrader("text", "case") if pattern is None else FoundGrader("found", pattern),)


def open_grader(config: GradeConfig, where: str) -> Grader:
    """The grader of one grade; `where` names its place in the configuration.

    Raises:
        ConfigError: The file of a grade cannot be read, or has no such function.
    """
    match config:
        case ChoiceGrade():
            return RankedGrader(config.label, config.length_normalised)
        case ExactGrade():
            return EqualGrader(config.label, config.normalisation)
        case F1Grade():
            return F1Grader(config.label)
        case ContainsGrade():
            return ContainsGrader(config.label, config.normalisation)
        case NumberGrade():
            return NumberGrader(config.label, Fraction(str(config.tolerance)))
        case PatternGrade():
            return PatternGrader(config.label, config.pattern, config.normalisation)
        case PythonGrade():
            return PythonGrader(config.label, _user_code(config, where), config.timeout_s)


def _user_code(config: PythonGrade, where: str) -> UserCode:
    file, _, function = config.path.rpartition(":")
    try:
        source = Path(file).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(
            f"{where}.path: {file} cannot be read ({reason}): name a Python file"
        ) from error
    code = UserCode(file, source, function)
    code.check(where)
    return code


def best_choice(values: Sequence[float]) -> int:
    """Return the index of the largest value, the first of several that are equal."""
    return max(range(len(values)), key=lambda index: (values[index], -index))


def normalise(text: str, how: Normalisation) -> str:
    """A text as a grade compares it, see `Normalisation`."""
    if how != "squad":
        text = text.strip() if how == "none" else text.strip().casefold()
        return unicodedata.normalize("NFC", text)
    text = unicodedata.normalize("NFC", text)
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


_NUMBER = re.compile(
    r"(?:(?<![\w)\]])(-))?(?:[$€£] ?(-)?)?(?<!\d)"
    r"((?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"([eE][+-]?\d{1,3}(?!\d))?(?:/(\d+))?"
)
_LONGEST_NUMBER = 300


def last_number(text: str) -> Fraction | None:
    """The first number after the first `####` of a text, or, without that, its last number.

    Commas divide thousands, as in `1,250.00`; `3/4` is a fraction. Units beside a number are not
    read: `$18`, `50%` and `18 km` are 18, 50 and 18.
    """
    text = text.replace("\N{MINUS SIGN}", "-")
    _, marker, after = text.partition("####")
    after_marker = _numbers(after) if marker else []
    return after_marker[0] if after_marker else next(iter(_numbers(text)[-1:]), None)


def _numbers(text: str) -> list[Fraction]:
    found = []
    for match in _NUMBER.finditer(text):
        minus, inner_minus, digits, exponent, divisor = match.groups()
        if len(match.group()) > _LONGEST_NUMBER or (divisor and not int(divisor)):
            continue
        number = Fraction(digits.replace(",", "") + (exponent or "")) / int(divisor or 1)
        found.append(-number if minus or inner_minus else number)
    return found


def _shown(number: Fraction) -> str:
    """A number in one way, whatever way it was written."""
    if number.denominator == 1:
        return str(number.numerator)
    return f"{Decimal(number.numerator) / Decimal(number.denominator)}"


def extract_answer(text: str, pattern: str | None) -> str:
    """The answer in a generated text: the last match of `pattern`, a number in its shortest form.

    `1,250.00` and `1250` are the same answer. Without a match, it is empty. Without a pattern, it
    is the whole text, stripped of surrounding blanks and case-folded.
    """
    if pattern is None:
        return unicodedata.normalize("NFC", text.strip().casefold())
    found = [match.group(match.lastindex or 0) for match in re.finditer(pattern, text)]
    answer = re.sub(r"(?<=\d),(?=\d{3})", "", found[-1]).strip().rstrip(".,") if found else ""
    is_decimal = re.fullmatch(r"-?\d+\.\d+", answer)
    return answer.rstrip("0").rstrip(".") if is_decimal else answer
