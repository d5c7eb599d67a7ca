"""Refusals of data whose answers could not be graded as they should."""

from collections.abc import Iterable, Sequence

from paft_ray.config.errors import DataError
from paft_ray.tasks.example import Example
from paft_ray.tasks.grading import Grader, RankedGrader

_FEW = 8
"""Rows that may have one right letter by chance."""


def refuse_one_place(examples: Sequence[Example]) -> None:
    """Refuse letters that give the answer away, since the right choice always stands first.

    Raises:
        DataError: There are some.
    """
    if len(examples) > _FEW:
        places = {example.answer for example in examples}
        if len(places) == 1:
            raise DataError(
                f"task.choices: the right one of all {len(examples)} rows is {places.pop()}, so "
                "that the letter alone gives it away: set task.choices.shuffle: true"
            )


def refuse_unreadable_choices(choices: Sequence[str], graders: Sequence[Grader]) -> None:
    """Refuse graders to which some choice is nothing, as the letter A is an article to SQuAD's.

    Raises:
        DataError: There are some.
    """
    for grader in graders:
        for choice in choices:
            if not isinstance(grader, RankedGrader) and not grader.reads(choice):
                raise DataError(
                    f"task.grade: {grader.label} finds nothing to compare in the choice "
                    f"{choice!r}: set its normalisation to case, or grade otherwise"
                )


def refuse_unreadable(
    examples: Iterable[Example], graders: Sequence[Grader], where: str = "task.grade"
) -> None:
    """Refuse right answers that no text could equal, since nothing is left of them.

    `where` names the graders' place in the configuration.

    Raises:
        DataError: There are some.
    """
    reading = [grader for grader in graders if not isinstance(grader, RankedGrader)]
    for example in examples:
        for grader in reading:
            if not grader.reads(example.answer):
                raise DataError(
                    f"{example.where}: the answer is {example.answer[:80]!r}, in which {where} "
                    f"{grader.label} finds nothing to compare: mend the row or remove it, or grade "
                    "otherwise"
                )
