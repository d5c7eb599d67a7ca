"""Actors through which a driver and its workers communicate.

Covered: the control actor of trainings or a search (jobs that workers do one after another,
heartbeats, progress, requests to stop, the handles by which workers are ended), a count that
several processes add to, and a thread in which a driver reads either. Not covered: deciding from
heartbeats which worker hangs.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar, get_args

from paft_ray.cluster.remote import actor_beside
from paft_ray.config.errors import PaftError

T = TypeVar("T")

Phase = Literal[
    "loading", "sampling", "forward", "waiting", "validation", "checkpoint", "saving", "done"
]
_PHASES: tuple[Phase, ...] = get_args(Phase)


class At(Protocol):
    """Takes a rank's position where it changes: phase, step from 1, rows or questions done."""

    def __call__(self, phase: Phase, step: int | None = None, row: int = 0) -> None: ...


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One rank's report that it is alive, and its position."""

    attempt: int
    """Number of the rank group; groups that start later have greater ones."""
    rank: int
    ranks: int
    node: str
    """Address of the rank's node."""
    pid: int
    count: int = 0
    """Grows while the process runs."""
    moves: int = 0
    """Grows with every change of position."""
    phase: Phase = "loading"
    step: int = 0
    """The current step, from 1; 0 before the first."""
    row: int = 0
    """Finished rows of the step."""
    steps: int = 0
    """Finished steps of this attempt."""
    longest_step_s: float = 0.0
    """Longest step of this attempt without its first, which compiles and allocates."""

    @property
    def position(self) -> tuple[int, int, int]:
        """Grows with progress, comparable between ranks."""
        return self.step, _PHASES.index(self.phase), self.row

    def __str__(self) -> str:
        """Describe rank, node and process."""
        return f"rank {self.rank} on node {self.node} (pid {self.pid})"

    @property
    def place(self) -> str:
        """Describe the position."""
        if self.phase == "loading":
            return "while loading"
        if self.phase == "forward":
            return f"at step {self.step}, row {self.row + 1}"
        doing = {
            "sampling": f"writing rollouts, {self.row} questions done",
            "waiting": "waiting for the others",
            "validation": "scoring validation prompts",
            "checkpoint": "in its checkpoint",
        }
        return f"at step {self.step}, {doing.get(self.phase, 'saving the adapter')}"


@dataclass(frozen=True, slots=True)
class ControlState:
    """All that workers have reported so far."""

    heartbeats: Mapping[int, Heartbeat] = field(default_factory=dict)
    """The latest heartbeat by rank, also of ranks that only an earlier attempt had."""
    step: int = 0
    """The last finished step."""
    validated: int = 0
    """The last step after which the model was scored."""
    ended_attempt: int = 0
    """The latest attempt that Ray Train took down."""
    refusal: PaftError | None = None
    """Why the workers stopped for good; starting them again would end the same way."""
    finished: bool = False
    """Whether all ranks have done all of the current job, and wait for another."""


class ControlActor:
    """Keeps workers' reports and requests to stop; runs as a Ray actor."""

    def __init__(self) -> None:
        self._state = ControlState()
        self._stopping: set[int] = set()
        self._workers: dict[tuple[int, int], Any] = {}
        self._job: tuple[int, Any] = (0, None)
        self._ready: set[tuple[int, int]] = set()

    def begin(self, job: Any) -> None:
        """Offer the workers another job; what was reported of the one before is forgotten."""
        self._job = (self._job[0] + 1, job)
        self._ready.clear()
        self._state = ControlState(ended_attempt=self._state.ended_attempt)

    def next_job(self, after: int) -> tuple[int, Any] | None:
        """Return the current job and its number, or None until there is one to do."""
        return None if self._job[0] <= after or self._state.finished else self._job

    def report_finished(self, attempt: int, rank: int, ranks: int) -> None:
        """Note that a rank has done all of the current job."""
        self._ready.add((attempt, rank))
        self.update(finished=sum(ready[0] == attempt for ready in self._ready) == ranks)

    def state(self) -> ControlState:
        """Return all reports."""
        return self._state

    def update(self, **changes: Any) -> None:
        """Change fields of the state."""
        self._state = replace(self._state, **changes)

    def report_heartbeat(self, heartbeat: Heartbeat) -> bool:
        """Keep a rank's heartbeat; returns whether its attempt has to stop."""
        self.update(heartbeats={**self._state.heartbeats, heartbeat.rank: heartbeat})
        return heartbeat.attempt in self._stopping

    def request_stop(self, number: int) -> None:
        """Request that an attempt of a training, or a trial of a search, stops."""
        self._stopping.add(number)

    def stop_requested(self, number: int) -> bool:
        """Return whether an attempt or a trial has to stop."""
        return number in self._stopping

    def keep_worker(self, attempt: int, rank: int, worker: Any) -> None:
        """Keep the handle of a rank's actor."""
        self._workers[attempt, rank] = worker

    def worker(self, attempt: int, rank: int) -> Any:
        """Return the handle of a rank's actor, or None where it never reported one."""
        return self._workers.get((attempt, rank))


