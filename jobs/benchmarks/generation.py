"""Requests per second of our endpoint client against plain uses of the openai package.

An endpoint on this machine, in a process of its own, answers every request after a fixed time. Our
client asks it with some requests in flight; beside it, in the same run, `openai.OpenAI` is called
in a loop and from 64 threads. Rounds take turns, so that a busy minute hits all alike.

python jobs/benchmarks/generation.py [--requests 2000] [--latency 0.05] [--json]
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

from records import print_record

from paft_ray.config import OpenAILLM
from paft_ray.prompts.generate.endpoint import EndpointLLM
from paft_ray.prompts.generate.requests import Request

THREADS = 64
ANSWER = json.dumps(
    {
        "id": "x", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [
            {
                "index": 0, "finish_reason": "stop",
                "message": {"role": "assistant", "content": "Read the review and judge it."},
            }
        ],
        "usage": {"prompt_tokens": 90, "completion_tokens": 8, "total_tokens": 98},
    }
).encode()  # fmt: skip


class _Connection(asyncio.Protocol):
    """Answers requests on one connection, one after another."""

    reply = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        len(ANSWER),
        ANSWER,
    )

    def __init__(self, latency_s: float) -> None:
        self._latency_s = latency_s
        self._received = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) >= length:
            self._received = body[length:]
            loop = asyncio.get_running_loop()
            loop.call_later(self._latency_s, self._transport.write, self.reply)


def _serve(latency_s: float, parent: Connection) -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: _Connection(latency_s), "127.0.0.1", 0, backlog=4096
        )
        parent.send(server.sockets[0].getsockname()[1])
        await loop.run_in_executor(None, parent.recv)  # whatever comes, also the parent's end
        server.close()

    with suppress(EOFError, KeyboardInterrupt):
        asyncio.run(serve())


@contextmanager
def endpoint(latency_s: float) -> Iterator[str]:
    """An endpoint in another process; its address."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(latency_s, theirs), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/v1"
    finally:
        ours.send(None)
        process.join()


def make_requests(count: int) -> Iterator[Request]:
    """Requests of usual length."""
    text = "Write a prompt template for this task: say whether a film review is positive. " * 4
    for seed in range(count):
        messages = (("user", f"{text}{seed}"),)
        yield Request(f"{seed:016x}", 0, "zero_shot", messages, 1.0, 1.0, seed, 64)


def ask_with_ours(url: str, concurrency: int, count: int) -> int:
    """Our client; the number of texts that came back."""
    config = OpenAILLM(type="openai", base_url=url, model="m", concurrency=concurrency)
    answers = EndpointLLM(config).complete(make_requests(count))
    return sum(answer.text is not None for group in answers for answer in group)


def ask_with_openai(url: str, threads: int, count: int) -> int:
    """`openai.OpenAI`, called one by one or from threads; the number of texts."""
    import openai

    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:

        def ask(request: Request) -> bool:
            messages: Any = [{"role": role, "content": text} for role, text in request.messages]
            answer = client.chat.completions.create(
                model="m",
                messages=messages,
                temperature=request.temperature,
                top_p=request.top_p,
                max_tokens=request.max_tokens,
                seed=request.seed,
            )
            return bool(answer.choices[0].message.content)

        if threads == 1:
            return sum(map(ask, make_requests(count)))
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(ask, make_requests(count)))


def measure(
    ask: Callable[[str, int, int], int], url: str, concurrency: int, count: int
) -> tuple[float, float]:
    """Requests per second, and milliseconds of this process's CPU per request.

    Raises:
        RuntimeError: A request brought no text.
    """
    started, cpu = time.perf_counter(), time.process_time()
    texts = ask(url, concurrency, count)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    if texts != count:
        raise RuntimeError(f"{count - texts} of {count} requests brought no text")
    return count / seconds, 1000 * cpu / count


def main() -> None:
    """Measure, print a table, and with --json one line for machines at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=2000, help="per client and round")
    parser.add_argument("--latency", type=float, default=0.05, help="of an answer, in seconds")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    loop, threads = ("openai, one by one", 1), (f"openai, {THREADS} threads", THREADS)
    ours = [(f"ours, {number} in flight", number) for number in options.concurrency]
    clients: list[tuple[str, int]] = [loop, threads, *ours]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in clients}
    with endpoint(options.latency) as url:
        for ask in (ask_with_openai, ask_with_ours):
            ask(url, 1, 5)  # modules are imported at first use
        for _ in range(options.rounds):
            for name, number in clients:
                ask = ask_with_ours if name.startswith("ours") else ask_with_openai
                count = max(20, min(options.requests, options.requests * number // 32))
                found[name].append(measure(ask, url, number, count))
    rows: list[dict[str, Any]] = [
        {
            "client": name,
            "in_flight": number,
            "requests_per_second": round(statistics.median(r for r, _ in found[name]), 1),
            "least": round(min(r for r, _ in found[name]), 1),
            "most": round(max(r for r, _ in found[name]), 1),
            "cpu_ms_per_request": round(statistics.median(c for _, c in found[name]), 2),
            "latency_s": options.latency,
        }
        for name, number in clients
    ]
    for row in rows:
        print(
            f"{row['client']:<22} {row['requests_per_second']:>8.1f}/s "
            f"({row['least']:.1f} to {row['most']:.1f}), {row['cpu_ms_per_request']:.2f} ms of CPU"
        )

    def ratio(name: str, to: str) -> float:
        pairs = zip(found[name], found[to], strict=True)
        return round(statistics.median(ours / theirs for (ours, _), (theirs, _) in pairs), 3)

    ratios = {f"{name} / {to}": ratio(name, to) for name, _ in ours for to in (loop[0], threads[0])}
    for name, value in ratios.items():
        print(f"{name:<46} {value:.3f}")
    if options.json:
        print_record("generation", options, ("openai", "ray"), rows, ratios)


if __name__ == "__main__":
    main()
