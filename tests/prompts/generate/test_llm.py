"""LLMs behind one protocol: a real endpoint that misbehaves, a real tiny model, and the fake."""

import gzip
import itertools
import json
import re
import sys
import threading
import time
import types
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from factories import candidate_of
from paft_ray.config import (
    FakeLLM,
    GenerationConfig,
    LintConfig,
    OpenAILLM,
    TransformersLLM,
    VLLMEngine,
)
from paft_ray.config.errors import LLMError
from paft_ray.config.llms import Author
from paft_ray.models.generation import generate
from paft_ray.models.load import load_base, load_tokenizer
from paft_ray.prompts.generate.bounded import UnreadableError, _Unpacker
from paft_ray.prompts.generate.completions import Completion
from paft_ray.prompts.generate.endpoint import EndpointLLM
from paft_ray.prompts.generate.fake import FakeClient
from paft_ray.prompts.generate.llm import InProcessLLM, llm_key, open_llm
from paft_ray.prompts.generate.requests import Request, RequestBook
from paft_ray.prompts.generate.retry_after import retry_after
from paft_ray.prompts.lint import lint, lint_instruction
from paft_ray.storage.paths import Storage
from paft_ray.tasks import Task

KEY = "sk-do-not-show-this-to-anybody"
KEY_ENV = "PAFT_TEST_LLM_KEY"


