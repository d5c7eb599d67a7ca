"""`train.objective.rewards`: what a rollout is rewarded for."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from paft_ray.config.base import Section
from paft_ray.config.grade import (
    ContainsGrade,
    ExactGrade,
    F1Grade,
    NumberGrade,
    PatternGrade,
    PythonGrade,
    listed,
)


class Reward(Section, affects="weights"):
    """A grade, and how much it counts."""

    weight: float = 1.0
    """What the grade is multiplied with; a negative one punishes."""


class GradeReward(Reward, affects="weights"):
    """The grade of `task.grade`, the first one where there are several."""

    type: Literal["grade"]


class ExactReward(ExactGrade, Reward, affects="weights"):
    """See `ExactGrade`."""


class F1Reward(F1Grade, Reward, affects="weights"):
    """See `F1Grade`."""


class ContainsReward(ContainsGrade, Reward, affects="weights"):
    """See `ContainsGrade`."""


class NumberReward(NumberGrade, Reward, affects="weights"):
    """See `NumberGrade`."""


class PatternReward(PatternGrade, Reward, affects="weights"):
    """See `PatternGrade`."""


class PythonReward(PythonGrade, Reward, affects="weights"):
    """See `PythonGrade`."""


TextReward = ExactReward | F1Reward | ContainsReward | NumberReward | PatternReward | PythonReward
RewardConfigs = Annotated[
    tuple[Annotated[GradeReward | TextReward, Field(discriminator="type")], ...],
    BeforeValidator(listed),
    Field(min_length=1),
]
"""One reward, its name, or a list of them."""
