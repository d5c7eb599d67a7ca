"""Figures of the whole grid, estimated from a part of its cells.

Covered: the accuracy that every prompt would have on the whole grid (`fit`), and statistics over
prompts with intervals (`Posterior`). Not covered: the choice of the cells (`estimate_cells`);
agreement between prompts, which needs the answers themselves; paired differences of two models.

The model is PromptEval's (arXiv 2405.17202), a Rasch model of prompts and examples,

    P(prompt p is right on example e) = Phi(theta[p, class of e] - beta[e]),

with three departures. Where answers are one of a few choices, a prompt has one ability per right
answer: many wordings make a model answer `positive` to anything, and are right on one class and
wrong on the other, which one ability per prompt cannot express. Abilities and difficulties are
random effects whose (co)variances are estimated with them: separate maximum-likelihood abilities
are spread too widely over prompts, and their shrunken means too narrowly, so quantiles over prompts
come from draws of the posterior. The curve is the normal ogive Phi, for which the sampler of
Albert and Chib (JASA 88, 1993) is exact, short and needs no tuning; scaled by 1.7 it
differs from the logistic curve by at most 0.01.

Measured on seven grids of SmolLM2-135M (`jobs/benchmarks/results/estimate.json`) with a tenth of
the cells, chosen by `estimate_cells`: the 5% quantile is off by 0.0 to 2.0 points (root mean
square), the standard deviation over prompts by 0.2 to 1.1, and their intervals hold the full grid's
value in at least 98% and 92% of the drawings; those of the worst and the best prompt, about which
few cells say anything, in 70% and 62%. From evenly spread cells the quantile is off by up to 3.3
points, and with one ability per prompt by up to 7.6.

The target is the given grid, not the population of examples: scored cells count as they are, and
only the others are drawn. With all cells scored the figures are exact.

Shapes: P prompts, E examples, C classes (right answers), N scored cells, R draws, K random effects
of one kind.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from paft_ray.config.errors import DataError
from paft_ray.evaluation.bootstrap import Difference
from paft_ray.evaluation.figures import Figure, over_prompts
from paft_ray.evaluation.metrics import Floats

_WARM_UP = 400
"""Sweeps of the sampler before the first draw is kept."""
_SWEEPS_PER_DRAW = 3
_MEAN_SD = 3.0
"""Prior standard deviation of a class's mean ability; Phi(3) is 99.9%."""
_FREEDOM, _SCALE = 2.0, 0.5
"""Half-t prior of every standard deviation, on the scale of Phi's argument; with 2 degrees of
freedom correlations are uniform."""
_LEAST = 1e-300
"""A probability whose quantile is finite."""


class Posterior:
    """Figures of several models over prompts, each estimated from a part of its grid.

    Every model has its own draws, so that a difference of two is wider than a paired one.
    """

    draws: Mapping[str, Mapping[str, Floats]]
    """Label and key of a figure over prompts to its draws: shape [R]."""
    values: Mapping[str, Mapping[str, float]]
    """Label and key to the median over draws."""

    def __init__(
        self, accuracies: Mapping[str, Sequence[Floats]], thresholds: Sequence[float] = ()
    ) -> None:
        """Compute the figures of every draw, averaged over seeds.

        Args:
            accuracies: Label to the result of `fit` for each seed, of equally many draws.
            thresholds: Accuracies for Top@t.
        """
        draws = {}
        for label, of_label in accuracies.items():
            by_seed = [over_prompts(accuracy_RP, thresholds) for accuracy_RP in of_label]
            draws[label] = {
                key: np.mean([of_seed[key] for of_seed in by_seed], axis=0) for key in by_seed[0]
            }
        self.draws = draws
        self.values = {
            label: {key: float(np.quantile(draws_R, 0.5)) for key, draws_R in of_label.items()}
            for label, of_label in draws.items()
        }

    def interval(self, label: str, figure: Figure) -> tuple[float, float]:
        """95% interval of a figure on the whole grid."""
        return _bounds(self.draws[label][figure.key])

    def difference(self, a: str, b: str, figure: Figure) -> Difference:
        """Figure of `a` minus that of `b`, without a p-value."""
        value = self.values[a][figure.key] - self.values[b][figure.key]
        bounds = _bounds(self.draws[a][figure.key] - self.draws[b][figure.key])
        return Difference(value, *bounds, None)


