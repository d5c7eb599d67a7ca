"""The list of figures that are reported of a model.

A figure in `FIGURES` is computed, gets an interval, stands in `summary.json`, in the tables of the
screen, the page and the model card, and is tracked in MLflow. Nothing else lists figures; code
about one of them names it (`MEAN`, `STD`, ...).

The figures over prompts are those of multi-prompt evaluation (arXiv 2401.00595, 2405.17202); shares
are between 0 and 1 in files, and shown in percent.
"""

from collections.abc import Mapping, Sequence
from itertools import starmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paft_ray.evaluation.cost_figures import COSTS
from paft_ray.evaluation.figure import Figure
from paft_ray.evaluation.metrics import (
    Floats,
    WeightedAnswers,
    consistency,
    flip_rate,
    mean_calibration_error,
    mean_of,
    pairwise_agreement,
    prompt_sensitivity,
    prompts_needed,
    std_by_chance,
)

FURTHER = "further_grade_"
"""Beginning of the names of further grades among an answer's numbers, before their place."""


MEAN = Figure(
    key="mean",
    heading="mean",
    meaning="accuracy, averaged over prompts",
    definition="Mean over prompts of the accuracy under a prompt (PAFT, arXiv 2502.12859, 4).",
    metric="accuracy/mean",
    table="results",
    compared=True,
    better="higher",
    over_prompts=lambda accuracy: accuracy.mean(axis=-1),
)
STD = Figure(
    key="std",
    heading="std over prompts",
    meaning="standard deviation of the accuracy over prompts",
    definition="Of these prompts as a population, numpy's `ddof=0` (PAFT, arXiv 2502.12859, 4).",
    metric="accuracy/std",
    table="results",
    compared=True,
    better="lower",
    over_prompts=lambda accuracy: accuracy.std(axis=-1),
)
WORST = Figure(
    key="min",
    heading="worst",
    meaning="accuracy under the worst prompt",
    metric="accuracy/worst_prompt",
    table="results",
    compared=True,
    better="higher",
    over_prompts=lambda accuracy: accuracy.min(axis=-1),
)
LOW_QUANTILE = Figure(
    key="p05",
    heading="5% quantile",
    short="p05",
    meaning="accuracy that all but 5% of the prompts reach",
    definition="5% quantile over prompts, interpolated linearly.",
    metric="accuracy/p05",
    table="wide",
    better="higher",
    over_prompts=lambda accuracy: np.quantile(accuracy, 0.05, axis=-1),
)
BEST = Figure(
    key="max",
    heading="best",
    meaning="accuracy under the best prompt",
    metric="accuracy/best_prompt",
    better="higher",
    over_prompts=lambda accuracy: accuracy.max(axis=-1),
)
STD_BY_CHANCE = Figure(
    key="std_by_chance",
    heading="std by chance",
    meaning="the standard deviation that so few examples give where wording means nothing",
    definition="Expected std of grids in which every example's answers are dealt to the prompts "
    "anew. What the std has beyond it is due to the prompts.",
    metric="accuracy/std_by_chance",
    of_grid=std_by_chance,
)
CONSISTENCY = Figure(
    key="consistency",
    heading="consistent",
    meaning="examples that are answered alike under all prompts",
    definition="Share of the examples that are answered alike, right or wrong.",
    metric="consistency",
    better="higher",
    of_answers=consistency,
)
PAIRWISE_AGREEMENT = Figure(
    key="pairwise_agreement",
    heading="agreement",
    meaning="how often two prompts get the same answer to an example",
    definition="Observed agreement of Fleiss (Psychological Bulletin 76, 1971), with different "
    "prompts as raters.",
    metric="pairwise_agreement",
    better="higher",
    of_answers=pairwise_agreement,
)
FLIP_RATE = Figure(
    key="flip_rate",
    heading="flips",
    meaning="prompts whose answer is not the one that most prompts get, over examples",
    definition="Freeman's variation ratio (1965), averaged over examples.",
    metric="flip_rate",
    better="lower",
    of_answers=flip_rate,
)
PROMPT_SENSITIVITY = Figure(
    key="prompt_sensitivity",
    heading="prompt sensitivity",
    meaning="how far the grades of an example under two prompts lie apart",
    definition="PromptSensiScore: mean absolute difference over pairs of prompts and examples "
    "(ProSA, arXiv 2410.12405).",
    metric="prompt_sensitivity",
    better="lower",
    of_grid=prompt_sensitivity,
)
PROMPTS_NEEDED = Figure(
    key="prompts_needed",
    heading="prompts for one point",
    meaning="how many prompts would let the mean on these examples be known to one point",
    definition="(1.96 s / 0.01)^2, rounded up, at least 1, with s^2 the variance over prompts less "
    "that by chance; prompts as if drawn independently from the same source.",
    metric="prompts_needed",
    most=float("inf"),
    scale=1,
    format=",.0f",
    of_grid=prompts_needed,
)
CALIBRATION_ERROR = Figure(
    key="calibration_error",
    heading="calibration error",
    meaning="mean distance of the probability of the answer from how often it is right (15 bins)",
    definition="Expected calibration error of the choice's probability among the choices, in bins "
    "of equal width (Guo et al., arXiv 1706.04599, 2). Bins hold the answers under all prompts: "
    "one that is too sure and one that is too unsure cancel out.",
    metric="calibration_error",
    better="lower",
    of_answers=mean_calibration_error,
)
GENERATED_TOKENS = Figure(
    key="generated_tokens",
    heading="tokens per answer",
    meaning="tokens generated for an answer, the end included",
    definition="Mean over answers. The paper's claim about the speed of inference is this one: "
    "shorter answers, not a faster model.",
    metric="generated_tokens",
    better="lower",
    most=float("inf"),
    scale=1,
    format=",.1f",
    of_answers=mean_of("generated_tokens"),
)
UNENDED = Figure(
    key="no_end",
    heading="no end",
    meaning="answers that went on past evaluation.max_new_tokens: no end token, nothing of "
    "task.stop",
    metric="no_end",
    table="results",
    better="lower",
    of_answers=mean_of("unended"),
)
BEGINS_RIGHT = Figure(
    key="only_begins_right",
    heading="only begin right",
    meaning="answers that begin with the right one and go on, which is wrong",
    metric="only_begins_right",
    table="results",
    better="lower",
    of_answers=mean_of("begins_right"),
)
FIGURES = (
    MEAN, STD, WORST, LOW_QUANTILE, BEST, STD_BY_CHANCE, PROMPTS_NEEDED, CONSISTENCY,
    PROMPT_SENSITIVITY, PAIRWISE_AGREEMENT, FLIP_RATE, CALIBRATION_ERROR, UNENDED, BEGINS_RIGHT,
    GENERATED_TOKENS, *COSTS,
)  # fmt: skip
"""In the order of files and tables; Top@t, whose thresholds a run chooses, comes last."""


