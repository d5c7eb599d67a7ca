"""`report.html`: one page that needs no network and no other file.

Everything is drawn as inline SVG and CSS in percent of the width, so that it reads on a phone and
in dark mode. Texts come from outside, prompts above all: the template escapes every one.
"""

import importlib.resources
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paft_ray.artifacts import Storage
from paft_ray.report.files import RunFiles, Training, read_run
from paft_ray.report.pictures import (
    LEADING_PROMPTS,
    colours,
    draw_accuracy,
    draw_learning_curve,
    draw_shares,
    smoothed,
)
from paft_ray.report.table import (
    cautions,
    contrasts,
    display_name,
    headline,
    result_columns,
    result_rows,
)

_DOT_PERCENT = 2.0
"""Width that a dot of the strip plot takes up."""
_DOT_LEVELS = 4
"""Dots above and below the line; further ones overlap."""
_CURVE_POINTS = 300
_LISTED_PROMPTS = 400


@dataclass(frozen=True, slots=True)
class Dot:
    """One prompt in a strip plot."""

    prompt_id: str
    title: str
    x: float
    """Percent of the plot's width."""
    level: int
    """0 on the line, then 1, -1, 2, -2, ... where dots would overlap."""


@dataclass(frozen=True, slots=True)
class Strip:
    """One model's line of dots."""

    label: str
    name: str
    figures: str
    mean: float
    low: float
    """Mean minus one standard deviation, in percent of the width, as are mean and high."""
    high: float
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear scale."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def percent(self, value: float) -> float:
        """Where a value lies, in percent of the width, kept inside."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)


@dataclass(frozen=True, slots=True)
class PromptLine:
    """One held-out prompt and how every model does under it."""

    id: str
    pieces: tuple[tuple[bool, str], ...]
    accuracies: tuple[float | None, ...]
    """In percent, in the order of the models."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One training's losses as SVG points in a box of 100 x 100."""

    label: str
    name: str
    raw: str
    smooth: str


def write_report(folder: Storage) -> str:
    """Write `report.html`, `accuracy.png` and, where there is something to see in them, the
    learning curve and what losses made of the prompts (`sampling_*.png`).

    Args:
        folder: `runs/<name>/`, with `config.json`, `summary.json` and `scores.parquet`;
            `prompts.parquet` and `training/*/` are used where they are there.

    Returns:
        The path of the page.

    Raises:
        ArtifactError: One of the three files is missing.
    """
    run = read_run(folder)
    folder.write_bytes("accuracy.png", draw_accuracy(run))
    if any(training.losses for training in run.trainings):
        folder.write_bytes("learning_curve.png", draw_learning_curve(run.trainings))
    for training in run.trainings:
        if training.shares:
            name = f"sampling_{training.label}-s{training.seed}.png"
            folder.write_bytes(name, draw_shares(training))
    folder.write_bytes("report.html", render_page(run, folder.path().rpartition("/")[2]).encode())
    return folder.path("report.html")


def template(name: str) -> Any:
    """One of the package's page templates, with the filters that all of them use."""
    import jinja2

    files = importlib.resources.files("paft_ray")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda file: files.joinpath(file).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": _duration, "count": "{:,}".format, "pieces": _pieces}
    return environment.get_template(name)


def render_page(run: RunFiles, title: str) -> str:
    """The page as HTML."""
    labels = list(run.summary["models"])
    config = run.about.get("config", {})
    return template("report.html.j2").render(
        title=title,
        subtitle=_subtitle(config),
        headline=headline(run.summary),
        cautions=[text.replace("`", "") for text in cautions(run.summary)],
        columns=result_columns(run.summary),
        rows=result_rows(run.summary),
        contrasts=contrasts(run.summary),
        summary=run.summary,
        names={label: display_name(label) for label in labels},
        colours=colours([*labels, *(training.label for training in run.trainings)]),
        **_strips(run),
        lines=_prompt_lines(run),
        **_curves(run.trainings),
        weighings=[_weighing(training, run.texts) for training in run.trainings if training.shares],
        draws=[_draws(training, run.texts) for training in run.trainings if training.drawn],
        seconds=run.summary["seconds"],
        trainings=run.trainings,
        answers=run.answers,
        generated_tokens=run.generated_tokens,
        config=json.dumps(config, indent=2, ensure_ascii=False),
        versions=_flat({key: value for key, value in run.about.items() if key != "config"}),
        display_name=display_name,
    )


def _subtitle(config: Mapping[str, Any]) -> str:
    task, model = config.get("task", {}), config.get("model", {})
    known = [task.get("name"), model.get("path")]
    return " · ".join(str(part) for part in known if part)


def _strips(run: RunFiles) -> dict[str, Any]:
    models = run.summary["models"]
    values = [value for label in models for value in run.accuracies[label].values()]
    low = max(0, 10 * math.floor((100 * min(values, default=0) - 2) / 10))
    high = min(100, 10 * math.ceil((100 * max(values, default=1) + 2) / 10))
    axis = Axis(low, high, tuple(range(low, high + 1, 10)))
    strips = []
    for label, model in models.items():
        mean, std = 100 * model["mean"], 100 * model["std"]
        strips.append(
            Strip(
                label,
                display_name(label),
                f"{mean:.1f} ± {std:.1f}",
                axis.percent(mean),
                axis.percent(mean - std),
                axis.percent(mean + std),
                _dots(run.accuracies[label], run.texts, axis),
            )
        )
    thresholds = [axis.percent(100 * float(t)) for t in next(iter(models.values()))["top"]]
    return {"strips": strips, "axis": axis, "thresholds": thresholds}


