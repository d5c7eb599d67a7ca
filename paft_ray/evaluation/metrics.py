"""How good and how steady one model is over prompts: pure functions of a grid of answers.

Not covered: how sure the figures are (`bootstrap`), and grids read out of the scores (`summary`).

Shapes: P prompts, E examples, A answers to one example, B bins, R reweighings of a grid.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from paft_ray.config.errors import DataError

Statistic = Literal["mean", "std", "min", "p05", "max"]
OVER_PROMPTS: Mapping[Statistic, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "mean": lambda accuracy: accuracy.mean(axis=-1),
    "std": lambda accuracy: accuracy.std(axis=-1),
    "min": lambda accuracy: accuracy.min(axis=-1),
    "p05": lambda accuracy: np.quantile(accuracy, 0.05, axis=-1),
    "max": lambda accuracy: accuracy.max(axis=-1),
}
"""What is said about accuracies under prompts, over the last axis."""

OF_ANSWERS = (
    "consistency",
    "pairwise_agreement",
    "flip_rate",
    "calibration_error",
    "generated_tokens",
)
"""What is said about the answers themselves; the last two where there is a probability, or text."""

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
    """How often two different prompts get the same answer to the same example: the observed
    agreement of Fleiss (Psychological Bulletin 76, 1971), with prompts as raters."""
    flip_rate: float
    """Share of the prompts whose answer to an example is not the one that most prompts get, on
    average over examples: Freeman's variation ratio (1965)."""
    std_by_chance: float
    """The std that is expected where wording means nothing: of grids in which every example's
    answers are dealt to the prompts anew. What `std` has beyond it is due to the prompts."""
    top: Mapping[float, float]
    """Threshold t to the share of prompts with accuracy of at least t: Top@t."""
    calibration_error: float | None = None
    """Expected calibration error of the choice's probability among the choices, in 15 bins of equal
    width (Guo et al., arXiv 1706.04599, section 2); None for free text. Bins hold the answers under
    all prompts: one that is too sure and one that is too unsure cancel out."""
    generated_tokens: float | None = None
    """Tokens generated per answer, the end token included; None for choices. The paper's claim
    about the speed of inference is this one: shorter answers, not a faster model."""


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
    answers = AnswerFigures(correct_PE, predictions_PE, confidence_PE, tokens_PE)
    known = answers(np.ones((1, prompts)), np.ones((1, examples)))
    right_E = correct_PE.mean(axis=0)
    return Robustness(
        **{name: float(value) for name, value in over_prompts(accuracy_P).items()},
        **{name: float(value_R[0]) for name, value_R in known.items()},
        std_by_chance=float(np.sqrt((right_E * (1 - right_E)).sum()) / examples),
        top={threshold: float(_top(accuracy_P, threshold)) for threshold in thresholds},
    )


def over_prompts(
    accuracy: NDArray[np.float64], thresholds: Sequence[float] = ()
) -> dict[str, NDArray[np.float64]]:
    """Those of `OVER_PROMPTS`, and Top@t under `top_name`, over the last axis, which is prompts."""
    return {
        **{name: statistic(accuracy) for name, statistic in OVER_PROMPTS.items()},
        **{top_name(t): _top(accuracy, t) for t in thresholds},
    }


def top_name(threshold: float) -> str:
    """Name of Top@t among statistics."""
    return f"top@{threshold}"


class AnswerFigures:
    """What one model's answers say beyond their accuracy, for any weights of prompts and examples.

    A prompt of weight 2 counts like two prompts of which each would be answered like it; agreement
    is that of different prompts all the same.
    """

    def __init__(
        self,
        correct_PE: NDArray[np.bool_],
        predictions_PE: NDArray[Any],
        confidence_PE: NDArray[np.float64] | None,
        tokens_PE: NDArray[np.float64] | None,
    ) -> None:
        """Take the answers of a whole grid; see `robustness`."""
        prompts, examples = correct_PE.shape
        codes = [np.unique(predictions_PE[:, e], return_inverse=True)[1] for e in range(examples)]
        codes_PE = np.stack(codes, axis=1).reshape(correct_PE.shape)
        said_PEA = codes_PE[..., None] == np.arange(codes_PE.max() + 1)
        self._said = said_PEA.reshape(prompts, -1).astype(np.float64)
        self._examples, self._tokens_PE, self._gap = examples, tokens_PE, None
        if confidence_PE is not None:
            gap_PBE = np.zeros((prompts, _CALIBRATION_BINS, examples))
            place = np.ogrid[:prompts, :examples]
            gap_PBE[place[0], _bins(confidence_PE), place[1]] = confidence_PE - correct_PE
            self._gap = gap_PBE.reshape(prompts, -1)

    def __call__(
        self, times_RP: NDArray[np.float64], times_RE: NDArray[np.float64]
    ) -> dict[str, NDArray[np.float64]]:
        """Those of `OF_ANSWERS` that there are, each with shape [R].

        Args:
            times_RP: How often a prompt counts.
            times_RE: How often an example counts.
        """
        count_REA = (times_RP @ self._said).reshape(len(times_RP), self._examples, -1)
        most_RE = count_REA.max(axis=-1)
        prompts_R, examples_R = times_RP.sum(axis=1), times_RE.sum(axis=1)
        with_itself_R = (times_RP**2).sum(axis=1)
        others_R = prompts_R**2 - with_itself_R
        alike_R = _over_examples((count_REA**2).sum(axis=-1), times_RE) - with_itself_R * examples_R
        figures = {
            "consistency": _over_examples(most_RE == prompts_R[:, None], times_RE) / examples_R,
            "pairwise_agreement": np.where(
                others_R > 0, alike_R / np.maximum(others_R, 1) / examples_R, 1.0
            ),
            "flip_rate": 1 - _over_examples(most_RE, times_RE) / examples_R / prompts_R,
        }
        answers_R = prompts_R * examples_R
        if self._gap is not None:
            gap_RBE = (times_RP @ self._gap).reshape(len(times_RP), -1, self._examples)
            gap_RB = np.einsum("rbe,re->rb", gap_RBE, times_RE)
            figures["calibration_error"] = np.abs(gap_RB).sum(axis=1) / answers_R
        if self._tokens_PE is not None:
            tokens_RE = times_RP @ self._tokens_PE
            figures["generated_tokens"] = _over_examples(tokens_RE, times_RE) / answers_R
        return figures


def calibration_error(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    """Mean distance of confidence and accuracy over bins of confidence, weighted by their sizes.

    Args:
        confidence: Of answers, in any shape.
        correct: Whether they are right, in the same shape.
    """
    gaps = np.bincount(_bins(confidence).ravel(), (confidence - correct).ravel())
    return float(np.abs(gaps).sum() / confidence.size)


def _top(accuracy: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    return (accuracy >= threshold).mean(axis=-1)


def _bins(confidence: NDArray[np.float64]) -> NDArray[np.int_]:
    return np.minimum((confidence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)


def _over_examples(values_RE: NDArray[Any], times_RE: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.einsum("re,re->r", values_RE.astype(np.float64), times_RE)


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
