"""Intervals of one model's figures, and paired differences of two models.

Every resample draws prompts, examples and, where there are several, seeds with replacement, the
same ones for all models, so that the difficulty of prompts and examples cancels out of a
difference. Two models are compared by the interval of their difference, never by their own ones.

Shapes: S seeds, P prompts, E examples, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paft_ray.config.errors import DataError
from paft_ray.evaluation.figures import Figure, of_answers, of_grid, over_prompts
from paft_ray.evaluation.metrics import AnswerGrid, require_grid

_AT_ONCE = 250
_TIE = 1e-12


@dataclass(frozen=True, slots=True)
class Difference:
    """One model's statistic minus another's, with a 95% interval."""

    value: float
    """The difference on the grid itself."""
    low: float
    high: float
    p: float | None
    """Two-sided p-value: how often the difference has the other sign on the resamples; None where
    the two models have different resamples."""


@dataclass(frozen=True)
class Resamples:
    """Figures of several models, on the grid itself and on the same R resamples of it."""

    values: Mapping[str, Mapping[str, float]]
    """Label and key of a figure to its value."""
    draws: Mapping[str, Mapping[str, NDArray[np.float64]]]
    """Label and key of a figure to its values on the resamples: shape [R]."""

    def interval(self, label: str, figure: Figure) -> tuple[float, float]:
        """95% interval of one model's figure."""
        value = self.values[label][figure.key]
        return interval(self.draws[label][figure.key], value, 0.0, figure.most)

    def difference(self, a: str, b: str, figure: Figure) -> Difference:
        """Figure of `a` minus that of `b`."""
        value = self.values[a][figure.key] - self.values[b][figure.key]
        return difference(value, self.draws[a][figure.key] - self.draws[b][figure.key], figure.most)


def difference(value: float, draws_R: NDArray[np.float64], most: float = 1.0) -> Difference:
    """A difference on a grid, and on resamples of it."""
    centred_R = draws_R - (draws_R.mean() - value)
    # sums in another order differ by a bit, and few right answers make many ties
    rarer = min((centred_R <= _TIE).sum(), (centred_R >= -_TIE).sum())
    p = min(1.0, 2 * (rarer + 1) / (len(draws_R) + 1))
    low, high = interval(draws_R, value, -most, most)
    return Difference(value, low, high, float(p))


def resample(
    grades: Mapping[str, NDArray[Any]],
    resamples: int = 2000,
    seed: int = 0,
    thresholds: Sequence[float] = (),
    answers: Mapping[str, Sequence[AnswerGrid]] | None = None,
    draws: int = 1,
) -> Resamples:
    """Bootstrap the figures of several models over the same prompts, examples and seeds.

    A figure is taken per seed and averaged. Models of one seed, such as the base model, keep
    their seed in every resample. With few seeds the intervals are somewhat too narrow: a bootstrap
    over S values sees (S - 1) / S of their variance.

    Args:
        grades: Label to the grades of the answers, from 0 to 1: [P, E], or [S, P, E].
        resamples: Number of resamples.
        seed: Seed of the resamples.
        thresholds: Accuracies for Top@t.
        answers: Label to the answers of each seed, for agreement, calibration and tokens.
        draws: Draws of demonstrations: each model's seeds are there once for every draw, and both
            are resampled apart.

    Raises:
        DataError: A grid is empty, or two are not of the same prompts and examples.
    """
    grids = {label: _with_seeds(grid) for label, grid in grades.items()}
    prompts, examples = next(iter(grids.values())).shape[1:]
    for grid_SPE in grids.values():
        if grid_SPE.shape[1:] != (prompts, examples):
            raise DataError(
                f"grids of {(prompts, examples)} and {grid_SPE.shape[1:]} prompts x examples "
                "cannot be paired: evaluate both models on the same ones"
            )
    rng = np.random.default_rng(seed)
    batches = [
        _resampled(rng, min(_AT_ONCE, resamples - start), grids, thresholds, answers, draws)
        for start in range(0, resamples, _AT_ONCE)
    ]
    once = np.ones((1, prompts)), np.ones((1, examples))
    values, resampled = {}, {}
    for label, grid_SPE in grids.items():
        by_seed = over_prompts(grid_SPE.mean(axis=2), thresholds)
        by_seed |= _of_answers(answers, label, *once)
        by_grid = [of_grid(grid_PE) for grid_PE in grid_SPE]
        by_seed |= {key: np.array([each[key] for each in by_grid]) for key in by_grid[0]}
        values[label] = {key: float(values_S.mean()) for key, values_S in by_seed.items()}
        resampled[label] = {
            key: np.concatenate([batch[label][key] for batch in batches])
            for key in batches[0][label]
        }
    return Resamples(values, resampled)


