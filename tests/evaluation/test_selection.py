"""The single prompt that a careful user would have picked."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from factories import run_config
from paft_ray.config.loading import load_config
from paft_ray.evaluation import selection
from paft_ray.evaluation.selection import choose_single_prompt, prompt_quality
from paft_ray.prompts.pool import Origin, Prompt
from paft_ray.runs.context import RunContext
from paft_ray.storage.paths import Storage
from paft_ray.tasks import Example

ANSWERS = {"e0": "yes", "e1": "no"}


def scores(*rows: tuple[str, str, bool, list[float] | None]) -> pa.Table:
    """Prompt, example, whether it is right, log-likelihoods of yes and no."""
    names = ("prompt_id", "example_id", "correct", "choice_logprobs")
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])


def prompt(id: str) -> Prompt:
    return Prompt(id, id, id, "", "train", "", Origin(file="test"))


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, list[str], int]]:
    """Choose among prompts by given scores; what was scored is returned with the choice."""

    def run(table: pa.Table, ids: list[str], **evaluation: Any) -> tuple[str, list[str], int]:
        scored: list[Any] = []

        def score_grid(context, grid, stage):
            assert context.config.evaluation.backend.type == "transformers"
            scored.extend([[p.id for p in grid.prompts], len(grid.examples)])
            return SimpleNamespace(table=table)

        monkeypatch.setattr(selection, "score_grid", score_grid)
        examples = tuple(Example(id, {}, answer) for id, answer in ANSWERS.items())
        config = load_config(run_config("model", "reviews", "storage", evaluation=evaluation))
        task: Any = SimpleNamespace(validation=examples, choices_of=lambda example: ("yes", "no"))
        context = RunContext.create(config, task, Storage.open("storage"))
        pool: Any = SimpleNamespace(train=tuple(map(prompt, ids)))
        best = choose_single_prompt(context, pool)
        return best.id, *scored

    return run


def test_quality_is_accuracy_and_the_likelihood_of_the_right_answers():
    table = scores(
        ("p", "e0", True, [-0.1, -2.0]), ("p", "e1", False, [-0.5, -1.0]), ("q", "e0", True, None)
    )
    quality = prompt_quality(table.slice(0, 2), {"e0": 0, "e1": 1})
    assert quality == {"p": (0.5, pytest.approx((-0.1 - 1.0) / 2))}
    assert prompt_quality(table.slice(2), {"e0": 0}) == {"q": (1.0, 0.0)}


def test_the_most_accurate_prompt_wins_and_of_equals_the_surer_one(choose):
    table = scores(
        ("p", "e0", True, [-0.1, -2.0]), ("p", "e1", False, [-0.1, -2.0]),
        ("q", "e0", True, [-0.9, -1.0]), ("q", "e1", True, [-1.0, -0.9]),
        ("r", "e0", True, [-0.5, -1.5]), ("r", "e1", True, [-1.5, -0.5]),
    )  # fmt: skip
    assert choose(table, ["p", "q", "r"]) == ("r", ["p", "q", "r"], 2)


def test_all_training_prompts_are_candidates_unless_fewer_are_asked_for(choose):
    right = [(id, "e0", True, [-0.1, -2.0]) for id in ("p", "q")]
    assert choose(scores(*right), ["p", "q"])[1:] == (["p", "q"], 2)
    found = choose(scores(right[0]), ["p", "q"], selection_prompts=1, selection_examples=1)
    assert found == ("p", ["p"], 1)
