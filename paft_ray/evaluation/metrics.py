"""Formulas for accuracy and steadiness over prompts, from a grid of answers; pure.

`figures` names those that are reported, and `bootstrap` gives their intervals.

Shapes: P prompts, E examples, A answers to one example, B bins, R reweighings of a grid, N answers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paft_ray.config.errors import DataError

Floats = NDArray[np.float64]

_CALIBRATION_BINS = 15


@dataclass(frozen=True, slots=True)
class WeightedAnswers:
    """One model's answers, counted under R weighings of prompts and examples.

    A prompt of weight 2 counts like two prompts with its answers, but does not agree with itself.
    """

    times_RP: Floats
    """How often a prompt counts."""
    times_RE: Floats
    """How often an example counts."""
    prompts_R: Floats
    """How many prompts count."""
    examples_R: Floats
    """How many examples count."""
    count_REA: Floats
    """How many prompts get an answer."""
    most_RE: Floats
    """How many prompts get the answer that most prompts get."""
    gap_RB: Floats | None
    """Sum of confidence less correctness in each bin of confidence; None for free text."""
    sums_R: Mapping[str, Floats]
    """Sums of the numbers that are known of every answer, by name."""

    def over_examples(self, values_RE: NDArray[Any]) -> Floats:
        """Mean over examples."""
        return _over_examples(values_RE, self.times_RE) / self.examples_R


class AnswerGrid:
    """One model's answers to every example under every prompt."""

    def __init__(
        self,
        grade_PE: NDArray[Any],
        prediction_PE: NDArray[Any],
        confidence_PE: Floats | None = None,
        numbers_PE: Mapping[str, Floats] | None = None,
    ) -> None:
        """Prepare the answers of a whole grid to be counted.

        Args:
            grade_PE: What the answer is worth, from 0 to 1, or whether it is right.
            prediction_PE: The answers themselves, of any type that can be sorted.
            confidence_PE: Probability of the answer among the choices.
            numbers_PE: What else is known of every answer, by name.

        Raises:
            DataError: The grid is empty, or the two arrays differ in shape.
        """
        require_grid(grade_PE)
        if prediction_PE.shape != grade_PE.shape:
            raise DataError(
                f"predictions have shape {prediction_PE.shape} and grades {grade_PE.shape}: "
                "give both for the same prompts and examples"
            )
        prompts, examples = grade_PE.shape
        codes = [np.unique(prediction_PE[:, e], return_inverse=True)[1] for e in range(examples)]
        codes_PE = np.stack(codes, axis=1).reshape(grade_PE.shape)
        chosen_PEA = codes_PE[..., None] == np.arange(codes_PE.max() + 1)
        self._chosen = chosen_PEA.reshape(prompts, -1).astype(np.float64)
        self._examples, self._numbers_PE, self._gap = examples, numbers_PE or {}, None
        if confidence_PE is not None:
            gap_PBE = np.zeros((prompts, _CALIBRATION_BINS, examples))
            place = np.ogrid[:prompts, :examples]
            gap_PBE[place[0], _bins(confidence_PE), place[1]] = confidence_PE - grade_PE
            self._gap = gap_PBE.reshape(prompts, -1)

    def weighted(self, times_RP: Floats, times_RE: Floats) -> WeightedAnswers:
        """Count the answers, given how often every prompt and every example counts."""
        count_REA = (times_RP @ self._chosen).reshape(len(times_RP), self._examples, -1)
        gap_RB = None
        if self._gap is not None:
            gap_RBE = (times_RP @ self._gap).reshape(len(times_RP), -1, self._examples)
            gap_RB = np.einsum("rbe,re->rb", gap_RBE, times_RE)
        return WeightedAnswers(
            times_RP,
            times_RE,
            times_RP.sum(axis=1),
            times_RE.sum(axis=1),
            count_REA,
            count_REA.max(axis=-1),
            gap_RB,
            {k: _over_examples(times_RP @ v, times_RE) for k, v in self._numbers_PE.items()},
        )


