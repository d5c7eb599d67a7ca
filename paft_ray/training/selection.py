"""The choice of a training's best step by its validation, and its early end.

A choice depends on the results up to a step and on nothing else. They are on storage before the
step's checkpoint, so that a training that was interrupted chooses as one that was not.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from paft_ray.config import ValidationConfig
from paft_ray.evaluation.goal import reached
from paft_ray.storage.paths import Storage
from paft_ray.tracking import Metric
from paft_ray.training.loop import Wanted
from paft_ray.training.state.checkpoint import Checkpoints, Restored
from paft_ray.training.validation import forget_results, read_results

if TYPE_CHECKING:
    from paft_ray.training.engine import Engine


@dataclass(frozen=True, slots=True)
class Best:
    """The best of the steps that were scored so far."""

    step: int
    """The earliest with the highest figure."""
    figure: float
    """The goal's figure after it."""
    since: int
    """Scores after it, none of which is better."""


def best_of(figures: Mapping[int, float]) -> Best | None:
    """The best of some steps, from the goal's figure after each; None where there is none."""
    if not figures:
        return None
    step = max(figures, key=lambda step: (figures[step], -step))
    return Best(step, figures[step], sum(other > step for other in figures))


class Selection:
    """Follows the scores of one training; every rank has one, and all choose the same."""

    def __init__(
        self,
        config: ValidationConfig,
        steps: Iterable[int],
        training: Storage,
        checkpoints: Checkpoints,
    ) -> None:
        """Begin without scores; `load` comes next.

        Args:
            config: How to choose.
            steps: The steps that are scored.
            training: The training's folder.
            checkpoints: Its checkpoints.
        """
        self._config, self._steps = config, tuple(steps)
        self._training, self._checkpoints = training, checkpoints
        self._figures: dict[int, float] = {}

    def load(self) -> Restored | None:
        """The newest checkpoint from which the choice is known, or None; collective.

        Results of later steps are removed: they are trained and scored again. A checkpoint whose
        best one before it is torn is passed over, as a torn one is.
        """
        figures = self._checkpoints.on_first(
            lambda: {
                step: reached(self._config.goal, grade_PE)
                for step, grade_PE in read_results(self._training).items()
            }
        )
        restored = self._checkpoints.load(lambda step: self._needed(figures, step))
        last = 0 if restored is None else restored.progress.step
        self._checkpoints.on_first(lambda: forget_results(self._training, last))
        self._figures = {step: figure for step, figure in figures.items() if step <= last}
        self._checkpoints.retain(self._kept(self._figures))
        return restored

    def add(self, step: int, grade_PE: NDArray[np.float64]) -> Wanted:
        """Take the result of a step, the grade of each answer; returns what follows from it."""
        self._figures[step] = reached(self._config.goal, grade_PE)
        kept = self._kept(self._figures)
        self._checkpoints.retain(kept)
        return Wanted(checkpoint=kept == step, end=self.ended)

    def metrics(self, step: int) -> dict[str, float]:
        """The goal's figure after a step that was scored, and the best step so far, by names."""
        best = self.best
        assert best is not None
        return {
            Metric.VALIDATION_GOAL: self._figures[step],
            Metric.VALIDATION_BEST_STEP: float(best.step),
        }

    @property
    def best(self) -> Best | None:
        """The best step so far."""
        return best_of(self._figures)

    @property
    def ended(self) -> bool:
        """Return whether patience is at its end."""
        patience, best = self._config.patience, self.best
        return patience is not None and best is not None and best.since >= patience

    def until(self, step: int, total: int) -> int:
        """The last step of a training that is at `step`: that one itself where it has ended."""
        return step if self.ended else total

    def restore_best(self, engine: "Engine", step: int) -> None:
        """Give an engine that is at `step` the weights that are to be saved; collective.

        Raises:
            TrainingError: Their checkpoint is torn.
        """
        if (kept := self._kept(self._figures)) not in (None, step):
            engine.restore(self._checkpoints.load_step(kept).state, None)

    def _kept(self, figures: Mapping[int, float]) -> int | None:
        """The step whose checkpoint must stay, or None where no choice is made."""
        best = best_of(figures)
        return best.step if best is not None and self._config.keep_best else None

    def _needed(self, figures: Mapping[int, float], step: int) -> int | None:
        """See `Checkpoints.load`; without the result of a scored step there is no choice."""
        until = {scored: figures.get(scored) for scored in self._steps if scored <= step}
        known = {scored: figure for scored, figure in until.items() if figure is not None}
        return (self._kept(known) or step) if len(known) == len(until) else None
