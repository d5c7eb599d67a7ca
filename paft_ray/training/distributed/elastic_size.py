"""When an elastic training gets more workers: its ranks save, leave, and begin anew as more.

Ray Train's own resizing ends a group where it stands, which loses the steps since the last
checkpoint; here the ranks are asked to leave, as they do when a node is about to go. Fewer workers
need no word: a lost node ends the group, and Ray Train starts what fits.
"""

import time
from collections.abc import Callable, Iterable

from paft_ray.training.distributed.heartbeat import Beat

LEAVE = "leave"
"""What the board holds for the ranks: the attempt that is asked to leave."""


class Growth:
    """The driver's look at a cluster that may have grown."""

    _settled_s = 30.0
    """How long the nodes must have been the same: Ray Train hears of new ones every 20 s."""

    def __init__(
        self,
        most: int,
        spare: Callable[[], tuple[frozenset[str], int]],
        ask: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A look that has seen nothing yet.

        Args:
            most: Workers to use where there is room for all.
            spare: The nodes there are, and how many more workers fit.
            ask: Asks the ranks of an attempt to leave.
            clock: Seconds.
        """
        self._most, self._spare, self._ask, self._clock = most, spare, ask, clock
        self._nodes: frozenset[str] = frozenset()
        self._since_s = clock()
        self._tried: frozenset[str] = frozenset()

    def look(self, beats: Iterable[Beat]) -> None:
        """Ask the ranks to leave where more would fit; once for the same nodes."""
        newest: list[Beat] = []
        for beat in beats:
            if not newest or beat.attempt > newest[0].attempt:
                newest = [beat]
            elif beat.attempt == newest[0].attempt:
                newest.append(beat)
        training = newest and all(beat.steps > 0 and beat.phase != "done" for beat in newest)
        if not training or newest[0].ranks >= self._most:
            return
        nodes, spare = self._spare()
        if nodes != self._nodes:
            self._nodes, self._since_s = nodes, self._clock()
        if nodes == self._tried or spare == 0 or self._clock() - self._since_s < self._settled_s:
            return
        self._tried = nodes
        self._ask(newest[0].attempt)