@dataclass(frozen=True)
class Reply:
    """What the endpoint sends for one call."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    missing_bytes: int = 0
    """How much of what Content-Length promises never comes."""


def as_json(value: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(status, json.dumps(value).encode(), headers)


def good(text: str) -> Reply:
    return as_json(
        {
            "id": "x", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [
                {
                    "index": 0, "finish_reason": "stop",
                    "message": {"role": "assistant", "content": text},
                }
            ],
            "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
        }
    )  # fmt: skip


def with_choices(*choices: Any) -> Reply:
    return as_json({"id": "x", "object": "chat.completion", "model": "m", "choices": choices})


WHOLE = good("never read").body
FAULTS: dict[str, tuple[Reply, str, int | None]] = {
    "429": (as_json({"error": "slow down"}, 429, **{"Retry-After": "0"}),
            "HTTP 429: slow down", 429),
    "429-odd-header": (as_json({}, 429, **{"Retry-After": "soon"}), "HTTP 429", 429),
    "500-text": (Reply(500, b"oh no", content_type="text/plain"), "HTTP 500: oh no", 500),
    "500-json": (as_json({"error": {"message": "oh no", "type": "x"}}, 500),
                 "HTTP 500: oh no", 500),
    "503-empty": (Reply(503, b""), "HTTP 503", 503),
    "truncated": (Reply(200, WHOLE[:-20]), "the endpoint's answer is not JSON", 200),
    "cut-off": (Reply(200, WHOLE[:-20], missing_bytes=20), "APIConnectionError", None),
    "no-choices": (with_choices(), "the endpoint answered without a text", 200),
    "null-choices": (as_json({"choices": None}), "the endpoint answered without a text", 200),
    "no-text": (with_choices({"index": 0, "message": {"role": "assistant", "content": None}}),
                "the endpoint answered without a text", 200),
    "no-message": (with_choices({"index": 0}), "the endpoint answered without a text", 200),
    "error-as-200": (as_json({"error": "overloaded"}), "HTTP 200: overloaded", 200),
    "a-list": (as_json([]), "the endpoint answered without a text", 200),
    "null": (as_json(None), "the endpoint answered without a text", 200),
    "numbers-for-choices": (with_choices(1, None), "the endpoint answered without a text", 200),
    "a-bomb": (Reply(200, b"[" * 200_000), "the endpoint's answer is not JSON", 200),
    "not-utf-8": (Reply(200, b'{"id": "\xff\xfe"}'), "the endpoint's answer is not JSON", 200),
    "not-gzip": (Reply(200, b"plain", {"Content-Encoding": "gzip"}),
                 "the endpoint's answer is not the gzip it says", None),
    "a-page": (Reply(200, b"<html>Please log in</html>", content_type="text/html"),
               "the endpoint's answer is text/html, not JSON", 200),
}  # fmt: skip

each_fault = pytest.mark.parametrize("fault", list(FAULTS))


class Endpoint:
    """A real server of the OpenAI chat protocol; a call's decoding seed picks its script."""

    def __init__(self) -> None:
        self.script: dict[int, list[Reply]] = {}
        self.last: dict[int, Reply] = {}
        """What is sent when a script is over; a good answer by default."""
        self.received: dict[int, list[tuple[dict[str, Any], Message]]] = defaultdict(list)
        self.times: dict[int, list[float]] = defaultdict(list)
        self.before: Callable[[int], object] = lambda seed: None
        self.drip: Callable[[], object] | None = None
        """What is done before every single byte of a body."""
        self.refuses: dict[str, Reply] = {}
        """What is sent where a body holds a parameter."""
        self.endless: Callable[[], Iterator[bytes]] | None = None
        self.bodies: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self.in_flight = self.peak = 0
        self.changed = threading.Condition()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint.changed:
                    endpoint.in_flight += 1
                    endpoint.peak = max(endpoint.peak, endpoint.in_flight)
                    endpoint.changed.notify_all()
                try:
                    self.reply(endpoint.answer(self.path, body, self.headers))
                finally:
                    with endpoint.changed:
                        endpoint.in_flight -= 1
                        endpoint.changed.notify_all()

            def reply(self, reply: Reply) -> None:
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.content_type)
                if endpoint.endless is None:
                    length = len(reply.body) + reply.missing_bytes
                    self.send_header("Content-Length", str(length))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                with suppress(ConnectionError):  # a client that did not wait for the answer
                    self.end_headers()
                    for piece in endpoint.endless() if endpoint.endless else ():
                        self.wfile.write(piece)
                    if endpoint.drip is None:
                        self.wfile.write(reply.body)
                        return
                    for byte in reply.body:
                        endpoint.drip()
                        self.wfile.write(bytes([byte]))

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def answer(self, path: str, body: dict[str, Any], headers: Message) -> Reply:
        number = body["messages"][-1]["content"].split()[-1].rstrip(".")
        seed = body["seed"] if "seed" in body else int(number)
        self.bodies[seed].append(body)
        for name, refusal in self.refuses.items():
            if name in body:
                return refusal
        with self.changed:
            self.received[seed].append((body, headers))
            self.times[seed].append(time.monotonic())
            self.changed.notify_all()
            waiting = self.script.get(seed, [])
            default = good(f"answer {seed}")
            reply = waiting.pop(0) if waiting else self.last.get(seed, default)
        self.before(seed)
        return reply if path == "/v1/chat/completions" else Reply(404, b"")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    @property
    def calls(self) -> dict[int, int]:
        return {seed: len(received) for seed, received in self.received.items()}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def make_llm(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Callable[..., EndpointLLM]:
    monkeypatch.setenv(KEY_ENV, KEY)
    monkeypatch.setattr(EndpointLLM, "_pause_s", 0.001)

    def make(limit=None, share=1, **changes) -> EndpointLLM:
        config = {
            "type": "openai", "base_url": endpoint.url, "model": "m", "api_key_env": KEY_ENV,
            "max_attempts": 3, "timeout_s": 30,
        }  # fmt: skip
        return EndpointLLM(OpenAILLM.model_validate({**config, **changes}), limit, share)

    return make


def make_requests(count: int, **changes) -> list[Request]:
    return [
        replace(
            Request(
                id=f"{seed:016x}",
                llm=0,
                strategy="zero_shot",
                messages=(("user", f"Write prompt {seed}."),),
                temperature=0.7,
                top_p=0.9,
                seed=seed,
                max_tokens=12,
            ),
            **changes,
        )
        for seed in range(count)
    ]


def complete(llm, requests: list[Request]) -> dict[str, Completion]:
    """All answers by request, after making sure that each request has exactly one."""
    answers = [completion for group in llm.complete(requests) for completion in group]
    assert Counter(a.request_id for a in answers) == Counter(r.id for r in requests)
    assert all((a.text is None) != (a.error is None) for a in answers)
    return {a.request_id: a for a in answers}


def test_endpoint_gets_the_request_with_the_key_and_tokens_are_counted(endpoint, make_llm):
    messages = (("system", "You write prompts."), ("user", "Write one."))
    [request] = make_requests(1, messages=messages)
    [answer] = complete(make_llm(), [request]).values()
    assert (answer.text, answer.status, answer.attempts) == ("answer 0", 200, 1)
    assert (answer.prompt_tokens, answer.completion_tokens) == (11, 7)
    assert answer.seconds > 0
    [(body, headers)] = endpoint.received[0]
    assert body == {
        "model": "m", "temperature": 0.7, "top_p": 0.9, "max_tokens": 12, "seed": 0,
        "messages": [
            {"role": "system", "content": "You write prompts."},
            {"role": "user", "content": "Write one."},
        ],
    }  # fmt: skip
    assert headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "usage", [None, {}, {"total_tokens": 3}, "unknown", {"completion_tokens": 0}]
)
def test_endpoint_that_does_not_say_how_many_tokens_it_used_counts_bytes(usage, endpoint, make_llm):
    body = {**json.loads(good("ein Grüßen").body), "usage": usage}
    endpoint.script = {0: [as_json(body)]}
    [answer] = complete(make_llm(), make_requests(1)).values()
    written = 3 if usage == {"total_tokens": 3} else len("ein Grüßen".encode())
    assert answer.text == "ein Grüßen"
    assert (answer.prompt_tokens, answer.completion_tokens) == (len("Write prompt 0."), written)


