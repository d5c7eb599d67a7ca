"""The results of a search, from `search.json`, as text for the screen and a section of the page.

Covered: trials and finalists, the goal over every dimension, the importance of each dimension, the
cost of trials, the selection gap.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paft_ray.config.visible import shell_words
from paft_ray.report.axes import Axis, accuracy_axis

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial as the table shows it."""

    number: int
    settings: Sequence[str]
    """Values, in the order of the dimensions."""
    state: str
    reports: int
    goal: float | None
    """The goal's figure at its last report."""
    low: float | None
    high: float | None
    seconds: float
    tokens: int | None


@dataclass(frozen=True, slots=True)
class Point:
    """One trial in the plot over a dimension."""

    number: int
    value: float
    """Place on the axis, between 0 and 1."""
    label: str
    goal: float
    low: float
    high: float
    finished: bool


@dataclass(frozen=True, slots=True)
class DimensionPlot:
    """The goal over one dimension."""

    path: str
    points: tuple[Point, ...]
    ticks: tuple[tuple[float, str], ...]
    """Places between 0 and 1, and their labels."""
    importance: float | None
    """See `importances`."""


def trial_rows(search: Mapping[str, Any]) -> list[TrialRow]:
    """The trials: finished ones first, the best of them first."""
    rows = [
        TrialRow(
            trial["number"],
            [_short(trial["sample"].get(path)) for path in search["space"]],
            trial["state"],
            len(trial["reports"]),
            trial["reports"][-1]["goal"] if trial["reports"] else None,
            low,
            high,
            trial["seconds"],
            trial["tokens"],
        )
        for trial in search["trials"]
        for low, high in [trial["interval"] or (None, None)]
    ]
    return sorted(
        rows,
        key=lambda row: (
            row.state != "finished",
            math.inf if row.goal is None else -row.goal,
            row.number,
        ),
    )


def search_table(search: Mapping[str, Any]) -> str:
    """Trials and finalists as text."""
    names = [path.rpartition(".")[2] for path in search["space"]]
    heads = ["trial", *names, "state", "reports", f"validation {search['goal']}", "seconds"]
    rows = [
        [
            str(row.number),
            *row.settings,
            row.state,
            str(row.reports),
            "" if row.goal is None else f"{row.goal:.1%}",
            f"{row.seconds:.0f}",
        ]
        for row in trial_rows(search)
    ]
    lines = _aligned([heads, *rows[:_SHOWN]])
    if len(rows) > _SHOWN:
        lines.append(f"... and {len(rows) - _SHOWN} more in search.json")
    lines.append("")
    for finalist in search["finalists"]:
        low, high = finalist["test_interval"]
        lines.append(
            f"{finalist['label']} (trial {finalist['trial']}: {finalist['settings']}): "
            f"{search['goal']} {finalist['test']:.1%} [{low:.1%}, {high:.1%}] on "
            f"test prompts over {len(finalist['seeds'])} seeds, "
            f"{finalist['validation']:.1%} on validation prompts, "
            f"a selection gap of {100 * finalist['gap']:+.1f} points"
        )
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class NextStep:
    """Something to do after a search."""

    text: str
    command: str = ""
    """A command to copy, in which CONFIG stands for the configuration's file; empty for none."""


def next_steps(search: Mapping[str, Any], name: str) -> list[NextStep]:
    """What the results of a search suggest to do.

    Args:
        search: Content of `search.json`.
        name: The search's name.
    """
    if not search["finalists"]:
        return []
    best, *others = search["finalists"]
    settings = [f"{path}={_as_override(value)}" for path, value in best["sample"].items()]
    steps = [
        NextStep("Use the best finalist: write its adapter to a folder.", "paft export CONFIG"),
        NextStep(
            "Compare its settings with other variants on the test prompts, under another name.",
            f"paft run CONFIG {shell_words([f'name={name}-best', *settings])}",
        ),
    ]
    low, _ = best["test_interval"]
    if others and any(other["test_interval"][1] >= low for other in others):
        steps.append(
            NextStep(
                "The finalists' intervals overlap, so which of them is best is not shown: take the "
                "cheaper one, or give more tuning.seeds and evaluation.examples."
            )
        )
    steps += [
        NextStep(
            f"The best value of {path} ({_short(best['sample'][path])}) is the {side} one tried: "
            f"widen tuning.space.{path} and search again."
        )
        for path in search["space"]
        if (side := _edge(path, best["sample"], search["trials"]))
    ]
    return steps


