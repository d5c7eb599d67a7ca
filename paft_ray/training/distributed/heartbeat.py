"""Heartbeats: every rank reports its position, and the driver decides whether one is stuck.

A thread of each rank sends the loop's position every second or two, so that a stopped process can
be distinguished from a loop that hangs, and the loop never waits. The decision is a pure function
of heartbeats and their times. However long a model is loaded, saved or verified, each weight that
is read and each layer that is computed counts as a move (`HeartbeatSender.work`). Covered: loading,
steps, checkpoints, ranks that never began. Not covered: whether the driver lives.
"""

import itertools
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from paft_ray.cluster.control import ControlState, Heartbeat, Phase

logger = logging.getLogger(__name__)

_LONG_PHASES: frozenset[Phase] = frozenset({"loading", "validation", "checkpoint", "saving"})
"""Phases that read or write storage; their bound on a time without any work is longer, since
storage may fail for a minute."""
_ALONE: frozenset[Phase] = frozenset({"loading", "saving"})
"""Phases in which a rank works for itself: stuck twice at one place, it would be a third time."""
_DOWNLOADING = 256 * 1024
"""Bytes that a process writes between two heartbeats while it fetches files, not just messages."""
_LONGER = 10
"""Factor of that bound, which holds for an attempt's first step too."""
_SLOW_STEPS = 10
"""A rank may take as long as this many times the longest step so far."""
ATTEMPT = "PAFT_ATTEMPT"
"""Environment variable of a worker: the number of its group."""


def written_bytes() -> int:
    """Bytes that this process has written to files and pipes; 0 where the system does not say."""
    try:
        counts = Path("/proc/self/io").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(n) for n in re.findall(r"^wchar: (\d+)$", counts, re.MULTILINE)), 0)


