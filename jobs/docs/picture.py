"""The README's picture, from a recorded study: accuracy over held-out prompts."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

ROWS = (
    ("base", "base model, not trained", "#8a8f98"),
    ("single_prompt", "trained with one prompt, the best of 32", "#c2703d"),
    ("bound_prompts", "trained with a dozen prompts, one per example", "#5b7fa6"),
    ("paft", "trained with PAFT, a drawn prompt at each step", "#2f8f6b"),
)
"""Label of a model in the record, its name, its colour."""
WIDTH, LEFT, RIGHT, TOP, STEP = 640, 24, 24, 96, 74
LOW, HIGH = 40, 90
STYLE = """\
text { font: 16px system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #24292f }
.small { font-size: 14px; fill: #57606a }
.title { font-size: 19px; font-weight: 600 }
.grid { stroke: #d0d7de; stroke-width: 1 }
.back { fill: #ffffff }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 } .grid { stroke: #3d444d } .back { fill: #0d1117 }
}"""


def drawn(record: Path) -> str:
    """The picture as SVG."""
    study = json.loads(record.read_text(encoding="utf-8"))
    height = TOP + STEP * len(ROWS) + 50
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(_said(study))}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="back" width="{WIDTH}" height="{height}" rx="6"/>',
        *_head(study["summary"]),
        *_scale(height),
    ]
    for number, (label, name, colour) in enumerate(ROWS):
        lines += _row(study["summary"]["models"][label], TOP + STEP * number, name, colour)
    return "\n".join([*lines, "</svg>", ""])


def _said(study: Mapping[str, Any]) -> str:
    parts = []
    for label, name, _ in ROWS:
        model = study["summary"]["models"][label]
        worst, mean, best = (100 * model[key] for key in ("min", "mean", "max"))
        parts.append(f"{name}: mean {mean:.1f}%, from {worst:.1f}% to {best:.1f}%")
    return "; ".join(parts)


def _head(summary: Mapping[str, Any]) -> Iterator[str]:
    sizes = (
        f"SST-2, SmolLM2-135M, {summary['models']['paft']['steps']} steps, "
        f"{len(summary['seeds'])} seeds, {summary['examples']} examples under each wording"
    )
    title = f"Accuracy under {summary['prompts']} wordings kept out of training"
    yield f'<text class="title" x="{LEFT}" y="32">{title}</text>'
    yield f'<text class="small" x="{LEFT}" y="56">{sizes}</text>'


def _scale(height: int) -> Iterator[str]:
    for percent in range(LOW, HIGH + 1, 10):
        x = _x(percent / 100)
        yield f'<line class="grid" x1="{x:.1f}" y1="{TOP - 18}" x2="{x:.1f}" y2="{height - 54}"/>'
        place = f'text-anchor="middle" x="{x:.1f}" y="{height - 36}"'
        yield f'<text class="small" {place}>{percent}%</text>'
    yield (
        f'<text class="small" x="{LEFT}" y="{height - 12}">line: worst to best wording; '
        "bar: one standard deviation around the mean</text>"
    )


def _row(model: Mapping[str, Any], y: int, name: str, colour: str) -> Iterator[str]:
    mean, std, worst, best = (model[key] for key in ("mean", "std", "min", "max"))
    place = y + 28
    yield f'<text x="{LEFT}" y="{y + 12}">{escape(name)}</text>'
    yield (
        f'<text class="small" text-anchor="end" x="{WIDTH - RIGHT}" y="{y + 12}">mean '
        f"{100 * mean:.1f}%, worst {100 * worst:.1f}%</text>"
    )
    yield (
        f'<line x1="{_x(worst):.1f}" y1="{place}" x2="{_x(best):.1f}" y2="{place}" '
        f'stroke="{colour}" stroke-width="2"/>'
    )
    left, right = _x(mean - std), _x(mean + std)
    yield (
        f'<rect x="{left:.1f}" y="{place - 7}" width="{right - left:.1f}" '
        f'height="14" rx="3" fill="{colour}" opacity="0.35"/>'
    )
    yield f'<circle cx="{_x(mean):.1f}" cy="{place}" r="7" fill="{colour}"/>'


def _x(share: float) -> float:
    return LEFT + (100 * share - LOW) / (HIGH - LOW) * (WIDTH - LEFT - RIGHT)