def _edge(path: str, sample: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> str:
    """Whether a number is the least or the greatest of at least three that were tried."""
    tried = {_number(trial["sample"].get(path)) for trial in trials}
    known = sorted(number for number in tried if number is not None and math.isfinite(number))
    if len(known) < 3 or (value := _number(sample.get(path))) not in (known[0], known[-1]):
        return ""
    return "least" if value == known[0] else "greatest"


def _as_override(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def dimension_plots(search: Mapping[str, Any]) -> list[DimensionPlot]:
    """The goal at the last report of every trial, over each dimension of the space."""
    importance = importances(search)
    trials = [trial for trial in search["trials"] if trial["reports"] and trial["interval"]]
    plots = []
    for path in search["space"]:
        values = {_short(t["sample"][path]): t["sample"][path] for t in trials}
        numbers = {label: _number(value) for label, value in values.items()}
        places = _places(numbers)
        points = [
            Point(
                trial["number"],
                places[_short(trial["sample"][path])],
                _short(trial["sample"][path]),
                trial["reports"][-1]["goal"],
                low,
                high,
                trial["state"] == "finished",
            )
            for trial in trials
            for low, high in [trial["interval"]]
        ]
        ticks = sorted((place, label) for label, place in places.items())
        plots.append(DimensionPlot(path, tuple(points), _thinned(ticks), importance.get(path)))
    return plots


def search_axis(search: Mapping[str, Any]) -> Axis:
    """The scale of all plots, in percent: from the lowest interval to the highest."""
    bounds = [bound for trial in search["trials"] for bound in trial["interval"] or ()]
    low, high = min(bounds, default=0.0), max(bounds, default=1.0)
    if low >= 0:
        return accuracy_axis(low, high)
    first, last = 10 * math.floor(10 * low), min(100, 10 * math.ceil(10 * high))
    return Axis(first, last, tuple(range(first, last + 1, 10)))


def importances(search: Mapping[str, Any]) -> dict[str, float]:
    """The importance of each dimension for the goal, between 0 and 1.

    It is the share of the goal's variance over trials that groups of similar values explain (eta
    squared, adjusted for the number of groups). Numbers fall into three groups of equal size. A
    dimension with fewer than two trials per group has none; dimensions that act together are not
    told apart.
    """
    trials = [trial for trial in search["trials"] if trial["reports"]]
    goals = np.asarray([trial["reports"][-1]["goal"] for trial in trials])
    found: dict[str, float] = {}
    if len(trials) < 4 or np.ptp(goals) == 0:
        return found
    for path in search["space"]:
        groups = _groups([trial["sample"][path] for trial in trials])
        kinds = sorted(set(groups))
        within = sum(
            float(((own - own.mean()) ** 2).sum())
            for kind in kinds
            for own in [goals[[group == kind for group in groups]]]
        )
        total = float(((goals - goals.mean()) ** 2).sum())
        free, all_free = len(trials) - len(kinds), len(trials) - 1
        if len(kinds) > 1 and free >= len(kinds):
            found[path] = max(0.0, 1 - (within / free) / (total / all_free))
    return found


def _groups(values: Sequence[Any]) -> list[str]:
    numbers = [_number(value) for value in values]
    if any(number is None for number in numbers) or len(set(numbers)) <= 3:
        return [_short(value) for value in values]
    ranks = np.argsort(np.argsort([number or 0.0 for number in numbers], kind="stable"))
    return [str(3 * int(rank) // len(values)) for rank in ranks]


def _places(numbers: Mapping[str, float | None]) -> dict[str, float]:
    """Places on an axis: numbers lie by their logarithm where they span much, labels evenly."""
    known = {label: n for label, n in numbers.items() if n is not None and math.isfinite(n)}
    if len(known) < max(3, len(numbers)):
        order = sorted(numbers, key=lambda label: (numbers[label] is None, numbers[label] or 0.0))
        return {label: (k + 0.5) / len(order) for k, label in enumerate(order)}
    low, high = min(known.values()), max(known.values())
    scale = math.log if low > 0 and high / low >= 20 else float
    a, b = scale(low), scale(high)
    return {label: 0.04 + 0.92 * (scale(n) - a) / (b - a) for label, n in known.items()}


def _thinned(ticks: Sequence[tuple[float, str]]) -> tuple[tuple[float, str], ...]:
    """The ticks whose labels do not overlap."""
    kept: list[tuple[float, str]] = []
    for place, label in ticks:
        if not kept or place - kept[-1][0] > 0.07:
            kept.append((place, label))
    return tuple(kept)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
