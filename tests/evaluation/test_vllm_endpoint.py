"""An adapter behind vLLM's own server, as an endpoint subject: the scores of the one in process."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai_server import open_context, prompts_of, score
from smollm import vllm_server

from factories import run_config
from paft_ray.evaluation.predictors import ModelPredictor

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(500)]
END = "<|im_end|>"


@pytest.fixture(scope="module")
def address(
    smollm: str, loras: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """vLLM's server with an adapter by the name of ours, and another one beside it."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    adapters = {"ours": loras["plain"], "other": loras["wide"]}
    with vllm_server(smollm, log, adapters) as address:
        yield address


@pytest.fixture
def make_tree(
    address: str, smollm: str, review_file: Path, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    def make(task: dict[str, Any], **subject: Any) -> dict[str, Any]:
        served = {"type": "endpoint", "base_url": address, "model": "ours", "timeout_s": 120}
        return run_config(
            smollm, review_file, tmp_path / "storage",
            task={"max_length": 200, **task},
            prompts={"generation": {"llms": [{"type": "fake"}], "per_llm": 8}},
            evaluation={"max_new_tokens": 8, "subjects": [{**served, **subject}]},
            tracking={"type": "none"},
        )  # fmt: skip

    return make


@pytest.fixture
def score_both(smollm: str, loras: dict[str, str]) -> Callable[..., list[tuple[Any, Any]]]:
    """The rows of the endpoint, and the scores of the same pairs by the adapter in process."""

    def both(tree: dict[str, Any], adapter: str = "plain") -> list[tuple[Any, Any]]:
        rows = score(tree, 2, 4).table.to_pylist()
        assert len(rows) == 8
        context = open_context(tree)
        predictor = ModelPredictor(context.config, context.task, smollm, "float32", "cpu")
        examples = {example.id: example for example in context.task.train}
        texts = {prompt.id: prompt.text for prompt in prompts_of(2)}

        def alone(row: dict[str, Any]) -> Any:
            prompt = row["prompt_id"]
            asked = examples[row["example_id"]]
            return predictor.score(loras[adapter], prompt, texts[prompt], [asked])[0]

        return [(row, alone(row)) for row in rows]

    return both


@pytest.mark.parametrize(
    ("model", "adapter", "end"),
    [("ours", "plain", None), ("ours", "plain", END), ("other", "wide", None)],
    ids=["end ignored", "end scored", "other adapter"],
)
def test_choices_have_the_log_likelihoods_of_the_adapter_in_process(
    model: str, adapter: str, end: str | None, make_tree: Callable[..., dict[str, Any]],
    score_both: Callable[..., list[tuple[Any, Any]]],
) -> None:  # fmt: skip
    task = {"answer_end": "scored" if end else "ignored"}
    tree = make_tree(task, api="completions", model=model, end_token=end)
    for row, wanted in score_both(tree, adapter):
        assert row["choice_logprobs"] == pytest.approx(wanted.choice_logprobs, abs=1e-3)
        assert (row["prediction"], row["correct"]) == (wanted.prediction, wanted.correct)
        assert row["normalised_correct"] == wanted.normalised_correct


def test_texts_are_those_of_the_adapter_in_process(
    make_tree: Callable[..., dict[str, Any]], score_both: Callable[..., list[tuple[Any, Any]]]
) -> None:
    tree = make_tree({"choices": None, "grade": "f1", "stop": ["."]}, api="completions")
    pairs = score_both(tree)
    assert [row["generated_text"] for row, _ in pairs] == [one.generated_text for _, one in pairs]
    assert all(row["generated_text"] for row, _ in pairs)


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_choices_that_are_graded_by_text_are_what_it_writes(
    api: str, make_tree: Callable[..., dict[str, Any]]
) -> None:
    scores = score(make_tree({}, api=api, choices_by="text"), 2, 4)
    rows = scores.table.to_pylist()
    counts = scores.endpoints["endpoint"]
    assert (counts["requests"], counts["attempts"]) == (8, 8)
    assert all(row["choice_logprobs"] is None and row["generated_text"] for row in rows)
    assert all(1 <= row["generated_tokens"] <= 8 for row in rows)
