"""Rewards: what a text that the model wrote is worth, as a weighted sum of grades."""

import math
from dataclasses import dataclass

from paft_ray.config import GRPO, Config
from paft_ray.config.errors import ConfigError, GradeError
from paft_ray.config.rewards import GradeReward
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.tasks import Example, Task
from paft_ray.tasks.gradable import refuse_unreadable
from paft_ray.tasks.grading import PythonGrader, RankedGrader, TextGrader, open_grader


@dataclass(frozen=True, slots=True)
class Rewarded:
    """What a text was worth."""

    value: float
    """The weighted sum."""
    parts: tuple[float, ...]
    """The grade of each reward, without its weight."""
    read: bool
    """Whether some grader found an answer in it."""


@dataclass(frozen=True, slots=True)
class Rewards:
    """The rewards of a training; pickles."""

    graders: tuple[TextGrader, ...]
    weights: tuple[float, ...]

    def of(self, example: Example, text: str, where: str) -> Rewarded:
        """Grade a text; `where` names the example and its prompt in errors.

        Raises:
            GradeError: A function of the user's failed, or the sum is not finite.
        """
        grades = [grader.grade(example, text, where) for grader in self.graders]
        try:
            value = math.fsum(w * g.value for w, g in zip(self.weights, grades, strict=True))
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise GradeError(f"{where}: the reward of the text {text[:80]!r} is {value}")
        parts = tuple(grade.value for grade in grades)
        return Rewarded(value, parts, any(grade.prediction for grade in grades))

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each reward."""
        return tuple(grader.label for grader in self.graders)

    @property
    def code(self) -> str:
        """A hash of the user's code among them; empty without any."""
        own = [grader.code.identity for grader in self.graders if isinstance(grader, PythonGrader)]
        return fingerprint(own) if own else ""


def open_rewards(objective: GRPO, task: Task) -> Rewards:
    """The rewards of an objective.

    Raises:
        ConfigError: A text cannot be graded so, or the user's file cannot be used.
    """
    graders: list[TextGrader] = []
    for number, reward in enumerate(objective.rewards):
        where = f"train.objective.rewards.{number}"
        grader = task.graders[0] if isinstance(reward, GradeReward) else open_grader(reward, where)
        if isinstance(grader, RankedGrader):
            raise ConfigError(
                f"{where}: task.grade ranks choices by their likelihood, which grades no text that "
                "a model writes: name a grade of texts, such as {type: exact}, or set "
                "train.objective.type: expected_reward"
            )
        graders.append(grader)
    weights = tuple(reward.weight for reward in objective.rewards)
    return Rewards(tuple(graders), weights)


def rewards_of(config: Config, task: Task) -> Rewards | None:
    """The rewards of a configuration of a training; None where its model writes nothing.

    Raises:
        ConfigError: See `open_rewards`.
    """
    objective = config.train.objective
    return open_rewards(objective, task) if isinstance(objective, GRPO) else None


def check_rewards(config: Config, task: Task) -> None:
    """Check what rewards need of the task and of the user's files.

    Raises:
        ConfigError: See `open_rewards`.
        DataError: A reward finds nothing to compare in the right answer of an example.
    """
    for training in config.trainings:
        if (rewards := rewards_of(config.of_training(training), task)) is not None:
            refuse_unreadable(task.train, rewards.graders, "train.objective.rewards")
