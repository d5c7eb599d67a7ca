"""The pictures, for READMEs and slides, of the plots that the page shows too.

matplotlib is imported when a picture is drawn (0.6 s) and used without a display.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from paft_ray.config.visible import visible
from paft_ray.report.accuracy import AccuracyPlot, levels_without_overlap
from paft_ray.report.search import DimensionPlot
from paft_ray.report.training import LEADING_PROMPTS, CurvePlot, SharesPlot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"base": "#7d8590", "single_prompt": "#d97706", "paft": "#2563eb"}
OTHER_COLOURS = ("#0f9d76", "#b4439c", "#8a6d1d", "#0891b2", "#dc4c3e", "#6d4fc2")
"""For variants of other names, in turn."""
_DOT_LEVELS = 3
"""Rows of dots above and below a model's line."""


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for every label; those in `COLOURS` never change."""
    others = list(dict.fromkeys(label for label in labels if label not in COLOURS))
    return COLOURS | {
        label: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, label in enumerate(others)
    }


def draw_accuracy(plot: AccuracyPlot, colour: Mapping[str, str]) -> bytes:
    """Accuracy under every prompt, a line of dots per model, as PNG."""
    return _png(accuracy_picture(plot, colour))


def accuracy_picture(plot: AccuracyPlot, colour: Mapping[str, str]) -> "Figure":
    """The same as a figure, which notebooks show."""
    figure, axes = _figure(8, 1.1 + 0.72 * len(plot.strips))
    for row, strip in enumerate(plot.strips):
        points, shade = [dot.accuracy for dot in strip.dots], colour[strip.label]
        levels = levels_without_overlap(points, 1.0, _DOT_LEVELS)
        heights = [row - 0.11 * level for level in levels]
        axes.scatter(points, heights, s=26, color=shade, alpha=0.75, linewidths=0, zorder=2)
        if plot.majority:
            axes.plot([plot.majority[1]] * 2, [row - 0.5, row + 0.5], "--", color="#7d8590")
        axes.plot([strip.mean] * 2, [row - 0.4, row + 0.4], color=shade, linewidth=2.2, zorder=3)
        if strip.seeds:
            heights = [row + 0.4] * len(strip.seeds)
            axes.scatter(strip.seeds, heights, marker="^", s=22, color=shade, zorder=3)
        beside = axes.get_yaxis_transform()
        axes.text(1.015, row, strip.figures, transform=beside, va="center", color="#444b55")
    axes.set_yticks(range(len(plot.strips)), [_text(strip.name) for strip in plot.strips])
    axes.set_ylim(len(plot.strips) - 0.42, -0.58)
    seeds = "; triangles: the mean of each seed" if plot.several_seeds else ""
    always = f"; dashed: always {_text(plot.majority[0])}" if plot.majority else ""
    axes.set_xlabel(
        f"accuracy under each of {plot.prompts} prompts, in percent\nbar: the mean{seeds}{always}"
    )
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(left=False)
    return figure


def draw_learning_curve(plot: CurvePlot, colour: Mapping[str, str]) -> bytes:
    """Training loss over steps, smoothed, as PNG."""
    figure, axes = _figure(8, 4.2)
    for curve in plot.curves:
        shade = colour[curve.label]
        for losses in curve.thin:
            axes.plot(range(1, len(losses) + 1), losses, color=shade, alpha=0.25, linewidth=0.8)
        steps = range(1, len(curve.thick) + 1)
        axes.plot(steps, curve.thick, color=shade, linewidth=2, label=_text(curve.name))
    axes.set_ylim(plot.axis.low, plot.axis.high)
    axes.set_xlabel("optimizer step")
    several = "\nthin: seeds, thick: mean" if plot.several_seeds else ""
    axes.set_ylabel(f"answer loss, nats per token{several}")
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, loc="outside upper center", ncols=min(4, len(plot.curves)))
    return _png(figure)


def draw_shares(plot: SharesPlot, shade: str) -> bytes:
    """Draw the weight of every training prompt over the steps, as PNG."""
    figure, axes = _figure(8, 3.6)
    for place, line in enumerate(plot.lines):
        width, alpha = (1.8, 1.0) if place < LEADING_PROMPTS else (0.8, 0.25)
        axes.plot(plot.steps, line, color=shade, linewidth=width, alpha=alpha)
    axes.axhline(1.0, color="#7d8590", linewidth=1, linestyle="dotted")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("share of the loss, 1 = uniform")
    axes.grid(alpha=0.3)
    return _png(figure)


def draw_search(plots: Sequence[DimensionPlot], goal: str) -> bytes:
    """A search's goal over each dimension, a panel of dots with their intervals each, as PNG."""
    figure, panels = _figures(8, 0.4 + 2.6 * len(plots), len(plots))
    for plot, axes in zip(plots, panels, strict=True):
        for point in plot.points:
            shade, reached = COLOURS["paft"], 100 * point.goal
            axes.plot(
                [point.value] * 2, [100 * point.low, 100 * point.high], color=shade, alpha=0.45
            )
            filled = shade if point.finished else "white"
            axes.scatter(point.value, reached, s=34, facecolor=filled, edgecolor=shade, zorder=3)
        axes.set_xticks(
            [place for place, _ in plot.ticks], [_text(label) for _, label in plot.ticks]
        )
        axes.set_xlim(-0.04, 1.04)
        explained = "" if plot.importance is None else f" (explains {plot.importance:.0%})"
        axes.set_xlabel(f"{_text(plot.path)}{explained}")
        axes.set_ylabel(f"{_text(goal)}, percent")
        axes.grid(axis="y", alpha=0.3)
    return _png(figure)


def _text(text: str) -> str:
    """A text in which matplotlib sees no formula, and that it can draw."""
    return visible(text).replace("$", r"\$")


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    figure, [axes] = _figures(width, height, 1)
    return figure, axes


def _figures(width: float, height: float, rows: int) -> "tuple[Figure, list[Axes]]":
    """A figure with panels below each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class Shown(Figure):
        """A figure that a notebook shows without pyplot."""

        def _repr_png_(self) -> bytes:
            return _png(self)

    figure = Shown(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(rows, 1, row + 1) for row in range(rows)]
    for axes in panels:
        axes.spines[["top", "right", "left"]].set_visible(False)
    return figure, panels


def _png(figure: "Figure") -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", metadata={"Software": None})
    return sink.getvalue()