def _resampled(
    rng: np.random.Generator,
    count: int,
    grids: Mapping[str, NDArray[np.float64]],
    thresholds: Sequence[float],
    answers: Mapping[str, Sequence[AnswerGrid]] | None,
    draws: int,
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Label and statistic to its values on `count` resamples of grids [S, P, E]: shape [R]."""
    prompts, examples = next(iter(grids.values())).shape[1:]
    times_RE = rng.multinomial(examples, np.full(examples, 1 / examples), count)
    drawn_PR = rng.integers(prompts, size=(prompts, count))
    seeds = {label: len(grid) // draws for label, grid in grids.items()}
    uniform_SR = rng.random((max(seeds.values()), count))
    draw_DR = rng.integers(draws, size=(draws, count)) if draws > 1 else np.zeros((1, count), int)
    times_RP = np.zeros((count, prompts))
    np.add.at(times_RP, (np.arange(count), drawn_PR), 1)
    found = {}
    for label, grid_SPE in grids.items():
        accuracy_SPR = grid_SPE @ (times_RE.T / examples)
        drawn_SRP = np.take_along_axis(accuracy_SPR, drawn_PR[None], axis=1).swapaxes(1, 2)
        by_seed = over_prompts(drawn_SRP, thresholds)
        by_seed |= _of_answers(answers, label, times_RP, times_RE.astype(np.float64))
        seed_SR = (uniform_SR[: seeds[label]] * seeds[label]).astype(int)
        found[label] = {
            name: _drawn_again(values_SR.reshape(draws, -1, count), draw_DR, seed_SR)
            for name, values_SR in by_seed.items()
        }
    return found


def _drawn_again(
    values_DSR: NDArray[np.float64], draw_DR: NDArray[np.int_], seed_SR: NDArray[np.int_]
) -> NDArray[np.float64]:
    """The mean over resampled seeds and draws: shape [R]."""
    seeds_DR = np.take_along_axis(values_DSR, seed_SR[None], axis=1).mean(axis=1)
    return np.take_along_axis(seeds_DR, draw_DR, axis=0).mean(axis=0)


def _of_answers(
    answers: Mapping[str, Sequence[AnswerGrid]] | None,
    label: str,
    times_RP: NDArray[np.float64],
    times_RE: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    """Figures of one model's answers, each with shape [S, R]."""
    if answers is None:
        return {}
    by_seed = [of_answers(grid.weighted(times_RP, times_RE)) for grid in answers[label]]
    known = [key for key in by_seed[0] if all(key in each for each in by_seed)]
    return {key: np.stack([each[key] for each in by_seed]) for key in known}


def interval(
    draws_R: NDArray[np.float64], value: float, least: float, most: float = 1.0
) -> tuple[float, float]:
    """95% interval of a statistic: percentiles of the resamples, moved by their mean error.

    A resample of examples adds its own noise to the spread over prompts, so that its std is larger
    and its minimum lower than those of the grid. Bounds outside of the statistic's
    range, `least` to `most`, are clipped.
    """
    bounds = np.quantile(draws_R, (0.025, 0.975)) - (draws_R.mean() - value)
    low, high = np.clip(bounds, least, most)
    return float(low), float(high)


def _with_seeds(grades: NDArray[Any]) -> NDArray[np.float64]:
    require_grid(grades)
    return grades.reshape(-1, *grades.shape[-2:]).astype(np.float64)
