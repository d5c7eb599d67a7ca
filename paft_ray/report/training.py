"""Plots and tables of trainings: losses over steps, prompts drawn, weights of prompts."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby

from paft_ray.report.axes import Axis, axis_from_zero
from paft_ray.report.files import Drawn, Training
from paft_ray.report.tables import display_name

LEADING_PROMPTS = 3
"""Prompts that are named, and whose lines are strong."""
_POINTS = 300
_LISTED_PROMPTS = 400
_MOST_COLUMNS = 5
"""Most seeds with columns of their own; of more, the table shows the sum."""


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
class CurvePlot:
    """The learning curves on one scale."""

    curves: tuple[Curve, ...]
    axis: Axis
    last_step: int

    @property
    def several_seeds(self) -> bool:
        """Return whether some curve is a mean over seeds."""
        return any(len(curve.thin) > 1 for curve in self.curves)

    def points(self, losses: Sequence[float]) -> str:
        """Losses by step as SVG points in a box of 100 x 100, at most some hundred."""
        stride, span = max(1, len(losses) // _POINTS), max(self.last_step - 1, 1)
        places = range(0, len(losses), stride)
        return _points([i / span for i in places], [losses[i] for i in places], self.axis)


@dataclass(frozen=True, slots=True)
class SharesPlot:
    """The weights of training prompts by losses in one training; a line per prompt."""

    label: str
    seed: str
    axis: Axis
    steps: tuple[int, ...]
    lines: tuple[tuple[float, ...], ...]
    """Shares at these steps; the prompt with the largest share at the end comes first."""
    leading: tuple[tuple[str, float], ...]
    """Texts of the prompts with the largest shares at the end, and the shares."""

    @property
    def name(self) -> str:
        """Name of the training."""
        return f"{display_name(self.label)}, seed {self.seed}"

    def points(self, line: Sequence[float]) -> str:
        """A line as SVG points in a box of 100 x 100."""
        first, last = self.steps[0], self.steps[-1]
        across = [(step - first) / max(last - first, 1) for step in self.steps]
        return _points(across, line, self.axis)


@dataclass(frozen=True, slots=True)
class DrawnPrompt:
    """One training prompt over the seeds of a variant."""

    text: str
    odd: tuple[str, ...]
    """Unusual words, where it may be nonsense."""
    total: int
    by_seed: tuple[int, ...]
    """Examples rendered through it in each training; empty where only the sum is shown."""
    loss: float
    """Mean answer loss under it, in nats per token."""


@dataclass(frozen=True, slots=True)
class Draws:
    """The draws of one variant."""

    label: str
    name: str
    seeds: tuple[str, ...]
    """Seeds with columns in the table; empty where only the sum is shown."""
    total: int
    prompts: int
    low: int
    median: float
    high: int
    bars: tuple[float, ...]
    """Draws of each prompt in percent of the largest."""
    listed: tuple[DrawnPrompt, ...]
    unlisted: int


def smoothed(losses: Sequence[float]) -> list[float]:
    """Mean over a window of about a tenth of the steps around each one, cut off at the ends."""
    reach, count = len(losses) // 20, len(losses)
    sums = list(accumulate(losses, initial=0.0))
    windows = [(max(0, i - reach), min(count, i + reach + 1)) for i in range(count)]
    return [(sums[end] - sums[start]) / (end - start) for start, end in windows]


def curves_of(trainings: Sequence[Training]) -> tuple[Curve, ...]:
    """One curve per variant that learned from right answers, in the order given."""
    curves = []
    with_losses = [each for each in trainings if each.losses and each.rollouts is None]
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


def curve_plot(trainings: Sequence[Training]) -> CurvePlot | None:
    """The learning curves; None without any loss. A few outliers do not flatten the rest."""
    curves = curves_of(trainings)
    if not curves:
        return None
    every = sorted(loss for curve in curves for losses in curve.thin for loss in losses)
    usual = every[min(len(every) - 1, int(0.995 * len(every)))]
    axis = axis_from_zero(max(usual, *(max(curve.thick) for curve in curves)))
    return CurvePlot(curves, axis, max(len(curve.thick) for curve in curves))


def shares_plot(training: Training, texts: Mapping[str, str]) -> SharesPlot:
    """The plot of a training that has `shares`."""
    return SharesPlot(
        training.label,
        training.seed,
        axis_from_zero(max(max(prompt.shares) for prompt in training.shares)),
        training.weighed_at,
        tuple(prompt.shares for prompt in training.shares),
        tuple(
            (texts.get(prompt.prompt_id, prompt.prompt_id), prompt.shares[-1])
            for prompt in training.shares[:LEADING_PROMPTS]
        ),
    )


def draws_of(
    trainings: Sequence[Training],
    texts: Mapping[str, str],
    odd: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[Draws, ...]:
    """One entry per variant whose ledgers are there, in the order given.

    Args:
        trainings: The trainings of all variants.
        texts: Prompt id to template.
        odd: Prompt id to unusual words, for prompts that may be nonsense.
    """
    known = [training for training in trainings if training.drawn]
    groups = groupby(known, key=lambda training: training.label)
    return tuple(_draws(label, list(group), texts, odd or {}) for label, group in groups)


def _draws(
    label: str,
    trainings: Sequence[Training],
    texts: Mapping[str, str],
    odd: Mapping[str, tuple[str, ...]],
) -> Draws:
    by_prompt: dict[str, dict[str, Drawn]] = {}
    for training in trainings:
        for drawn in training.drawn:
            by_prompt.setdefault(drawn.prompt_id, {})[training.seed] = drawn
    totals = {id: sum(d.examples for d in by_seed.values()) for id, by_seed in by_prompt.items()}
    order = sorted(totals, key=lambda prompt_id: (-totals[prompt_id], prompt_id))
    counts = [totals[prompt_id] for prompt_id in order]
    seeds = tuple(training.seed for training in trainings)
    shown = seeds if 1 < len(seeds) <= _MOST_COLUMNS and len(counts) > 1 else ()
    names = f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds together"
    return Draws(
        label,
        f"{display_name(label)}, {names}",
        shown,
        sum(counts),
        len(counts),
        min(counts),
        statistics.median(counts),
        max(counts),
        tuple(round(100 * count / max(counts), 2) for count in counts[:_LISTED_PROMPTS]),
        tuple(
            replace(
                _drawn_prompt(texts.get(prompt_id, prompt_id), by_prompt[prompt_id], shown),
                odd=odd.get(prompt_id, ()),
            )
            for prompt_id in order[:_LISTED_PROMPTS]
        ),
        max(0, len(order) - _LISTED_PROMPTS),
    )


def _drawn_prompt(text: str, by_seed: Mapping[str, Drawn], shown: Sequence[str]) -> DrawnPrompt:
    every = by_seed.values()
    loss = sum(drawn.loss * drawn.tokens for drawn in every)
    return DrawnPrompt(
        text,
        (),
        sum(drawn.examples for drawn in every),
        tuple(by_seed[seed].examples if seed in by_seed else 0 for seed in shown),
        loss / max(sum(drawn.tokens for drawn in every), 1),
    )


def _points(across: Sequence[float], values: Sequence[float], axis: Axis) -> str:
    places = zip(across, values, strict=True)
    return " ".join(f"{100 * x:.2f},{100 - axis.percent(y):.2f}" for x, y in places)
