"""Prompts that an LLM improves: the budget, what is read, what is kept, and how they are shown."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from openai_server import Body, Reply, Server, open_context, prompts_of, reply, said

from factories import run_config
from paft_ray.config.errors import ConfigError, LLMError, OverlongError
from paft_ray.config.loading import load_config
from paft_ray.evaluation.grid import GridScores
from paft_ray.evaluation.one_prompt import add_under_one
from paft_ray.evaluation.optimize import Answered, Found, Start, find_prompt, most_reflections
from paft_ray.evaluation.optimized import FOLDER
from paft_ray.evaluation.scores import scores_table
from paft_ray.evaluation.subjects import subjects_of
from paft_ray.evaluation.units import Grid
from paft_ray.pipeline.written import plan_optimized
from paft_ray.prompts.generate.endpoint import EndpointLLM
from paft_ray.prompts.pool import PromptPool
from paft_ray.report.written import optimized_prompts
from paft_ray.runs.context import RunContext
from paft_ray.tasks import Example

EXAMPLES = tuple(Example(f"e{n}", {"review": f"film {n}"}, "positive") for n in range(40))


class Model:
    """Grades a prompt by how many of its words help, and counts what is asked."""

    def __init__(self, helping: Sequence[str] = ("good", "better", "best")) -> None:
        self.asked: Counter[tuple[str, str]] = Counter()
        self._helping = helping

    def score(self, text: str, examples: Sequence[Example]) -> list[Answered]:
        self.asked.update((text, example.id) for example in examples)
        level = sum(word in text for word in self._helping)
        return [Answered(e, "?", float(int(e.id[1:]) % 4 < level)) for e in examples]


def better(text: str, answered: Sequence[Answered], number: int) -> tuple[str | None, str]:
    word = ("good", "better", "best")[number % 3]
    return f"{text} {word}{number}", ""


def find(model: Model, budget: int, improve: Any = better, count: int = 40, seed: int = 0) -> Found:
    return find_prompt(Start("{review}", EXAMPLES[:count], budget, seed), model.score, improve)


@pytest.mark.parametrize("budget", [10, 37, 100, 333])
@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_budget_is_never_exceeded_and_no_pair_is_scored_twice(budget: int, count: int):
    model = Model()
    found = find(model, budget, count=count)
    assert sum(model.asked.values()) == found.pairs <= budget
    assert max(model.asked.values()) == 1
    assert found.reflections <= most_reflections(budget)
    assert found.accuracy >= found.first_accuracy


def test_search_finds_the_better_prompt_and_is_a_function_of_its_seed():
    first, again, other = (find(Model(), 400, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.pairs > 100 < other.pairs
    assert all(word in first.text for word in ("good", "better", "best"))
    assert (first.first_accuracy, first.tracked) == (0.0, 20)


@pytest.mark.parametrize("helping", [("{",), ("nothing",)])
def test_search_ends_where_nothing_can_be_improved(helping: Sequence[str]):
    """Always right, and always wrong under prompts that cannot be used."""
    model = Model(helping * 4)
    found = find(model, 60, improve=lambda *_: (None, "no_text"))
    assert found.text == "{review}" and found.prompts == 1
    assert found.reflections == sum(found.refused.values()) <= most_reflections(60)


def test_errors_of_the_llm_and_of_the_model_end_the_search():
    def fail(*_: Any) -> Any:
        raise LLMError("no key")

    def refuse(text: str, examples: Sequence[Example]) -> list[Answered]:
        raise OverlongError(f"{text} is too long")

    with pytest.raises(LLMError, match="no key"):
        find(Model(), 100, improve=fail)
    with pytest.raises(OverlongError):
        find_prompt(Start("{review}", EXAMPLES, 100, 0), refuse, better)


def test_prompt_that_is_too_long_for_an_example_is_refused_and_its_pairs_count():
    model = Model()

    def score(text: str, examples: Sequence[Example]) -> list[Answered]:
        answered = model.score(text, examples)
        if "good" in text:
            raise OverlongError("too long")
        return answered

    found = find_prompt(Start("{review}", EXAMPLES, 200, 0), score, better)
    assert found.refused["too long"] > 0 and "good" not in found.text
    assert found.pairs == sum(model.asked.values()) <= 200


HINT = "Weigh every word of the review before you say whether it is positive or negative"


class Two(Server):
    """A model that is right where the prompt weighs words, and an LLM that tells it so."""

    def __init__(self) -> None:
        self.reviews: set[str] = set()
        self.fail_after: int | None = None
        self.reflected: list[str] = []
        super().__init__(self.complete)

    def complete(self, path: str, body: Body, attempt: int) -> Reply:
        text = body["messages"][-1]["content"]
        if body["model"] == "writer":
            if self.fail_after is not None and len(self.reflected) >= self.fail_after:
                return reply(401, {"error": {"message": "no more"}})
            self.reflected.append(text)
            number = len(self.reflected)
            useless = "This prompt has no place for a review"
            return said(useless if number % 2 else f"{HINT} ({number}): {{review}}\nMood:")
        film = text.split("the film ")[1].split()[0]
        self.reviews.add(film)
        word = text.split(" was ")[1].split()[0]
        right = "positive" if word in ("good", "fine", "great") else "negative"
        return said(right if HINT in text and int(film) % 3 else "positive")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Two]:
    monkeypatch.setattr(EndpointLLM, "_pause_s", 0.01)
    with (two := Two()).running():
        yield two


@pytest.fixture
def tree_of(tiny_model: Path, review_file: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def make(url: str, **optimized: Any) -> dict[str, Any]:
        writer = {"type": "openai", "base_url": url, "model": "writer", "price": {"completion": 1}}
        return run_config(
            tiny_model, review_file, tmp_path / "storage",
            task={"max_length": 200, "validation_share": 0.3, "test_share": 0.3},
            prompts={"generation": {"llms": [{"type": "fake"}], "per_llm": 8}},
            evaluation={"subjects": [
                {"type": "endpoint", "base_url": url, "model": "m", "choices_by": "text"},
                {"type": "optimized_prompt", "of": "endpoint", "budget": 48, "llm": writer,
                 **optimized},
            ]},
            tracking={"type": "none"},
        )  # fmt: skip

    return make


def add(context: RunContext) -> GridScores:
    """The scores of the optimised prompt alone; the others' are not asked for."""
    subjects, others = subjects_of(context)
    pool = PromptPool(tuple(prompts_of(3)), (), tuple(prompts_of(2)))
    grid = Grid(subjects, pool.test, context.task.test, others)
    empty = scores_table([])
    empty = empty.append_column("variant", pa.array([], pa.string()))
    empty = empty.append_column("seed", pa.array([], pa.int64()))
    return add_under_one(context, pool, grid, GridScores(empty, {}))


