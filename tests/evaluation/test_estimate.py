"""Figures of the whole grid from a part of it: the draws, and what they cover."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from paft_ray.config.errors import DataError
from paft_ray.evaluation.estimate import Posterior, fit
from paft_ray.evaluation.estimate_cells import balanced_cells
from paft_ray.evaluation.figures import (
    BEST,
    LOW_QUANTILE,
    MEAN,
    STD,
    WORST,
    Figure,
    over_prompts,
    top,
)

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 12)
SMALL_GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 6)).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)


def value(estimate: NDArray, figure: Figure) -> float:
    return Posterior({"model": [estimate]}, thresholds=(0.5,)).values["model"][figure.key]


def interval(estimate: NDArray, figure: Figure) -> tuple[float, float]:
    return Posterior({"model": [estimate]}, thresholds=(0.5,)).interval("model", figure)


def rasch_grid(seed: int, prompts: int, examples: int) -> NDArray[np.bool_]:
    """Answers drawn from a Rasch model with the logistic curve."""
    rng = np.random.default_rng(seed)
    ability_P, difficulty_E = rng.normal(1, 0.8, prompts), rng.normal(0, 1.5, examples)
    right_PE = 1 / (1 + np.exp(difficulty_E - ability_P[:, None]))
    return rng.random(right_PE.shape) < right_PE


def biased_grid(seed: int, prompts: int, examples: int) -> tuple[NDArray[np.bool_], NDArray]:
    """Prompts that pull every answer towards one of two classes; correctness and right answers."""
    rng = np.random.default_rng(seed)
    classes_E = rng.permutation(np.arange(examples) % 2)
    pull_P, hint_E = rng.normal(0, 3, prompts), rng.normal(1, 1, examples) * (2 * classes_E - 1)
    says_one_PE = rng.logistic(size=(prompts, examples)) < pull_P[:, None] + hint_E
    return says_one_PE == classes_E, np.array(["no", "yes"])[classes_E]


@given(arrays(bool, st.tuples(SIZES, SIZES)), SEEDS)
def test_estimate_from_all_cells_is_the_full_grid_without_width(correct_PE, seed):
    estimate = fit(correct_PE, np.ones_like(correct_PE), draws=3, seed=seed)
    exact = over_prompts(correct_PE.mean(axis=1), thresholds=(0.5,))
    for figure in (MEAN, STD, WORST, LOW_QUANTILE, BEST, top(0.5)):
        low, high = interval(estimate, figure)
        assert low == value(estimate, figure) == high == pytest.approx(exact[figure.key])
    order = np.random.default_rng(seed).permutation(len(correct_PE))
    permuted = fit(correct_PE[order], np.ones_like(correct_PE), draws=3, seed=seed)
    assert (permuted == estimate[:, order]).all()


@settings(max_examples=8, deadline=None)
@given(SMALL_GRIDS, SEEDS)
def test_draws_keep_what_was_scored_and_look_at_nothing_else(grids, seed):
    correct_PE, observed_PE = grids
    observed_PE[0, 0] = True
    estimate = fit(correct_PE, observed_PE, draws=4, seed=seed)
    examples = correct_PE.shape[1]
    least_P = (correct_PE & observed_PE).sum(axis=1) / examples
    most_P = (correct_PE | ~observed_PE).sum(axis=1) / examples
    assert (estimate >= least_P - 1e-12).all()
    assert (estimate <= most_P + 1e-12).all()
    other = fit(correct_PE ^ ~observed_PE, observed_PE, draws=4, seed=seed)
    assert (other == estimate).all()


def test_estimate_of_rasch_data_is_close_where_means_of_cells_spread_too_widely():
    estimated, naive = [], []
    for seed in range(4):
        correct_PE = rasch_grid(seed, 60, 300)
        observed_PE = balanced_cells(seed, 60, 300, 0.1)
        estimate = fit(correct_PE, observed_PE, draws=100)
        full_P = correct_PE.mean(axis=1)
        scored_P = (correct_PE & observed_PE).sum(axis=1) / observed_PE.sum(axis=1)
        exact = np.array([full_P.mean(), full_P.std(), np.quantile(full_P, 0.05)])
        found = [value(estimate, figure) for figure in (MEAN, STD, LOW_QUANTILE)]
        estimated.append([*np.abs(found - exact), np.abs(estimate.mean(axis=0) - full_P).mean()])
        crude = [scored_P.mean(), scored_P.std(), np.quantile(scored_P, 0.05)]
        naive.append([*np.abs(crude - exact), np.abs(scored_P - full_P).mean()])
    mean, std, p05, each = np.mean(estimated, axis=0)
    _, naive_std, naive_p05, naive_each = np.mean(naive, axis=0)
    assert mean < 0.015
    assert std < 0.5 * naive_std
    assert p05 < 0.04 < naive_p05
    assert each < 0.85 * naive_each


@pytest.mark.slow
@pytest.mark.parametrize("by_class", [False, True])
def test_intervals_hold_the_full_grid_about_as_often_as_they_say(by_class):
    covered = []
    for seed in range(20):
        correct_PE, classes_E = (
            biased_grid(seed, 30, 60) if by_class else (rasch_grid(seed, 30, 60), None)
        )
        observed_PE = balanced_cells(seed, 30, 60, 0.2, classes_E)
        estimate = fit(correct_PE, observed_PE, classes_E, draws=150, seed=seed)
        exact = over_prompts(correct_PE.mean(axis=1))
        bounds = {f.key: interval(estimate, f) for f in (MEAN, STD, LOW_QUANTILE, BEST)}
        covered.append([low <= exact[key] <= high for key, (low, high) in bounds.items()])
    # over 120 such grids: 90 to 96% without classes, 91 to 98% with them
    assert np.mean(covered, axis=0).min() >= 0.75
    assert np.mean(covered) >= 0.85


def test_estimate_by_class_is_closer_where_prompts_pull_towards_one_answer():
    errors = []
    for seed in range(3):
        correct_PE, classes_E = biased_grid(seed, 50, 200)
        observed_PE = balanced_cells(seed, 50, 200, 0.1, classes_E)
        full = correct_PE.mean(axis=1)
        errors.append(
            [
                abs(value(fit(correct_PE, observed_PE, known, 80), STD) - full.std())
                for known in (classes_E, None)
            ]
        )
    by_class, without = np.mean(errors, axis=0)
    assert by_class < 0.02
    assert without > 2 * by_class


def test_fit_twice_gives_the_same_draws():
    correct_PE, observed_PE = rasch_grid(0, 10, 20), balanced_cells(0, 10, 20, 0.3)
    first, second = (fit(correct_PE, observed_PE, draws=5, seed=7) for _ in range(2))
    assert (first == second).all()
    other = fit(correct_PE, observed_PE, draws=5, seed=8)
    assert (first != other).any()


@pytest.mark.parametrize("right", [True, False])
def test_estimate_of_a_grid_without_variation_is_near_its_one_value(right):
    correct_PE = np.full((20, 100), right)
    estimate = fit(correct_PE, balanced_cells(0, 20, 100, 0.1), np.arange(100) % 2, draws=100)
    assert value(estimate, MEAN) == pytest.approx(float(right), abs=0.02)
    assert value(estimate, STD) < 0.02


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 2), (2, 2)])
def test_estimate_of_a_grid_with_one_prompt_or_example_is_finite(shape):
    rng = np.random.default_rng(0)
    observed_PE = rng.random(shape) < 0.5
    observed_PE[0, 0] = True
    estimate = fit(rng.random(shape) < 0.7, observed_PE, draws=20)
    assert np.isfinite(estimate).all()
    low, high = interval(estimate, MEAN)
    assert low <= high


def test_examples_classes_and_prompts_never_scored_are_drawn_from_the_others():
    correct_PE = rasch_grid(1, 20, 60)
    classes_E = np.arange(60) % 3
    observed_PE = balanced_cells(0, 20, 60, 0.5) & (classes_E != 2)
    observed_PE[0] = False
    estimate = fit(correct_PE, observed_PE, classes_E, draws=200)
    width_P = np.ptp(np.quantile(estimate, (0.025, 0.975), axis=0), axis=0)
    assert np.isfinite(width_P).all()
    assert width_P[0] > width_P[1:].max()


def test_posterior_averages_over_seeds_and_has_quantiles_of_its_draws_and_no_p():
    steps_R = np.linspace(0, 1, 201)
    pair_RP = np.stack([steps_R, steps_R / 2], axis=1)
    first, second = (share * pair_RP for share in (1.0, 0.5))
    found = Posterior({"a": [first], "b": [first, second]}, thresholds=(0.6,))
    assert found.draws["a"].keys() == over_prompts(np.zeros(2), (0.6,)).keys()
    assert found.values["a"]["max"] == 0.5
    assert found.interval("a", BEST) == pytest.approx((0.025, 0.975))
    assert found.interval("a", WORST) == pytest.approx((0.0125, 0.4875))
    assert found.values["b"]["max"] == pytest.approx(0.375)
    assert found.draws["a"][top(0.6).key].max() == 0.5
    difference = found.difference("a", "b", BEST)
    assert difference.value == pytest.approx(0.125)
    assert (difference.low, difference.high) == pytest.approx((0.00625, 0.24375))
    assert difference.p is None


def test_bad_input_is_refused_with_a_remedy():
    grid = np.ones((2, 3), bool)
    with pytest.raises(DataError, match="2 classes for 3 examples"):
        fit(grid, grid, ["a", "b"])
    with pytest.raises(DataError, match="prompts x examples"):
        fit(grid, grid[:1])
    with pytest.raises(DataError, match="prompts x examples"):
        fit(grid[0], grid[0])
    with pytest.raises(DataError, match="none of the 6 cells"):
        fit(grid, ~grid)
    with pytest.raises(DataError, match="draws is 0"):
        fit(grid, grid, draws=0)
