"""How good and how steady one model is over prompts: pure functions of a grid of answers.

Not covered: how sure the figures are (`bootstrap`), and grids read out of the scores (`summary`).

Shapes: P prompts, E examples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from paft_ray.errors import DataError

Statistic = Literal["mean", "std", "min", "p05", "max"]
OVER_PROMPTS: Mapping[Statistic, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "mean": lambda accuracy: accuracy.mean(axis=-1),
    "std": lambda accuracy: accuracy.std(axis=-1),
    "min": lambda accuracy: accuracy.min(axis=-1),
    "p05": lambda accuracy: np.quantile(accuracy, 0.05, axis=-1),
    "max": lambda accuracy: accuracy.max(axis=-1),
}
"""What is said about accuracies under prompts, over the last axis."""

_CALIBRATION_BINS = 15


@dataclass(frozen=True, slots=True)
class Robustness:
    """One model's figures over prompts; shares between 0 and 1 where no unit is named.

    Mean, std and Top@t are the paper's (PAFT, arXiv 2502.12859, section 4); the spread and the
    quantiles over prompts are those of multi-prompt evaluation (arXiv 2401.00595, 2405.17202).
    """

    mean: float
    """Mean over prompts of the accuracy under a prompt."""
    std: float
    """Standard deviation over prompts, of these prompts as a population (numpy's `ddof=0`)."""
    min: float
    """Accuracy under the worst prompt."""
    p05: float
    """5% quantile over prompts, interpolated linearly."""
    max: float
    """Accuracy under the best prompt."""
    consistency: float
    """Share of the examples that are answered alike, right or wrong, under all prompts."""
    pairwise_agreement: float
    """How often two different prompts get the same answer to the same example."""
    flip_rate: float
    """Share of the prompts whose answer to an example is not the one that most prompts get, on
    average over examples."""
    calibration_error: float | None
    """Expected calibration error of the choice's probability among the choices, in 15 bins of equal
    width (Guo et al., arXiv 1706.04599, section 2); None for free text."""
    generated_tokens: float | None
    """Tokens generated per answer, the end token included; None for choices."""
    top: Mapping[float, float]
    """Threshold t to the share of prompts with accuracy of at least t: Top@t."""


def robustness(
    correct_PE: NDArray[np.bool_],
    predictions_PE: NDArray[Any],
    thresholds: Sequence[float] = (),
    confidence_PE: NDArray[np.float64] | None = None,
    tokens_PE: NDArray[np.float64] | None = None,
) -> Robustness:
    """The figures of one model.

    Args:
        correct_PE: Whether the answer is right.
        predictions_PE: The answers themselves, of any type that can be sorted.
        thresholds: Accuracies for Top@t.
        confidence_PE: Probability of the answer among the choices.
        tokens_PE: Tokens generated for the answer.

    Raises:
        DataError: The grid is empty, or the two arrays differ in shape.
    """
    require_grid(correct_PE)
    if predictions_PE.shape != correct_PE.shape:
        raise DataError(
            f"predictions have shape {predictions_PE.shape} and correctness {correct_PE.shape}: "
            "give both for the same prompts and examples"
        )
    accuracy_P = correct_PE.mean(axis=1)
    prompts, examples = correct_PE.shape
    answers, codes = np.unique(predictions_PE, return_inverse=True)
    codes_PE = codes.reshape(correct_PE.shape)
    count_EA = np.zeros((examples, len(answers)), np.int64)
    np.add.at(count_EA, (np.arange(examples)[None], codes_PE), 1)
    ordered_pairs = int((count_EA * (count_EA - 1)).sum())
    others = prompts * (prompts - 1) * examples
    return Robustness(
        **{name: float(over_prompts(accuracy_P)) for name, over_prompts in OVER_PROMPTS.items()},
        consistency=float((count_EA.max(axis=1) == prompts).mean()),
        pairwise_agreement=ordered_pairs / others if others else 1.0,
        flip_rate=float(1 - count_EA.max(axis=1).mean() / prompts),
        calibration_error=None
        if confidence_PE is None
        else calibration_error(confidence_PE, correct_PE),
        generated_tokens=None if tokens_PE is None else float(tokens_PE.mean()),
        top={threshold: float((accuracy_P >= threshold).mean()) for threshold in thresholds},
    )


def calibration_error(confidence_PE: NDArray[np.float64], correct_PE: NDArray[np.bool_]) -> float:
    """Mean distance of confidence and accuracy over bins of confidence, weighted by their sizes."""
    confidence, correct = confidence_PE.ravel(), correct_PE.ravel()
    bins = np.minimum((confidence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=_CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def require_grid(correct: NDArray[np.bool_]) -> None:
    """Refuse what holds no prompt or no example.

    Raises:
        DataError: It is empty, or has one axis only.
    """
    if correct.ndim < 2 or correct.size == 0:
        raise DataError(
            f"a grid of shape {correct.shape} has nothing to measure: "
            "give at least one prompt and one example"
        )
