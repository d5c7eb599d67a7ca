"""Figures of one model over prompts."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from paft_ray.config.errors import DataError
from paft_ray.evaluation.bootstrap import resample
from paft_ray.evaluation.figures import FIGURES, of_answers
from paft_ray.evaluation.metrics import AnswerGrid, calibration_error

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 8))
GRIDS = SHAPES.flatmap(lambda shape: arrays(bool, shape))
SEEDS = st.integers(0, 2**32 - 1)
THRESHOLDS = (0.0, 0.5, 0.75)
OF_ANSWERS = {figure.key for figure in FIGURES if figure.of_answers}


def measured(
    grade_PE: NDArray[np.bool_],
    prediction_PE: NDArray,
    thresholds: tuple[float, ...] = (),
    confidence_PE: NDArray | None = None,
    numbers_PE: Mapping[str, NDArray] | None = None,
) -> dict[str, float]:
    """All figures of one model by key."""
    grid = AnswerGrid(grade_PE, prediction_PE, confidence_PE, numbers_PE)
    found = resample({"one": grade_PE}, 1, thresholds=thresholds, answers={"one": [grid]})
    return dict(found.values["one"])


def answers(grade_PE: NDArray[np.bool_]) -> NDArray[np.str_]:
    return np.where(grade_PE, "yes", "no")


def test_figures_of_a_known_grid_are_those_worked_out_by_hand():
    grade_PE = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    by_hand = {
        "mean": 0.5,
        "std": np.sqrt(1 / 6),  # population, not sample
        "min": 0.0,
        "p05": 0.05,
        "max": 1.0,
        "std_by_chance": np.sqrt(4 * 2 / 9) / 4,
        "consistency": 0.0,
        "pairwise_agreement": 1 / 3,
        "flip_rate": 1 / 3,
        "top@0.5": 2 / 3,
        "top@0.75": 1 / 3,
    }
    found = measured(grade_PE, answers(grade_PE), (0.5, 0.75))
    assert {key: found[key] for key in by_hand} == pytest.approx(by_hand)


def test_wrong_answers_that_agree_are_consistent():
    found = measured(np.zeros((3, 5), bool), np.full((3, 5), "the same"))
    assert (found["mean"], found["consistency"], found["pairwise_agreement"]) == (0.0, 1.0, 1.0)


def test_one_prompt_has_no_spread_and_full_agreement():
    grade_PE = np.array([[True, False]])
    found = measured(grade_PE, answers(grade_PE))
    assert (found["std"], found["pairwise_agreement"]) == (0.0, 1.0)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,)])
def test_empty_grid_is_refused(shape: tuple[int, ...]):
    with pytest.raises(DataError, match="nothing to measure"):
        AnswerGrid(np.zeros(shape, bool), np.zeros(shape, str))
    with pytest.raises(DataError, match="nothing to measure"):
        resample({"one": np.zeros(shape, bool)}, 1)


def test_grid_of_unequal_shapes_is_refused():
    with pytest.raises(DataError, match="shape"):
        AnswerGrid(np.ones((2, 3), bool), np.full((3, 2), "a"))


@given(GRIDS)
def test_figures_stay_within_their_bounds(grade_PE: NDArray[np.bool_]):
    found = measured(grade_PE, answers(grade_PE), THRESHOLDS)
    assert 0 <= found["min"] <= found["p05"] <= found["max"] <= 1
    assert found["min"] - 1e-9 <= found["mean"] <= found["max"] + 1e-9
    assert 0 <= found["std"] <= 0.5
    assert 0 <= found["flip_rate"] <= 1 - found["consistency"] / len(grade_PE)
    assert 0 <= found["consistency"] <= found["pairwise_agreement"] + 1e-9 <= 1 + 1e-9
    tops = [found[f"top@{threshold}"] for threshold in THRESHOLDS]
    assert tops[0] == 1.0
    assert tops == sorted(tops, reverse=True)


@given(GRIDS, SEEDS)
def test_figures_ignore_the_order_of_prompts_and_examples(grade_PE: NDArray[np.bool_], seed: int):
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(rng.permutation(grade_PE, axis=0), axis=1)
    one = measured(grade_PE, answers(grade_PE), THRESHOLDS)
    assert measured(shuffled, answers(shuffled), THRESHOLDS) == pytest.approx(one)


def test_calibration_error_is_the_gap_of_confidence_and_accuracy_in_each_bin():
    confidence_PE = np.array([[0.9, 0.9, 0.9, 0.9], [0.6, 0.6, 0.6, 0.6]])
    grade_PE = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
    assert calibration_error(confidence_PE, grade_PE) == pytest.approx((0.15 + 0.4) / 2)


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
    numbers_PE = {
        "generated_tokens": np.array([[1.0, 3.0], [5.0, 7.0]]),
        "unended": np.array([[1.0, 0.0], [0.0, 0.0]]),
        "begins_right": np.array([[1.0, 1.0], [0.0, 1.0]]),
    }
    grade_PE = np.ones((2, 2), bool)
    found = measured(grade_PE, answers(grade_PE), numbers_PE=numbers_PE)
    names = ("generated_tokens", "no_end", "only_begins_right")
    assert [found[name] for name in names] == [4, 0.25, 0.75]


def answers_by_chance(rng: np.random.Generator, shape: tuple[int, int]) -> dict[str, NDArray]:
    return {
        "grade_PE": rng.random(shape) < 0.6,
        "prediction_PE": rng.choice(["a", "b", "c"], shape),
        "confidence_PE": rng.random(shape),
        "numbers_PE": {
            "generated_tokens": rng.integers(1, 9, shape).astype(float),
            "unended": (rng.random(shape) < 0.3).astype(float),
            "begins_right": (rng.random(shape) < 0.3).astype(float),
        },
    }


def repeat(grids: dict[str, Any], times: NDArray, axis: int) -> dict[str, Any]:
    return {
        name: repeat(grid, times, axis) if isinstance(grid, dict) else np.repeat(grid, times, axis)
        for name, grid in grids.items()
    }


@given(SHAPES, SEEDS)
def test_figures_of_weighted_examples_are_those_of_repeated_ones(shape: tuple[int, int], seed: int):
    rng = np.random.default_rng(seed)
    found = answers_by_chance(rng, shape)
    times_E = rng.multinomial(shape[1], np.full(shape[1], 1 / shape[1]))
    times_RP, times_RE = np.ones((1, shape[0])), times_E[None].astype(float)
    weighted = of_answers(AnswerGrid(**found).weighted(times_RP, times_RE))
    repeated = measured(**repeat(found, times_E, axis=1))
    assert set(weighted) == OF_ANSWERS
    for name, value in weighted.items():
        assert value == pytest.approx([repeated[name]]), name


@given(SHAPES, SEEDS)
def test_figures_of_weighted_prompts_are_those_of_repeated_ones_that_never_meet_themselves(
    shape: tuple[int, int], seed: int
):
    rng = np.random.default_rng(seed)
    found = answers_by_chance(rng, shape)
    times_P = rng.multinomial(shape[0], np.full(shape[0], 1 / shape[0]))
    times_RP, times_RE = times_P[None].astype(float), np.ones((1, shape[1]))
    weighted = of_answers(AnswerGrid(**found).weighted(times_RP, times_RE))
    repeated = measured(**repeat(found, times_P, axis=0))
    for name in OF_ANSWERS - {"pairwise_agreement"}:
        assert weighted[name] == pytest.approx([repeated[name]]), name
    words_PE = found["prediction_PE"]
    meetings = [
        (times_P[a] * times_P[b], (words_PE[a] == words_PE[b]).mean())
        for a in range(shape[0])
        for b in range(shape[0])
        if a != b and times_P[a] * times_P[b]
    ]
    count = sum(times for times, _ in meetings)
    expected = sum(times * alike for times, alike in meetings) / count if count else 1.0
    assert weighted["pairwise_agreement"] == pytest.approx([expected])


def test_std_by_chance_is_that_of_answers_dealt_to_the_prompts_anew():
    rng = np.random.default_rng(0)
    grade_PE = rng.random((8, 30)) < rng.random(30)
    found = measured(grade_PE, answers(grade_PE))
    dealt = [rng.permuted(grade_PE, axis=0).mean(axis=1).var() for _ in range(4000)]
    assert found["std_by_chance"] == pytest.approx(np.sqrt(np.mean(dealt)), rel=0.02)
    assert measured(grade_PE[:1], answers(grade_PE[:1]))["std_by_chance"] == 0
