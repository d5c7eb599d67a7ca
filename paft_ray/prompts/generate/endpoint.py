"""Any endpoint of the OpenAI protocols: many requests in flight, retried until answered.

Covered: retries, Retry-After, time limits, parameters that an endpoint refuses, and the key, which
is written nowhere. Bodies and answers are in `chat_protocol` and `text_protocol`.
"""

import asyncio
import json
import logging
import math
import os
import random
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paft_ray.config import OpenAILLM
from paft_ray.config.errors import LLMError, UnsupportedError, package_missing
from paft_ray.prompts.generate.background import background_loop
from paft_ray.prompts.generate.chat_protocol import CHAT, Api, Refusal, read_refusal, shown
from paft_ray.prompts.generate.completions import FILTERED, Completion
from paft_ray.prompts.generate.rate_limit import Limit
from paft_ray.prompts.generate.requests import Request
from paft_ray.prompts.generate.retry_after import retry_after

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)

_RETRYABLE = frozenset({200, 408, 409, 425, 429, *range(500, 600)}) - {501, 505}
"""Statuses that another attempt may mend; proxies have made up many of the 500s, and send errors
with 200."""
_FINAL = {
    401: "check the key",
    402: "it asks for payment",
    403: "check what the key may do",
    404: "check base_url and model",
    405: "check base_url",
    410: "name another model",
}
"""Statuses that every other request would get too."""
_MOST_REFUSED = 6
"""Attempts of one request that leave out one parameter more."""
_CLIENT_LOGGERS = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Result of one attempt."""

    text: str | None
    error: str | None = None
    status: int | None = None
    retry: bool = True
    """Whether another attempt may mend it."""
    retry_after_s: float = 0.0
    """Pause that the endpoint demands."""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reported: bool = False
    """The endpoint itself counted the tokens."""
    reasoned: bool = False
    refused: str | None = None
    """A parameter that the endpoint does not take."""


class EndpointLLM:
    """An endpoint of the OpenAI protocols; retries are ours, by status and exception type."""

    _pause_s = 1.0
    """Longest pause before the second attempt; it doubles with every further one, up to 30 s."""
    _connections = 64
    """Most connections of one HTTP client, which looks at all of them for every request: with 1000
    in one client a request took 3.5 times the CPU."""

    def __init__(
        self,
        config: OpenAILLM,
        limit: Limit | None = None,
        share: int = 1,
        api_of: Callable[[Request], Api] = lambda _: CHAT,
    ) -> None:
        """Find the key, which is never logged, shown or kept in an answer.

        Args:
            config: Address, model and limits of the endpoint.
            limit: Paces the attempts of all processes together.
            share: How many processes share the configured concurrency.
            api_of: The way in which a request is sent.

        Raises:
            LLMError: The package openai is missing, the environment variable that should hold the
                key is not set on this node, or no header can carry it.
        """
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise package_missing("openai", "openai") from error
        # they write a line or more for every request, with its address
        for name in _CLIENT_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        self._config = config
        self._limit, self._api_of = limit, api_of
        self._refused: frozenset[str] = frozenset()
        self._in_flight = math.ceil(config.concurrency / share)
        env = config.api_key_env
        self._key = os.environ.get(env, "").strip() if env else "none"
        if not self._key:
            raise LLMError(
                f"{env} is not set on node {os.uname().nodename}: set it in every "
                "node's environment (a Kubernetes Secret, a shell)"
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise LLMError(
                f"{env} on node {os.uname().nodename} holds characters that an HTTP header cannot "
                "carry: set it to the key alone"
            )

    def complete(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """Answer with this process's share of the requests in flight.

        Raises:
            LLMError: The endpoint refuses this key, this model or this address, or redirects.

        Requests are taken in the reader's thread, as many again as may be in flight, so that some
        are left while the reader is busy. Answers come in groups of all that are there.
        """
        source = iter(requests)
        most = 2 * self._in_flight
        waiting: asyncio.Queue[Request] = asyncio.Queue()
        answers: asyncio.Queue[Completion | None] = asyncio.Queue()
        with background_loop() as loop:
            work = asyncio.run_coroutine_threadsafe(self._answer(waiting, answers), loop)
            taken, exhausted = 0, False  # taken and not handed out
            while True:
                while taken < most and not exhausted:
                    request = next(source, None)
                    exhausted = request is None
                    if request is not None:
                        taken += 1
                        loop.call_soon_threadsafe(waiting.put_nowait, request)
                if not taken:
                    return
                group = asyncio.run_coroutine_threadsafe(_take(answers), loop).result()
                ready = [answer for answer in group if answer is not None]
                taken -= len(ready)
                if ready:
                    yield ready
                if None in group:
                    work.result()  # raises

    async def _answer(
        self, waiting: asyncio.Queue[Request], answers: asyncio.Queue[Completion | None]
    ) -> None:
        """Answer what waits until cancelled; put None where an error ends it."""
        import httpx2

        async def work(client: "openai.AsyncOpenAI") -> None:
            while True:
                answers.put_nowait(await self._complete_one(client, await waiting.get()))

        try:
            async with AsyncExitStack() as opened:
                trusted = httpx2.create_ssl_context()
                clients = [
                    await opened.enter_async_context(self._open_client(trusted))
                    for _ in range(math.ceil(self._in_flight / self._connections))
                ]
                workers = [
                    asyncio.create_task(work(clients[number % len(clients)]))
                    for number in range(self._in_flight)
                ]
                try:
                    await asyncio.gather(*workers)
                finally:
                    for worker in workers:
                        worker.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)
        finally:
            answers.put_nowait(None)

    def _open_client(self, trusted: ssl.SSLContext) -> "openai.AsyncOpenAI":
        import httpx2
        import openai

        from paft_ray.prompts.generate.bounded import ENCODINGS, bound

        # openai's own limits hold 1000 connections and keep 100; how many there are is our part
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        return openai.AsyncOpenAI(
            base_url=self._config.base_url,
            api_key=self._key,
            max_retries=0,
            timeout=None,  # it would hold for each read, ours holds for the whole request
            http_client=openai.DefaultAsyncHttpxClient(
                limits=limits,
                timeout=None,
                verify=trusted,
                follow_redirects=False,  # they would take the key along
                headers={"Accept-Encoding": ENCODINGS},
                event_hooks={"response": [bound]},
            ),
        )

    async def _complete_one(self, client: "openai.AsyncOpenAI", request: Request) -> Completion:
        started = time.perf_counter()
        estimate = sum(len(text) for _, text in request.messages) / 4 + request.max_tokens
        attempt = tried = read = written = 0
        api = self._api_of(request)
        while True:
            attempt += 1
            if self._limit is not None:
                await self._limit.wait(estimate)
            left_out = self._refused
            body = api.body(self._config, request, left_out)
            outcome = await self._attempt(client, api, body, request)
            read += outcome.prompt_tokens
            written += outcome.completion_tokens
            if self._limit is not None and outcome.reported:
                used = outcome.prompt_tokens + outcome.completion_tokens
                await self._limit.correct(used - estimate)
            if outcome.refused is not None and attempt - tried <= _MOST_REFUSED:
                self._refused |= {outcome.refused}
                continue
            tried += 1
            if outcome.text is not None or not outcome.retry or tried == self._config.max_attempts:
                return Completion(
                    request_id=request.id,
                    text=outcome.text,
                    error=outcome.error,
                    status=outcome.status,
                    attempts=attempt,
                    seconds=time.perf_counter() - started,
                    prompt_tokens=read,
                    completion_tokens=written,
                    finish_reason=outcome.finish_reason,
                    left_out=", ".join(sorted(left_out)),
                    reasoned=outcome.reasoned,
                )
            await asyncio.sleep(self._pause(tried, outcome.retry_after_s))

    def _pause(self, attempt: int, retry_after_s: float) -> float:
        """Seconds before the next attempt, drawn at random so that not all come back at once."""
        own = random.uniform(0.5, 1.0) * min(30.0, self._pause_s * 2.0 ** (attempt - 1))
        return max(own, retry_after_s * random.uniform(1.0, 1.1))

    async def _attempt(
        self, client: "openai.AsyncOpenAI", api: Api, body: dict[str, Any], request: Request
    ) -> _Outcome:
        import httpx2
        import openai

        from paft_ray.prompts.generate.bounded import UnreadableError

        try:
            async with asyncio.timeout(self._config.timeout_s):
                sent = {"body": body} if body else {}
                response = await getattr(client, api.method)(
                    api.path, cast_to=httpx2.Response, **sent
                )
        except openai.APIStatusError as failure:
            return self._refusal(failure.response, body, api)
        except (TimeoutError, openai.APITimeoutError):
            return _Outcome(None, f"no answer within {self._config.timeout_s:g} s")
        except UnreadableError as failure:
            return _Outcome(None, str(failure), retry=failure.retry)
        except openai.OpenAIError as failure:  # no connection, or one that was dropped
            return _Outcome(None, type(failure).__name__)
        try:
            answer = json.loads(response.content)
            reading = api.read(answer, request)
        except LLMError as error:
            raise type(error)(f"{self._where}: {error}") from error
        except (ValueError, RecursionError):  # a body that is no JSON, or a bomb of brackets
            kind = self._shown(response.headers.get("content-type", "").partition(";")[0])
            other = f"{kind}, not JSON" if kind and not kind.endswith("json") else "not JSON"
            return _Outcome(None, f"the endpoint's answer is {other}", response.status_code)
        if reading.text is None:
            if isinstance(answer, dict) and answer.get("error"):
                return self._refusal(response, body, api)
            return _Outcome(None, "the endpoint answered without a text", response.status_code)
        return _Outcome(
            reading.text,
            status=response.status_code,
            finish_reason=reading.finish_reason,
            prompt_tokens=reading.prompt_tokens,
            completion_tokens=reading.completion_tokens,
            reported=reading.reported,
            reasoned=reading.reasoned,
        )

    def _refusal(self, response: Any, body: dict[str, Any], api: Api) -> _Outcome:
        """The outcome of a status that is no success.

        Raises:
            LLMError: Every other request would get it too.
        """
        status = response.status_code
        try:
            said = json.loads(response.content)
        except (ValueError, RecursionError):
            said = response.content.decode("utf-8", "replace")
        try:
            refusal = read_refusal(status, said, self._secret)
        except RecursionError:
            refusal = Refusal(status, "")
        if refusal.filtered:
            return _Outcome("", status=status, finish_reason=FILTERED)
        where = self._where
        if refusal.needed(api.needs):
            raise UnsupportedError(f"{where}: {refusal}: {api.remedy}")
        if 300 <= status < 400:
            target = self._shown(response.headers.get("location", "nowhere"))
            raise LLMError(
                f"{where}: HTTP {status}, a redirect to {target}, which is not followed with a "
                "key: set base_url to where the API is"
            )
        if status in _FINAL or refusal.no_credit:
            env = f" ({self._config.api_key_env or 'set api_key_env'})" if status == 401 else ""
            remedy = _FINAL.get(status, "the account has no credit left")
            kind = UnsupportedError if status in (404, 405) else LLMError
            raise kind(f"{where}: {refusal}: {remedy}{env}")
        again = status in _RETRYABLE
        wait = retry_after(response.headers) if again else 0.0
        text = f"{refusal}{refusal.remedy(body)}"
        return _Outcome(None, text, status, again, wait, refused=refusal.parameter(body))

    @property
    def _where(self) -> str:
        return f"{self._config.label} at {self._config.base_url}"

    @property
    def _secret(self) -> str:
        return self._key if self._config.api_key_env else ""

    def _shown(self, text: str) -> str:
        return shown(text, self._secret)


async def _take(answers: asyncio.Queue[Completion | None]) -> list[Completion | None]:
    """All answers that are there, at least one."""
    group = [await answers.get()]
    while not answers.empty():
        group.append(answers.get_nowait())
    return group
