"""Accuracy over prompts: a line of dots per model, and the prompts ranked with their texts.

Shapes: S seeds, P prompts.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paft_ray.report.axes import Axis, accuracy_axis
from paft_ray.report.files import RunFiles
from paft_ray.report.table import display_name, main_label

_DOT_PERCENT = 1.6
"""Width that a dot of the strip plot takes up."""
_DOT_LEVELS = 4
"""Dots above and below the line; further ones overlap."""


@dataclass(frozen=True, slots=True)
class Dot:
    """One prompt in a strip plot, its places in percent of the width."""

    prompt_id: str
    title: str
    x: float
    low: float
    """Under the seed that does worst."""
    high: float
    level: int
    """0 on the line, then 1, -1, 2, -2, ... where dots would overlap."""


@dataclass(frozen=True, slots=True)
class Strip:
    """One model's line of dots, its places in percent of the width."""

    label: str
    name: str
    figures: str
    mean: float
    low: float
    """Mean minus one standard deviation."""
    high: float
    seeds: tuple[float, ...]
    """Mean of each seed, where there are several."""
    dots: tuple[Dot, ...]
    deepest: int
    """The largest level, without its sign."""


@dataclass(frozen=True, slots=True)
class Strips:
    """The plot of all models on one scale."""

    lines: tuple[Strip, ...]
    axis: Axis
    thresholds: tuple[float, ...]
    """Of Top@t, in percent of the width."""


@dataclass(frozen=True, slots=True)
class PromptLine:
    """One held-out prompt and how every model does under it."""

    id: str
    rank: int
    text: str
    accuracies: tuple[float | None, ...]
    """In percent, in the order of the models."""


def over_seeds(accuracy_SP: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the seeds that were asked: shape [P], nan where none was."""
    asked_P = (~np.isnan(accuracy_SP)).sum(axis=0)
    return np.where(asked_P > 0, np.nansum(accuracy_SP, axis=0) / np.maximum(asked_P, 1), np.nan)


def ranked_prompts(run: RunFiles, label: str) -> list[int]:
    """Places of the prompts, worst first for a model; those it was not asked under come last."""
    accuracy_P = over_seeds(run.accuracy(label))
    return sorted(range(len(accuracy_P)), key=lambda p: (_last(accuracy_P[p]), p))


def accuracy_strips(run: RunFiles) -> Strips:
    """The strip plot."""
    models, texts = run.summary["models"], run.texts
    grids = {label: run.accuracy(label) for label in models}
    values = np.concatenate([over_seeds(grid_SP) for grid_SP in grids.values()])
    values = values[~np.isnan(values)]
    axis = accuracy_axis(values.min(initial=1.0), values.max(initial=0.0))
    strips = []
    for label, model in models.items():
        accuracy_SP = grids[label]
        mean, std = 100 * model["mean"], 100 * model["std"]
        seeds = np.nanmean(accuracy_SP, axis=1) if len(accuracy_SP) > 1 else []
        dots = _dots(run.answers.prompt_ids, accuracy_SP, texts, axis)
        strips.append(
            Strip(
                label,
                display_name(label),
                f"{mean:.1f} ± {std:.1f}",
                axis.percent(mean),
                axis.percent(mean - std),
                axis.percent(mean + std),
                tuple(axis.percent(100 * float(value)) for value in seeds),
                dots,
                max((abs(dot.level) for dot in dots), default=0),
            )
        )
    thresholds = next(iter(models.values()))["top"]
    return Strips(tuple(strips), axis, tuple(axis.percent(100 * float(t)) for t in thresholds))


def levels_without_overlap(places: Sequence[float], width: float, most: int) -> list[int]:
    """For dots from left to right, the level nearest the line on which each overlaps no other.

    Args:
        places: In ascending order.
        width: Of a dot, in the same unit.
        most: Levels to each side; where all are taken a dot goes on the line.
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
    answers, texts = run.answers, run.texts
    means = [over_seeds(run.accuracy(label)) for label in run.summary["models"]]
    return tuple(
        PromptLine(
            answers.prompt_ids[p],
            rank,
            texts.get(answers.prompt_ids[p], answers.prompt_ids[p]),
            tuple(None if np.isnan(mean_P[p]) else 100 * float(mean_P[p]) for mean_P in means),
        )
        for rank, p in enumerate(ranked_prompts(run, main_label(run.summary)), start=1)
    )


def pieces(text: str) -> tuple[tuple[bool, str], ...]:
    """A template cut at its slots: whether a piece is one, and the piece."""
    parts = re.split(r"(\{[A-Za-z_][A-Za-z0-9_]*\})", text)
    return tuple((bool(i % 2), part) for i, part in enumerate(parts) if part)


def _dots(
    prompt_ids: Iterable[str],
    accuracy_SP: NDArray[np.float64],
    texts: Mapping[str, str],
    axis: Axis,
) -> tuple[Dot, ...]:
    mean_P = over_seeds(accuracy_SP)
    asked = sorted(
        (float(mean_P[p]), prompt_id, accuracy_SP[:, p])
        for p, prompt_id in enumerate(prompt_ids)
        if not np.isnan(mean_P[p])
    )
    places = [axis.percent(100 * mean) for mean, _, _ in asked]
    levels = levels_without_overlap(places, _DOT_PERCENT, _DOT_LEVELS)
    dots = []
    for (mean, prompt_id, by_seed), x, level in zip(asked, places, levels, strict=True):
        low, high = 100 * float(np.nanmin(by_seed)), 100 * float(np.nanmax(by_seed))
        seeds = "" if len(by_seed) == 1 else f" (seeds {low:.1f} to {high:.1f})"
        wording = " ".join(texts.get(prompt_id, prompt_id).split())
        title = f"{100 * mean:.1f}%{seeds}: {wording[:160]}"
        dots.append(Dot(prompt_id, title, x, axis.percent(low), axis.percent(high), level))
    return tuple(dots)


def _last(value: float) -> float:
    return float("inf") if np.isnan(value) else float(value)
