"""The figure by which models are chosen on validation prompts: trials, and checkpoints; pure.

Shapes: P prompts, E examples.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paft_ray.config import GoalConfig, LowQuantile, MeanAccuracy, MeanMinusStd
from paft_ray.evaluation.bootstrap import interval, resample
from paft_ray.evaluation.figures import LOW_QUANTILE, MEAN, STD, WORST, over_prompts


def reached(goal: GoalConfig, grade_PE: NDArray[Any]) -> float:
    """The goal's figure, from the grade of each answer: shape [P, E]."""
    found = over_prompts(grade_PE.mean(axis=1))
    return sum(w * float(found[key]) for key, w in _terms(goal).items())


def goal_intervals(
    goal: GoalConfig, grades: Mapping[str, NDArray[Any]], draws: int = 1
) -> dict[str, tuple[float, float]]:
    """95% intervals of the goal's figure for several models on the same prompts and examples.

    Args:
        goal: The goal.
        grades: Label to the grade of each answer: [P, E], or [S, P, E] with S seeds.
        draws: See `resample`.
    """
    found, terms = resample(grades, draws=draws), _terms(goal).items()
    least = -math.inf if isinstance(goal, MeanMinusStd) else 0.0
    intervals: dict[str, tuple[float, float]] = {}
    for label, of_label in found.draws.items():
        draws_R = np.sum([w * of_label[key] for key, w in terms], axis=0)
        value = sum(w * found.values[label][key] for key, w in terms)
        intervals[label] = interval(draws_R, value, least)
    return intervals


def _terms(goal: GoalConfig) -> Mapping[str, float]:
    """The goal as a sum of figures over prompts, by key, with weights."""
    if isinstance(goal, MeanAccuracy):
        return {MEAN.key: 1.0}
    if isinstance(goal, MeanMinusStd):
        return {MEAN.key: 1.0, STD.key: -goal.weight}
    return {(LOW_QUANTILE if isinstance(goal, LowQuantile) else WORST).key: 1.0}


def goal_name(goal: GoalConfig) -> str:
    """The goal's name for people."""
    if isinstance(goal, MeanMinusStd):
        return f"mean - {goal.weight:g} x std"
    return {"mean": "mean accuracy", "p05": "5% quantile", "worst": "worst prompt"}[goal.type]
