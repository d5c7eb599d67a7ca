"""Loss over steps: one line per training, and one per variant that is the mean of its seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from paft_ray.report.axes import Axis, axis_from_zero
from paft_ray.report.files import Training
from paft_ray.report.table import display_name

LEADING_PROMPTS = 3
"""So many lines of prompts are strong, and their prompts named."""
_POINTS = 300


@dataclass(frozen=True, slots=True)
class Curve:
    """The losses of one variant, in nats per token by optimizer step."""

    label: str
    name: str
    thin: tuple[tuple[float, ...], ...]
    """Every step of the only seed, or the smoothed losses of each of several."""
    thick: tuple[float, ...]
    """Mean over the seeds, smoothed."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A curve as SVG points in a box of 100 x 100."""

    label: str
    name: str
    thin: tuple[str, ...]
    thick: str


@dataclass(frozen=True, slots=True)
class CurvePlot:
    """The learning curves on one scale."""

    curves: tuple[Drawing, ...]
    axis: Axis
    last_step: int
    several_seeds: bool


@dataclass(frozen=True, slots=True)
class SharesPlot:
    """What losses made of every training prompt in one training; a line per prompt."""

    label: str
    name: str
    axis: Axis
    first: int
    last: int
    lines: tuple[str, ...]
    leading: tuple[tuple[str, float], ...]
    """Texts of the prompts that ended with the largest share, and the shares."""


def smoothed(losses: Sequence[float]) -> list[float]:
    """Mean over a window of about a tenth of the steps around each one, cut off at the ends."""
    reach, count = len(losses) // 20, len(losses)
    sums = list(accumulate(losses, initial=0.0))
    windows = [(max(0, i - reach), min(count, i + reach + 1)) for i in range(count)]
    return [(sums[end] - sums[start]) / (end - start) for start, end in windows]


def curves_of(trainings: Sequence[Training]) -> tuple[Curve, ...]:
    """One curve per variant that has losses, in the order given."""
    curves = []
    with_losses = [training for training in trainings if training.losses]
    for label, group in groupby(with_losses, key=lambda training: training.label):
        of_seeds = [training.losses for training in group]
        longest = max(map(len, of_seeds))
        by_step = [[losses[i] for losses in of_seeds if i < len(losses)] for i in range(longest)]
        thin = of_seeds if len(of_seeds) == 1 else map(smoothed, of_seeds)
        mean = [sum(losses) / len(losses) for losses in by_step]
        curves.append(
            Curve(label, display_name(label), tuple(map(tuple, thin)), tuple(smoothed(mean)))
        )
    return tuple(curves)


def loss_limit(curves: Sequence[Curve]) -> float:
    """The loss up to which a plot reaches: a few outliers do not flatten the rest."""
    every = sorted(loss for curve in curves for losses in curve.thin for loss in losses)
    return max(every[min(len(every) - 1, int(0.995 * len(every)))], *(max(c.thick) for c in curves))


def curve_plot(trainings: Sequence[Training]) -> CurvePlot | None:
    """The learning curves as the page draws them; None without any loss."""
    curves = curves_of(trainings)
    if not curves:
        return None
    axis = axis_from_zero(loss_limit(curves))
    last_step = max(len(curve.thick) for curve in curves)

    def points(losses: Sequence[float]) -> str:
        stride, span = max(1, len(losses) // _POINTS), max(last_step - 1, 1)
        places = range(0, len(losses), stride)
        return _points([i / span for i in places], [losses[i] for i in places], axis)

    drawings = tuple(
        Drawing(c.label, c.name, tuple(map(points, c.thin)), points(c.thick)) for c in curves
    )
    return CurvePlot(drawings, axis, last_step, any(len(curve.thin) > 1 for curve in curves))


def shares_plot(training: Training, texts: Mapping[str, str]) -> SharesPlot:
    """A training's shares as the page draws them."""
    first, last = training.weighed_at[0], training.weighed_at[-1]
    axis = axis_from_zero(max(max(prompt.shares) for prompt in training.shares))
    across = [(step - first) / max(last - first, 1) for step in training.weighed_at]
    return SharesPlot(
        training.label,
        f"{display_name(training.label)}, seed {training.seed}",
        axis,
        first,
        last,
        tuple(_points(across, prompt.shares, axis) for prompt in training.shares),
        tuple(
            (texts.get(prompt.prompt_id, prompt.prompt_id), prompt.shares[-1])
            for prompt in training.shares[:LEADING_PROMPTS]
        ),
    )


def _points(across: Sequence[float], values: Sequence[float], axis: Axis) -> str:
    places = zip(across, values, strict=True)
    return " ".join(f"{100 * x:.2f},{100 - axis.percent(y):.2f}" for x, y in places)
