"""Which rank is stuck: every rank says where it stands, and the driver judges.

A thread of each rank sends its position every second or two: where the loop is, and that the
process still runs. So a process that was stopped is told apart from one whose loop hangs, and the
loop itself waits for nothing. The judgement is a pure function of what was seen and when.
Covered: loading, steps, checkpoints, ranks that never began. Not covered: whether the driver lives.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

logger = logging.getLogger(__name__)

Phase = Literal["loading", "forward", "waiting", "validation", "checkpoint", "saving", "done"]
_ORDER: Mapping[Phase, int] = {
    "loading": 0,
    "forward": 1,
    "waiting": 2,
    "validation": 3,
    "checkpoint": 4,
    "saving": 5,
    "done": 6,
}
_PATIENT: frozenset[Phase] = frozenset({"loading", "validation", "checkpoint", "saving"})
"""What reads or writes storage: its bound is longer, since storage may fail for a minute."""
_PATIENCE = 10
"""How many times longer, for these phases and for an attempt's first step."""
_SLOW_STEPS = 10
"""How many of the longest step so far a rank may take."""
ATTEMPT = "PAFT_ATTEMPT"
"""Environment variable of a worker: the number of its group."""
OVER = "over"
"""Key on the board: the latest attempt that Ray Train took down."""


@dataclass(frozen=True, slots=True)
class Beat:
    """What one rank says of itself."""

    attempt: int
    """The group of workers; a group that is started later has a greater one."""
    rank: int
    ranks: int
    node: str
    """Address of the rank's node."""
    pid: int
    count: int = 0
    """Grows as long as the process runs."""
    moves: int = 0
    """Grows with every change of position."""
    phase: Phase = "loading"
    step: int = 0
    """The step being worked on, from 1; 0 before the first."""
    row: int = 0
    """Rows of it that are done."""
    steps: int = 0
    """Steps that this attempt has behind it."""
    longest_step_s: float = 0.0
    """Of this attempt, its first step apart, which compiles and allocates."""

    @property
    def position(self) -> tuple[int, int, int]:
        """Grows with progress, comparable between ranks."""
        return self.step, _ORDER[self.phase], self.row

    def __str__(self) -> str:
        """For a person: rank, node and process."""
        return f"rank {self.rank} on node {self.node} (pid {self.pid})"

    @property
    def place(self) -> str:
        """For a person: where it stands."""
        if self.phase == "loading":
            return "while loading"
        if self.phase == "forward":
            return f"at step {self.step}, row {self.row + 1}"
        doing = {
            "waiting": "waiting for the others",
            "validation": "scoring validation prompts",
            "checkpoint": "in its checkpoint",
        }
        return f"at step {self.step}, {doing.get(self.phase, 'saving the adapter')}"


