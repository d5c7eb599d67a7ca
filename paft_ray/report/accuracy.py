"""Accuracy over prompts: a line of dots per model, and the prompts ranked with their texts.

Shapes: S seeds, P prompts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paft_ray.evaluation.figures import MEAN, STD, figures_of
from paft_ray.report.axes import Axis, accuracy_axis
from paft_ray.report.files import RunFiles
from paft_ray.report.oddness import odd_prompts
from paft_ray.report.tables import display_name, main_label


@dataclass(frozen=True, slots=True)
class Dot:
    """One prompt in a strip plot; accuracies are in percent."""

    prompt_id: str
    title: str
    accuracy: float
    """Mean over seeds."""
    low: float
    """Accuracy under the seed with the lowest one."""
    high: float


@dataclass(frozen=True, slots=True)
class Strip:
    """One model's line of dots; accuracies are in percent."""

    label: str
    name: str
    mean: float
    std: float
    seeds: tuple[float, ...]
    """Mean of each seed, where there are several."""
    dots: tuple[Dot, ...]
    """From the worst prompt to the best."""

    @property
    def figures(self) -> str:
        """The text next to the line."""
        return f"{self.mean:.1f} ± {self.std:.1f}"


@dataclass(frozen=True, slots=True)
class AccuracyPlot:
    """The accuracy of all models under every prompt, on one scale in percent."""

    strips: tuple[Strip, ...]
    axis: Axis
    thresholds: tuple[float, ...]
    """Thresholds of Top@t."""
    prompts: int
    several_seeds: bool
    majority: tuple[str, float] | None = None
    """The most frequent answer, and how often always giving it is right, in percent."""

    def levels(self, strip: Strip, width: float, most: int) -> list[int]:
        """See `levels_without_overlap`, for dots of a width in percent of the plot's."""
        places = [self.axis.percent(dot.accuracy) for dot in strip.dots]
        return levels_without_overlap(places, width, most)


@dataclass(frozen=True, slots=True)
class PromptLine:
    """One held-out prompt with the accuracy of every model under it."""

    id: str
    rank: int
    text: str
    odd: tuple[str, ...]
    """Unusual words, where so many of its words are unusual that it may be nonsense."""
    accuracies: tuple[float | None, ...]
    """In percent, in the order of the models."""


def over_seeds(accuracy_SP: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the seeds that were scored: shape [P], nan where none was."""
    scored_P = (~np.isnan(accuracy_SP)).sum(axis=0)
    return np.where(scored_P > 0, np.nansum(accuracy_SP, axis=0) / np.maximum(scored_P, 1), np.nan)


def ranked_prompts(run: RunFiles, label: str) -> list[int]:
    """Indices of the prompts, worst first for a model; those without scores come last."""
    accuracy_P = np.nan_to_num(over_seeds(run.accuracy(label)), nan=np.inf)
    return np.argsort(accuracy_P, kind="stable").tolist()


def accuracy_plot(run: RunFiles) -> AccuracyPlot:
    """The accuracy of all models under every prompt, as strips of dots."""
    models, texts = run.summary["models"], run.texts
    grids = {label: run.accuracy(label) for label in models}
    values = np.concatenate([over_seeds(grid_SP) for grid_SP in grids.values()])
    values = values[~np.isnan(values)]
    if (known := run.summary.get("majority")) is not None:
        values = np.append(values, known["share"])
    strips = []
    for label, model in models.items():
        accuracy_SP = grids[label]
        seeds = np.nanmean(accuracy_SP, axis=1) if len(accuracy_SP) > 1 else []
        strips.append(
            Strip(
                label,
                display_name(label),
                100 * MEAN.read(model),
                100 * STD.read(model),
                tuple(100 * float(value) for value in seeds),
                _dots(run.answers.prompt_ids, accuracy_SP, texts),
            )
        )
    return AccuracyPlot(
        tuple(strips),
        accuracy_axis(values.min(initial=1.0), values.max(initial=0.0)),
        tuple(100 * float(f.threshold) for f in figures_of(run.summary) if f.threshold),
        len(run.answers.prompt_ids),
        any(len(grid_SP) > 1 for grid_SP in grids.values()),
        None if known is None else (known["answer"], 100 * known["share"]),
    )


def levels_without_overlap(places: Sequence[float], width: float, most: int) -> list[int]:
    """Choose for each dot, from left to right, the level nearest the line without an overlap.

    Args:
        places: Places of the dots, in ascending order.
        width: Width of a dot, in the same unit.
        most: Levels on each side of the line; where all are taken, a dot is drawn on the line.
    """
    levels = sorted(range(-most, most + 1), key=lambda level: (abs(level), -level))
    free_from = dict.fromkeys(levels, float("-inf"))
    chosen = []
    for place in places:
        level = next((level for level in levels if free_from[level] <= place), 0)
        free_from[level] = place + width
        chosen.append(level)
    return chosen


def prompt_lines(run: RunFiles) -> tuple[PromptLine, ...]:
    """Held-out prompts, worst first by the model that the run is about."""
    answers, texts, odd = run.answers, run.texts, odd_prompts(run)
    means = [over_seeds(run.accuracy(label)) for label in run.summary["models"]]
    return tuple(
        PromptLine(
            answers.prompt_ids[p],
            rank,
            texts.get(answers.prompt_ids[p], answers.prompt_ids[p]),
            odd.get(answers.prompt_ids[p], ()),
            tuple(None if np.isnan(mean_P[p]) else 100 * float(mean_P[p]) for mean_P in means),
        )
        for rank, p in enumerate(ranked_prompts(run, main_label(run.summary)), start=1)
    )


def _dots(
    prompt_ids: Iterable[str], accuracy_SP: NDArray[np.float64], texts: Mapping[str, str]
) -> tuple[Dot, ...]:
    mean_P = over_seeds(accuracy_SP)
    scored = sorted(
        (float(mean_P[p]), prompt_id, accuracy_SP[:, p])
        for p, prompt_id in enumerate(prompt_ids)
        if not np.isnan(mean_P[p])
    )
    dots = []
    for mean, prompt_id, by_seed in scored:
        low, high = 100 * float(np.nanmin(by_seed)), 100 * float(np.nanmax(by_seed))
        seeds = "" if len(by_seed) == 1 else f" (seeds {low:.1f} to {high:.1f})"
        wording = " ".join(texts.get(prompt_id, prompt_id).split())
        title = f"{100 * mean:.1f}%{seeds}: {wording[:160]}"
        dots.append(Dot(prompt_id, title, 100 * mean, low, high))
    return tuple(dots)