@each_fault
def test_endpoint_after_one_fault_gets_the_request_again_and_answers(fault, endpoint, make_llm):
    endpoint.script = {seed: [FAULTS[fault][0]] for seed in (0, 2)}
    answers = complete(make_llm(), make_requests(3))
    assert [a.text for _, a in sorted(answers.items())] == ["answer 0", "answer 1", "answer 2"]
    assert [a.attempts for _, a in sorted(answers.items())] == [2, 1, 2]
    assert endpoint.calls == {0: 2, 1: 1, 2: 2}


@each_fault
def test_endpoint_with_a_lasting_fault_is_given_up_after_max_attempts(fault, endpoint, make_llm):
    reply, error, status = FAULTS[fault]
    endpoint.last = {0: reply}
    answers = complete(make_llm(max_attempts=4), make_requests(2))
    failed = answers[f"{0:016x}"]
    assert (failed.text, failed.error, failed.status) == (None, error, status)
    assert failed.attempts == 4
    assert endpoint.calls == {0: 4, 1: 1}
    assert answers[f"{1:016x}"].text == "answer 1"


def test_endpoint_with_every_fault_at_once_answers_every_request(endpoint, make_llm):
    faults = [reply for reply, _, _ in FAULTS.values()]
    requests = make_requests(2 * len(faults))
    endpoint.script = {seed: faults[seed : seed + 2] for seed in range(len(faults))}
    answers = complete(make_llm(concurrency=5), requests)
    assert {a.text for a in answers.values()} == {f"answer {r.seed}" for r in requests}
    assert sum(a.attempts for a in answers.values()) == sum(endpoint.calls.values())
    assert sum(endpoint.calls.values()) == len(requests) + 2 * len(faults) - 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_endpoint_that_refuses_a_request_gets_it_once(status, endpoint, make_llm):
    message = f"Incorrect:\x1b[31m key\n{KEY} and {KEY[:12]}"
    endpoint.last = {0: as_json({"error": {"message": message, "code": "invalid"}}, status)}
    answers = complete(make_llm(), make_requests(2))
    failed = answers[f"{0:016x}"]
    words = f"Incorrect: [31m key {'*' * len(KEY)} and {'*' * 12}"
    assert (failed.error, failed.status, failed.attempts) == (f"HTTP {status}: {words}", status, 1)
    assert endpoint.calls == {0: 1, 1: 1}
    assert KEY not in repr(answers)


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405, 410, 429])
def test_endpoint_that_refuses_the_key_or_model_ends_all_requests_at_once(
    status, endpoint, make_llm
):
    error = {"message": f"No way with {KEY}, {'x' * 9999}", "code": "insufficient_quota"}
    endpoint.last = {seed: as_json({"error": error}, status) for seed in range(40)}
    with pytest.raises(LLMError, match="No way with") as caught:
        list(make_llm(concurrency=4).complete(make_requests(40)))
    line = str(caught.value)
    assert line.startswith(f"m at {endpoint.url}: HTTP {status}: ")
    assert KEY not in line and "\n" not in line and len(line) < 500
    assert sum(endpoint.calls.values()) <= 8


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_endpoint_that_redirects_gets_no_key_to_follow(status, endpoint, make_llm):
    other = Endpoint()
    try:
        headers = {"Location": f"{other.url}/chat/completions"}
        endpoint.last = {0: Reply(status, b"", headers)}
        with pytest.raises(LLMError, match=rf"HTTP {status}, a redirect to {other.url}/chat"):
            list(make_llm().complete(make_requests(1)))
        assert (endpoint.calls, other.calls) == ({0: 1}, {})
    finally:
        other.close()


def test_endpoint_whose_answer_is_a_bomb_or_too_long_gets_it_once(endpoint, make_llm):
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(bomb.compress(bytes(2**20)) for _ in range(200)) + bomb.flush()
    endpoint.last = {
        0: Reply(200, packed, {"Content-Encoding": "gzip"}),
        1: Reply(200, good("x" * 5_000_000).body),
        2: Reply(500, packed, {"Content-Encoding": "gzip"}),
        3: Reply(200, packed, {"Content-Encoding": "zstd"}),
    }
    answers = [a for _, a in sorted(complete(make_llm(), make_requests(4)).items())]
    too_long = "the endpoint's answer is longer than 4 MiB"
    assert [a.error for a in answers[:3]] == [too_long] * 3
    assert "not asked for" in str(answers[3].error)
    assert {a.attempts for a in answers} == {1}


def test_packed_answer_is_unpacked_alike_however_its_pieces_are_cut():
    body = b"".join(b"%d, " % number for number in range(2000))
    for packed in (
        gzip.compress(body[:5000]) + gzip.compress(body[5000:]), zlib.compress(body)[2:-4],
    ):  # fmt: skip
        for size in (1, 7, len(packed)):
            unpack = _Unpacker()
            pieces = [packed[start : start + size] for start in range(0, len(packed), size)]
            assert b"".join(unpack(piece, 10**6) for piece in pieces) == body
    parts, unpack = gzip.compress(b"") * 5000, _Unpacker()
    with pytest.raises(UnreadableError, match="too many parts"):
        unpack(parts, 10**6)


