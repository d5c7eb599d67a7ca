"""What tables of recorded studies say about comparisons: adjusted p-values and power."""

import numpy as np
import pytest
from study import holm, smallest_shown


def test_holm_multiplies_by_the_comparisons_left_and_keeps_the_order() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.5, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_smallest_difference_is_shown_in_80_of_100_repetitions() -> None:
    error = 0.03
    difference = smallest_shown(-1.96 * error, 1.96 * error)
    estimates = np.random.default_rng(0).normal(difference, error, 20_000)
    assert np.mean(estimates - 1.96 * error > 0) == pytest.approx(0.8, abs=0.01)
