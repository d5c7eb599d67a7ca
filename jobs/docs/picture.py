"""Pictures of recorded studies: accuracy over held-out prompts, and differences between models."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import Any

from names import IN_PICTURES, model_of, name_of, task_of
from questions import Comparison, Question

FEW = ("base", "single_prompt", "bound_prompts", "paft")
"""Labels of the README's picture."""
COLOURS = {"base": "#8a8f98", "paft": "#2f8f6b", "grpo_pool": "#2f8f6b"}
OTHERS = ("#c2703d", "#5b7fa6", "#8a6bb1", "#a8892b")
"""Colours of the models without one of their own, in turn."""
WORST_TO_BEST = "line: worst to best wording; bar: one standard deviation around the mean"
WIDTH, LEFT, RIGHT, TOP, STEP = 640, 24, 24, 96, 74
STYLE = """\
text { font: 16px system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #24292f }
.small { font-size: 14px; fill: #57606a }
.title { font-size: 19px; font-weight: 600 }
.grid { stroke: #d0d7de; stroke-width: 1 }
.zero { stroke: #57606a; stroke-width: 2 }
.back { fill: #ffffff }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 } .grid { stroke: #3d444d } .back { fill: #0d1117 }
}"""


@dataclass(frozen=True)
class Scale:
    """The part of the axis that is shown, in percent."""

    low: int
    high: int

    @classmethod
    def of_differences(cls, found: Sequence[Comparison]) -> "Scale":
        """All intervals, and zero."""
        low = math.floor(10 * min(0, *(each.low for each in found)))
        return cls(10 * low, 10 * max(low + 1, math.ceil(10 * max(0, *(e.high for e in found)))))

    @classmethod
    def of(cls, models: Sequence[Mapping[str, Any]]) -> "Scale":
        """From the ten below the worst prompt to the ten above the best one."""
        low = math.floor(10 * min(model["min"] for model in models))
        return cls(10 * low, 10 * max(low + 2, math.ceil(10 * max(m["max"] for m in models))))

    def x(self, share: float) -> float:
        """Where a share lies."""
        part = (100 * share - self.low) / (self.high - self.low)
        return LEFT + part * (WIDTH - LEFT - RIGHT)


def drawn(study: Mapping[str, Any], labels: Sequence[str] = ()) -> str:
    """A picture of the models of a record, all or some, as SVG."""
    every = study["summary"]["models"]
    models = {label: every[label] for label in labels or every}
    height, scale = TOP + STEP * len(models) + 50, Scale.of(list(models.values()))
    others = cycle(OTHERS)
    lines = [
        *_begin(_said(models), height),
        *_head(study),
        *_scale(scale, height, "%", WORST_TO_BEST),
    ]
    for number, (label, model) in enumerate(models.items()):
        colour = COLOURS.get(label) or next(others)
        lines += _row(model, scale, TOP + STEP * number, name_of(label, IN_PICTURES), colour)
    return "\n".join([*lines, "</svg>", ""])


def compared(question: Question, found: Sequence[Comparison]) -> str:
    """A picture of a question's differences and their intervals, as SVG."""
    height, scale = TOP + STEP * len(found) + 50, Scale.of_differences(found)
    said = "; ".join(f"{each.study}, {each.name}: {each.in_points} points" for each in found)
    lines = [
        *_begin(said, height),
        f'<text class="title" x="{LEFT}" y="32">{escape(question.text)}</text>',
        f'<text class="small" x="{LEFT}" y="56">{escape(question.figure.heading)}: difference'
        " in points</text>",
        *_scale(scale, height, "", "line: 95% interval; grey: no difference is shown"),
        f'<line class="zero" x1="{scale.x(0):.1f}" y1="{TOP - 18}" x2="{scale.x(0):.1f}" '
        f'y2="{height - 54}"/>',
    ]
    for number, each in enumerate(found):
        lines += _difference(each, question, scale, TOP + STEP * number)
    return "\n".join([*lines, "</svg>", ""])