class Control:
    """A handle of a `ControlActor` for the driver and the workers; can be pickled.

    Reports and requests are sent without waiting, except by `refuse`.
    """

    def __init__(self) -> None:
        """Start the actor on this process's own node, so that it lives as long as the driver."""
        self._actor = actor_beside(ControlActor)

    def begin(self, job: Any) -> None:
        """Offer the workers another job, a reference to it, or None where there are no more.

        What was reported of the job before is forgotten, but for attempts that ended.
        """
        import ray

        ray.get(self._actor.begin.remote([job]))  # in a list, since Ray resolves arguments

    def jobs(self) -> Iterator[Any]:
        """Yield the references of jobs to a rank, which waits for each, until there are no more."""
        import ray

        number = 0
        while True:
            found = ray.get(self._actor.next_job.remote(number))
            if found is None:
                time.sleep(0.1)
                continue
            number, [reference] = found
            if reference is None:
                return
            yield reference

    def report_finished(self, attempt: int, rank: int, ranks: int) -> None:
        """Report that a rank of an attempt has done all of the current job."""
        self._actor.report_finished.remote(attempt, rank, ranks)

    def state(self) -> ControlState:
        """Return all reports."""
        import ray

        return ray.get(self._actor.state.remote())

    def report_heartbeat(self, heartbeat: Heartbeat) -> Any:
        """Report a heartbeat; returns a reference to whether its attempt has to stop."""
        return self._actor.report_heartbeat.remote(heartbeat)

    def report_progress(self, step: int) -> None:
        """Report how many steps are done."""
        self._actor.update.remote(step=step)

    def report_validated(self, step: int) -> None:
        """Report after which step the model was scored."""
        self._actor.update.remote(validated=step)

    def report_ended(self, attempt: int) -> None:
        """Report which attempt was taken down."""
        self._actor.update.remote(ended_attempt=attempt)

    def refuse(self, error: PaftError) -> None:
        """Report why the workers stop for good; waits until the report has arrived."""
        import ray

        ray.get(self._actor.update.remote(refusal=error))

    def request_stop(self, number: int) -> None:
        """Request that an attempt of a training, or a trial of a search, stops."""
        self._actor.request_stop.remote(number)

    def stop_requested(self, number: int) -> bool:
        """Return whether an attempt or a trial has to stop."""
        import ray

        return ray.get(self._actor.stop_requested.remote(number))

    def keep_worker(self, attempt: int, rank: int, worker: Any) -> None:
        """Report the handle of a rank's actor, by which the driver can end it."""
        self._actor.keep_worker.remote(attempt, rank, worker)

    def worker(self, attempt: int, rank: int) -> Any:
        """Return the handle of a rank's actor, or None where it never reported one."""
        import ray

        return ray.get(self._actor.worker.remote(attempt, rank))


class CountActor:
    """Keeps a sum; runs as a Ray actor."""

    def __init__(self) -> None:
        self._total = 0

    def add(self, number: int) -> None:
        """Add to the sum."""
        self._total += number

    def total(self) -> int:
        """Return the sum."""
        return self._total


class Count:
    """A handle of a `CountActor`, a number that several processes add to; can be pickled."""

    def __init__(self) -> None:
        """Start the actor, on this process's own node."""
        self._actor = actor_beside(CountActor)

    def add(self, number: int) -> None:
        """Add to the sum, without waiting."""
        self._actor.add.remote(number)

    def total(self) -> int:
        """Return the sum, including all that this process has added."""
        import ray

        return ray.get(self._actor.total.remote())


@contextmanager
def follow(read: Callable[[], T], show: Callable[[T], None]) -> Iterator[None]:
    """Show what `read` returns twice a second, in a thread, and once more at the end."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            show(read())

    thread = threading.Thread(target=watch, name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    show(read())
