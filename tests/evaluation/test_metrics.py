"""Figures of one model over prompts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from paft_ray.errors import DataError
from paft_ray.evaluation.metrics import OVER_PROMPTS, calibration_error, robustness

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 8))
GRIDS = SHAPES.flatmap(lambda shape: arrays(bool, shape))
SEEDS = st.integers(0, 2**32 - 1)
THRESHOLDS = (0.0, 0.5, 0.75)


def answers(correct_PE: NDArray[np.bool_]) -> NDArray[np.str_]:
    return np.where(correct_PE, "yes", "no")


def test_robustness_of_a_known_grid_has_the_figures_worked_out_by_hand():
    correct_PE = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    figures = robustness(correct_PE, answers(correct_PE), thresholds=(0.5, 0.75))
    assert figures.mean == 0.5
    assert figures.std == pytest.approx(np.sqrt(1 / 6))  # population, not sample
    assert (figures.min, figures.max) == (0.0, 1.0)
    assert figures.p05 == pytest.approx(0.05)
    assert figures.consistency == 0.0
    assert figures.pairwise_agreement == pytest.approx(1 / 3)
    assert figures.flip_rate == pytest.approx(1 / 3)
    assert (figures.calibration_error, figures.generated_tokens) == (None, None)
    assert figures.top == {0.5: pytest.approx(2 / 3), 0.75: pytest.approx(1 / 3)}


def test_robustness_of_wrong_answers_that_agree_is_consistent():
    correct_PE = np.zeros((3, 5), bool)
    figures = robustness(correct_PE, np.full((3, 5), "the same"))
    assert (figures.mean, figures.consistency, figures.pairwise_agreement) == (0.0, 1.0, 1.0)


def test_robustness_of_one_prompt_has_no_spread_and_full_agreement():
    correct_PE = np.array([[True, False]])
    figures = robustness(correct_PE, answers(correct_PE))
    assert (figures.std, figures.pairwise_agreement) == (0.0, 1.0)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,)])
def test_robustness_of_an_empty_grid_is_refused(shape: tuple[int, ...]):
    with pytest.raises(DataError, match="nothing to measure"):
        robustness(np.zeros(shape, bool), np.zeros(shape, str))


def test_robustness_of_unequal_shapes_is_refused():
    with pytest.raises(DataError, match="shape"):
        robustness(np.ones((2, 3), bool), np.full((3, 2), "a"))


@given(GRIDS)
def test_robustness_stays_within_its_bounds(correct_PE: NDArray[np.bool_]):
    figures = robustness(correct_PE, answers(correct_PE), THRESHOLDS)
    assert 0 <= figures.min <= figures.p05 <= figures.max <= 1
    assert figures.min - 1e-9 <= figures.mean <= figures.max + 1e-9
    assert 0 <= figures.std <= 0.5
    assert 0 <= figures.flip_rate <= 1 - figures.consistency / len(correct_PE)
    assert 0 <= figures.consistency <= figures.pairwise_agreement + 1e-9 <= 1 + 1e-9
    assert figures.top[0.0] == 1.0
    assert list(figures.top.values()) == sorted(figures.top.values(), reverse=True)


@given(GRIDS, SEEDS)
def test_robustness_ignores_the_order_of_prompts_and_examples(
    correct_PE: NDArray[np.bool_], seed: int
):
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(rng.permutation(correct_PE, axis=0), axis=1)
    one = robustness(correct_PE, answers(correct_PE), THRESHOLDS)
    other = robustness(shuffled, answers(shuffled), THRESHOLDS)
    for name in (*OVER_PROMPTS, "consistency", "pairwise_agreement", "flip_rate"):
        assert getattr(one, name) == pytest.approx(getattr(other, name))
    assert one.top == other.top


def test_calibration_error_is_the_gap_of_confidence_and_accuracy_in_each_bin():
    confidence_PE = np.array([[0.9, 0.9, 0.9, 0.9], [0.6, 0.6, 0.6, 0.6]])
    correct_PE = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
    assert calibration_error(confidence_PE, correct_PE) == pytest.approx((0.15 + 0.4) / 2)


@settings(max_examples=20)
@given(SHAPES, SEEDS)
def test_calibration_error_of_a_calibrated_model_shrinks_to_nothing(
    shape: tuple[int, int], seed: int
):
    rng = np.random.default_rng(seed)
    confidence_PE = rng.uniform(0.5, 1.0, shape)
    certain = calibration_error(np.ones(shape), np.ones(shape, bool))
    assert certain == 0
    many_PE = rng.uniform(0.5, 1.0, (50, 400))
    assert calibration_error(many_PE, rng.random((50, 400)) < many_PE) < 0.03
    assert 0 <= calibration_error(confidence_PE, rng.random(shape) < 0.5) <= 1


def test_tokens_of_answers_are_averaged_over_all():
    tokens_PE = np.array([[1.0, 3.0], [5.0, 7.0]])
    correct_PE = np.ones((2, 2), bool)
    assert robustness(correct_PE, answers(correct_PE), tokens_PE=tokens_PE).generated_tokens == 4
