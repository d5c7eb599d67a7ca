"""Intervals of one model and paired differences of two, by the bootstrap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from paft_ray.config.errors import DataError
from paft_ray.evaluation.bootstrap import Difference, resample
from paft_ray.evaluation.figures import (
    FIGURES,
    GENERATED_TOKENS,
    LOW_QUANTILE,
    MEAN,
    PAIRWISE_AGREEMENT,
    STD,
    Figure,
    top,
)
from paft_ray.evaluation.metrics import AnswerGrid

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 8))
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape)))
SEEDS = st.integers(0, 2**32 - 1)
OVER_PROMPTS = [figure for figure in FIGURES if figure.over_prompts]


def random_grid(seed: int, accuracy: float = 0.7) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random((6, 40)) < accuracy


def difference(
    a: NDArray[np.bool_],
    b: NDArray[np.bool_],
    figure: Figure = MEAN,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    return resample({"a": a, "b": b}, resamples, seed).difference("a", "b", figure)


@pytest.mark.parametrize("figure", OVER_PROMPTS, ids=lambda figure: figure.key)
def test_difference_of_identical_models_is_exactly_zero(figure: Figure):
    same = random_grid(1)
    result = difference(same, same.copy(), figure)
    assert (result.value, result.low, result.high) == (0, 0, 0)


def test_bounds_that_are_moved_beyond_what_can_be_are_brought_back():
    best, worse = np.ones((4, 2), bool), np.zeros((4, 2), bool)
    worse[0, 0] = True
    found = difference(best, worse, LOW_QUANTILE, resamples=50, seed=0)
    assert (found.low, found.high) == (1.0, 1.0)


@given(PAIRS, st.sampled_from(OVER_PROMPTS), SEEDS)
def test_difference_swapped_changes_only_its_sign(pair, figure: Figure, seed: int):
    a, b = pair
    one = difference(a, b, figure, resamples=50, seed=seed)
    other = difference(b, a, figure, resamples=50, seed=seed)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
    assert -1 <= one.low <= one.high <= 1


def test_difference_repeated_with_one_seed_is_the_same_and_with_another_is_not():
    a, b = random_grid(1), random_grid(2)
    assert difference(a, b, seed=3) == difference(a, b, seed=3)
    assert difference(a, b, seed=3) != difference(a, b, seed=4)


def test_difference_of_a_clearly_better_model_has_an_interval_above_zero():
    worse = random_grid(5, 0.4)
    better = worse | random_grid(6, 0.5)
    result = difference(better, worse)
    assert 0 < result.low < result.value < result.high


def test_difference_that_is_paired_has_a_narrower_interval_than_an_unpaired_one():
    hard_E = np.random.default_rng(0).random(40) < 0.5
    a = np.tile(hard_E, (6, 1))
    b = a.copy()
    b[:, :2] = ~b[:, :2]
    paired = difference(a, b)
    unpaired = difference(a, np.random.default_rng(1).permutation(b, axis=1))
    assert paired.high - paired.low < unpaired.high - unpaired.low


def test_difference_of_several_seeds_averages_the_statistic_per_seed():
    a = np.stack([random_grid(1), random_grid(2)])
    b = random_grid(3)
    expected = (a.mean(2).std(1)).mean() - b.mean(1).std()
    assert difference(a, b, STD).value == pytest.approx(expected)


def test_difference_of_unequal_grids_is_refused():
    with pytest.raises(DataError, match="cannot be paired"):
        difference(np.ones((2, 3), bool), np.ones((3, 3), bool))


def test_interval_of_one_model_covers_what_another_sample_would_give():
    """The mean and the std of 40 prompts x 100 examples, from draws of a known population."""
    rng = np.random.default_rng(0)
    quality_P = rng.normal(0.7, 0.08, 4000)
    covered = {"mean": 0, "std": 0}
    expected = {"mean": quality_P.mean(), "std": np.sqrt(0.08**2 + (0.7 * 0.3 - 0.08**2) / 100)}
    for trial in range(100):
        chosen_P = rng.choice(quality_P, 40)
        grid = rng.random((40, 100)) < chosen_P[:, None]
        resamples = resample({"one": grid}, resamples=300, seed=trial)
        for figure in (MEAN, STD):
            low, high = resamples.interval("one", figure)
            covered[figure.key] += low <= expected[figure.key] <= high
    assert 88 <= covered["mean"] <= 100
    assert 85 <= covered["std"] <= 100


def test_interval_over_seeds_that_differ_is_wider_than_over_seeds_that_do_not():
    alike = np.stack([random_grid(1)] * 3)
    differing = np.stack([random_grid(seed, rate) for seed, rate in ((1, 0.5), (2, 0.7), (3, 0.9))])
    resamples = resample({"alike": alike, "differing": differing, "one": random_grid(1)})
    low, high = resamples.interval("alike", MEAN)
    wide_low, wide_high = resamples.interval("differing", MEAN)
    assert wide_high - wide_low > 1.5 * (high - low)
    assert resamples.interval("one", MEAN) == pytest.approx((low, high))


def test_p_value_of_a_clear_difference_is_small_and_of_no_difference_is_one():
    worse = random_grid(5, 0.4)
    assert difference(worse | random_grid(6, 0.5), worse).p < 0.01
    assert difference(worse, worse).p == 1


def test_intervals_of_agreement_tokens_and_top_cover_what_another_sample_would_give():
    """40 prompts x 100 examples of answers whose true figures are known."""
    rng = np.random.default_rng(0)
    figures = (PAIRWISE_AGREEMENT, GENERATED_TOKENS, top(0.7))
    expected = (0.7**2 + 0.3**2, 20.0, 0.5)
    covered = dict.fromkeys(figures, 0)
    for trial in range(60):
        correct_PE = rng.random((40, 100)) < np.where(rng.random(40) < 0.5, 0.3, 0.95)[:, None]
        prediction_PE = np.where(rng.random((40, 100)) < 0.7, "a", "b")
        tokens_PE = rng.poisson(rng.normal(20, 3, 40)[:, None], (40, 100)).astype(float)
        grid = AnswerGrid(correct_PE, prediction_PE, None, {"generated_tokens": tokens_PE})
        found = resample({"one": correct_PE}, 300, trial, (0.7,), {"one": [grid]})
        for figure, value in zip(figures, expected, strict=True):
            low, high = found.interval("one", figure)
            covered[figure] += low <= value <= high
    assert all(52 <= count <= 60 for count in covered.values()), covered


def test_difference_in_tokens_may_be_larger_than_one_and_is_paired():
    correct_PE = random_grid(1)
    tokens_PE = np.random.default_rng(0).integers(5, 50, correct_PE.shape).astype(float)
    longer, shorter = (
        AnswerGrid(
            correct_PE, np.full(correct_PE.shape, "a"), None, {"generated_tokens": tokens_PE + more}
        )
        for more in (3, 0)
    )
    grids = {"a": correct_PE, "b": correct_PE}
    found = resample(grids, answers={"a": [longer], "b": [shorter]})
    result = found.difference("a", "b", GENERATED_TOKENS)
    assert (result.value, result.low, result.high) == pytest.approx((3, 3, 3))


def test_draws_and_seeds_are_resampled_apart():
    """Copies of a seed teach nothing: the interval over three draws stays as wide as it is."""
    rng = np.random.default_rng(0)
    draws_DPE = rng.random((3, 6, 40)) < np.array([0.3, 0.6, 0.9])[:, None, None]
    copies = np.repeat(draws_DPE, 5, axis=0)  # of each draw, five equal seeds
    once = resample({"one": draws_DPE}, draws=3)
    again = resample({"one": copies}, draws=3)
    low, high = once.interval("one", MEAN)
    assert again.interval("one", MEAN) == pytest.approx((low, high), abs=0.02)
    together = resample({"one": copies})  # as if all fifteen were independent
    narrow = together.interval("one", MEAN)
    assert narrow[1] - narrow[0] < 0.7 * (high - low)
    assert once.values["one"][MEAN.key] == pytest.approx(draws_DPE.mean())