def test_prompt_is_found_on_validation_rows_and_answers_alike_under_every_held_out_prompt(
    server: Two, tree_of
):
    context = open_context(tree_of(server.url))
    blind = replace(context, task=replace(context.task, test=()))
    with pytest.raises(Exception):  # noqa: B017 - there is nothing to score in the end
        add(blind)
    validation = {e.fields["review"].split()[2] for e in context.task.validation}
    assert server.reviews and server.reviews <= validation
    assert not any(
        e.fields["review"] in text for text in server.reflected for e in context.task.test
    )
    asked = len(server.calls)

    scores = add(context)
    assert len(server.calls) - asked == len(context.task.test)  # the search is not repeated
    [record] = scores.under_one["optimized_prompt"]
    assert HINT in record["prompt"] and record["accuracy"] > record["first_accuracy"]
    assert record["pairs"] <= 48
    assert record["refused"] and sum(record["refused"].values()) < record["reflections"]
    assert record["asked"]["requests"] == len(server.reflected)
    rows = scores.table.to_pylist()
    assert len(rows) == 2 * len(context.task.test)
    by_prompt = [[r["prediction"] for r in rows if r["prompt_id"] == p.id] for p in prompts_of(2)]
    assert by_prompt[0] == by_prompt[1] and len(set(by_prompt[0])) == 2
    assert {row["prompt_id"] for row in rows} == {prompt.id for prompt in prompts_of(2)}
    assert scores.prompts_per_answer == {"optimized_prompt": 1}

    model = {"optimized_prompts": [record]}
    said_of = " ".join(optimized_prompts({"models": {"optimized_prompt": model}}, None))
    for told in (f"{record['pairs']} pairs", "budget 48", repr(record["prompt"]), "no spread"):
        assert told in said_of


def test_search_that_was_stopped_goes_on_and_pays_for_nothing_twice(server: Two, tree_of):
    context = open_context(tree_of(server.url))
    server.fail_after = 3
    with pytest.raises(LLMError, match="no more"):
        add(context)
    server.fail_after = None
    add(context)
    assert max(server.answered.values()) == 1
    [folder] = Path(context.run_folder.child(FOLDER).path()).iterdir()
    assert (folder / "found.json").exists()


def test_token_budget_of_the_llm_ends_the_search(server: Two, tree_of):
    context = open_context(tree_of(server.url, budget_tokens=256 + 3 * 4))
    [record] = add(context).under_one["optimized_prompt"]
    assert record["asked"]["completion_tokens"] == 4 * len(server.reflected) == 16
    assert record["reflections"] == 4


def test_plan_says_pairs_requests_tokens_and_cost_at_most(tree_of):
    context = open_context(tree_of("http://127.0.0.1:1/v1"))
    [row] = plan_optimized(context)
    assert (row["pairs_at_most"], row["requests_at_most"]) == (48, 16)
    assert row["completion_tokens_at_most"] == 16 * 256
    assert row["cost_at_most"] == pytest.approx(16 * 256 / 1e6, abs=1e-4)
    assert row["prompt_tokens_about"] > 16 * 100


def test_what_cannot_be_optimised_is_refused(tree_of):
    tree = tree_of("http://127.0.0.1:1/v1")
    served, optimized = tree["evaluation"]["subjects"]
    for changes, message in (
        ({"subjects": [served, {**optimized, "of": "nobody"}]}, "no model that is measured"),
        ({"subjects": [served, {**optimized, "budget": 9}]}, "budget"),
        ({"subjects": [{**served, "budget_tokens": 9}, optimized]}, "budget_tokens"),
        ({"estimate": {"share": 0.5}}, "estimate"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config({**tree, "evaluation": {**tree["evaluation"], **changes}})
    without = {**tree, "prompts": {"files": ["stock:choices"]}}
    without["evaluation"] = {
        "subjects": [served, {k: v for k, v in optimized.items() if k != "llm"}]
    }
    with pytest.raises(ConfigError, match="no LLM is named"):
        load_config(without)
