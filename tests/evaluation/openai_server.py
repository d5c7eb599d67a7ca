"""A server of the OpenAI protocols in this process, and evaluations of what is behind it."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from factories import make_prompt
from paft_ray.config.loading import load_config
from paft_ray.evaluation.grid import GridScores, score_grid, score_part
from paft_ray.evaluation.subjects import subjects_of
from paft_ray.evaluation.units import Grid
from paft_ray.prompts.generate.endpoint import EndpointLLM
from paft_ray.prompts.pool import Prompt
from paft_ray.prompts.variation import conditions
from paft_ray.runs.context import RunContext
from paft_ray.runs.progress import SilentScreen
from paft_ray.storage.paths import Storage
from paft_ray.tasks import load_task

Body = dict[str, Any]
Reply = tuple[int, bytes, dict[str, str]] | None
"""Status, body and headers; None drops the connection."""


def reply(status: int, tree: Any, **headers: str) -> Reply:
    """A reply with JSON, or with text as it stands."""
    data = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    return status, data, headers


def said(text: str | None, finish: str = "stop", **message: Any) -> Reply:
    """An answer to a chat, of four tokens."""
    return reply(
        200,
        {
            "choices": [
                {"finish_reason": finish, "message": {"content": text, **message}},
            ],
            "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13},
        },
    )


def listing(*names: str) -> Reply:
    """A list of models."""
    return reply(200, {"object": "list", "data": [{"id": name} for name in names]})


_ONE_MODEL = listing("m")


class Server:
    """Answers as `answer(path, body, attempt)` says; attempts of equal bodies count from 0."""

    def __init__(
        self, answer: Callable[[str, Body, int], Reply], models: Reply = _ONE_MODEL
    ) -> None:
        self.calls: list[tuple[str, Body]] = []
        self.answered: Counter[str] = Counter()
        """Bodies to how often they were answered with a status of success."""
        self.more = threading.Condition()
        attempts: Counter[str] = Counter()
        ours = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer on a kept connection waits 40 ms

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                key = json.dumps(body, sort_keys=True)
                with ours.more:
                    ours.calls.append((self.path, body))
                    attempt = attempts[key]
                    attempts[key] += 1
                self._send(answer(self.path, body, attempt), key)

            def do_GET(self) -> None:
                self._send(models if self.path == "/v1/models" else reply(404, b""), self.path)

            def _send(self, found: Reply, key: str) -> None:
                if found is None:
                    self.close_connection = True
                    return
                status, data, headers = found
                with ours.more:
                    if status == 200 and data.startswith(b"{"):
                        ours.answered[key] += 1
                    ours.more.notify_all()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        class Listener(ThreadingHTTPServer):
            request_queue_size = 256  # else connections are refused, which nobody counts
            daemon_threads = True

        self._server = Listener(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @contextmanager
    def running(self) -> Iterator["Server"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


class TinyServer(Server):
    """A model that transformers runs, behind vLLM's way to give log-probabilities of prompts."""

    def __init__(self, folder: Path, adapter: str | Path | None = None) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        adapted = PeftModel.from_pretrained(base, str(adapter)) if adapter else base
        self.model: Any = adapted.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        super().__init__(self.complete)

    @torch.no_grad()
    def complete(self, path: str, body: Body, attempt: int) -> Reply:
        assert (path, body["model"]) == ("/v1/completions", "m")
        ids = self.tokenizer(body["prompt"]).input_ids
        new = 0
        tokens = list(ids)
        logits: Any = self.model(input_ids=torch.tensor([tokens])).logits[0]
        while new < body["max_tokens"]:
            tokens.append(int(logits[-1].argmax()))
            new += 1
            if tokens[-1] == self.tokenizer.eos_token_id:
                break
            if not body.get("echo"):
                logits = self.model(input_ids=torch.tensor([tokens])).logits[0]
        text = self.tokenizer.decode(tokens[len(ids) :], skip_special_tokens=True)
        logprobs = None
        if body.get("echo"):
            values = logits.log_softmax(-1)
            after = [float(values[n, t]) for n, t in enumerate(tokens[1:])]
            text = body["prompt"] + text
            spelled = [self.tokenizer.decode([t]) for t in tokens]
            logprobs = {"tokens": spelled, "token_logprobs": [None, *after]}
        ended = tokens[-1] == self.tokenizer.eos_token_id
        choice = {
            "text": text, "logprobs": logprobs, "finish_reason": "stop" if ended else "length",
        }  # fmt: skip
        usage = {"prompt_tokens": len(ids), "completion_tokens": new}
        return reply(200, {"choices": [choice], "usage": usage})


def open_context(tree: dict[str, Any]) -> RunContext:
    """The context of a configuration, without the checks of a command."""
    config = load_config(tree)
    task = load_task(config.task, config.seed)
    return RunContext.create(config, task, Storage.open(config.storage))


def prompts_of(count: int) -> list[Prompt]:
    """Prompts to score."""
    return [make_prompt(f"{{review}} ({n})\nLabel:", "test") for n in range(count)]


def score(
    tree: dict[str, Any], prompts: int, examples: int, share: float | None = None
) -> GridScores:
    """Score the subjects of a configuration, and nothing else, on training examples; no Ray."""
    context = open_context(tree)
    subjects, others = subjects_of(context)
    few, config = context.task.train[:examples], context.config
    ways = conditions(context.task, config.evaluation.variation, config.seed, few)
    grid = Grid(subjects, prompts_of(prompts), few, others, ways)
    with SilentScreen().stage("evaluate") as stage:
        if share is None:
            scores = score_grid(context, grid, stage)
        else:
            scores = score_part(context, grid, share, stage)
        assert stage.done == stage.total
        return scores


def score_from(config: Path, prompts: int, examples: int) -> None:
    """The same in a process of its own."""
    EndpointLLM._pause_s = 0.01
    score(json.loads(config.read_text()), prompts, examples)
