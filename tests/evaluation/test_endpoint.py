"""Models behind endpoints: what they are asked, what becomes of answers, and what is kept."""

import json
import multiprocessing
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from openai_server import (
    Body,
    Reply,
    Server,
    TinyServer,
    open_context,
    prompts_of,
    reply,
    said,
    score,
    score_from,
)

from factories import LORA, run_config
from paft_ray.config.errors import LLMError
from paft_ray.evaluation.endpoint import UNANSWERED, Questions
from paft_ray.evaluation.predictors import ModelPredictor
from paft_ray.evaluation.scores import Asked
from paft_ray.prompts.generate.endpoint import EndpointLLM
from paft_ray.prompts.variation import conditions
from paft_ray.report.text import cautions
from paft_ray.runs.subjects import endpoints_of

TEXT = {"choices_by": "text"}
FAULTS = (
    reply(429, {"error": {"message": "slow down"}}, Retry_After="0.02"), reply(500, b"oh no"),
    reply(503, b""), reply(200, b"<html>"), reply(200, b'["no answer"]'), None,
)  # fmt: skip


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EndpointLLM, "_pause_s", 0.01)


@pytest.fixture
def tree_of(tiny_model: Path, review_file: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A configuration whose only subject is an endpoint."""

    def make(server: Server, task: dict[str, Any] | None = None, **subject: Any) -> dict[str, Any]:
        served = {"type": "endpoint", "base_url": server.url, "model": "m", "timeout_s": 20}
        return run_config(
            tiny_model, review_file, tmp_path / "storage",
            task={"max_length": 200, "answer_end": "ignored", **(task or {})},
            prompts={"generation": {"llms": [{"type": "fake"}], "per_llm": 8}},
            evaluation={"subjects": [{**served, **subject}]},
            tracking={"type": "none"},
        )  # fmt: skip

    return make


def sentiment(body: Body) -> str:
    """What an honest model says about a review."""
    word = body["messages"][-1]["content"].split(" was ")[1].split()[0]
    return "Positive" if word in ("good", "fine", "great") else "negative"


def by_review(body: Body) -> int:
    return zlib.crc32(body["messages"][-1]["content"].encode())


def unreliable(path: str, body: Body, attempt: int) -> Reply:
    """Three of ten requests fail before they are answered."""
    number = by_review(body)
    if attempt == 0 and number % 10 < 3:
        return FAULTS[number // 10 % len(FAULTS)]
    return said(sentiment(body))


def kept_lines(tree: dict[str, Any]) -> list[str]:
    """Ids of the answers on storage, as often as they are there."""
    files = Path(tree["storage"]).glob("generations/*/*.jsonl")
    lines = [line for f in files if "failed" not in f.name for line in f.read_text().splitlines()]
    return [json.loads(line)["request_id"] for line in lines]


def test_thousand_answers_with_faults_are_all_there_and_none_is_paid_twice(tree_of) -> None:
    with Server(unreliable).running() as server:
        tree = tree_of(server, **TEXT, concurrency=32)
        scores = score(tree, 20, 50)
        again = score(tree, 20, 50)
    assert again.table.equals(scores.table)
    assert scores.table.num_rows == 1000
    pairs = scores.table.select(["prompt_id", "example_id"]).to_pylist()
    assert len({(p["prompt_id"], p["example_id"]) for p in pairs}) == 1000
    assert scores.table["correct"].to_pylist() == [True] * 1000
    assert set(server.answered.values()) == {1} and len(server.answered) == 1000
    counts = scores.endpoints["endpoint"]
    assert (counts["requests"], counts["completion_tokens"]) == (1000, 4000)
    assert counts["attempts"] == len(server.calls)
    assert 200 < counts["attempts"] - 1000 < 400
    for path, body in server.calls:
        assert path == "/v1/chat/completions"
        assert (body["temperature"], body["seed"], body["max_tokens"]) == (0.0, 0, 128)


@pytest.mark.slow
def test_killed_evaluation_goes_on_with_what_it_had(tree_of, tmp_path: Path) -> None:
    with Server(unreliable).running() as server:
        tree = tree_of(server, **TEXT, concurrency=8)
        file = tmp_path / "config.json"
        file.write_text(json.dumps(tree))
        process = multiprocessing.get_context("spawn").Process(
            target=score_from, args=(file, 20, 50)
        )
        process.start()
        with server.more:
            assert server.more.wait_for(lambda: len(server.answered) >= 400, timeout=120)
        process.kill()
        process.join()
        before = kept_lines(tree)
        sent = len(server.calls)
        assert 300 < len(before) < 1000
        scores = score(tree, 20, 50)
    assert scores.table["correct"].to_pylist() == [True] * 1000
    after = kept_lines(tree)
    assert len(after) == len(set(after)) == 1000
    assert after and set(before) <= set(after)
    # what was in flight is sent again, and nothing that was kept
    new = Counter(json.dumps(body, sort_keys=True) for _, body in server.calls[sent:])
    assert len(new) == 1000 - len(before)
    twice = sum(count > 1 for count in server.answered.values())
    assert twice <= 2 * 8


def test_run_of_another_size_pays_only_for_what_is_new(tree_of) -> None:
    with Server(lambda path, body, attempt: said(sentiment(body))).running() as server:
        tree = tree_of(server, **TEXT)
        score(tree, 2, 30)
        score({**tree, "name": "other"}, 3, 40)
    assert len(server.calls) == len(server.answered) == 120


def test_unanswered_request_leaves_the_subject_incomplete_and_the_rest_is_kept(tree_of) -> None:
    broken = [True]

    def answer(path: str, body: Body, attempt: int) -> Reply:
        if broken[0] and by_review(body) % 10 == 0:
            return reply(500, b"no")
        return said(sentiment(body))

    with Server(answer).running() as server:
        tree = tree_of(server, **TEXT, max_attempts=2)
        with pytest.raises(LLMError, match=r"requests were not answered \(mostly HTTP 500: no\)"):
            score(tree, 2, 60)
        done = len(server.answered)
        assert 90 < done < 120
        broken[0] = False
        assert score(tree, 2, 60).table.num_rows == 120
    assert len(server.answered) == 120 and set(server.answered.values()) == {1}


def test_endpoint_that_answers_nothing_ends_the_evaluation_early(tree_of) -> None:
    failing = Server(lambda *_: reply(500, b"no"))
    with failing.running() as server, pytest.raises(LLMError, match="were not answered"):
        score(tree_of(server, **TEXT, max_attempts=1), 20, 60)
    assert len(server.calls) < 150


def test_budget_is_never_exceeded_and_a_larger_one_goes_on(tree_of) -> None:
    with Server(lambda path, body, attempt: said(sentiment(body))).running() as server:
        tree = tree_of(server, **TEXT, budget_tokens=150, max_tokens=10)
        with pytest.raises(LLMError, match=r"of budget_tokens \(150\) are spent"):
            score(tree, 2, 30)
        assert 140 < 4 * len(server.answered) <= 150
        with pytest.raises(LLMError, match="budget_tokens"):
            score(tree, 2, 30)
        assert 4 * len(server.answered) <= 150
        tree = tree_of(server, **TEXT, budget_tokens=246, max_tokens=10)
        assert score(tree, 2, 30).table.num_rows == 60
    assert set(server.answered.values()) == {1}


def test_estimate_asks_for_a_part_and_keeps_its_budget_over_looks(tree_of) -> None:
    with Server(lambda path, body, attempt: said(sentiment(body))).running() as server:
        tree = tree_of(server, **TEXT, budget_tokens=170, max_tokens=4)
        with pytest.raises(LLMError, match="budget_tokens"):
            score(tree, 4, 50, share=0.3)
        assert 4 * len(server.answered) == 168
        with pytest.raises(LLMError, match="budget_tokens"):  # its first looks are parts by now
            score(tree, 4, 50, share=0.3)
        tree = tree_of(server, **TEXT, budget_tokens=240, max_tokens=4)
        assert score(tree, 4, 50, share=0.3).table.num_rows == 60
    assert len(server.calls) == len(server.answered) == 60


def odd(path: str, body: Body, attempt: int) -> Reply:
    """Every kind of answer, by review."""
    right = sentiment(body)
    kinds = (
        said(right), said(right, reasoning_content="Well."), said(f"<think>Hm.</think>\n{right}"),
        said(None, refusal="I would rather not."), said("", "content_filter"),
        said(right, "content_filter"), said("<think>It never", "length"),
        said(None, "length", reasoning_content="It never"), said(""),
        said(f"{right} and", "length"),
        reply(400, {"error": {"code": "content_filter", "message": "no"}}),
    )  # fmt: skip
    return kinds[by_review(body) % len(kinds)]


KINDS = (
    "", "", "", "refused", "filtered", "filtered", "only_reasoning", "only_reasoning", "empty",
    "cut", "filtered",
)  # fmt: skip


def test_answers_that_say_nothing_are_graded_0_and_counted(tree_of, tmp_path: Path) -> None:
    grader = tmp_path / "grade.py"
    grader.write_text("def score(fields, answer, text):\n    assert text.strip()\n    return 0.5\n")
    grades = ["choice", {"type": "python", "path": f"{grader}:score"}]
    with Server(odd).running() as server:
        tree = tree_of(server, {"grade": grades}, **TEXT)
        scores = score(tree, 3, 60)
        wanted = Counter(KINDS[by_review(body) % len(KINDS)] for _, body in server.calls)
    counts = scores.endpoints["endpoint"]
    assert wanted.keys() == set(KINDS)
    assert {kind: counts[kind] for kind in UNANSWERED} == {
        kind: wanted[kind] for kind in UNANSWERED
    }
    numbers = Counter(by_review(body) % len(KINDS) for _, body in server.calls)
    assert counts["cut_off"] == numbers[6] + numbers[7] + numbers[9]
    assert counts["reasoned"] == numbers[1] + numbers[2] + numbers[6] + numbers[7]
    rows = scores.table.to_pylist()
    assert sum(row["correct"] for row in rows) == wanted[""]
    assert sum(row["further_grades"] == [0.5] for row in rows) == wanted[""] + wanted["cut"]
    assert sum(row["further_grades"] == [0.0] for row in rows) == 180 - wanted[""] - wanted["cut"]
    assert sum(row["begins_right"] for row in rows) == wanted["cut"]
    assert sum(row["unended"] for row in rows) == counts["cut_off"]


def test_endpoint_that_takes_neither_temperature_nor_max_tokens_is_asked_without(tree_of) -> None:
    def answer(path: str, body: Body, attempt: int) -> Reply:
        for name, instead in (("temperature", ""), ("max_tokens", " Use max_completion_tokens.")):
            if name in body:
                words = f"Unsupported parameter: '{name}' is not supported.{instead}"
                return reply(400, {"error": {"message": words, "param": name}})
        assert body["max_completion_tokens"] == 77
        return said(sentiment(body))

    with Server(answer).running() as server:
        tree = tree_of(server, **TEXT, max_tokens=77)
        scores = score(tree, 1, 40)
    assert scores.table["correct"].to_pylist() == [True] * 40
    counts = scores.endpoints["endpoint"]
    assert counts["without temperature"] == counts["without max_tokens"] == 40
    context = open_context(tree)
    [subject] = endpoints_of(context.config).values()
    about = {**Questions.of(context, subject).describe(), **counts, "cost": None}
    model = {"accuracy": 1.0, "endpoint": about}
    summary = {"models": {"endpoint": model}, "seeds": [], "differences": {}, "examples": 40}
    notes = " ".join(cautions(summary))
    assert "it refuses max_tokens, temperature, which it is asked without" in notes
    assert "its answers are sampled" in notes
    assert "choices are graded by what it writes" in notes


@pytest.fixture
def tiny_server(tiny_model: Path, save_adapter) -> Iterator[TinyServer]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield TinyServer(tiny_model, save_adapter(LORA))
    torch.set_num_threads(threads)


def in_process(tree: dict[str, Any], model: Path, adapter: str, rows: list[Any]) -> list[Any]:
    """The scores of the same pairs by the predictor."""
    context = open_context(tree)
    predictor = ModelPredictor(context.config, context.task, str(model), "float32", "cpu")
    examples = {example.id: example for example in context.task.train}
    texts = {prompt.id: prompt.text for prompt in prompts_of(2)}

    def alone(row: dict[str, Any]) -> Any:
        prompt, example = row["prompt_id"], examples[row["example_id"]]
        return predictor.score(adapter, prompt, texts[prompt], [example])[0]

    return list(map(alone, rows))


@pytest.mark.parametrize("end", [None, "<end>"], ids=["ignored", "scored"])
def test_choices_have_the_log_likelihoods_of_the_model_in_process(
    end: str | None, tree_of, tiny_server: TinyServer, tiny_model: Path, save_adapter
) -> None:
    task = {"answer_end": "scored" if end else "ignored"}
    with tiny_server.running() as server:
        tree = tree_of(server, task, api="completions", end_token=end)
        scores = score(tree, 2, 12)
    rows = scores.table.to_pylist()
    assert len(rows) == 24 and len(server.calls) == 48
    ours = in_process(tree, tiny_model, save_adapter(LORA), rows)
    assert {row["prediction"] for row in rows} == {"positive", "negative"}
    for row, wanted in zip(rows, ours, strict=True):
        assert row["choice_logprobs"] == pytest.approx(wanted.choice_logprobs, abs=1e-4)
        assert (row["prediction"], row["correct"]) == (wanted.prediction, wanted.correct)
        assert row["normalised_correct"] == wanted.normalised_correct
    assert scores.endpoints["endpoint"]["completion_tokens"] == 48


def test_varied_questions_are_put_as_to_the_model_in_process(
    tree_of, tiny_server: TinyServer, tiny_model: Path, save_adapter
) -> None:
    with tiny_server.running() as server:
        tree = tree_of(server, api="completions")
        tree["evaluation"]["variation"] = {"noise": {"rate": 0.3}}
        rows = score(tree, 2, 6).table.to_pylist()
    context = open_context(tree)
    config, task = context.config, context.task
    predictor = ModelPredictor(config, task, str(tiny_model), "float32", "cpu")
    ways = conditions(task, config.evaluation.variation, config.seed, task.train[:6])
    asked = [
        Asked(prompt.id, prompt.text, task.train[:6], way, config.seed)
        for way in ways
        for prompt in prompts_of(2)
    ]
    ours = [one for own in predictor.score_together(save_adapter(LORA), asked) for one in own]
    assert len(ways) > 1 and len(rows) == len(ours) == 12 * len(ways)
    for row, wanted in zip(rows, ours, strict=True):
        found = row["prompt_id"], row["example_id"], row["axis"], row["level"]
        assert found == (wanted.prompt_id, wanted.example_id, wanted.axis, wanted.level)
        assert row["choice_logprobs"] == pytest.approx(wanted.choice_logprobs, abs=1e-4)


def test_texts_are_those_of_the_model_in_process(
    tree_of, tiny_server: TinyServer, tiny_model: Path, save_adapter
) -> None:
    task = {"choices": None, "answer_end": "scored", "grade": "f1", "stop": ["e"]}
    with tiny_server.running() as server:
        tree = tree_of(server, task, api="completions", max_tokens=9)
        rows = score(tree, 2, 8).table.to_pylist()
    assert all(body["stop"] == ["e"] for _, body in server.calls)
    same = {**tree, "evaluation": {"max_new_tokens": 9}}
    ours = in_process(same, tiny_model, save_adapter(LORA), rows)
    assert [row["generated_text"] for row in rows] == [each.generated_text for each in ours]
    assert any(row["generated_text"] for row in rows)


def test_endpoint_without_log_probabilities_of_prompts_is_refused_with_the_remedy(tree_of) -> None:
    without = {"choices": [{"text": " x", "finish_reason": "length"}], "usage": {}}
    only_new = {**without["choices"][0], "logprobs": {"tokens": [" x"], "token_logprobs": [-1.0]}}
    for answer in (
        reply(200, without),
        reply(200, {"choices": [only_new]}),
        reply(400, {"error": {"message": "echo is not supported with logprobs"}}),
    ):
        silent = Server(lambda *_, answer=answer: answer)
        with silent.running() as server, pytest.raises(LLMError, match="choices_by: text"):
            score(tree_of(server, api="completions"), 1, 10)


def test_end_token_that_the_server_does_not_know_is_refused(tree_of, tiny_server) -> None:
    with tiny_server.running() as server:
        tree = tree_of(server, {"answer_end": "scored"}, api="completions", end_token="</s>")
        with pytest.raises(LLMError, match="end_token: '</s>' is no token of its own there"):
            score(tree, 1, 4)


def test_key_of_a_subject_is_sent_and_kept_nowhere(tree_of, monkeypatch) -> None:
    monkeypatch.setenv("PAFT_TEST_SUBJECT_KEY", "sk-planted-9876543210")
    with Server(lambda path, body, attempt: said(sentiment(body))).running() as server:
        tree = tree_of(server, **TEXT, api_key_env="PAFT_TEST_SUBJECT_KEY")
        score(tree, 1, 5)
    files = [Path(root, f) for root, _, names in os.walk(tree["storage"]) for f in names]
    assert files and all(b"sk-planted" not in file.read_bytes() for file in files)
