"""How sure the figures are: intervals of one model, and paired differences of two.

Every resample draws prompts, examples and, where there are several, seeds with replacement, the
same ones for all models, so that what makes a prompt or an example hard cancels out of a
difference. Two models are compared by the interval of their difference and never by their two
intervals.

Shapes: S seeds, P prompts, E examples, R resamples.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paft_ray.errors import DataError
from paft_ray.evaluation.metrics import OVER_PROMPTS, Statistic, require_grid

_AT_ONCE = 250


@dataclass(frozen=True, slots=True)
class Difference:
    """One model's statistic minus another's, with a 95% interval."""

    value: float
    """The difference on the grid itself."""
    low: float
    high: float
    p: float
    """Two-sided p-value of the same resamples: how often the difference has the other sign."""


@dataclass(frozen=True)
class Resamples:
    """Statistics of several models, on the grid itself and on the same R resamples of it."""

    values: Mapping[str, Mapping[Statistic, float]]
    """Label and statistic to its value."""
    draws: Mapping[str, Mapping[Statistic, NDArray[np.float64]]]
    """Label and statistic to its values on the resamples: shape [R]."""

    def interval(self, label: str, statistic: Statistic) -> tuple[float, float]:
        """95% interval of one model's statistic, between 0 and 1."""
        return interval(self.draws[label][statistic], self.values[label][statistic], 0.0)

    def difference(self, a: str, b: str, statistic: Statistic) -> Difference:
        """Statistic of `a` minus that of `b`, between -1 and 1."""
        value = self.values[a][statistic] - self.values[b][statistic]
        draws_R = self.draws[a][statistic] - self.draws[b][statistic]
        centred_R = draws_R - (draws_R.mean() - value)
        fewer = min((centred_R <= 0).sum(), (centred_R >= 0).sum())
        p = min(1.0, 2 * (fewer + 1) / (len(draws_R) + 1))
        low, high = interval(draws_R, value, -1.0)
        return Difference(value, low, high, float(p))


def resample(
    correct: Mapping[str, NDArray[np.bool_]], resamples: int = 2000, seed: int = 0
) -> Resamples:
    """Bootstrap the statistics of several models over the same prompts, examples and seeds.

    A statistic is taken per seed and averaged. Models of one seed, such as the base model, keep
    theirs in every resample. With few seeds the intervals are somewhat too narrow: a bootstrap
    over S values sees (S - 1) / S of their variance.

    Args:
        correct: Label to whether the answers are right: [P, E], or [S, P, E].
        resamples: How many.
        seed: Of the resamples.

    Raises:
        DataError: A grid is empty, or two are not of the same prompts and examples.
    """
    grids = {label: _with_seeds(grid) for label, grid in correct.items()}
    prompts, examples = next(iter(grids.values())).shape[1:]
    for grid_SPE in grids.values():
        if grid_SPE.shape[1:] != (prompts, examples):
            raise DataError(
                f"grids of {(prompts, examples)} and {grid_SPE.shape[1:]} prompts x examples "
                "cannot be paired: evaluate both models on the same ones"
            )
    rng = np.random.default_rng(seed)
    most_seeds = max(len(grid_SPE) for grid_SPE in grids.values())
    parts: dict[str, list[Mapping[Statistic, NDArray[np.float64]]]] = {label: [] for label in grids}
    for start in range(0, resamples, _AT_ONCE):
        count = min(_AT_ONCE, resamples - start)
        weights_ER = rng.multinomial(examples, np.full(examples, 1 / examples), count).T / examples
        drawn_PR = rng.integers(prompts, size=(prompts, count))
        uniform_SR = rng.random((most_seeds, count))
        for label, grid_SPE in grids.items():
            accuracy_SRP = np.take_along_axis(
                grid_SPE @ weights_ER, drawn_PR[None], axis=1
            ).swapaxes(1, 2)
            seeds = len(grid_SPE)
            seed_SR = (uniform_SR[:seeds] * seeds).astype(int)
            parts[label].append(
                {
                    name: np.take_along_axis(over_prompts(accuracy_SRP), seed_SR, axis=0).mean(0)
                    for name, over_prompts in OVER_PROMPTS.items()
                }
            )
    return Resamples(
        {
            label: {
                name: float(over_prompts(grid_SPE.mean(axis=2)).mean())
                for name, over_prompts in OVER_PROMPTS.items()
            }
            for label, grid_SPE in grids.items()
        },
        {
            label: {
                name: np.concatenate([part[name] for part in of_label]) for name in OVER_PROMPTS
            }
            for label, of_label in parts.items()
        },
    )


def interval(draws_R: NDArray[np.float64], value: float, least: float) -> tuple[float, float]:
    """95% interval of a statistic: percentiles of the resamples, moved by their mean error.

    A resample of examples adds its own noise to the spread over prompts, so that its std is larger
    and its minimum lower than those of the grid. Moved, both bounds can lie beyond what the
    statistic can be, which is from `least` to 1: they are brought back.
    """
    bounds = np.quantile(draws_R, (0.025, 0.975)) - (draws_R.mean() - value)
    low, high = np.clip(bounds, least, 1.0)
    return float(low), float(high)


def _with_seeds(correct: NDArray[np.bool_]) -> NDArray[np.float64]:
    require_grid(correct)
    return correct.reshape(-1, *correct.shape[-2:]).astype(np.float64)