class Pulse:
    """A rank's own beat: the loop moves it, a thread sends it."""

    _every_s = 1.0

    def __init__(
        self, first: Beat, send: Callable[[Beat], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """A pulse that is not sent yet.

        Args:
            first: Who this is.
            send: Takes a beat without waiting for its arrival; whether the driver has asked this
                attempt to leave.
            clock: Seconds.
        """
        self.beat = first
        self.asked_to_leave = False
        self._send = send
        self._clock = clock
        self._began = clock()

    def move(self, phase: Phase, step: int | None = None, row: int = 0) -> None:
        """Say where the loop is now; one attribute is set, nothing is sent."""
        before = self.beat
        step = before.step if step is None else step
        beat = replace(before, moves=before.moves + 1, phase=phase, step=step, row=row)
        if step != before.step:
            now = self._clock()
            if before.step:  # the first change begins the first step
                longest = max(before.longest_step_s, now - self._began) if before.steps else 0.0
                beat = replace(beat, steps=before.steps + 1, longest_step_s=longest)
            self._began = now
        self.beat = beat

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Send beats until the block ends."""
        stop = threading.Event()

        def run() -> None:
            count = 0
            while True:
                count += 1
                self.asked_to_leave |= self._send(replace(self.beat, count=count))
                if stop.wait(self._every_s):
                    return

        thread = threading.Thread(target=run, name="pulse", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.move("done")
            self._send(self.beat)


@dataclass(frozen=True, slots=True)
class Seen:
    """A rank's latest beat, and when the driver saw it change, by the driver's clock."""

    beat: Beat
    heard_s: float
    """When the latest beat came."""
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


def observe(seen: Mapping[int, Seen], beats: Iterable[Beat], now_s: float) -> Mapping[int, Seen]:
    """What the driver knows of the newest attempt after a look at all beats.

    Args:
        seen: What it knew, by rank.
        beats: The newest of every rank, also of ranks that only an earlier attempt had.
        now_s: When it looked.
    """
    beats = list(beats)
    known = (place.beat.attempt for place in seen.values())
    newest = max((*known, *(beat.attempt for beat in beats)), default=0)
    result = {rank: place for rank, place in seen.items() if place.beat.attempt == newest}
    for beat in beats:
        before = result.get(beat.rank)
        if beat.attempt != newest:
            continue
        if before is None or beat.moves != before.beat.moves:
            result[beat.rank] = Seen(beat, now_s, now_s)
        elif beat.count != before.beat.count:
            result[beat.rank] = replace(before, beat=beat, heard_s=now_s)
    return result


def judge(seen: Mapping[int, Seen], now_s: float, timeout_s: float) -> Verdict | None:
    """Name who holds the others up, or None while everything moves or has time left.

    Args:
        seen: What the driver knows, by rank.
        now_s: The time now, on the clock of `seen`.
        timeout_s: How long no rank may move, or ten times the longest step where that is more.
    """
    if not seen:
        return None
    moved_s = max(place.moved_s for place in seen.values())
    quick = max(timeout_s, *(_SLOW_STEPS * s.beat.longest_step_s for s in seen.values()))
    if now_s - moved_s <= quick:
        return None
    patient = now_s - moved_s <= _PATIENCE * quick
    some = next(iter(seen.values())).beat
    if missing := sorted(set(range(some.ranks)) - set(seen)):
        if patient:
            return None
        names = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
        text = f"{names} did not begin in {now_s - moved_s:.0f} s; the others wait for it"
        return Verdict(some.attempt, tuple(seen), text)
    at_work = [place for place in seen.values() if place.beat.phase != "done"]
    if not at_work:
        return None
    behind = min(place.beat.position for place in at_work)
    silent = [s for s in at_work if now_s - s.heard_s > quick and s.beat.phase != "loading"]
    late = [s for s in at_work if s.beat.position == behind]
    if not silent and patient and any(_is_patient(place.beat) for place in late):
        return None
    return _accuse(silent or late, seen, now_s, bool(silent))


def _is_patient(beat: Beat) -> bool:
    return beat.phase in _PATIENT or beat.steps == 0


def _accuse(blamed: list[Seen], seen: Mapping[int, Seen], now_s: float, silent: bool) -> Verdict:
    ranks = tuple(place.beat.rank for place in blamed)
    attempt = blamed[0].beat.attempt
    long_s = now_s - max(place.moved_s for place in blamed)
    if len(blamed) == len(seen) > 1 and not silent:
        text = (
            f"all {len(seen)} ranks wait for each other since {long_s:.0f} s "
            f"{blamed[0].beat.place}: look at the network between their nodes"
        )
        return Verdict(attempt, ranks, text)
    names = "; ".join(
        f"{place.beat} has not moved for {now_s - place.moved_s:.0f} s {place.beat.place}"
        + (f", and its process is silent since {now_s - place.heard_s:.0f} s" if silent else "")
        for place in blamed
    )
    others = "; the others wait for it" if len(seen) > len(blamed) else ""
    return Verdict(attempt, ranks, names + others)


class Watch:
    """The driver's side: looks at what was posted, says who is stuck, and has it ended."""

    def __init__(
        self,
        timeout_s: float,
        say: Callable[[str], None],
        end: Callable[[Verdict], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A watch that has seen nothing yet.

        Args:
            timeout_s: See `judge`.
            say: Tells a person.
            end: Ends the workers of a verdict, so that they are replaced.
            clock: Seconds.
        """
        self._timeout_s, self._say, self._end, self._clock = timeout_s, say, end, clock
        self._seen: Mapping[int, Seen] = {}
        self._over = 0
        self.verdicts: list[str] = []
        """What was said, in order."""

    def look(self, said: Mapping[str, Any]) -> None:
        """Judge by what stands on the board now; each group of workers is ended once."""
        self._over = max(self._over, said.get(OVER, 0))
        beats = (value for value in said.values() if isinstance(value, Beat))
        now_s = self._clock()
        running = (beat for beat in beats if beat.attempt > self._over)
        self._seen = observe({} if self._is_over() else self._seen, running, now_s)
        verdict = judge(self._seen, now_s, self._timeout_s)
        if verdict is None:
            return
        self._over = verdict.attempt
        self.verdicts.append(verdict.text)
        logger.warning("%s; ended, to be replaced", verdict.text)
        self._say(f"{verdict.text}; it is replaced")
        self._end(verdict)

    def _is_over(self) -> bool:
        return any(place.beat.attempt <= self._over for place in self._seen.values())