def top(threshold: float | str) -> Figure:
    """Top@t, the share of the prompts with an accuracy of at least t (PAFT, arXiv 2502.12859, 4).

    Args:
        threshold: A number, or its text in `summary.json`.
    """
    least, percent = float(threshold), f"{100 * float(threshold):g}"
    return Figure(
        key=f"top@{threshold}",
        heading=f"Top>={percent}%",
        meaning="share of the prompts with at least that accuracy",
        definition="Share of the prompts with an accuracy of at least t (PAFT, arXiv 2502.12859).",
        metric=f"accuracy/top_{percent}",
        table="results",
        better="higher",
        format=".0f",
        unit="%",
        threshold=str(threshold),
        over_prompts=lambda accuracy: (accuracy >= least).mean(axis=-1),
    )


def further_grade(number: int, label: str) -> Figure:
    """The mean of a grade that stands beside the one that decides.

    Args:
        number: Its place among the further grades.
        label: Its name, see `config.grade`.
    """
    return Figure(
        key=f"{FURTHER}{number}",
        heading=f"mean {label}",
        meaning="the same answers by a further grade of task.grade, averaged over prompts",
        metric=f"grade/{label}",
        table="results",
        compared=True,
        better="higher",
        of_answers=mean_of(f"{FURTHER}{number}"),
    )


def all_figures(
    thresholds: Sequence[float | str] = (), grades: Sequence[str] = ()
) -> tuple[Figure, ...]:
    """All figures, Top@t and further grades, by their labels, among them."""
    return (*FIGURES, *map(top, thresholds), *starmap(further_grade, enumerate(grades)))


def figures_of(summary: Mapping[str, Any]) -> tuple[Figure, ...]:
    """All figures that a summary may have, with its own thresholds and grades."""
    thresholds = tuple(next(iter(summary["models"].values()))["top"])
    return all_figures(thresholds, [grade["label"] for grade in summary.get("grades", ())[1:]])


def over_prompts(accuracy: Floats, thresholds: Sequence[float] = ()) -> dict[str, Floats]:
    """Figures by key, computed from accuracies over the last axis, which is prompts."""
    return {f.key: f.over_prompts(accuracy) for f in all_figures(thresholds) if f.over_prompts}


def of_answers(answers: WeightedAnswers) -> dict[str, Floats]:
    """Figures by key, computed from answers: shape [R] each; without those that cannot be."""
    further = [name for name in answers.sums_R if name.startswith(FURTHER)]
    figures = all_figures(grades=further)
    every = {f.key: f.of_answers(answers) for f in figures if f.of_answers}
    return {key: value_R for key, value_R in every.items() if value_R is not None}


def of_grid(grade_PE: Floats) -> dict[str, float]:
    """Figures by key, computed from the grade of each answer."""
    return {f.key: f.of_grid(grade_PE) for f in FIGURES if f.of_grid}


def as_tree(entries: Mapping[Figure, Any]) -> dict[str, Any]:
    """Entries by figure as `summary.json` has them: by key, those of Top@t under `top`."""
    plain = {figure.key: entry for figure, entry in entries.items() if not figure.threshold}
    tops = {figure.threshold: entry for figure, entry in entries.items() if figure.threshold}
    return {**plain, "top": tops}


def eval_metrics(summary: Mapping[str, Any], label: str) -> dict[str, float]:
    """The figures of one model by their names in MLflow."""
    model = summary["models"][label]
    known = {f"eval/{f.metric}": f.read(model) for f in figures_of(summary) if f.metric}
    return {name: value for name, value in known.items() if value is not None}


def validation_metrics(grade_PE: NDArray[Any]) -> dict[str, float]:
    """The figures over prompts of a model in training by their names in MLflow."""
    accuracy_P = grade_PE.mean(axis=1)
    return {
        f"validation/{f.metric}": float(f.over_prompts(accuracy_P))
        for f in FIGURES
        if f.over_prompts and f.metric and f.table != "further"
    }
