"""The figure that a search wants to be high, and the records of its trials; pure but for storage.

Shapes: P prompts, E examples.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from paft_ray.config import GoalConfig, LowQuantile, MeanAccuracy, MeanMinusStd
from paft_ray.evaluation.bootstrap import interval, resample
from paft_ray.evaluation.figures import LOW_QUANTILE, MEAN, STD, WORST, over_prompts
from paft_ray.storage.paths import Storage

State = Literal["begun", "finished", "stopped", "failed"]
_FOLDER = "trials"


def reached(goal: GoalConfig, correct_PE: NDArray[np.bool_]) -> float:
    """The goal's figure, from whether each answer is right: shape [P, E]."""
    found = over_prompts(correct_PE.mean(axis=1))
    return sum(w * float(found[key]) for key, w in _terms(goal).items())


def goal_intervals(
    goal: GoalConfig, correct: Mapping[str, NDArray[np.bool_]]
) -> dict[str, tuple[float, float]]:
    """95% intervals of the goal's figure for several models on the same prompts and examples.

    Args:
        goal: Which figure.
        correct: Label to [P, E], or [S, P, E] with S seeds.
    """
    found = resample(correct)
    intervals: dict[str, tuple[float, float]] = {}
    for label, draws in found.draws.items():
        draws_R = np.sum([w * draws[key] for key, w in _terms(goal).items()], axis=0)
        value = sum(w * found.values[label][key] for key, w in _terms(goal).items())
        least = -math.inf if isinstance(goal, MeanMinusStd) else 0.0
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
    """What people call it."""
    if isinstance(goal, MeanMinusStd):
        return f"mean - {goal.weight:g} x std"
    return {"mean": "mean accuracy", "p05": "5% quantile", "worst": "worst prompt"}[goal.type]


@dataclass(frozen=True)
class TrialRecord:
    """One trial as it stands on storage; its results lie beside its training."""

    number: int
    """From 0."""
    sample: Mapping[str, Any]
    state: State = "begun"
    """Finished with all steps, stopped early by the scheduler, or failed for `reason`."""
    seconds: float = 0.0
    """Wall-clock time of the attempt that ended it, loading included."""
    reason: str = ""
    tracked: bool = False
    """Whether its tracked run has its final state."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the training says of itself: steps, tokens, seconds of its steps."""

    @property
    def label(self) -> str:
        """Of its variant, which names its folder."""
        return trial_label(self.number)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.state != "begun"


def trial_label(number: int) -> str:
    """Label of a trial's variant."""
    return f"trial_{number:03d}"


def write_record(run: Storage, record: TrialRecord) -> None:
    """Put a trial's record into a search's folder."""
    run.child(_FOLDER).write_json(f"{record.number:03d}.json", asdict(record))


def read_record(run: Storage, number: int) -> TrialRecord | None:
    """One trial's record, if it has begun."""
    name, folder = f"{number:03d}.json", run.child(_FOLDER)
    return TrialRecord(**folder.read_json(name)) if folder.exists(name) else None


def read_records(run: Storage) -> list[TrialRecord]:
    """All trials that have begun, by number."""
    folder = run.child(_FOLDER)
    records = [TrialRecord(**folder.read_json(name)) for name in folder.names()]
    return sorted(records, key=lambda record: record.number)
