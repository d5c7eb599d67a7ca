"""Elastic size: ranks save and stop where the cluster has room for more, and more are started.

Ray Train's own resizing ends a group at once, which loses the steps since the last checkpoint; here
the ranks save first, as they do before a node is drained. Fewer workers need no request: a lost
node ends the group, and Ray Train starts as many as fit.
"""

import time
from collections.abc import Callable, Iterable

from paft_ray.cluster.control import Heartbeat


class ElasticSize:
    """Requests the ranks of an elastic training to stop once the cluster has room for more."""

    _settled_s = 30.0
    """How long the nodes must have been the same: Ray Train sees new ones every 20 s."""

    def __init__(
        self,
        most: int,
        spare: Callable[[], tuple[frozenset[str], int]],
        request_stop: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create it before the first look at the cluster.

        Args:
            most: Workers to use where all of them fit.
            spare: Returns the nodes that are alive, and how many more workers fit.
            request_stop: Requests the ranks of an attempt to stop.
            clock: Seconds.
        """
        self._most, self._spare, self._clock = most, spare, clock
        self._request_stop = request_stop
        self._nodes: frozenset[str] = frozenset()
        self._since_s = clock()
        self._tried: frozenset[str] = frozenset()

    def check(self, heartbeats: Iterable[Heartbeat]) -> None:
        """Request a stop where more ranks would fit; once for the same nodes."""
        heartbeats = list(heartbeats)
        attempt = max((heartbeat.attempt for heartbeat in heartbeats), default=0)
        newest = [heartbeat for heartbeat in heartbeats if heartbeat.attempt == attempt]
        training = newest and all(h.steps > 0 and h.phase != "done" for h in newest)
        if not training or newest[0].ranks >= self._most:
            return
        nodes, spare = self._spare()
        if nodes != self._nodes:
            self._nodes, self._since_s = nodes, self._clock()
        if nodes == self._tried or spare == 0 or self._clock() - self._since_s < self._settled_s:
            return
        self._tried = nodes
        self._request_stop(attempt)
