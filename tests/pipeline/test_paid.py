"""All that an endpoint is asked for: planned beforehand, and counted with whatever asked for it."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai_server import Body, Reply, Server, open_context, reply, said

import paft_ray
from factories import run_config
from paft_ray.config.loading import load_config
from paft_ray.evaluation.comparators import add_comparators
from paft_ray.evaluation.grid import GridScores, score_grid
from paft_ray.evaluation.one_prompt import add_under_one
from paft_ray.evaluation.subjects import evaluate_subjects, subjects_of
from paft_ray.evaluation.summary import scores_under
from paft_ray.evaluation.units import Grid
from paft_ray.pipeline.endpoints import plan_served
from paft_ray.prompts.build import pool_without_work
from paft_ray.report.recorded import tracked_figures
from paft_ray.report.written import optimized_prompts
from paft_ray.runs.context import RunContext
from paft_ray.runs.progress import SilentScreen

WRITER = "writer"


class Paid(Server):
    """A model that gives log-probabilities of characters, and an LLM that writes prompts."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        """Requests by model."""
        super().__init__(self.answer)

    def answer(self, path: str, body: Body, attempt: int) -> Reply:
        model = body["model"]
        self.asked[model] += 1
        if model == WRITER:
            number = self.asked[WRITER]
            return said(f"Tell in way {number} whether it is good or bad.\n{{review}}\nMood:")
        prompt = body["prompt"]
        values = [None, *(-1.0 - (sum(map(ord, prompt)) + n) % 7 for n in range(len(prompt)))]
        found = {"tokens": [*prompt, "x"], "token_logprobs": values}
        choice = {"text": f"{prompt}x", "finish_reason": "length", "logprobs": found}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": 1}
        return reply(200, {"choices": [choice], "usage": usage})


@pytest.fixture
def server() -> Iterator[Paid]:
    with (paid := Paid()).running():
        yield paid


@pytest.fixture
def tree_of(tiny_model: Path, review_file: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def make(url: str) -> dict[str, Any]:
        writer = {"type": "openai", "base_url": url, "model": WRITER}
        tree = run_config(
            tiny_model, review_file, tmp_path / "storage",
            task={"validation_share": 0.3, "test_share": 0.3},
            prompts={"generation": None, "files": ["stock:choices"], "split": {"test": 4}},
            evaluation={"examples": 6, "subjects": [
                {"type": "endpoint", "name": "served", "base_url": url, "model": "m",
                 "api": "completions", "price": {"prompt": 1e6, "completion": 1e6}},
                {"type": "ensemble", "of": "served", "prompts": 6},
                {"type": "inference_prompt", "of": "served", "prompts": 3},
                {"type": "optimized_prompt", "of": "served", "budget": 40, "llm": writer},
            ]},
            variants=[],
            tracking={"type": "none"},
        )  # fmt: skip
        return {key: part for key, part in tree.items() if key not in ("model", "train")}

    return make


def evaluated(context: RunContext) -> GridScores:
    pool = pool_without_work(context)
    assert pool is not None
    subjects, others = subjects_of(context)
    grid = Grid(subjects, pool.test, context.task.test[:6], others)
    with SilentScreen().stage("evaluate") as stage:
        scores = add_comparators(context, pool, grid, score_grid(context, grid, stage))
    return add_under_one(context, pool, grid, scores)


def test_plan_and_counts_hold_all_that_an_endpoint_is_asked_for(server: Paid, tree_of) -> None:
    context = open_context(tree_of(server.url))
    planned = plan_served(context)
    labels = ["served", "ensemble", "inference_prompt", "optimized_prompt"]
    assert [row["subject"] for row in planned] == labels
    assert [row["requests"] for row in planned] == [48, 72, 36, 2 * (40 + 6)]
    assert [row["to_send"] for row in planned] == [row["requests"] for row in planned]
    assert all(row["cost_at_most"] > row["requests"] for row in planned)

    counts = evaluated(context).endpoints
    requests = [counts[label]["requests"] for label in labels]
    assert requests[:3] == [48, 72, 36] and 12 < requests[3] <= 92
    # the three prompts of the inference prompt are among the six of the ensemble, and kept
    assert sum(requests) - 36 == server.asked["m"]
    assert evaluated(context).endpoints == counts  # what is found finished is counted as before

    later = plan_served(context)
    assert [row["to_send"] for row in later] == [0, 0, 0, 0]
    assert [row["requests"] for row in later] == requests
    assert sum(server.asked.values()) == server.asked[WRITER] + sum(requests) - 36


def test_best_prompt_of_an_endpoint_is_chosen_on_validation_examples_and_planned(
    server: Paid, tree_of
) -> None:
    tree = tree_of(server.url)
    served = tree["evaluation"]["subjects"][0]
    tree["evaluation"] |= {"selection_examples": 5, "subjects": [
        served, {"type": "best_prompt", "of": "served", "prompts": 3},
    ]}  # fmt: skip
    context = open_context(tree)
    requests = [48, 2 * (3 * 5 + 6)]
    assert [row["to_send"] for row in plan_served(context)] == requests
    scores = evaluated(context)
    [record] = scores.under_one["best_prompt"]
    assert [scores.endpoints[label]["requests"] for label in ("served", "best_prompt")] == requests
    assert server.asked["m"] == sum(requests)
    assert [row["to_send"] for row in plan_served(context)] == [0, 0]

    pool = pool_without_work(context)
    assert pool is not None and record["prompt"] in [prompt.text for prompt in pool.train[:3]]
    assert (record["prompts"], record["pairs"], record["tracked"]) == (3, 15, 5)
    own = [row for row in scores.table.to_pylist() if row["variant"] == "best_prompt"]
    said = {(row["example_id"], row["prediction"]) for row in own}
    assert len(own) == 4 * 6 and len(said) == 6  # the same under every held-out prompt
    [sentence] = optimized_prompts(
        {"models": {"best_prompt": {"optimized_prompts": [record]}}}, {}
    )[1:]
    assert "the best of 3 training prompts" in sentence and repr(record["prompt"]) in sentence


def test_endpoint_under_a_trained_prompt_is_counted_with_its_other_answers(
    server: Paid, tree_of
) -> None:
    tree = tree_of(server.url)
    tree["evaluation"] |= {"subjects": tree["evaluation"]["subjects"][:1]}
    context = open_context(tree)
    pool = pool_without_work(context)
    assert pool is not None
    scores = evaluate_subjects(context, pool, [], {"single_prompt": pool.train[0].text})
    counts = scores.endpoints["served"]
    assert counts["requests"] == server.asked["m"] == 2 * (4 + 1) * 6
    assert counts["cut_off"] == 0, "also what is 0"
    [prompt] = scores.trained_prompts.values()
    rows = scores.by_split.to_pylist()
    assert Counter(row["split"] for row in rows) == {"test": 4 * 6, "train": 6}
    assert {r["prompt_id"] for r in rows if r["split"] == "train"} == {prompt.id}
    assert scores_under(scores.by_split, prompt).num_rows == 6


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_summary_and_report_say_what_each_comparator_of_an_endpoint_costs(
    server: Paid, tree_of
) -> None:
    tree = tree_of(server.url)
    result = paft_ray.evaluate(load_config(tree))
    models = result.data["models"]
    for label in ("served", "ensemble", "inference_prompt", "optimized_prompt"):
        about = models[label]["endpoint"]
        assert about["cost"] == about["prompt_tokens"] + about["completion_tokens"] > 0
        assert f"{about['requests']:,} answers, {about['prompt_tokens']:,} tokens" in result.text
    for label, model in models.items():
        tracked = tracked_figures(result.data, label)
        for name in ("requests", "prompt_tokens", "completion_tokens", "cost"):
            assert tracked[f"eval/endpoint/{name}"] == model["endpoint"][name]
    paid = sum(model["endpoint"]["requests"] for model in models.values())
    assert paid - 36 == server.asked["m"]
