"""Which part of a grid is scored: evenly at first, then where the weakest prompts are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from paft_ray.config.errors import DataError
from paft_ray.evaluation.estimate import Posterior, fit
from paft_ray.evaluation.estimate_cells import FIRST_LOOK, LOOKS, balanced_cells, next_cells
from paft_ray.evaluation.figures import LOW_QUANTILE

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 12)
SHARES = st.floats(0.01, 1)


def uneven_grid(seed: int) -> NDArray[np.bool_]:
    """60 prompts x 200 examples: most prompts about as good as each other, six much worse."""
    rng = np.random.default_rng(seed)
    accuracy_P = np.r_[np.linspace(0.35, 0.6, 6), rng.normal(0.82, 0.03, 54)]
    return rng.random((60, 200)) < rng.permutation(accuracy_P)[:, None]


def looked_at(seed: int, correct_PE: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """The cells that all looks together score."""
    prompts, examples = correct_PE.shape
    observed_PE = balanced_cells(seed, prompts, examples, FIRST_LOOK * share)
    for look in range(1, LOOKS):
        more_PE = next_cells(seed, look, correct_PE & observed_PE, observed_PE, share)
        assert not (more_PE & observed_PE).any()
        observed_PE |= more_PE
    return observed_PE


@given(SEEDS, SIZES, SIZES, SHARES, st.integers(1, 3))
def test_cells_are_balanced_over_prompts_and_over_examples(seed, prompts, examples, share, classes):
    mask_PE = balanced_cells(seed, prompts, examples, share, np.arange(examples) % classes)
    assert mask_PE.shape == (prompts, examples)
    assert mask_PE.sum() == max(prompts, round(share * mask_PE.size))
    assert mask_PE.sum(axis=1).min() >= 1
    assert np.ptp(mask_PE.sum(axis=1)) <= 1
    assert np.ptp(mask_PE.sum(axis=0)) <= 1


@given(SEEDS, SIZES, SIZES, SHARES)
def test_cells_are_a_function_of_the_arguments(seed, prompts, examples, share):
    first, second = (balanced_cells(seed, prompts, examples, share) for _ in range(2))
    assert (first == second).all()


@given(SEEDS, SIZES, SIZES)
def test_cells_of_share_one_are_all_cells(seed, prompts, examples):
    assert balanced_cells(seed, prompts, examples, 1.0).all()


@given(SEEDS, st.integers(1, 20), st.floats(0.02, 0.5))
def test_cells_of_a_prompt_hold_the_classes_in_proportion(seed, prompts, share):
    classes_E = np.repeat([0, 1], [90, 30])
    mask_PE = balanced_cells(seed, prompts, 120, share, classes_E)
    rare_P = mask_PE[:, classes_E == 1].sum(axis=1)
    assert np.abs(rare_P - mask_PE.sum(axis=1) / 4).max() <= 3


def test_cells_of_another_seed_are_other_cells():
    first, second = (balanced_cells(seed, 20, 50, 0.1) for seed in (0, 1))
    assert (first != second).any()


def test_looks_score_as_much_as_asked_and_most_of_it_under_the_weakest_prompts():
    correct_PE = uneven_grid(0)
    observed_PE = looked_at(0, correct_PE, 0.1)
    assert observed_PE.sum() == pytest.approx(0.1 * observed_PE.size, abs=LOOKS)
    count_P = observed_PE.sum(axis=1)
    weakest_P = np.argsort(correct_PE.mean(axis=1))[:6]
    assert count_P.min() >= 5
    assert count_P[weakest_P].mean() > 3 * count_P.mean()


@pytest.mark.slow
def test_low_quantile_is_closer_by_looks_than_by_as_many_cells_spread_evenly():
    errors = []
    for seed in range(4):
        correct_PE = uneven_grid(seed)
        even_PE, looked_PE = balanced_cells(seed, 60, 200, 0.1), looked_at(seed, correct_PE, 0.1)
        found = Posterior(
            {
                "even": [fit(correct_PE, even_PE, draws=200)],
                "looked": [fit(correct_PE, looked_PE, draws=200)],
            }
        )
        exact = np.quantile(correct_PE.mean(axis=1), 0.05)
        errors.append([abs(found.values[way]["p05"] - exact) for way in ("even", "looked")])
        low, high = found.interval("looked", LOW_QUANTILE)
        assert low - 0.02 <= exact <= high + 0.02
    even, looked = np.mean(errors, axis=0)
    assert looked < 0.7 * even  # over 12 seeds 5.1 and 9.3 points, root mean square


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 6)).flatmap(
        lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
    ),
    st.integers(1, LOOKS - 1),
    SHARES,
)
def test_next_cells_are_new_and_no_more_than_asked_and_look_at_nothing_unscored(grids, look, share):
    correct_PE, observed_PE = grids
    observed_PE[0, 0] = True
    more_PE = next_cells(0, look, correct_PE, observed_PE, share)
    assert not (more_PE & observed_PE).any()
    left = max(0, round(share * observed_PE.size) - observed_PE.sum())
    assert more_PE.sum() == left // (LOOKS - look)
    others = next_cells(0, look, correct_PE ^ ~observed_PE, observed_PE, share)
    assert (others == more_PE).all()


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_share_outside_its_range_is_refused_with_the_value(share):
    with pytest.raises(DataError, match=f"share is {share}"):
        balanced_cells(0, 2, 2, share)


def test_cells_of_nothing_or_of_too_few_classes_are_refused():
    with pytest.raises(DataError, match="at least one of both"):
        balanced_cells(0, 0, 3, 0.5)
    with pytest.raises(DataError, match="2 classes for 3 examples"):
        balanced_cells(0, 2, 3, 0.5, ["a", "b"])
