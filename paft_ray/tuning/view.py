"""Shows a running search on the screen: a table on a terminal, else lines."""

import threading
import time
from dataclasses import dataclass, field

from rich.table import Table

from paft_ray.config import TuningConfig
from paft_ray.evaluation.goal import goal_name
from paft_ray.runs.progress import Screen, Stage
from paft_ray.tuning.space import Sample, describe
from paft_ray.tuning.trial import State

_SHOWN = 12


@dataclass
class _Line:
    sample: Sample
    state: State | str = "running"
    reports: int = 0
    goal: float | None = None
    since: float = field(default_factory=time.monotonic)
    seconds: float | None = None


class TrialView:
    """Keeps the state of every trial; may be drawn from another thread."""

    def __init__(
        self, screen: Screen, stage: Stage, tuning: TuningConfig, total: int, concurrency: int
    ) -> None:
        """Start without trials; `total` in all are to come, `concurrency` at a time."""
        self._screen, self._total, self._concurrency = screen, total, concurrency
        self._stage = stage
        stage.expect(total)
        self._reports, self._goal = tuning.reports, goal_name(tuning.goal)
        self._lines: dict[int, _Line] = {}
        self._lock = threading.Lock()

    def started(self, number: int, sample: Sample) -> None:
        """A trial has started, or started again."""
        with self._lock:
            self._lines[number] = _Line(sample)

    def reported(self, number: int, report: int, goal: float) -> None:
        """A trial was scored."""
        with self._lock:
            line = self._lines[number]
            line.reports, line.goal = report, goal

    def ended(self, number: int, state: State, reason: str = "") -> None:
        """A trial is over; shows a line about it."""
        with self._lock:
            line = self._lines[number]
            line.state, line.seconds = state, time.monotonic() - line.since
            over = sum(each.seconds is not None for each in self._lines.values())
            figure = "" if line.goal is None else f", {self._goal} {line.goal:.1%}"
            text = (
                f"trial {number} ({describe(line.sample)}): {state} after "
                f"{line.reports} of {self._reports} reports{figure}"
                f"{': ' + reason if reason else ''}; {over} of {self._total} trials"
                f"{self._left()}{self._best()}"
            )
        self._stage.reach(over)
        self._screen.line(text)

    def draw(self) -> Table:
        """Returns the table: the running trials, and the best of the others."""
        with self._lock:
            table = Table(title=f"{self._total} trials{self._best()}{self._left()}", box=None)
            for heading in ("trial", "settings", "state", "reports", self._goal, "time"):
                table.add_column(heading, justify="left" if heading == "settings" else "right")
            order = sorted(
                self._lines.items(),
                key=lambda item: (item[1].seconds is not None, -(item[1].goal or 0.0), item[0]),
            )
            for number, line in order[:_SHOWN]:
                seconds = line.seconds or time.monotonic() - line.since
                table.add_row(
                    str(number),
                    describe(line.sample),
                    str(line.state),
                    f"{line.reports}/{self._reports}",
                    "" if line.goal is None else f"{line.goal:.1%}",
                    f"{seconds:.0f} s",
                )
            return table

    def _best(self) -> str:
        goals = {n: line.goal for n, line in self._lines.items() if line.goal is not None}
        if not goals:
            return ""
        best = max(goals, key=lambda number: (goals[number], -number))
        return f", best so far trial {best} with {goals[best]:.1%}"

    def _left(self) -> str:
        """The time left, estimated from the trials that are over."""
        took = [line.seconds for line in self._lines.values() if line.seconds is not None]
        to_do = self._total - len(took)
        if not took or not to_do:
            return ""
        seconds = sum(took) / len(took) * to_do / min(self._concurrency, self._total)
        return f", about {max(1, round(seconds / 60))} min left"
