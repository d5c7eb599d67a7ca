"""The stock of wordings: usable for every kind of task, and unlike each other."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factories import PUBLISHED_ROWS
from paft_ray.config import PUBLISHED_TASKS
from paft_ray.config.errors import DataError
from paft_ray.config.loading import load_config
from paft_ray.pipeline.perform import open_context
from paft_ray.prompts.build import pool_fingerprint, pool_without_work
from paft_ray.prompts.dedup.similarity import shingles
from paft_ray.prompts.layouts import instruction_of
from paft_ray.prompts.leakage import nearest
from paft_ray.prompts.lint import lint
from paft_ray.prompts.stock import stock_kinds, stock_templates
from paft_ray.runs.context import RunContext
from paft_ray.tasks.builtin import PUBLISHED

LABELS = {"choices": ["spam", "not spam"]}
ROWS = {"choices": {"columns": ["a", "b", "c"]}}
TASKS: dict[str, list[dict[str, Any]]] = {
    "choices": [
        LABELS,
        {"choices": ["neg", "pos"], "fields": {"review_text": "q", "title": "a"}},
        {"choices": [f"a rather long label of number {number}" for number in range(12)]},
    ],
    "letters": [ROWS],
    "yesno": [{"choices": ["yes", "no"]}],
    "text": [{}],
    "cloze": [{**ROWS, "choices_as": "texts"}],
    "task": [
        LABELS, ROWS, {},
        {"description": "Read the whole of what the customer wrote to us and say what it is. " * 5},
    ],
    **{name: [{}] for name in PUBLISHED_TASKS},
}  # fmt: skip


def published_rows(name: str) -> list[dict[str, Any]]:
    """Rows of a built-in task, which differ in their first field."""
    row, *_ = PUBLISHED_ROWS[name]
    column = next(iter(PUBLISHED[name].columns.values()))
    return [{**row, column: f"{row[column]} {number}"} for number in range(60)]


@pytest.fixture
def context_of(tiny_model: Path, tmp_path: Path) -> Callable[..., RunContext]:
    """The context of a run that measures a model with a part of the stock."""

    def make(kind: str, test: int = 24, **task: Any) -> RunContext:
        path = tmp_path / "rows.jsonl"
        named = task.get("choices")
        with path.open("w") as rows:
            for number in range(60):
                texts = {name: f"{name} of {number}" for name in "abc"}
                answer = named[number % len(named)] if isinstance(named, list) else texts["b"]
                rows.write(json.dumps({"q": f"what of {number}?", "answer": answer, **texts}))
                rows.write("\n")
        whole = {
            "type": "custom", "name": "rows", "description": "Say what this is.",
            "path": str(path), "fields": {"question": "q"}, "answer": "answer", **task,
        }  # fmt: skip
        if isinstance(named, dict) and task.get("choices_as") != "texts":
            whole["choices"] = {**named, "shuffle": True}
        prompts = {"files": [f"stock:{kind}"], "split": {"validation": 0, "test": test}}
        if kind in PUBLISHED_TASKS:
            path.write_text("".join(json.dumps(row) + "\n" for row in published_rows(kind)))
            whole = {"type": "builtin", "name": kind, "path": str(path)}
        tree = {
            "name": "stock", "storage": str(tmp_path / "storage"), "task": whole,
            "prompts": prompts, "model": {"path": str(tiny_model)}, "variants": [],
            "tracking": {"type": "none"},
        }  # fmt: skip
        return open_context(load_config(tree))

    return make


def test_every_kind_is_tried() -> None:
    assert set(TASKS) == set(stock_kinds())


@pytest.mark.parametrize(
    ("kind", "task"), [(kind, task) for kind, tasks in TASKS.items() for task in tasks]
)
def test_all_wordings_pass_the_pool_and_have_layouts_of_their_own(
    kind: str, task: dict[str, Any], context_of
) -> None:
    context = context_of(kind, **task)
    texts = stock_templates(f"stock:{kind}", context.task)
    assert len(texts) >= 30
    assert [lint(t, context.task, context.config.prompts.lint).problem for t in texts] == (
        [None] * len(texts)
    )
    pool = pool_without_work(context)
    assert pool is not None
    prompts = [*pool.train, *pool.test]
    assert len(pool.test) == 24
    assert len(prompts) == len(texts)  # none is like another one
    assert len({prompt.layout for prompt in prompts}) == len(prompts)


@pytest.mark.parametrize("name", PUBLISHED_TASKS)
def test_wordings_of_a_built_in_task_are_unlike_the_instructions_that_llms_see(
    name: str, context_of
) -> None:
    task = context_of(name).task
    shown = [shingles(instruction) for instruction in task.instructions]
    for text in stock_templates(f"stock:{name}", task):
        assert nearest(shingles(instruction_of(text, task.slots)), shown)[1] < 0.5, text


def test_every_wording_of_a_task_with_steps_says_how_its_answer_is_marked(context_of) -> None:
    templates = stock_templates("stock:gsm8k", context_of("gsm8k").task)
    assert all("####" in text for text in templates)


@pytest.mark.parametrize("task", TASKS["choices"])
def test_every_prompt_shows_what_may_be_answered(task: dict[str, Any], context_of) -> None:
    context = context_of("choices", **task)
    for text in stock_templates("stock:choices", context.task):
        assert all(choice in text for choice in task["choices"]), text
        assert "$" not in text


def test_pool_is_known_by_the_content_of_the_stock(
    context_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of("text")
    before = pool_fingerprint(context)
    copy = tmp_path / "wordings"
    shutil.copytree(Path(stock_templates.__globals__["_FOLDER"]), copy)
    monkeypatch.setattr("paft_ray.prompts.stock._FOLDER", copy)
    assert pool_fingerprint(context) == before
    (copy / "text.txt").write_text((copy / "text.txt").read_text() + "Say what it is, friend.\n")
    assert pool_fingerprint(context) != before


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("stock:chioces", "the stock has boolq, choices, cloze"),
        ("stock:yesno", "task.choices has none"),
    ],
)
def test_part_of_the_stock_that_does_not_suit_is_refused(
    location: str, message: str, context_of
) -> None:
    with pytest.raises(DataError, match=message):
        stock_templates(location, context_of("text").task)