def _dots(accuracies: Mapping[str, float], texts: Mapping[str, str], axis: Axis) -> tuple[Dot, ...]:
    """Place each dot on the level nearest the line on which it overlaps no other."""
    levels = sorted(range(-_DOT_LEVELS, _DOT_LEVELS + 1), key=lambda level: (abs(level), -level))
    taken_until = dict.fromkeys(levels, -100.0)
    dots = []
    for prompt_id, accuracy in sorted(accuracies.items(), key=lambda item: (item[1], item[0])):
        x = axis.percent(100 * accuracy)
        level = next((level for level in levels if taken_until[level] <= x), 0)
        taken_until[level] = x + _DOT_PERCENT
        wording = " ".join(texts.get(prompt_id, prompt_id).split())
        dots.append(Dot(prompt_id, f"{100 * accuracy:.1f}%: {wording[:160]}", x, level))
    return tuple(dots)


def _prompt_lines(run: RunFiles) -> list[PromptLine]:
    """Held-out prompts, worst first by the last model, which is the one the run is about."""
    labels = list(run.summary["models"])
    ids = sorted({prompt_id for label in labels for prompt_id in run.accuracies[label]})
    lines = [
        PromptLine(
            prompt_id,
            _pieces(run.texts.get(prompt_id, prompt_id)),
            tuple(
                None if (value := run.accuracies[label].get(prompt_id)) is None else 100 * value
                for label in labels
            ),
        )
        for prompt_id in ids
    ]
    return sorted(lines, key=lambda line: (line.accuracies[-1] or 0.0, line.id))


def _pieces(text: str) -> tuple[tuple[bool, str], ...]:
    """A template cut at its slots: whether a piece is one, and the piece."""
    pieces = re.split(r"(\{[A-Za-z_][A-Za-z0-9_]*\})", text)
    return tuple((bool(i % 2), piece) for i, piece in enumerate(pieces) if piece)


def _curves(trainings: Iterable[Training]) -> dict[str, Any]:
    with_losses = [training for training in trainings if training.losses]
    if not with_losses:
        return {"curves": [], "loss_axis": None, "last_step": 0}
    last_step = max(len(training.losses) for training in with_losses)
    every = sorted(loss for training in with_losses for loss in training.losses)
    top = 1.05 * every[min(len(every) - 1, int(0.995 * len(every)))] or 1.0
    axis = Axis(0.0, top, _round_ticks(top))

    def points(losses: Sequence[float]) -> str:
        stride = max(1, len(losses) // _CURVE_POINTS)
        span = max(last_step - 1, 1)
        return " ".join(
            f"{100 * i / span:.2f},{100 - axis.percent(losses[i]):.2f}"
            for i in range(0, len(losses), stride)
        )

    curves = [
        Curve(
            training.label,
            f"{display_name(training.label)}, seed {training.seed}",
            points(training.losses),
            points(smoothed(training.losses)),
        )
        for training in with_losses
    ]
    return {"curves": curves, "loss_axis": axis, "last_step": last_step}


def _round_ticks(top: float) -> tuple[float, ...]:
    """Three to six round numbers up to `top`, 0 left out."""
    magnitude = 10.0 ** math.floor(math.log10(top))
    step = next(m * magnitude for m in (0.2, 0.5, 1, 2) if top / (m * magnitude) < 6)
    return tuple(step * i for i in range(1, int(top / step) + 1))


def _draws(training: Training, texts: Mapping[str, str]) -> dict[str, Any]:
    counts = [prompt.examples for prompt in training.drawn]
    return {
        "label": training.label,
        "name": f"{display_name(training.label)}, seed {training.seed}",
        "total": sum(counts),
        "prompts": len(counts),
        "low": min(counts),
        "median": statistics.median(counts),
        "high": max(counts),
        "bars": [round(100 * count / max(counts), 2) for count in counts[:_LISTED_PROMPTS]],
        "listed": [
            (prompt, texts.get(prompt.prompt_id, prompt.prompt_id))
            for prompt in training.drawn[:_LISTED_PROMPTS]
        ],
        "unlisted": max(0, len(counts) - _LISTED_PROMPTS),
    }


def _weighing(training: Training, texts: Mapping[str, str]) -> dict[str, Any]:
    """One line per prompt in a box of 100 x 100, and the prompts that ended with the largest."""
    first, last = training.weighed_at[0], training.weighed_at[-1]
    top = 1.05 * max(max(prompt.shares) for prompt in training.shares)
    axis = Axis(0.0, top, _round_ticks(top))

    def points(shares: Sequence[float]) -> str:
        span = max(last - first, 1)
        at = zip(training.weighed_at, shares, strict=True)
        return " ".join(
            f"{100 * (s - first) / span:.2f},{100 - axis.percent(y):.2f}" for s, y in at
        )

    return {
        "label": training.label,
        "name": f"{display_name(training.label)}, seed {training.seed}",
        "axis": axis,
        "first": first,
        "last": last,
        "lines": [points(prompt.shares) for prompt in training.shares],
        "leading": [
            (texts.get(prompt.prompt_id, prompt.prompt_id), prompt.shares[-1])
            for prompt in training.shares[:LEADING_PROMPTS]
        ],
    }


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{path}{key}.")
        else:
            flat[f"{path}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat
