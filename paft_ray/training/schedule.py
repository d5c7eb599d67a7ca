"""Learning rate as a pure function of the step."""

import math

from paft_ray.config import ScheduleConfig


def learning_rate(peak: float, schedule: ScheduleConfig, step: int, steps: int) -> float:
    """The rate of one step (0-based): linear warm-up to `peak`, then the schedule's shape.

    The first step already moves (`peak / warmup`) and so does the last: the decay would arrive at
    `final_share` with the step after it.
    """
    warmup = math.ceil(schedule.warmup_share * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    falling = {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
    }[schedule.type]
    if schedule.type == "constant":
        return peak
    return peak * (schedule.final_share + (1.0 - schedule.final_share) * falling)