def test_endpoint_whose_answer_never_ends_is_left(endpoint, make_llm):
    endpoint.endless = lambda: itertools.repeat(b"a" * 2**16)
    [answer] = complete(make_llm(), make_requests(1)).values()
    assert (answer.error, answer.attempts) == ("the endpoint's answer is longer than 4 MiB", 1)


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("gzip", lambda body: gzip.compress(body[:9]) + gzip.compress(body[9:]) + b"\0" * 64),
        ("deflate", zlib.compress),
        ("deflate", lambda body: zlib.compress(body)[2:-4]),
    ],
    ids=["gzip", "gzip of two parts", "deflate", "deflate without a header"],
)
def test_endpoint_that_packs_its_answer_is_read(encoding, pack, endpoint, make_llm):
    data = pack(good("packed").body)
    endpoint.script = {0: [Reply(200, data, {"Content-Encoding": encoding})]}
    [answer] = complete(make_llm(), make_requests(1)).values()
    assert (answer.text, answer.attempts) == ("packed", 1)


def refused(message: Any, param: str | None = None, status: int = 400) -> Reply:
    return as_json({"error": {"message": message, "param": param}}, status)


@pytest.mark.parametrize(
    ("takes_no", "reply", "sent"),
    [
        ("max_tokens", refused("Unsupported parameter: 'max_tokens' is not supported with this "
                               "model. Use 'max_completion_tokens' instead.", "max_tokens"),
         {"temperature", "top_p", "seed", "max_completion_tokens"}),
        ("temperature", refused("'temperature' does not support 0.7 with this model. Only the "
                                "default (1) value is supported: it is not supported."),
         {"top_p", "seed", "max_tokens"}),
        ("seed", as_json({"message": {"detail": [{"type": "extra_forbidden", "loc":
                 ["body", "seed"], "msg": "Extra inputs are not permitted"}]}}, 422),
         {"temperature", "top_p", "max_tokens"}),
        ("seed", as_json({"detail": [{"loc": ["body", "seed"], "msg": "unexpected"}]}, 422),
         {"temperature", "top_p", "max_tokens"}),
        ("top_p", refused("`temperature` and `top_p` cannot both be specified for this model."),
         {"temperature", "seed", "max_tokens"}),
    ],
)  # fmt: skip
def test_endpoint_that_does_not_take_a_parameter_gets_requests_without_it(
    takes_no, reply, sent, endpoint, make_llm
):
    endpoint.refuses = {takes_no: reply}
    answers = complete(
        make_llm(max_attempts=1, concurrency=1),
        make_requests(
            3,
        ),
    )
    assert [a.text is not None for a in answers.values()] == [True] * 3
    assert {a.left_out for a in answers.values()} == {takes_no}
    assert sum(map(len, endpoint.bodies.values())) == 4  # once, not once per request
    last = endpoint.bodies[2][-1]
    assert last.keys() - {"model", "messages"} == sent


@pytest.mark.parametrize(
    ("reply", "remedy"),
    [
        (refused("temperature must be between 0 and 1", "temperature"), "omit: [temperature]"),
        (refused("max_tokens is too large: 12 is not supported"), "omit: [max_tokens]"),
        (refused("unknown field top_k", "top_k"), "extra_body holds top_k"),
    ],
)
def test_endpoint_that_refuses_a_value_names_the_setting(reply, remedy, endpoint, make_llm):
    endpoint.last = {0: reply}
    llm = make_llm(extra_body={"top_k": 5})
    [answer] = complete(llm, make_requests(1)).values()
    assert remedy in str(answer.error) and answer.attempts == 1


def test_endpoint_gets_what_is_configured_besides_and_not_what_is_omitted(endpoint, make_llm):
    llm = make_llm(
        omit=["temperature", "top_p"],
        extra_body={"reasoning_effort": "low", "nested": {"a": [1]}},
        max_completion_tokens=12,
    )
    complete(llm, make_requests(1))
    [(body, _)] = endpoint.received[0]
    del body["messages"]
    assert body == {
        "model": "m", "seed": 0, "max_completion_tokens": 12, "reasoning_effort": "low",
        "nested": {"a": [1]},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["stream", "n", "seed", "messages", "max_tokens"])
def test_endpoint_s_own_parameters_are_no_extra_ones(name, make_llm):
    with pytest.raises(ValueError, match=name):
        make_llm(extra_body={name: 1})


def ended(message: dict[str, Any], finish: str | None, usage: Any = None) -> Reply:
    choice = {"index": 0, "finish_reason": finish, "message": message}
    return as_json({"choices": [choice], "usage": usage})


USED = {"prompt_tokens": 11, "completion_tokens": 7}
PARTS = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
    {"type": "text", "text": "Say "},
    {"type": "text", "text": "it."},
]


