"""Scores: a model's answers to examples under prompts, graded; as records and as a table."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paft_ray.config.errors import DataError
from paft_ray.models.said import Continuation, Likelihoods
from paft_ray.prompts.template import parse
from paft_ray.prompts.variation import PLAIN, Condition, Put
from paft_ray.prompts.variation import put as put_example
from paft_ray.tasks import Example, Task
from paft_ray.tasks.grading import Grade, RankedGrader

SCORES_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("example_id", pa.string()),
        ("prediction", pa.string()),
        ("correct", pa.bool_()),
        ("choice_logprobs", pa.list_(pa.float64())),
        ("normalised_correct", pa.bool_()),
        ("generated_text", pa.string()),
        ("generated_tokens", pa.int64()),
        ("unended", pa.bool_()),
        ("begins_right", pa.bool_()),
        ("grade", pa.float64()),
        ("further_grades", pa.list_(pa.float64())),
        ("axis", pa.string()),
        ("level", pa.string()),
        ("draw", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Score:
    """A model's answer to an example under a prompt, and its grade."""

    prompt_id: str
    example_id: str
    prediction: str
    correct: bool
    """Whether the grade is 1."""
    choice_logprobs: tuple[float, ...] | None = None
    """Log-likelihood of every choice, in the order of the choices, in nats; with its end token,
    unless `task.answer_end` is `ignored`. None where the prediction is another one than the
    likeliest choice."""
    normalised_correct: bool | None = None
    """Whether the choice with the best log-likelihood per character is right (lm-eval's
    acc_norm, which leaves out the end token)."""
    generated_text: str | None = None
    generated_tokens: int | None = None
    unended: bool | None = None
    """Whether the text reached `evaluation.max_new_tokens` without an end."""
    begins_right: bool | None = None
    """See `tasks.grading.Grade`."""
    grade: float | None = None
    """The grade where it lies between 0 and 1; None where `correct` says it."""
    further_grades: tuple[float, ...] | None = None
    """Grades of the further graders of the task, in their order; None where it has one."""
    axis: str | None = None
    """The axis of `evaluation.variation` along which the question was put otherwise; None for none.
    The prediction is then what was said, under whatever names and in whatever order."""
    level: str | None = None
    """The level of the axis."""
    draw: int | None = None
    """Number of the draw of demonstrations; None without any."""

    @property
    def value(self) -> float:
        """The grade, from 0 to 1."""
        return float(self.correct) if self.grade is None else self.grade


@dataclass(frozen=True, slots=True)
class Asked:
    """Examples to answer under one prompt."""

    prompt_id: str
    text: str
    """The prompt's template."""
    examples: Sequence[Example]
    condition: Condition = PLAIN
    seed: int = 0
    """Seed of what the condition draws."""

    def puts(self, task: Task) -> list[Put]:
        """The examples as a model is asked."""
        template = parse(self.text, task.slots)
        place = self.seed, self.prompt_id
        return [put_example(task, template, e, self.condition, *place, e.id) for e in self.examples]

    def where(self, example: Example) -> str:
        """Name one of them in messages."""
        return example.under(self.prompt_id)


def graded(
    task: Task,
    asked: Sequence[tuple[Asked, Sequence[Put]]],
    ranked: Iterator[Likelihoods] | None = None,
    written: Iterator[Continuation] | None = None,
) -> list[list[Score]]:
    """Grade what a model said to each example of each prompt.

    Args:
        task: With its graders.
        asked: The prompts and examples, and these as the model was asked.
        ranked: For each example under each prompt the log-likelihoods of its choices, where the
            task ranks.
        written: For each of them a text, where the task generates.

    Raises:
        DataError: Log-likelihoods are not finite.
        GradeError: A function of the user's failed.
    """
    return [
        [
            _score(
                task, each, one,
                None if ranked is None else next(ranked),
                None if written is None else next(written),
            )
            for one in put
        ]
        for each, put in asked
    ]  # fmt: skip


def _score(
    task: Task,
    asked: Asked,
    one: Put,
    ranked: Likelihoods | None,
    written: Continuation | None,
) -> Score:
    example, choices = one.example, one.choices
    where = asked.where(example)
    if ranked is not None and not all(map(math.isfinite, ranked.whole)):
        raise DataError(
            f"{where}: the model's log-likelihoods are {list(ranked.whole)}; look at the adapter "
            "and at model.dtype"
        )
    grades: list[Grade] = []
    for grader in task.graders:
        if isinstance(grader, RankedGrader):
            assert ranked is not None and choices is not None
            grades.append(grader.grade(example, choices, ranked.whole, ranked.text))
        else:
            assert written is not None
            grades.append(grader.grade(example, written.text, where))
    main, decides = grades[0], task.graders[0]
    likeliest = isinstance(decides, RankedGrader) and not decides.length_normalised
    normalised = None
    if likeliest and ranked is not None and choices is not None:
        by_length = RankedGrader(length_normalised=True)
        normalised = by_length.grade(example, choices, ranked.whole, ranked.text).value == 1
    return Score(
        asked.prompt_id,
        example.id,
        main.prediction,
        main.value == 1,
        ranked.whole if likeliest and ranked is not None else None,
        normalised,
        generated_text=written and written.text,
        generated_tokens=written and written.tokens,
        unended=None if written is None else not written.ended,
        begins_right=main.begins_right,
        grade=None if main.value in (0, 1) else main.value,
        further_grades=tuple(grade.value for grade in grades[1:]) or None,
        axis=one.condition.axis or None,
        level=one.condition.level or None,
        draw=one.condition.draw if one.condition.demonstrations else None,
    )


def scores_table(scores: Sequence[Score]) -> pa.Table:
    """Scores as a table with `SCORES_SCHEMA`."""
    return pa.Table.from_pylist([asdict(score) for score in scores], SCORES_SCHEMA)


def grades_of(scores: pa.Table) -> NDArray[np.float64]:
    """The grade of every row of a table of scores, from 0 to 1; in older ones `correct` says it."""
    grade_N = scores["correct"].to_numpy().astype(np.float64)
    if "grade" in scores.column_names:
        partial_N = scores["grade"].to_numpy().astype(np.float64)
        grade_N = np.where(np.isnan(partial_N), grade_N, partial_N)
    return grade_N


def further_grades(scores: pa.Table) -> list[NDArray[np.float64]]:
    """The further grades of every row, an array for each grader, nan where a row has none."""
    if "further_grades" not in scores.column_names or not scores.num_rows:
        return []
    column = scores["further_grades"].combine_chunks()
    count_N = pc.fill_null(column.value_lengths(), 0).to_numpy(zero_copy_only=False)
    grade_NG = np.full((scores.num_rows, count_N.max()), np.nan)
    flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    grade_NG[count_N > 0] = flat.reshape(-1, grade_NG.shape[1] or 1)
    return list(grade_NG.T)
