"""Pictures of recorded studies: accuracy over held-out prompts."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

ROWS = {
    "base": "base model, not trained",
    "human_prompt": "trained with one prompt, written by hand",
    "single_prompt": "trained with one prompt, the best of 32",
    "bound_prompts": "trained with a dozen prompts, one per example",
    "paft_t1": "trained with PAFT, prompts drawn by losses",
    "paft": "trained with PAFT, a drawn prompt at each step",
    "sft_one_prompt": "right answers, one prompt",
    "sft_pool": "right answers, the pool",
    "grpo_one_prompt": "GRPO, one prompt",
    "grpo_pool": "GRPO, the pool",
}
"""Label of a model in a record, and its name."""
FEW = ("base", "single_prompt", "bound_prompts", "paft")
"""Labels of the README's picture."""
COLOURS = {"base": "#8a8f98", "paft": "#2f8f6b", "grpo_pool": "#2f8f6b"}
OTHERS = ("#c2703d", "#5b7fa6", "#8a6bb1", "#a8892b")
"""Colours of the models without one of their own, in turn."""
TASKS = {"sst2": "SST-2", "boolq": "BoolQ", "piqa": "PIQA"}
MODELS = {"SmolLM2-135M-Instruct.Q4_1.gguf": "SmolLM2-135M", "gemma-3-270m.gguf": "Gemma 3 270M"}
WIDTH, LEFT, RIGHT, TOP, STEP = 640, 24, 24, 96, 74
STYLE = """\
text { font: 16px system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #24292f }
.small { font-size: 14px; fill: #57606a }
.title { font-size: 19px; font-weight: 600 }
.grid { stroke: #d0d7de; stroke-width: 1 }
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
    def of(cls, models: Sequence[Mapping[str, Any]]) -> "Scale":
        """From the ten below the worst prompt to the ten above the best one."""
        low = math.floor(10 * min(model["min"] for model in models))
        return cls(10 * low, 10 * max(low + 2, math.ceil(10 * max(m["max"] for m in models))))

    def x(self, share: float) -> float:
        """Where a share lies."""
        part = (100 * share - self.low) / (self.high - self.low)
        return LEFT + part * (WIDTH - LEFT - RIGHT)


def drawn(record: Path, labels: Sequence[str] = ()) -> str:
    """A picture of the models of a record, all or some, as SVG."""
    study = json.loads(record.read_text(encoding="utf-8"))
    every = study["summary"]["models"]
    models = {label: every[label] for label in labels or every}
    height, scale = TOP + STEP * len(models) + 50, Scale.of(list(models.values()))
    others = cycle(OTHERS)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(_said(models))}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="back" width="{WIDTH}" height="{height}" rx="6"/>',
        *_head(study),
        *_scale(scale, height),
    ]
    for number, (label, model) in enumerate(models.items()):
        colour = COLOURS.get(label) or next(others)
        lines += _row(model, scale, TOP + STEP * number, _name(label), colour)
    return "\n".join([*lines, "</svg>", ""])


def _name(label: str) -> str:
    return ROWS.get(label, label.replace("_", " "))


def _said(models: Mapping[str, Mapping[str, Any]]) -> str:
    parts = []
    for label, model in models.items():
        worst, mean, best = (100 * model[key] for key in ("min", "mean", "max"))
        parts.append(f"{_name(label)}: mean {mean:.1f}%, from {worst:.1f}% to {best:.1f}%")
    return "; ".join(parts)


def _head(study: Mapping[str, Any]) -> Iterator[str]:
    summary = study["summary"]
    model = str(study["sources"]["model"]).rpartition("/")[2]
    steps = max(of_label.get("steps", 0) for of_label in summary["models"].values())
    seeds = len(summary["seeds"])
    sizes = (
        f"{TASKS.get(study['task'], study['task'])}, {MODELS.get(model, model)}, {steps} steps, "
        f"{seeds} seed{'s' * (seeds > 1)}, {summary['examples']} examples under each wording"
    )
    title = f"Accuracy under {summary['prompts']} wordings kept out of training"
    yield f'<text class="title" x="{LEFT}" y="32">{title}</text>'
    yield f'<text class="small" x="{LEFT}" y="56">{escape(sizes)}</text>'


def _scale(scale: Scale, height: int) -> Iterator[str]:
    for percent in range(scale.low, scale.high + 1, 10):
        x = scale.x(percent / 100)
        yield f'<line class="grid" x1="{x:.1f}" y1="{TOP - 18}" x2="{x:.1f}" y2="{height - 54}"/>'
        place = f'text-anchor="middle" x="{x:.1f}" y="{height - 36}"'
        yield f'<text class="small" {place}>{percent}%</text>'
    yield (
        f'<text class="small" x="{LEFT}" y="{height - 12}">line: worst to best wording; '
        "bar: one standard deviation around the mean</text>"
    )


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
