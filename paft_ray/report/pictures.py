"""The two pictures, for READMEs and slides; the page draws its own.

matplotlib is imported when a picture is drawn (0.6 s) and used without a display.
"""

import io
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from paft_ray.report.files import RunFiles, Training
from paft_ray.report.table import display_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"base": "#7d8590", "single_prompt": "#d97706", "paft": "#2563eb"}
LEADING_PROMPTS = 3
"""So many lines are strong, and their prompts named."""
OTHER_COLOURS = ("#0f9d76", "#b4439c", "#8a6d1d")
"""For variants of other names, in turn."""


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for every label; the usual three always have the same."""
    others = [label for label in labels if label not in COLOURS]
    return COLOURS | {
        label: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, label in enumerate(others)
    }


def smoothed(losses: Sequence[float]) -> list[float]:
    """Mean over a window of about a tenth of the steps around each one, cut off at the ends."""
    reach, count = len(losses) // 20, len(losses)
    sums = list(accumulate(losses, initial=0.0))
    windows = [(max(0, i - reach), min(count, i + reach + 1)) for i in range(count)]
    return [(sums[end] - sums[start]) / (end - start) for start, end in windows]


def draw_accuracy(run: RunFiles) -> bytes:
    """Accuracy under every held-out prompt, a line of dots per model, as PNG."""
    labels = list(run.summary["models"])
    figure, axes = _figure(8, 1.1 + 0.75 * len(labels))
    colour = colours(labels)
    for row, label in enumerate(labels):
        points = sorted(100 * accuracy for accuracy in run.accuracies[label].values())
        heights = [row + 0.1 * ((i * 7) % 5 - 2) for i in range(len(points))]
        axes.scatter(points, heights, s=34, color=colour[label], alpha=0.75, linewidths=0)
        mean = 100 * run.summary["models"][label]["mean"]
        axes.plot([mean, mean], [row - 0.36, row + 0.36], color=colour[label], linewidth=2.5)
    axes.set_yticks(range(len(labels)), [display_name(label) for label in labels])
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.set_xlabel(
        f"accuracy under each of {run.summary['prompts']} held-out prompts, in percent; "
        "the bar is the mean"
    )
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(left=False)
    return _png(figure)


def draw_learning_curve(trainings: Sequence[Training]) -> bytes:
    """Training loss over steps, smoothed, as PNG."""
    figure, axes = _figure(8, 3.6)
    colour = colours([training.label for training in trainings])
    for training in trainings:
        if not training.losses:
            continue
        steps = range(1, len(training.losses) + 1)
        shade = colour[training.label]
        name = f"{display_name(training.label)}, seed {training.seed}"
        axes.plot(steps, training.losses, color=shade, alpha=0.2, linewidth=1)
        axes.plot(steps, smoothed(training.losses), color=shade, linewidth=2, label=name)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("answer loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return _png(figure)


def draw_shares(training: Training) -> bytes:
    """What losses made of every training prompt over the steps, as PNG."""
    figure, axes = _figure(8, 3.6)
    shade = colours([training.label])[training.label]
    for place, prompt in enumerate(training.shares):
        leading = place < LEADING_PROMPTS
        width, alpha = (1.8, 1.0) if leading else (0.8, 0.25)
        axes.plot(training.weighed_at, prompt.shares, color=shade, linewidth=width, alpha=alpha)
    axes.axhline(1.0, color="#7d8590", linewidth=1, linestyle="dotted")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("share of the loss, 1 = uniform")
    axes.grid(alpha=0.3)
    return _png(figure)


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure, axes


def _png(figure: "Figure") -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", metadata={"Software": None})
    return sink.getvalue()
