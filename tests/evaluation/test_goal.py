"""The figure that a search wants to be high, by hand and against the bootstrap of evaluation."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from paft_ray.config import GoalConfig
from paft_ray.evaluation.bootstrap import resample
from paft_ray.evaluation.figures import LOW_QUANTILE, MEAN, WORST
from paft_ray.evaluation.goal import goal_intervals, reached

CORRECT_PE = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], bool)


def goal_of(**tree: object) -> GoalConfig:
    return TypeAdapter(GoalConfig).validate_python(tree)


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        ({"type": "mean"}, 0.75),
        ({"type": "worst"}, 0.5),
        ({"type": "p05"}, 0.525),
        ({"type": "mean_minus_std", "weight": 2}, 0.75 - 2 * np.std([1, 0.5, 0.75])),
    ],
)
def test_goal_of_three_prompts(goal, expected) -> None:
    assert reached(goal_of(**goal), CORRECT_PE) == pytest.approx(expected)


def test_intervals_are_those_of_the_evaluation() -> None:
    rng = np.random.default_rng(0)
    grids = {name: rng.random((8, 30)) < share for name, share in (("a", 0.6), ("b", 0.9))}
    expected = resample(grids)
    for kind, figure in (("mean", MEAN), ("p05", LOW_QUANTILE), ("worst", WORST)):
        found = goal_intervals(goal_of(type=kind), grids)
        for label in grids:
            low, high = expected.interval(label, figure)
            assert found[label] == pytest.approx((low, min(1.0, high)), abs=0.03)
            assert found[label][0] < reached(goal_of(type=kind), grids[label]) < found[label][1]