class HeartbeatSender:
    """A rank's own heartbeat: the loop sets its position, a thread sends it."""

    _every_s = 1.0

    def __init__(
        self,
        first: Heartbeat,
        send: Callable[[Heartbeat], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a heartbeat that is not sent yet.

        Args:
            first: The first heartbeat, which identifies the rank.
            send: Sends a heartbeat without waiting for its arrival; returns whether the driver has
                requested this attempt to stop.
            clock: Seconds.
        """
        self.heartbeat = first
        self.stop_requested = False
        self._send, self._clock = send, clock
        self._began = clock()
        self._work = 0

    @property
    def current(self) -> Heartbeat:
        """The heartbeat to send: its moves are changes of position and pieces of work."""
        return replace(self.heartbeat, moves=self.heartbeat.moves + self._work)

    def work(self) -> None:
        """Count a piece of work at the same position, which moves too; any thread may call it."""
        self._work += 1

    def move(self, phase: Phase, step: int | None = None, row: int = 0) -> None:
        """Set the loop's position; nothing is sent."""
        before = self.heartbeat
        step = before.step if step is None else step
        heartbeat = replace(before, moves=before.moves + 1, phase=phase, step=step, row=row)
        if step != before.step:
            now = self._clock()
            if before.step:  # the first change begins the first step
                longest = max(before.longest_step_s, now - self._began) if before.steps else 0.0
                heartbeat = replace(heartbeat, steps=before.steps + 1, longest_step_s=longest)
            self._began = now
        self.heartbeat = heartbeat

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Send heartbeats until the block ends."""
        stop = threading.Event()

        def run() -> None:
            written = written_bytes()
            for count in itertools.count(1):
                before, written = written, written_bytes()
                if self.heartbeat.phase in _ALONE and written - before >= _DOWNLOADING:
                    self.work()
                self.stop_requested |= self._send(replace(self.current, count=count))
                if stop.wait(self._every_s):
                    return

        thread = threading.Thread(target=run, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.move("done")
            self._send(self.current)


@dataclass(frozen=True, slots=True)
class Seen:
    """A rank's latest heartbeat, with times by the driver's clock."""

    heartbeat: Heartbeat
    received_s: float
    """When the driver received it."""
    moved_s: float
    """When the rank's position last changed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Ranks that hold the others up."""

    attempt: int
    end: tuple[int, ...]
    """The ranks to end."""
    text: str
    """The reason, for a person."""
    again: bool = False
    """Whether an attempt before was ended for the same rank's work at the same place."""


def observe(
    seen: Mapping[int, Seen], heartbeats: Iterable[Heartbeat], now_s: float
) -> Mapping[int, Seen]:
    """Return what the driver knows of the newest attempt, by rank, given new heartbeats.

    Args:
        seen: What it knew before, by rank.
        heartbeats: The latest of every rank, also of ranks that only an earlier attempt had.
        now_s: When they were read.
    """
    heartbeats = list(heartbeats)
    known = (before.heartbeat.attempt for before in seen.values())
    newest = max((*known, *(heartbeat.attempt for heartbeat in heartbeats)), default=0)
    result = {rank: before for rank, before in seen.items() if before.heartbeat.attempt == newest}
    for heartbeat in heartbeats:
        before = result.get(heartbeat.rank)
        if heartbeat.attempt != newest:
            continue
        if before is None or heartbeat.moves != before.heartbeat.moves:
            result[heartbeat.rank] = Seen(heartbeat, now_s, now_s)
        elif heartbeat.count != before.heartbeat.count:
            result[heartbeat.rank] = replace(before, heartbeat=heartbeat, received_s=now_s)
    return result


def judge(seen: Mapping[int, Seen], now_s: float, timeout_s: float) -> Verdict | None:
    """Return which ranks hold the others up, or None while ranks move or have time left.

    Args:
        seen: What the driver knows, by rank.
        now_s: The time now, by the clock of `seen`.
        timeout_s: Bound on a time without any move; ten longest steps are allowed at least.
    """
    if not seen:
        return None
    moved_s = max(rank.moved_s for rank in seen.values())
    slowest_s = max(rank.heartbeat.longest_step_s for rank in seen.values())
    bound_s = max(timeout_s, _SLOW_STEPS * slowest_s)
    if now_s - moved_s <= bound_s:
        return None
    within_longer = now_s - moved_s <= _LONGER * bound_s
    some = next(iter(seen.values())).heartbeat
    if missing := sorted(set(range(some.ranks)) - set(seen)):
        if within_longer:
            return None
        names = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
        text = f"{names} did not begin in {now_s - moved_s:.0f} s; the others wait for it"
        return Verdict(some.attempt, tuple(seen), text)
    at_work = [rank for rank in seen.values() if rank.heartbeat.phase != "done"]
    if not at_work:
        return None
    behind = min(rank.heartbeat.position for rank in at_work)
    silent = [
        rank
        for rank in at_work
        if now_s - rank.received_s > bound_s and rank.heartbeat.phase != "loading"
    ]
    late = [rank for rank in at_work if rank.heartbeat.position == behind]
    slow = any(r.heartbeat.phase in _LONG_PHASES or r.heartbeat.steps == 0 for r in late)
    if slow and within_longer and not silent:
        return None
    return _verdict(silent or late, seen, now_s, bool(silent))


def _verdict(stuck: list[Seen], seen: Mapping[int, Seen], now_s: float, silent: bool) -> Verdict:
    ranks = tuple(rank.heartbeat.rank for rank in stuck)
    attempt = stuck[0].heartbeat.attempt
    long_s = now_s - max(rank.moved_s for rank in stuck)
    if len(stuck) == len(seen) > 1 and not silent:
        text = (
            f"all {len(seen)} ranks wait for each other since {long_s:.0f} s "
            f"{stuck[0].heartbeat.place}: look at the network between their nodes"
        )
        return Verdict(attempt, ranks, text)
    names = "; ".join(
        f"{rank.heartbeat} has not moved for {now_s - rank.moved_s:.0f} s {rank.heartbeat.place}"
        + (f", and its process is silent since {now_s - rank.received_s:.0f} s" if silent else "")
        for rank in stuck
    )
    others = "; the others wait for it" if len(seen) > len(stuck) else ""
    return Verdict(attempt, ranks, names + others)


class HangDetector:
    """The driver's side: judges heartbeats, reports ranks that are stuck and ends them."""

    def __init__(
        self,
        timeout_s: float,
        report: Callable[[str], None],
        end: Callable[[Verdict], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a detector that has seen nothing yet.

        Args:
            timeout_s: See `judge`.
            report: Shows a line to a person.
            end: Ends the workers of a verdict, so that they are replaced.
            clock: Seconds.
        """
        self._timeout_s, self._report, self._end, self._clock = timeout_s, report, end, clock
        self._seen: Mapping[int, Seen] = {}
        self._ended_attempt = 0
        self._stuck: frozenset[tuple[str, str, int]] = frozenset()
        self.verdicts: list[str] = []
        """Reasons of all verdicts so far."""

    def check(self, state: ControlState) -> None:
        """Judge by the latest heartbeats; each group of workers is ended once."""
        self._ended_attempt = max(self._ended_attempt, state.ended_attempt)
        now_s = self._clock()
        running = (h for h in state.heartbeats.values() if h.attempt > self._ended_attempt)
        seen = {r: s for r, s in self._seen.items() if s.heartbeat.attempt > self._ended_attempt}
        self._seen = observe(seen, running, now_s)
        verdict = judge(self._seen, now_s, self._timeout_s)
        if verdict is None:
            return
        self._ended_attempt = verdict.attempt
        self.verdicts.append(verdict.text)
        stuck = [self._seen[rank].heartbeat for rank in verdict.end]
        before, self._stuck = self._stuck, frozenset((s.node, s.phase, s.step) for s in stuck)
        again = self._stuck == before and all(s.phase in _ALONE for s in stuck)
        then = "ended, for the second time at this place" if again else "it is replaced"
        logger.warning("%s; %s", verdict.text, then)
        self._report(f"{verdict.text}; {then}")
        self._end(replace(verdict, again=again))
