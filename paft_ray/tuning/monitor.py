"""Shows trials on the driver's screen, and opens and ends their tracked runs.

The driver opens a trial's tracked run with its parameters, the trial's own workers add metrics, and
the driver ends it. A thread talks to the tracking server, which may be slow, so that Tune's loop
never waits.
"""

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from paft_ray.config import TuningConfig
from paft_ray.config.loading import dump_config
from paft_ray.evaluation.goal import reached
from paft_ray.runs.context import RUN_KEY, RunContext
from paft_ray.tracking import FinalStatus, Metric, TrackedRun, Tracker, TrackingTarget, open_tracker
from paft_ray.tuning.space import apply
from paft_ray.tuning.trial import (
    read_record,
    read_records,
    results_of,
    trial_key,
    trial_label,
    write_record,
)
from paft_ray.tuning.view import TrialView

logger = logging.getLogger(__name__)


class TrialMonitor:
    """Receives the events of trials from Tune."""

    def __init__(self, context: RunContext, tuning: TuningConfig, view: TrialView) -> None:
        """Trials are tracked inside of `tracking` only."""
        self._context, self._tuning, self._view = context, tuning, view
        self._executor = ThreadPoolExecutor(1, "trial-tracking")
        self._work: list[Future[None]] = []

    @contextmanager
    def tracking(self) -> Iterator[None]:
        """Track trials while the block runs; end what an earlier process left open first.

        The tracked run of a trial that is not over when the block ends stays open.
        """
        for record in read_records(self._context.run_folder):
            if record.over and not record.tracked:
                self._later(self._close, record.number)
        try:
            yield
        finally:
            self._executor.shutdown()
            for work in self._work:
                work.result()

    def started(self, number: int, sample: Mapping[str, Any]) -> None:
        """A trial starts, or starts again."""
        self._view.started(number, sample)
        record = read_record(self._context.run_folder, number)
        if record is None or not record.over:
            self._later(self._begin, number, dict(sample))

    def reported(self, number: int, report: int, goal: float) -> None:
        """A trial was scored."""
        self._view.reported(number, report, goal)

    def ended(self, number: int) -> None:
        """A trial's process is over."""
        record = read_record(self._context.run_folder, number)
        if record is None or not record.over:
            return  # its process was lost: Tune starts it again
        self._view.ended(number, record.state, record.reason)
        if not record.tracked:
            self._later(self._close, number)

    def _later(self, work: Any, *arguments: Any) -> None:
        self._work.append(self._executor.submit(work, *arguments))

    def _begin(self, number: int, sample: Mapping[str, Any]) -> None:
        tracker = self._tracker(number)
        tracker.log_params({"space": sample})
        tracker.log_params(dump_config(apply(self._context.config, sample)))
        tracker.release()

    def _close(self, number: int) -> None:
        """Track the final state of a trial that is over, once."""
        run = self._context.run_folder
        record = read_record(run, number)
        assert record is not None
        if record.tracked:
            return
        tracker = self._tracker(number)
        tracker.set_tags({"paft.state": record.state, "paft.reason": record.reason})
        if results := results_of(self._context, number):
            step = max(results)
            figure = reached(self._tuning.goal, results[step])
            tracker.log_metrics({Metric.VALIDATION_GOAL: figure}, step)
        tracker.finish("FAILED" if record.state == "failed" else "FINISHED")
        write_record(run, replace(record, tracked=True))

    def _tracker(self, number: int) -> Tracker:
        name = f"{trial_label(number)} of {self._context.config.name}"
        run = TrackedRun(trial_key(number), name, RUN_KEY)
        tags = {"paft.kind": "trial", **self._context.tags, "paft.trial": str(number)}
        return open_tracker(self._context.tracking, run, tags)


@contextmanager
def closing(target: TrackingTarget | None, tracked: TrackedRun) -> Iterator[None]:
    """End the tracked run of a training that other processes add to, however the block ends."""
    status: FinalStatus = "KILLED"
    try:
        yield
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        open_tracker(target, tracked).finish(status)