def consistency(answers: WeightedAnswers) -> Floats:
    """Share of the examples that are answered alike under all prompts: shape [R]."""
    return answers.over_examples(answers.most_RE == answers.prompts_R[:, None])


def pairwise_agreement(answers: WeightedAnswers) -> Floats:
    """The share of pairs of prompts that get the same answer to an example: shape [R]."""
    with_itself_R = (answers.times_RP**2).sum(axis=1)
    others_R = answers.prompts_R**2 - with_itself_R
    alike_R = _over_examples((answers.count_REA**2).sum(axis=-1), answers.times_RE)
    alike_R = alike_R - with_itself_R * answers.examples_R
    return np.where(others_R > 0, alike_R / np.maximum(others_R, 1) / answers.examples_R, 1.0)


def flip_rate(answers: WeightedAnswers) -> Floats:
    """Share of the prompts that do not get the answer that most prompts get: shape [R]."""
    return 1 - answers.over_examples(answers.most_RE) / answers.prompts_R


def mean_calibration_error(answers: WeightedAnswers) -> Floats | None:
    """`calibration_error` of all answers: shape [R]; None for free text."""
    if answers.gap_RB is None:
        return None
    return np.abs(answers.gap_RB).sum(axis=1) / (answers.prompts_R * answers.examples_R)


def mean_of(name: str) -> Callable[[WeightedAnswers], Floats | None]:
    """The mean over answers of a number: shape [R]; None where it is not known of all."""

    def mean(answers: WeightedAnswers) -> Floats | None:
        if name not in answers.sums_R:
            return None
        return answers.sums_R[name] / (answers.prompts_R * answers.examples_R)

    return mean


def calibration_error(confidence_N: Floats, correct_N: NDArray[np.bool_]) -> float:
    """Mean distance of confidence and accuracy over bins of confidence, weighted by their sizes.

    The two arrays may have any shape, as long as it is the same.
    """
    gaps = np.bincount(_bins(confidence_N).ravel(), (confidence_N - correct_N).ravel())
    return float(np.abs(gaps).sum() / confidence_N.size)


def std_by_chance(grade_PE: Floats) -> float:
    """The std over prompts that is expected of grids in which wording means nothing."""
    return float(np.sqrt(grade_PE.var(axis=0).sum()) / grade_PE.shape[1])


def prompt_sensitivity(grade_PE: Floats) -> float:
    """Mean absolute difference of the grades of an example under two prompts."""
    prompts, examples = grade_PE.shape
    if prompts < 2:
        return 0.0
    # of the sorted grades, in how many pairs each is the larger one, less the other pairs
    rank_P = 2 * np.arange(prompts) - prompts + 1
    pairs = prompts * (prompts - 1) / 2
    return float((rank_P[:, None] * np.sort(grade_PE, axis=0)).sum() / pairs / examples)


def prompts_needed(grade_PE: Floats, within: float = 0.01) -> float:
    """How many prompts let the mean over prompts be known to `within` either way, with 95%."""
    spread = grade_PE.mean(axis=1).var() - std_by_chance(grade_PE) ** 2
    needed = max(spread, 0.0) * (1.96 / within) ** 2
    return max(1.0, float(np.ceil(round(needed, 6))))  # no prompt for what sums round


def require_grid(grades: NDArray[Any]) -> None:
    """Check that a grid has prompts and examples.

    Raises:
        DataError: It is empty, or has one axis only.
    """
    if grades.ndim < 2 or grades.size == 0:
        raise DataError(
            f"a grid of shape {grades.shape} has nothing to measure: "
            "give at least one prompt and one example"
        )


def _bins(confidence: Floats) -> NDArray[np.int_]:
    return np.minimum((confidence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)


def _over_examples(values_RE: NDArray[Any], times_RE: Floats) -> Floats:
    return np.einsum("re,re->r", values_RE.astype(np.float64), times_RE)