def _difference(each: Comparison, question: Question, scale: Scale, y: int) -> Iterator[str]:
    good = (each.value > 0) is (question.figure.better != "lower")
    colour = (COLOURS["paft"] if good else OTHERS[0]) if each.shown else COLOURS["base"]
    place = y + 42
    yield f'<text x="{LEFT}" y="{y + 10}">{escape(each.name)}</text>'
    yield f'<text class="small" x="{LEFT}" y="{y + 28}">{escape(each.study)}</text>'
    yield (
        f'<text class="small" text-anchor="end" x="{WIDTH - RIGHT}" y="{y + 10}">'
        f"{each.in_points}</text>"
    )
    yield (
        f'<line x1="{scale.x(each.low):.1f}" y1="{place}" x2="{scale.x(each.high):.1f}" '
        f'y2="{place}" stroke="{colour}" stroke-width="3"/>'
    )
    yield f'<circle cx="{scale.x(each.value):.1f}" cy="{place}" r="7" fill="{colour}"/>'


def _begin(said: str, height: int) -> Iterator[str]:
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
    yield f"<title>{escape(said)}</title>"
    yield f"<style>{STYLE}</style>"
    yield f'<rect class="back" width="{WIDTH}" height="{height}" rx="6"/>'


def _said(models: Mapping[str, Mapping[str, Any]]) -> str:
    parts = []
    for label, model in models.items():
        worst, mean, best = (100 * model[key] for key in ("min", "mean", "max"))
        parts.append(
            f"{name_of(label, IN_PICTURES)}: mean {mean:.1f}%, from {worst:.1f}% to {best:.1f}%"
        )
    return "; ".join(parts)


def _head(study: Mapping[str, Any]) -> Iterator[str]:
    summary = study["summary"]
    steps = max(of_label.get("steps", 0) for of_label in summary["models"].values())
    seeds = len(summary["seeds"])
    sizes = (
        f"{task_of(study)}, {model_of(study)}, {steps} steps, "
        f"{seeds} seed{'s' * (seeds > 1)}, {summary['examples']} examples under each wording"
    )
    title = f"Accuracy under {summary['prompts']} wordings kept out of training"
    yield f'<text class="title" x="{LEFT}" y="32">{title}</text>'
    yield f'<text class="small" x="{LEFT}" y="56">{escape(sizes)}</text>'


def _scale(scale: Scale, height: int, unit: str, legend: str) -> Iterator[str]:
    for percent in range(scale.low, scale.high + 1, 10):
        x = scale.x(percent / 100)
        yield f'<line class="grid" x1="{x:.1f}" y1="{TOP - 18}" x2="{x:.1f}" y2="{height - 54}"/>'
        place = f'text-anchor="middle" x="{x:.1f}" y="{height - 36}"'
        yield f'<text class="small" {place}>{percent}{unit}</text>'
    yield f'<text class="small" x="{LEFT}" y="{height - 12}">{escape(legend)}</text>'


def _row(model: Mapping[str, Any], scale: Scale, y: int, name: str, colour: str) -> Iterator[str]:
    mean, std, worst, best = (model[key] for key in ("mean", "std", "min", "max"))
    place = y + 28
    yield f'<text x="{LEFT}" y="{y + 12}">{escape(name)}</text>'
    yield (
        f'<text class="small" text-anchor="end" x="{WIDTH - RIGHT}" y="{y + 12}">mean '
        f"{100 * mean:.1f}%, worst {100 * worst:.1f}%</text>"
    )
    yield (
        f'<line x1="{scale.x(worst):.1f}" y1="{place}" x2="{scale.x(best):.1f}" y2="{place}" '
        f'stroke="{colour}" stroke-width="2"/>'
    )
    left, right = scale.x(max(mean - std, scale.low / 100)), scale.x(min(mean + std, 1))
    yield (
        f'<rect x="{left:.1f}" y="{place - 7}" width="{right - left:.1f}" '
        f'height="14" rx="3" fill="{colour}" opacity="0.35"/>'
    )
    yield f'<circle cx="{scale.x(mean):.1f}" cy="{place}" r="7" fill="{colour}"/>'
