"""Examples in other words: written once, kept, paid for once, and an axis of their own."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai_server import Body, Reply, Server, open_context, prompts_of, reply, said

from factories import run_config
from paft_ray.config.errors import ConfigError, LLMError
from paft_ray.config.loading import load_config
from paft_ray.evaluation.axes import MAIN, axes_of
from paft_ray.evaluation.grid import score_grid
from paft_ray.evaluation.paraphrased import FILE, write_paraphrases
from paft_ray.evaluation.subjects import subjects_of
from paft_ray.evaluation.units import Grid
from paft_ray.pipeline.written import plan_paraphrases
from paft_ray.prompts.generate.endpoint import EndpointLLM
from paft_ray.prompts.variation import PLAIN
from paft_ray.report.written import paraphrases
from paft_ray.runs.progress import SilentScreen

STUBBORN = 7
"""Number of the film that the LLM never puts in other words."""


class Two(Server):
    """A model that fails where a review begins in another way, and an LLM that rewrites it."""

    def __init__(self) -> None:
        self.fail_after: int | None = None
        self.written = 0
        super().__init__(self.complete)

    def complete(self, path: str, body: Body, attempt: int) -> Reply:
        text = body["messages"][-1]["content"]
        if body["model"] == "writer":
            if self.fail_after is not None and self.written >= self.fail_after:
                return reply(401, {"error": {"message": "no more"}})
            self.written += 1
            review = text.partition("Text:\n")[2]
            stubborn = f"film {STUBBORN} " in review
            return said(review if stubborn else f"They say ({'x' * self.written}): {review}")
        word = text.split(" was ")[1].split()[0]
        right = "positive" if word in ("good", "fine", "great") else "negative"
        return said("positive" if "They say" in text else right)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Two]:
    monkeypatch.setattr(EndpointLLM, "_pause_s", 0.01)
    with (two := Two()).running():
        yield two


@pytest.fixture
def tree_of(tiny_model: Path, review_file: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def make(url: str, **asked: Any) -> dict[str, Any]:
        writer = {"type": "openai", "base_url": url, "model": "writer", "price": {"completion": 1}}
        return run_config(
            tiny_model, review_file, tmp_path / "storage",
            task={"max_length": 200, "test_share": 0.5},
            prompts={"generation": {"llms": [{"type": "fake"}], "per_llm": 8}},
            evaluation={
                "subjects": [
                    {"type": "endpoint", "base_url": url, "model": "m", "choices_by": "text"},
                ],
                "variation": {"paraphrases": {"per_example": 2, "llm": writer, **asked}},
            },
            tracking={"type": "none"},
        )  # fmt: skip

    return make


def ten_examples(context: Any) -> list[Any]:
    """Ten test examples, the stubborn one among them."""
    every = [*context.task.test, *context.task.train]
    own = [e for e in every if f"film {STUBBORN} " in e.fields["review"]]
    return [*own, *[e for e in every if e not in own][:9]]


def test_model_that_breaks_on_other_words_is_told_by_that_axis(server: Two, tree_of):
    context = open_context(tree_of(server.url))
    examples = ten_examples(context)
    conditions, about = write_paraphrases(context, examples, PLAIN)
    assert about is not None
    assert (about["examples"], about["without"]) == (9, [examples[0].id])
    assert about["refused"] == {"unchanged": 6}  # two texts, three times each
    assert about["asked"]["requests"] == server.written == 2 * 9 + 6
    sent = len(server.calls)
    assert write_paraphrases(context, examples, PLAIN) == (conditions, about)
    assert len(server.calls) == sent
    stored = context.results_folder.read_table(FILE).to_pylist()
    assert len({(row["example_id"], row["paraphrase"]) for row in stored}) == 18

    subjects, others = subjects_of(context)
    grid = Grid(subjects, prompts_of(2), examples, others, [PLAIN, *conditions])
    with SilentScreen().stage("evaluate") as stage:
        scores = score_grid(context, grid, stage)
        assert stage.done == stage.total == scores.table.num_rows == 2 * (10 + 2 * 9)
    axes = axes_of(scores.by_split, ["endpoint"], {})
    assert axes.keys() == {"paraphrases"}
    found = axes["paraphrases"]["endpoint"]
    assert found["accuracies"][MAIN] == 1.0
    wrong = sum(e.answer == "negative" for e in examples[1:]) / 9
    assert found["accuracies"]["paraphrase 2"] == pytest.approx(1 - wrong)
    told = " ".join(paraphrases({"paraphrases": about, "examples": 10}))
    for part in ("9 of 10 examples", examples[0].id, "6 unchanged", "24 answers of writer"):
        assert part in told


def test_writing_that_was_stopped_goes_on_and_pays_for_nothing_twice(server: Two, tree_of):
    tree = tree_of(server.url, per_example=1)
    tree["evaluation"]["variation"]["paraphrases"]["llm"]["concurrency"] = 1  # none on its way
    context = open_context(tree)
    examples = ten_examples(context)[1:]
    server.fail_after = 4
    with pytest.raises(LLMError, match="no more"):
        write_paraphrases(context, examples, PLAIN)
    server.fail_after = None
    _, about = write_paraphrases(context, examples, PLAIN)
    assert about is not None and about["examples"] == 9
    assert max(server.answered.values()) == 1 and server.written == 9


def test_token_budget_stops_the_writing_and_a_larger_one_goes_on(server: Two, tree_of):
    few = open_context(tree_of(server.url, per_example=1, budget_tokens=256 + 4 * 3))
    examples = ten_examples(few)[1:]
    with pytest.raises(LLMError, match="budget_tokens"):
        write_paraphrases(few, examples, PLAIN)
    assert 0 < server.written <= 4
    more = open_context(tree_of(server.url, per_example=1, budget_tokens=5000))
    write_paraphrases(more, examples, PLAIN)
    assert server.written == 9


def test_texts_that_cannot_be_written_at_all_end_the_evaluation(server: Two, tree_of):
    context = open_context(tree_of(server.url))
    with pytest.raises(LLMError, match="no example has all"):
        write_paraphrases(context, ten_examples(context)[:1], PLAIN)


def test_plan_says_requests_tokens_and_cost(tree_of):
    context = open_context(tree_of("http://127.0.0.1:1/v1"))
    plan, wanted = (
        plan_paraphrases(context, "evaluation", context.task.test),
        2 * len(context.task.test),
    )
    assert (plan["requests"], plan["requests_at_most"]) == (wanted, 3 * wanted)
    assert plan["completion_tokens_at_most"] == 3 * wanted * 256
    assert plan["cost_at_most"] == pytest.approx(3 * wanted * 256 / 1e6, abs=1e-4)
    assert plan["prompt_tokens_about"] > 30 * wanted


def test_paraphrases_need_an_llm_and_whole_grids(tree_of):
    tree = tree_of("http://127.0.0.1:1/v1")
    varied = {"paraphrases": {"per_example": 1}}
    with pytest.raises(ConfigError, match="no LLM is named"):
        load_config(
            {**tree, "prompts": {"files": ["stock:choices"]}, "evaluation": {"variation": varied}}
        )
    with pytest.raises(ConfigError, match="estimate"):
        load_config({**tree, "evaluation": {**tree["evaluation"], "estimate": {"share": 0.5}}})
