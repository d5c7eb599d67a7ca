"""Evaluation in Ray actors with vLLM: the same table as with transformers, or it says so."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import paft_ray
from factories import make_prompt, run_config, write_prompts
from paft_ray.config.loading import load_config
from paft_ray.evaluation.grid import by_transformers, check_parity, score_grid
from paft_ray.evaluation.units import Grid, Subject
from paft_ray.pipeline.perform import open_context
from paft_ray.runs.context import RunContext
from paft_ray.runs.progress import SilentScreen
from paft_ray.storage.paths import Storage

pytestmark = [
    pytest.mark.vllm, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(560),
]  # fmt: skip
TEMPLATES = ("Tell how it feels: {review}\nAnswer:", "{review}\nIs that positive or negative? ->")


@pytest.fixture
def make_tree(tmp_path: Path, smollm: str, review_file: Path) -> Callable[..., dict[str, Any]]:
    def make(choices: list[str] | None) -> dict[str, Any]:
        tree = run_config(
            smollm, review_file, tmp_path / "storage",
            task={"choices": choices, "max_length": 96, "test_share": 0.2},
            prompts={"generation": {"llms": [{"type": "fake"}], "per_llm": 8}},
            evaluation={
                "row_tokens": 512, "max_new_tokens": 8, "workers": {"num": 1, "cpus": 2},
                "backend": {"type": "vllm", "cache_gb": 0.5},
            },
            variants=[],
            tracking={"type": "none"},
        )  # fmt: skip
        del tree["train"]
        return tree

    return make


@pytest.fixture
def make_context(make_tree: Callable[..., dict[str, Any]]) -> Callable[..., RunContext]:
    return lambda choices: open_context(load_config(make_tree(choices)))


def make_grid(context: RunContext, loras: dict[str, str], examples: int) -> Grid:
    subjects = [
        Subject("base", 0, ""),
        *(Subject(name, 0, f"of {name}", Storage.open(path)) for name, path in loras.items()),
    ]
    prompts = [make_prompt(text, "test") for text in TEMPLATES]
    return Grid(subjects, prompts, context.task.test[:examples])


def score(context: RunContext, grid: Grid) -> pa.Table:
    with SilentScreen().stage("evaluate") as stage:
        scores = score_grid(context, grid, stage)
        assert stage.done == stage.total == scores.table.num_rows
    return scores.table


def test_base_and_adapters_have_the_table_of_transformers_and_it_says_how_near(
    make_tree: Callable[..., dict[str, Any]], loras: dict[str, str], tmp_path: Path
) -> None:
    """The whole of `paft evaluate`; transformers measures the same as a further evaluation."""
    tree = make_tree(["positive", "negative"])
    more = ["{review} || mood ||", "Text: {review}\nSentiment:"]
    prompts = write_prompts(tmp_path / "prompts.jsonl", [*TEMPLATES, *more])
    tree["prompts"] = {"files": [str(prompts)], "split": {"validation": 0, "test": 3}}
    tree["evaluation"] |= {
        "examples": 8,
        "subjects": [
            {"type": "adapter", "name": name, "path": path} for name, path in loras.items()
        ],
    }
    served = paft_ray.evaluate(load_config(tree))
    parity = served.data["parity"]
    assert (parity["backend"], parity["beyond"], parity["pairs"]) == ("vllm", [], 66)
    assert parity["models"].keys() == {"base", "plain", "wide"}
    assert 0 < max(model["largest"] for model in parity["models"].values()) < 1e-4
    assert "Scored by vllm: on 66 pairs" in served.text
    run = tmp_path / "storage/runs/small"
    assert "Scored by vllm: on 66 pairs" in (run / "report.html").read_text(encoding="utf-8")

    tree["evaluation"] |= {"name": "plain", "backend": {"type": "transformers"}}
    plain = paft_ray.evaluate(load_config(tree))
    assert "parity" not in plain.data
    tables = [
        pq.read_table(folder / "scores.parquet") for folder in (run, run / "evaluations/plain")
    ]
    assert tables[0].num_rows == 3 * 3 * 8
    for column in ("variant", "prompt_id", "example_id", "prediction", "correct"):
        assert tables[0][column].to_pylist() == tables[1][column].to_pylist(), column
    values = [np.array(table["choice_logprobs"].to_pylist()) for table in tables]
    assert np.abs(values[0] - values[1]).max() < 1e-3
    assert np.ptp(values[0].reshape(3, -1), axis=0).min() > 0  # three models


def test_free_text_is_written_and_graded_as_by_transformers(
    make_context: Callable[..., RunContext], loras: dict[str, str]
) -> None:
    context = make_context(None)
    grid = make_grid(context, loras, 6)
    served, plain = score(context, grid), score(by_transformers(context), grid)
    assert served.drop_columns("choice_logprobs").equals(plain.drop_columns("choice_logprobs"))
    assert len(set(served["generated_text"].to_pylist())) > 10


def test_wrong_adapter_behind_the_backend_is_named(
    make_context: Callable[..., RunContext], loras: dict[str, str], tmp_path: Path
) -> None:
    """vLLM finds another adapter in the folder than transformers did, as a server might have."""
    context = make_context(["positive", "negative"])
    folder = tmp_path / "served"
    shutil.copytree(loras["plain"], folder)
    grid = make_grid(context, {"plain": str(folder), "wide": loras["wide"]}, 12)
    with SilentScreen().stage("compare") as stage:
        alone = check_parity(by_transformers(context), grid, stage)
        assert {model["largest"] for model in alone["models"].values()} == {0}
    shutil.rmtree(folder)
    shutil.copytree(loras["wide"], folder)
    with SilentScreen().stage("compare") as stage:
        parity = check_parity(context, grid, stage)
    assert parity["beyond"] == ["plain"]
    assert "plain: BEYOND THE TOLERANCE" in stage.outcome
    assert parity["models"]["plain"]["nearer_to"] == "wide"
    assert parity["models"]["plain"]["mean"] > 100 * parity["models"]["wide"]["mean"]