def fit(
    correct_PE: NDArray[np.bool_],
    observed_PE: NDArray[np.bool_],
    classes_E: Sequence[Any] | NDArray[Any] | None = None,
    draws: int = 500,
    seed: int = 0,
) -> Floats:
    """Draw the accuracy of every prompt on the whole grid, given a part of the grid.

    Args:
        correct_PE: Whether the answer is right; without meaning where it was not observed.
        observed_PE: Whether a cell was scored. The choice may depend on scored answers only.
        classes_E: The right answers where they are one of a few choices; None for free text. Time
            grows with the cube of the number of choices.
        draws: How many draws to keep.
        seed: Seed of the draws.

    Returns:
        Draws of the accuracies: shape [R, P].

    Raises:
        DataError: The two arrays differ in shape, the grid is empty, nothing was observed, or
            classes do not fit the examples.
    """
    if correct_PE.ndim != 2 or correct_PE.shape != observed_PE.shape:
        raise DataError(
            f"correctness has shape {correct_PE.shape} and the mask {observed_PE.shape}: "
            "give two arrays of prompts x examples"
        )
    if not observed_PE.any():
        raise DataError(
            f"none of the {observed_PE.size} cells was scored: choose some with balanced_cells"
        )
    if draws < 1:
        raise DataError(f"draws is {draws}: ask for at least one")
    examples = correct_PE.shape[1]
    class_E = class_numbers(classes_E, examples)
    right_P = (correct_PE & observed_PE).sum(axis=1)
    if observed_PE.all():
        return np.tile(right_P / examples, (draws, 1))
    rng = np.random.default_rng(seed)
    accuracy_RP = np.empty((draws, len(right_P)))
    sweeps = _sweeps(rng, correct_PE, observed_PE, class_E)
    for _ in range(_WARM_UP):
        next(sweeps)
    for draw in range(draws):
        for _ in range(_SWEEPS_PER_DRAW - 1):
            next(sweeps)
        theta_PC, beta_E = next(sweeps)
        drawn_PE = rng.random(correct_PE.shape) < ndtr(theta_PC[:, class_E] - beta_E)
        accuracy_RP[draw] = (right_P + (drawn_PE & ~observed_PE).sum(axis=1)) / examples
    return accuracy_RP


def _sweeps(
    rng: np.random.Generator,
    correct_PE: NDArray[np.bool_],
    observed_PE: NDArray[np.bool_],
    class_E: NDArray[np.int_],
) -> Iterator[tuple[Floats, Floats]]:
    """Abilities [P, C] and difficulties [E] after each sweep of the Gibbs sampler, without end.

    The prior is on the common part of a prompt's abilities and on their differences. Prompts that
    favour one answer have abilities with a correlation near -1 over two classes, which a prior on
    the abilities themselves nearly excludes: on 120 simulated grids of such prompts (30 x 60, a
    fifth of the cells) the interval of the standard deviation held the truth in 78%, 1.6 points too
    high in the mean, and in 91% and 0.7 with this prior.
    """
    prompts, examples = observed_PE.shape
    classes = int(class_E.max()) + 1
    prompt_N, example_N = np.nonzero(observed_PE)
    sign_N = np.where(correct_PE[prompt_N, example_N], 1.0, -1.0)
    row_N = prompt_N * classes + class_E[example_N]
    count_PC = np.bincount(row_N, minlength=prompts * classes).reshape(prompts, classes)
    count_E = np.bincount(example_N, minlength=examples)
    seen_PCC = count_PC[:, :, None] * np.eye(classes)
    theta_PC, beta_E, mean_C = np.zeros((prompts, classes)), np.zeros(examples), np.zeros(classes)
    abilities, difficulties = _Spread.start(classes), _Spread.start(1)
    contrasts_CC = _contrasts(classes)
    while True:
        tight_CC = contrasts_CC @ abilities.precision_CC @ contrasts_CC.T
        latent_N = _latent(rng, theta_PC.ravel()[row_N] - beta_E[example_N], sign_N)

        sums_PC = np.bincount(row_N, latent_N + beta_E[example_N], prompts * classes)
        weighted_PC = sums_PC.reshape(prompts, classes) + tight_CC @ mean_C
        theta_PC = _normal(rng, tight_CC + seen_PCC, weighted_PC)
        tight = difficulties.precision_CC[0, 0]
        sums_E = np.bincount(example_N, theta_PC.ravel()[row_N] - latent_N, examples)
        beta_E = sums_E / (count_E + tight)
        beta_E += rng.standard_normal(examples) / np.sqrt(count_E + tight)

        precision_CC = prompts * tight_CC + np.eye(classes) / _MEAN_SD**2
        mean_C = _normal(rng, precision_CC, tight_CC @ theta_PC.sum(axis=0))
        # a common shift of a class's abilities and difficulties changes no likelihood
        shift_C = _shift(rng, beta_E, class_E, mean_C, tight)
        theta_PC, mean_C, beta_E = theta_PC + shift_C, mean_C + shift_C, beta_E + shift_C[class_E]

        abilities = abilities.drawn(rng, (theta_PC - mean_C) @ contrasts_CC)
        difficulties = difficulties.drawn(rng, beta_E[:, None])
        yield theta_PC, beta_E


