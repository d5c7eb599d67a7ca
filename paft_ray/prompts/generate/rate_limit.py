"""One rate limit for all actors that use the same endpoint."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol


class Limit(Protocol):
    """Paces the attempts of everybody who shares it."""

    async def wait(self, tokens: float) -> None:
        """Return when an attempt may start that will cost about so many tokens."""
        ...

    async def correct(self, tokens: float) -> None:
        """Report that an attempt cost so many tokens more than `wait` got; less, where negative."""
        ...


class RateLimit:
    """Schedules the start of each request; a Ray actor without a CPU of its own.

    Starts are spaced evenly, so that no minute holds more than the limit, wherever it begins, and
    nothing is saved up for a burst.
    """

    _margin = 1.02
    """By how much spaces are wider than the limit asks: a window that begins and ends with a
    request would else hold one too many, and starts come a little late or early."""

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._request_s = 60 * self._margin / requests_per_minute if requests_per_minute else 0.0
        self._token_s = 60 * self._margin / tokens_per_minute if tokens_per_minute else 0.0
        self._next_request = self._next_token = clock()

    def reserve(self, tokens: float) -> float:
        """Take the next start, for a request of so many tokens: seconds from now."""
        now = self._clock()
        start = max(now, self._next_request, self._next_token)
        self._next_request = start + self._request_s
        self._next_token = start + tokens * self._token_s
        return start - now

    def correct(self, tokens: float) -> None:
        """A request took so many tokens more than was reserved; less, where negative."""
        self._next_token += tokens * self._token_s


class LimitOfOneProcess:
    """A `RateLimit` of clients in this process; needs no Ray."""

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit

    async def wait(self, tokens: float) -> None:
        """Return when a request of so many tokens may start."""
        await asyncio.sleep(self._limit.reserve(tokens))

    async def correct(self, tokens: float) -> None:
        """Report how many more tokens a request took than were reserved."""
        self._limit.correct(tokens)


class RateLimitHandle:
    """The clients' end of a `RateLimit`; pickles."""

    def __init__(
        self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None
    ) -> None:
        """Start the actor, which begins anew where its node is lost.

        Args:
            requests_per_minute: Most requests over all who hold this handle; None for no limit.
            tokens_per_minute: Most tokens; None for no limit.
        """
        import ray

        remote = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(RateLimit)
        self._actor: Any = remote.remote(requests_per_minute, tokens_per_minute)
        self._counts_tokens = tokens_per_minute is not None

    async def wait(self, tokens: float) -> None:
        """Return when a request of so many tokens may start."""
        await asyncio.sleep(await self._actor.reserve.remote(tokens))

    async def correct(self, tokens: float) -> None:
        """Report how many more tokens a request took than were reserved, without waiting."""
        if self._counts_tokens:
            self._actor.correct.remote(tokens)