@pytest.mark.parametrize(
    ("reply", "text", "finish", "tokens"),
    [
        (ended({"content": PARTS}, "stop", USED), "Say it.", "stop", 7),
        (ended({"content": PARTS}, "stop"), "Say it.", "stop",
         len("thinkingHm.textSay textit.text")),
        (ended({"content": "Say"}, "length", USED), "Say", "length", 7),
        (ended({"content": "Say"}, "MAX_TOKENS", USED), "Say", "length", 7),
        (ended({"content": "Say"}, "max_output_tokens", USED), "Say", "length", 7),
        (ended({"content": "Say"}, "abort", USED), "Say", "length", 7),
        (ended({"content": "Say"}, "PROHIBITED_CONTENT", USED), "Say", "content_filter", 7),
        (ended({"content": "Say"}, None, {**USED, "completion_tokens": 12}), "Say", "length", 12),
        (ended({"content": None, "reasoning_content": "Hm. "}, "length", USED), "", "length", 7),
        (ended({"content": "", "refusal": "No."}, "stop", USED), "", "refusal", 7),
        (ended({"content": ""}, "content_filter"), "", "content_filter", 0),
        (ended({"content": ""}, "stop", USED), "", "stop", 7),
        (ended({"content": "a"}, "stop", {**USED, "total_tokens": 99}), "a", "stop", 88),
        (ended({"content": "a"}, "stop", {**USED, "completion_tokens_details":
               {"reasoning_tokens": 50}}), "a", "stop", 57),
        (as_json({"error": {"message": "no", "code": "content_filter"}}, 400), "",
         "content_filter", 0),
        (as_json({"error": {"message": "no", "type": "content_policy_violation"}}, 400), "",
         "content_filter", 0),
    ],
)  # fmt: skip
def test_endpoint_that_answered_is_asked_once_and_paid_for_all_tokens(
    reply, text, finish, tokens, endpoint, make_llm
):
    endpoint.script = {0: [reply]}
    [answer] = complete(make_llm(), make_requests(1)).values()
    assert (answer.text, answer.finish_reason, answer.attempts) == (text, finish, 1)
    assert answer.completion_tokens == tokens


def test_endpoint_that_names_a_time_to_wait_is_left_alone_that_long(endpoint, make_llm):
    endpoint.script = {0: [as_json({}, 429, **{"Retry-After": "0.4"})]}
    complete(make_llm(), make_requests(1))
    first, second = endpoint.times[0]
    assert second - first >= 0.4


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "odd", "retry-after": "3"}, 3),
        ({"retry-after": "86400"}, 120),
        ({"retry-after": "inf"}, 120),
        ({"retry-after": "nan"}, 0),
        ({"retry-after": "-5"}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT",
          "date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 30),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 -0000",
          "date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 30),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "Wed, 21 Oct 2199 07:28:00 GMT"}, 120),
        ({"retry-after": "Wed, 99 Oct 2015 07:28:00 GMT"}, 0),
    ],
)  # fmt: skip
def test_time_to_wait_is_read_from_seconds_milliseconds_and_dates(headers, seconds):
    assert retry_after(headers) == seconds


def test_endpoint_has_as_many_requests_in_flight_as_it_may_and_never_more(endpoint, make_llm):
    def hold(seed: int) -> None:
        """Keep a call until all that may come are there, and for a while in case more do."""
        with endpoint.changed:
            endpoint.changed.wait_for(lambda: endpoint.peak >= 4, timeout=20)
            endpoint.changed.wait_for(lambda: endpoint.peak > 4, timeout=0.25)

    endpoint.before = hold
    complete(make_llm(concurrency=4), make_requests(12))
    assert endpoint.peak == 4


def test_endpoint_shared_by_three_processes_leaves_each_a_third_of_what_is_in_flight(
    endpoint, make_llm
):
    def hold(seed: int) -> None:
        with endpoint.changed:
            endpoint.changed.wait_for(lambda: endpoint.peak >= 3, timeout=20)
            endpoint.changed.wait_for(lambda: endpoint.peak > 3, timeout=0.25)

    endpoint.before = hold
    complete(make_llm(concurrency=8, share=3), make_requests(9))
    assert endpoint.peak == 3


def test_endpoint_takes_requests_as_it_needs_them_however_many_there_are(endpoint, make_llm):
    taken = 0

    def many() -> Iterator[Request]:
        nonlocal taken
        assert threading.current_thread() is threading.main_thread()
        [request] = make_requests(1)
        for number in range(1_000_000):
            taken += 1
            yield replace(request, id=f"{number:016x}", seed=number)

    answers = make_llm(concurrency=3).complete(many())
    read = sum(len(next(answers)) for _ in range(5))
    answers.close()
    assert 5 <= read <= taken <= read + 6


def test_endpoint_without_requests_answers_nothing(make_llm):
    assert list(make_llm().complete(iter(()))) == []


def test_endpoint_passes_on_what_goes_wrong_where_requests_come_from(endpoint, make_llm):
    def broken() -> Iterator[Request]:
        yield from make_requests(5)
        raise OSError("the disk is gone")

    answers = make_llm(concurrency=2).complete(broken())
    with pytest.raises(OSError, match="the disk is gone"):
        list(answers)
    assert len(endpoint.received) <= 5


