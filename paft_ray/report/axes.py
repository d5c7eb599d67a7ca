"""Scales of plots: the place of a value, and round numbers for lines."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear scale."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def percent(self, value: float) -> float:
        """The place of a value in percent of the width, limited to 0 to 100."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)


def accuracy_axis(low: float, high: float) -> Axis:
    """A scale in percent around accuracies between 0 and 1, in tens."""
    first = max(0, 10 * math.floor((100 * low - 2) / 10))
    last = min(100, 10 * math.ceil((100 * high + 2) / 10))
    return Axis(first, last, tuple(range(first, last + 1, 10)))


def step_ticks(first: int, last: int) -> tuple[tuple[float, int], ...]:
    """Round steps between the first and the last one, with their places in percent of the width."""
    span = max(last - first, 1)
    rounds = (round(tick) for tick in axis_from_zero(last).ticks)
    inner = [t for t in rounds if first + 0.07 * span < t < last - 0.07 * span]
    return tuple((round(100 * (t - first) / span, 2), t) for t in (first, *inner, last))


def axis_from_zero(top: float) -> Axis:
    """A scale from 0 to just above `top`, with three to six round numbers, 0 left out."""
    high = 1.05 * top or 1.0
    magnitude = 10.0 ** math.floor(math.log10(high))
    step = next(m * magnitude for m in (0.2, 0.5, 1, 2) if high / (m * magnitude) < 6)
    return Axis(0.0, high, tuple(step * i for i in range(1, int(high / step) + 1)))
