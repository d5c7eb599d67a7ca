"""Which rank is stuck: every rank reports where it is, and the driver decides.

A thread of each rank sends its position every second or two: where the loop is, and that the
process still runs. So a process that was stopped is told apart from one whose loop hangs, and the
loop itself waits for nothing. The decision is a pure function of what was seen and when.
Covered: loading, steps, checkpoints, ranks that never began. Not covered: whether the driver lives.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from paft_ray.cluster.control import ControlState, Heartbeat, Phase

logger = logging.getLogger(__name__)

_LONG_PHASES: frozenset[Phase] = frozenset({"loading", "validation", "checkpoint", "saving"})
"""What reads or writes storage: its bound is longer, since storage may fail for a minute."""
_LONGER = 10
"""How many times longer, for these phases and for an attempt's first step."""
_SLOW_STEPS = 10
"""How many of the longest step so far a rank may take."""
ATTEMPT = "PAFT_ATTEMPT"
"""Environment variable of a worker: the number of its group."""


class HeartbeatSender:
    """A rank's own heartbeat: the loop changes its position, a thread sends it."""

    _every_s = 1.0

    def __init__(
        self,
        first: Heartbeat,
        send: Callable[[Heartbeat], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a heartbeat that is not sent yet.

        Args:
            first: Who this is.
            send: Takes a heartbeat without waiting for its arrival; returns whether the driver has
                asked this attempt to stop.
            clock: Seconds.
        """
        self.heartbeat = first
        self.asked_to_stop = False
        self._send = send
        self._clock = clock
        self._began = clock()

    def move(self, phase: Phase, step: int | None = None, row: int = 0) -> None:
        """Set where the loop is now; one attribute changes, nothing is sent."""
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
            count = 0
            while True:
                count += 1
                self.asked_to_stop |= self._send(replace(self.heartbeat, count=count))
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
            self._send(self.heartbeat)


@dataclass(frozen=True, slots=True)
class Seen:
    """A rank's latest heartbeat, and when the driver saw it change, by the driver's clock."""

    heartbeat: Heartbeat
    received_s: float
    """When the latest heartbeat came."""
    moved_s: float
    """When its position changed last."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who holds the others up."""

    attempt: int
    end: tuple[int, ...]
    """Ranks to be ended."""
    text: str
    """For a person."""


def observe(
    seen: Mapping[int, Seen], heartbeats: Iterable[Heartbeat], now_s: float
) -> Mapping[int, Seen]:
    """Return what the driver knows of the newest attempt after a look at all heartbeats.

    Args:
        seen: What it knew, by rank.
        heartbeats: The newest of every rank, also of ranks that only an earlier attempt had.
        now_s: When it looked.
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
    """Return who holds the others up, or None while everything moves or has time left.

    Args:
        seen: What the driver knows, by rank.
        now_s: The time now, on the clock of `seen`.
        timeout_s: How long no rank may move, or ten times the longest step where that is more.
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
    if not silent and within_longer and any(_may_take_longer(rank.heartbeat) for rank in late):
        return None
    return _verdict(silent or late, seen, now_s, bool(silent))


def _may_take_longer(heartbeat: Heartbeat) -> bool:
    return heartbeat.phase in _LONG_PHASES or heartbeat.steps == 0


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
    """The driver's side: looks at what ranks reported, says who is stuck, and has it ended."""

    def __init__(
        self,
        timeout_s: float,
        say: Callable[[str], None],
        end: Callable[[Verdict], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a detector that has seen nothing yet.

        Args:
            timeout_s: See `judge`.
            say: Tells a person.
            end: Ends the workers of a verdict, so that they are replaced.
            clock: Seconds.
        """
        self._timeout_s, self._say, self._end, self._clock = timeout_s, say, end, clock
        self._seen: Mapping[int, Seen] = {}
        self._ended_attempt = 0
        self.verdicts: list[str] = []
        """What was said, in order."""

    def check(self, state: ControlState) -> None:
        """Judge by the latest heartbeats; each group of workers is ended once."""
        self._ended_attempt = max(self._ended_attempt, state.ended_attempt)
        now_s = self._clock()
        running = (h for h in state.heartbeats.values() if h.attempt > self._ended_attempt)
        self._seen = observe({} if self._is_ended() else self._seen, running, now_s)
        verdict = judge(self._seen, now_s, self._timeout_s)
        if verdict is None:
            return
        self._ended_attempt = verdict.attempt
        self.verdicts.append(verdict.text)
        logger.warning("%s; ended, to be replaced", verdict.text)
        self._say(f"{verdict.text}; it is replaced")
        self._end(verdict)

    def _is_ended(self) -> bool:
        return any(rank.heartbeat.attempt <= self._ended_attempt for rank in self._seen.values())