def test_endpoint_whose_client_cannot_be_opened_says_so(make_llm, monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    with pytest.raises(OSError, match="No such file"):
        list(make_llm().complete(make_requests(1)))


def test_endpoint_has_one_time_limit_for_the_whole_of_an_answer(endpoint, make_llm):
    """A server that sends a byte now and then never keeps a single read waiting for long."""
    drops = threading.Event()
    endpoint.drip = lambda: drops.wait(0.05)
    [answer] = complete(make_llm(timeout_s=0.4, max_attempts=1), make_requests(1)).values()
    assert (answer.error, answer.attempts) == ("no answer within 0.4 s", 1)
    drops.set()


def test_endpoint_waits_for_its_limit_before_every_attempt_and_says_what_it_took(
    endpoint, make_llm
):
    class Recorder:
        def __init__(self) -> None:
            self.waited: list[float] = []
            self.corrected: list[float] = []

        async def wait(self, tokens: float) -> None:
            self.waited.append(tokens)

        async def correct(self, tokens: float) -> None:
            self.corrected.append(tokens)

    limit = Recorder()
    endpoint.script = {1: [FAULTS["429"][0], FAULTS["500-text"][0]], 2: [Reply(400, b"")]}
    complete(make_llm(limit=limit), make_requests(3))
    estimate = len("Write prompt 0.") / 4 + 12
    assert limit.waited == [estimate] * 5
    assert limit.corrected == [11 + 7 - estimate] * 2


def test_endpoint_whose_limit_breaks_passes_that_on_after_what_was_answered(endpoint, make_llm):
    class Breaking:
        def __init__(self) -> None:
            self.left = 3

        async def wait(self, tokens: float) -> None:
            self.left -= 1
            if self.left < 0:
                raise OSError("the limit's node is gone")

        async def correct(self, tokens: float) -> None:
            pass

    answers = make_llm(limit=Breaking(), concurrency=1).complete(make_requests(9))
    read = []
    with pytest.raises(OSError, match="the limit's node is gone"):
        for group in answers:
            read += [answer.text for answer in group]
    assert read == ["answer 0", "answer 1", "answer 2"]


@pytest.mark.parametrize("half", [r"\ud800", r"\udfff"])
def test_endpoint_whose_text_no_file_can_hold_is_mended(half, endpoint, make_llm):
    body = good("HALF a pair").body.replace(b"HALF", half.encode())
    endpoint.script = {0: [Reply(200, body)]}
    [answer] = complete(make_llm(), make_requests(1)).values()
    assert answer.text == "? a pair"


@pytest.mark.parametrize("usage", [{"prompt_tokens": "11"}, {"prompt_tokens": -1}, [1], 10**30])
def test_endpoint_that_counts_in_an_odd_way_counts_bytes(usage, endpoint, make_llm):
    endpoint.script = {0: [as_json({**json.loads(WHOLE), "usage": usage})]}
    [answer] = complete(make_llm(), make_requests(1)).values()
    counted = (answer.text, answer.prompt_tokens, answer.completion_tokens)
    assert counted == ("never read", len("Write prompt 0."), len("never read"))


def test_endpoint_hands_out_an_answer_when_it_is_there(endpoint, make_llm):
    release = threading.Event()

    def hold(seed: int) -> None:
        if seed == 0:
            release.wait(30)

    endpoint.before = hold
    answers = make_llm(concurrency=2).complete(make_requests(2))
    assert [a.text for a in next(answers)] == ["answer 1"]
    release.set()
    assert [a.text for a in next(answers)] == ["answer 0"]
    assert list(answers) == []


def test_endpoint_given_up_by_its_reader_gets_no_more_requests(endpoint, make_llm):
    answers = make_llm(concurrency=2).complete(make_requests(30))
    next(answers)
    answers.close()
    with endpoint.changed:
        assert endpoint.changed.wait_for(lambda: endpoint.in_flight == 0, timeout=30)
        received = endpoint.calls
    assert len(received) < 30
    [late] = make_requests(31)[30:]
    complete(make_llm(), [late])
    on_the_way = set(endpoint.calls) - set(received) - {30}  # sent, and read by the server only now
    assert len(on_the_way) <= 2
    assert len(received) + len(on_the_way) < 30


def test_endpoint_that_answers_too_late_is_a_timeout(endpoint, make_llm):
    release = threading.Event()
    endpoint.before = lambda seed: release.wait(30)
    [answer] = complete(make_llm(timeout_s=0.2, max_attempts=2), make_requests(1)).values()
    assert (answer.error, answer.status, answer.attempts) == ("no answer within 0.2 s", None, 2)
    with endpoint.changed:
        assert endpoint.changed.wait_for(lambda: endpoint.calls == {0: 2}, timeout=30)
    release.set()


def test_endpoint_that_is_not_there_is_a_connection_error(endpoint, make_llm):
    llm = make_llm()
    endpoint.server.server_close()
    [answer] = complete(llm, make_requests(1)).values()
    assert (answer.error, answer.status, answer.attempts) == ("APIConnectionError", None, 3)


@pytest.mark.parametrize("value", [None, ""])
def test_endpoint_without_its_key_is_refused_by_the_name_of_the_variable(value, monkeypatch):
    monkeypatch.delenv(KEY_ENV, raising=False)
    if value is not None:
        monkeypatch.setenv(KEY_ENV, value)
    config = OpenAILLM(type="openai", base_url="http://x", model="m", api_key_env=KEY_ENV)
    with pytest.raises(LLMError, match=f"{KEY_ENV} is not set on node"):
        EndpointLLM(config)


@pytest.mark.parametrize("key", ["sk-with-an-\u00e9", "sk-two\nlines"])
def test_endpoint_whose_key_no_header_can_carry_is_refused_without_showing_it(key, monkeypatch):
    monkeypatch.setenv(KEY_ENV, key)
    config = OpenAILLM(type="openai", base_url="http://x", model="m", api_key_env=KEY_ENV)
    with pytest.raises(LLMError, match=f"{KEY_ENV} on node") as caught:
        EndpointLLM(config)
    assert key not in repr(caught.value)


@pytest.mark.parametrize(
    ("package", "config"),
    [
        ("openai", {"type": "openai", "base_url": "http://x", "model": "m"}),
        ("vllm", {"type": "vllm", "path": "some/model"}),
    ],
)
def test_llm_whose_package_is_missing_names_the_extra(package, config, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    [llm] = GenerationConfig.model_validate({"llms": [config]}).llms
    with pytest.raises(LLMError, match=re.escape(f"pip install 'paft_ray[{package}]'")):
        open_llm(llm, Storage.open(str(tmp_path)))


@dataclass
class FakeSampling:
    temperature: float
    top_p: float
    max_tokens: int
    seed: int


class FakeEngine:
    """The part of `vllm.LLM` that is used: takes at most 30 tokens, says what it was received."""

    made: ClassVar[list["FakeEngine"]] = []

    def __init__(self, **options: Any) -> None:
        self.options = options
        config = types.SimpleNamespace(max_model_len=30)
        self.llm_engine = types.SimpleNamespace(
            model_config=config,
            step=self.step,
            has_unfinished_requests=lambda: bool(self.waiting),
        )
        self.waiting: list[Any] = []
        self.calls: list[tuple[list[dict[str, list[int]]], list[FakeSampling]]] = []
        self.made.append(self)

    def enqueue(self, prompts: Any, sampling_params: Any, use_tqdm: bool) -> None:
        self.calls.append((prompts, sampling_params))
        for number, sampling in enumerate(sampling_params):
            answer = types.SimpleNamespace(text=f" text {sampling.seed}", token_ids=(1, 2, 3))
            output = types.SimpleNamespace(request_id=str(number), finished=True, outputs=[answer])
            self.waiting.append(output)

    def step(self) -> list[Any]:
        """Finish one request, the last one first."""
        return [self.waiting.pop()]


class _Unfinished(Author, affects="pool"):
    """A backend of which only the options are there."""

    label: ClassVar[str] = "unfinished"  # pyright: ignore[reportIncompatibleMethodOverride]


def test_backend_without_a_branch_of_its_own_is_never_taken_for_the_fake(tmp_path):
    config: Any = _Unfinished()
    assert config.actor_pool == (1, 0.1, 0)
    with pytest.raises(AssertionError, match="unreachable"):
        llm_key(config)
    with pytest.raises(AssertionError, match="unreachable"):
        open_llm(config, Storage.open(str(tmp_path)))


def test_vllm_gets_all_requests_at_once_each_with_its_own_settings(
    tiny_model, tmp_path, monkeypatch
):
    fake = types.ModuleType("vllm")
    vars(fake).update(LLM=FakeEngine, SamplingParams=FakeSampling)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    config = VLLMEngine(type="vllm", path=str(tiny_model), gpus=2)
    assert config.label == tiny_model.name
    assert llm_key(config) != llm_key(config.model_copy(update={"dtype": "float32"}))
    assert llm_key(config) == llm_key(config.model_copy(update={"gpus": 1, "actors": 3}))

    llm = open_llm(config, Storage.open(str(tmp_path)))
    [engine] = FakeEngine.made
    assert engine.options == {
        "model": str(tiny_model), "dtype": "bfloat16", "tensor_parallel_size": 2,
        "distributed_executor_backend": "mp", "gpu_memory_utilization": 0.9,
        "revision": None, "tokenizer_revision": None, "trust_remote_code": False,
        "enable_prefix_caching": True, "logprobs_mode": "processed_logprobs",
    }  # fmt: skip
    requests = [replace(r, temperature=r.seed / 10) for r in make_requests(3)]
    requests[1] = replace(requests[1], prefill="- Decide")
    too_long = replace(make_requests(4)[3], messages=(("user", "film " * 40),))
    answers = complete(llm, [*requests, too_long])
    assert [answers[r.id].text for r in requests] == [" text 0", "- Decide text 1", " text 2"]
    tokenizer = load_tokenizer(str(tiny_model))
    tokens = len(tokenizer("film " * 40 + "\n\n")["input_ids"])
    refused = answers[too_long.id].error
    assert refused == f"the prompt's {tokens} tokens are more than the model's 30"
    [(prompts, sampling)] = engine.calls
    assert [tokenizer.decode(p["prompt_token_ids"]) for p in prompts] == [
        "Write prompt 0.\n\n", "Write prompt 1.\n\n- Decide", "Write prompt 2.\n\n",
    ]  # fmt: skip
    assert sampling == [FakeSampling(seed / 10, 0.9, 12, seed) for seed in range(3)]
    assert list(llm.complete([])) == []


@pytest.fixture(scope="module")
def in_process(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InProcessLLM]:
    threads = torch.get_num_threads()
    config = TransformersLLM(type="transformers", path=str(tiny_model), dtype="float32")
    yield InProcessLLM(config, Storage.open(str(tmp_path_factory.mktemp("storage"))))
    torch.set_num_threads(threads)


def texts(llm, requests: list[Request]) -> list[str]:
    answers = complete(llm, requests)
    return [answers[request.id].text for request in requests]


def test_model_in_process_writes_the_same_for_the_same_batch(in_process):
    requests = make_requests(4)
    first = texts(in_process, requests)
    torch.rand(5)  # randomness that somebody else used
    assert texts(in_process, requests) == first
    assert len(set(first)) > 1
    other_seed = [replace(request, seed=request.seed + 1) for request in requests]
    assert texts(in_process, other_seed) != first


def test_model_in_process_greedily_writes_what_the_text_alone_makes_it(in_process):
    requests = [replace(request, temperature=0.0) for request in make_requests(3)]
    assert texts(in_process, requests) == [texts(in_process, [r])[0] for r in requests]


def test_model_in_process_continues_the_prefill_whose_last_line_is_part_of_the_answer(
    in_process, tiny_model
):
    prefill = "- one example\n- Decide"
    [answer] = texts(in_process, make_requests(1, temperature=0.0, prefill=prefill))
    model, tokenizer = load_base(str(tiny_model)), load_tokenizer(str(tiny_model))
    [(text, _)] = generate(
        model, tokenizer, [tokenizer(f"Write prompt 0.\n\n{prefill}")["input_ids"]], 12
    )
    assert text
    assert answer == "- Decide" + text


def test_model_in_process_counts_tokens_and_stops_at_the_limit(in_process):
    answers = complete(in_process, make_requests(3, max_tokens=5))
    assert {a.completion_tokens <= 5 for a in answers.values()} == {True}
    assert max(a.completion_tokens for a in answers.values()) == 5
    assert all(a.prompt_tokens > 3 and a.attempts == 1 for a in answers.values())


TASK = Task("tone", "Say how rude a mail is.", ("mail", "sender"), {}, ("rude", "kind"), (), (), ())


def requests_for(form: str, count: int = 40) -> list[Request]:
    config = GenerationConfig.model_validate(
        {"llms": [{"type": "fake"}], "form": form, "per_llm": count}
    )
    book = RequestBook(TASK, config, 0, ("fake",))
    return [r for unit in book.units(0, config.per_llm) for r in book.requests(unit)]


@pytest.mark.parametrize("form", ["template", "instruction"])
def test_fake_writes_the_same_usable_prompts_every_time(form):
    requests = requests_for(form)
    llm = open_llm(FakeLLM(type="fake"), Storage.open("/nowhere"))
    written = texts(llm, requests)
    assert texts(llm, requests[::-1]) == written[::-1]
    assert len(set(written)) > len(written) / 2
    check = lint if form == "template" else lint_instruction
    for text in written:
        parsed = candidate_of(text, form)
        assert parsed is not None
        assert check(parsed, TASK, LintConfig()).problem is None, parsed
        assert ("{mail}" in parsed and "{sender}" in parsed) == (form == "template")


@pytest.mark.parametrize("every", [1, 3])
def test_fake_fails_every_nth_request_and_always_the_same_ones(every):
    requests = requests_for("template")
    answers = complete(FakeClient(FakeLLM(type="fake", fail_every=every)), requests)
    failed = {id for id, answer in answers.items() if answer.text is None}
    assert failed == {r.id for r in requests if int(r.id, 16) % every == 0}
    assert 0 < len(failed) <= len(requests)
    assert {(answers[id].error, answers[id].status) for id in failed} == {("HTTP 500", 500)}
    unfailing = complete(FakeClient(FakeLLM(type="fake")), requests)
    assert all(answer.text for answer in unfailing.values())
    kept = {id: a.text for id, a in answers.items() if id not in failed}
    assert kept == {id: unfailing[id].text for id in kept}
