"""An HTTP server that answers as endpoints, proxies and login pages do, by a row's description.

status, headers, body: as they are; `body` may be a mapping, which becomes JSON
message: the assistant's message (`content`, `refusal`, ...) of an answer in OpenAI's form
finish: its finish_reason; usage: its usage
first: another description, for the first request alone
refuses: parameters that end in 400 where a request has them
wants: parameters without which a request ends in 400
pad: so many blanks before the body; gzip: the body is compressed
drip: seconds between single bytes of the body, without end; hang: no answer at all
cut: bytes of the body that are sent; `close` ends the connection without an answer
"""

import gzip
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Mapping[str, Any]
_USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


class OddServer(ThreadingHTTPServer):
    """Keeps the requests that came."""

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.requests: list[Mapping[str, Any]] = []
        self.elsewhere: list[str] = []
        """Paths that were asked for after a redirect, with the key if it came along."""
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        """The root of its API."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error here."""


@contextmanager
def odd_server(answer: Answer) -> Iterator[OddServer]:
    """Such a server during the block."""
    server = OddServer(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: OddServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer on a kept connection waits 40 ms

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Only a client that followed a redirect asks so."""
        self.server.elsewhere.append(f"{self.path} {self.headers.get('authorization', '')}")
        self._send({"message": {"content": "Elsewhere: {review} =>"}})

    def do_POST(self) -> None:
        size = int(self.headers.get("content-length", 0))
        body = json.loads(self.rfile.read(size) or b"{}")
        if not self.path.endswith("/chat/completions"):
            return self.do_GET()
        self.server.requests.append(body)
        answer = self.server.answer
        if "first" in answer and len(self.server.requests) == 1:
            answer = answer["first"]
        for name in answer.get("refuses", ()):
            if name in body:
                return self._refuse(f"Unsupported parameter: '{name}' is not supported", name)
        for name in answer.get("wants", ()):
            if name not in body:
                return self._refuse(f"Missing required parameter: '{name}'", name)
        return self._send(answer)

    def _refuse(self, text: str, name: str) -> None:
        error = {"message": text, "type": "invalid_request_error", "param": name}
        self._send({"status": 400, "body": {"error": error}})

    def _send(self, answer: Answer) -> None:
        self.close_connection = True
        if answer.get("close"):
            return
        if answer.get("hang"):
            self.server.ended.wait(120)
            return
        body = _body(answer)
        headers = {
            "Content-Type": "application/json",
            **({"Content-Encoding": "gzip"} if answer.get("gzip") else {}),
            **({} if "drip" in answer else {"Content-Length": str(len(body))}),
            **{k: v.replace("SELF", self.server.url) for k, v in answer.get("headers", {}).items()},
        }
        self.send_response(answer.get("status", 200))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        while "drip" in answer and not self.server.ended.is_set():
            self.wfile.write(b" ")
            time.sleep(answer["drip"])
        self.wfile.write(body[: answer.get("cut", len(body))])


def _body(answer: Answer) -> bytes:
    """The body; BRACKETS is a bomb of them, LONG a megabyte of text, HALF half an emoji."""
    body = answer.get("body")
    if body is None:
        choice = {
            "index": 0,
            "finish_reason": answer.get("finish", "stop"),
            "message": {"role": "assistant", **answer.get("message", {})},
        }
        body = {
            "id": "x", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [choice], "usage": answer.get("usage", _USAGE),
        }  # fmt: skip
    body = {"BRACKETS": "[" * 200_000}.get(body, body) if isinstance(body, str) else body
    data = (body if isinstance(body, str) else json.dumps(body)).encode("utf-8", "surrogatepass")
    data = data.replace(b"HALF", b"\\ud83d").replace(
        b'"LONG"', b'"' + b"very long " * 100_000 + b'"'
    )
    data = b" " * answer.get("pad", 0) + data
    return gzip.compress(data) if answer.get("gzip") else data