@dataclass(frozen=True, slots=True)
class _Spread:
    """(Co)variance of zero-mean random effects, under Huang and Wand's prior.

    Bayesian Analysis 8(2), 2013: half-t standard deviations, and correlations that do not depend
    on them, as they would under an inverse Wishart prior.
    """

    precision_CC: Floats
    """Inverse of the covariance."""
    auxiliary_C: Floats
    """Rates that make half-t standard deviations of conditionally inverse Wishart covariances."""

    @staticmethod
    def start(classes: int) -> "_Spread":
        return _Spread(np.eye(classes), np.ones(classes))

    def drawn(self, rng: np.random.Generator, effects_KC: Floats) -> "_Spread":
        """The next draw, given the effects [K, C]."""
        count, classes = effects_KC.shape
        scale_CC = effects_KC.T @ effects_KC + np.diag(2 * _FREEDOM * self.auxiliary_C)
        freedom = _FREEDOM + classes - 1 + count
        bartlett_CC = np.tril(rng.standard_normal((classes, classes)), -1)
        np.fill_diagonal(bartlett_CC, np.sqrt(rng.chisquare(freedom - np.arange(classes))))
        root_CC = np.linalg.cholesky(np.linalg.inv(scale_CC)) @ bartlett_CC
        precision_CC = root_CC @ root_CC.T
        rate_C = _FREEDOM * np.diag(precision_CC) + 1 / _SCALE**2
        return _Spread(precision_CC, rng.gamma((_FREEDOM + classes) / 2, 1 / rate_C))


def _latent(rng: np.random.Generator, mean_N: Floats, sign_N: Floats) -> Floats:
    """Normal draws around `mean_N` with the given signs (Albert and Chib's data augmentation)."""
    toward_N = mean_N * sign_N
    below_N = rng.random(len(mean_N)) * ndtr(toward_N)
    return sign_N * (toward_N - ndtri(np.maximum(below_N, _LEAST)))


def _normal(rng: np.random.Generator, precision: Floats, weighted: Floats) -> Floats:
    """Normal draws with the given precisions [..., C, C] and precision-weighted means [..., C]."""
    covariance = np.linalg.inv(precision)
    noise = np.linalg.cholesky(covariance) @ rng.standard_normal(weighted.shape)[..., None]
    return (covariance @ weighted[..., None] + noise)[..., 0]


def _contrasts(classes: int) -> Floats:
    """An orthonormal basis of the classes: their common part first, then differences."""
    columns_CC = np.eye(classes)
    columns_CC[:, 0] = 1
    return np.linalg.qr(columns_CC)[0]


def _shift(
    rng: np.random.Generator,
    beta_E: Floats,
    class_E: NDArray[np.int_],
    mean_C: Floats,
    tight: float,
) -> Floats:
    """A draw, per class, of a shift of abilities, their mean and difficulties."""
    classes = len(mean_C)
    precision_C = np.bincount(class_E, minlength=classes) * tight + 1 / _MEAN_SD**2
    sums_C = np.bincount(class_E, beta_E, classes) * tight + mean_C / _MEAN_SD**2
    return rng.standard_normal(classes) / np.sqrt(precision_C) - sums_C / precision_C


def class_numbers(
    classes_E: Sequence[Any] | NDArray[Any] | None, examples: int
) -> NDArray[np.int_]:
    """Classes of any type as numbers from 0; one class where they are None.

    Raises:
        DataError: Their number is not that of the examples.
    """
    if classes_E is None:
        return np.zeros(examples, int)
    if len(classes_E) != examples:
        raise DataError(
            f"{len(classes_E)} classes for {examples} examples: give the right answer of each"
        )
    return np.unique(np.asarray(classes_E), return_inverse=True)[1]


def _bounds(figure_R: Floats) -> tuple[float, float]:
    low, high = np.quantile(figure_R, (0.025, 0.975))
    return float(low), float(high)
