"""Learning rate as a pure function of the step."""

import math

from paft_ray.config import ScheduleConfig


def learning_rate(peak: float, schedule: ScheduleConfig, step: int, steps: int) -> float:
    """The rate of one step (0-based): linear warm-up to `peak`, then the schedule's shape.

    No step has rate 0: warm-up begins at `peak / warmup`, and the decay would reach `final_share`
    with the step after the last.
    """
    warmup = math.ceil(schedule.warmup_share * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.type == "constant":
        return peak
    done = (step - warmup) / max(1, steps - warmup)
    linear = schedule.type == "linear"
    falling = 1.0 - done if linear else 0.5 * (1.0 + math.cos(math.pi * done))
    return peak * (schedule.final_share + (1.0 - schedule.final_share) * falling)
