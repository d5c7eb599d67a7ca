"""The grid over actors: the same whoever does it, and never twice."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from factories import LORA, make_prompt, run_config
from paft_ray.config.loading import load_config
from paft_ray.evaluation.grid import GridScores, score_grid, score_part
from paft_ray.evaluation.units import Grid, Subject
from paft_ray.pipeline.perform import open_context
from paft_ray.runs.context import RunContext
from paft_ray.runs.progress import SilentScreen
from paft_ray.storage.paths import Storage

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
TEMPLATES = (
    "Tell how it feels: {review}\nAnswer:",
    "{review}\nIs that good or bad? ->",
    'A reviewer said "{review}". What did they mean to say about the film as a whole? Answer:',
)


@pytest.fixture
def make_context(tmp_path: Path, tiny_model: Path, review_file: Path) -> Callable[..., RunContext]:
    def make(workers: int, storage: str = "") -> RunContext:
        config = run_config(
            tiny_model,
            review_file,
            tmp_path / (storage or f"storage-{workers}"),
            prompts={"generation": {"llms": [{"type": "fake"}], "per_llm": 8}},
            train={"steps": 1, "batch_size": 2},
            evaluation={"row_tokens": 600, "workers": {"num": workers, "cpus": 1}},
            tracking={"type": "none"},
        )
        return open_context(load_config(config))

    return make


def score(context: RunContext, adapter: str, share: float | None = None) -> GridScores:
    prompts = [make_prompt(text, "test") for text in TEMPLATES]
    models = [
        Subject("base", 0, ""),
        Subject("paft", 0, "trained", Storage.open(adapter)),
        Subject("paft", 1, "trained", Storage.open(adapter)),  # alike, but another training
    ]
    grid = Grid(models, prompts, context.task.train[:70])
    with SilentScreen().stage("evaluate") as stage:
        if share is None:
            return score_grid(context, grid, stage)
        scores = score_part(context, grid, share, stage)
        assert stage.done == stage.total == scores.table.num_rows
        return scores


def test_grid_is_the_same_for_any_number_of_workers_and_continues_where_it_was(
    make_context, save_adapter
):
    adapter = save_adapter(LORA)
    one, two = (make_context(workers, "shared") for workers in (1, 2))
    found = score(one, adapter)
    scores = found.table
    assert scores.num_rows == 3 * 3 * min(70, len(one.task.train))
    assert found.seconds_per_example.keys() == {"base", "paft"}
    assert all(0 < seconds < 60 for seconds in found.seconds_per_example.values())
    by_model = [
        scores.filter((pa.compute.field("variant") == v) & (pa.compute.field("seed") == s))
        for v, s in (("base", 0), ("paft", 0), ("paft", 1))
    ]
    base, first, second = (table["choice_logprobs"].to_pylist() for table in by_model)
    assert first == second != base

    folder = Path(one.run_folder.path(), "scores")
    parts = sorted(folder.glob("*.parquet"))
    for path in parts[::2]:
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in parts[1::2]}
    assert len(parts) - len(kept) > 2  # something for each of two workers
    after = score(two, adapter)
    assert after.table.equals(scores, check_metadata=True)  # log-likelihoods bit by bit
    assert after.seconds_per_example.keys() == {"base", "paft"}
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


@pytest.mark.slow
def test_part_of_a_grid_has_the_scores_that_the_whole_has_there(make_context, save_adapter):
    adapter, context = save_adapter(LORA), make_context(1)
    whole = score(context, adapter).table.to_pylist()
    part = score(context, adapter, 0.3).table
    pairs = 3 * min(70, len(context.task.train))
    assert part.num_rows == pytest.approx(3 * 0.3 * pairs, abs=3 * 3)
    rows = {(r["variant"], r["seed"], r["prompt_id"], r["example_id"]): r for r in whole}
    found = [(r["variant"], r["seed"], r["prompt_id"], r["example_id"]) for r in part.to_pylist()]
    assert len(set(found)) == len(found)
    for key, row in zip(found, part.to_pylist(), strict=True):
        assert row["choice_logprobs"] == pytest.approx(rows[key]["choice_logprobs"], abs=1e-4)


@pytest.mark.slow
def test_part_of_a_grid_is_the_same_for_any_number_of_workers_and_after_a_kill(
    make_context, save_adapter
):
    from ray._private.state import actors

    def started() -> int:
        return sum("ScoreActor" in actor["ActorClassName"] for actor in actors().values())

    adapter, one, two = save_adapter(LORA), make_context(1), make_context(2)
    before = started()
    found = score(one, adapter, 0.3).table
    assert started() - before == 1  # it stays for later looks
    assert score(two, adapter, 0.3).table.equals(found, check_metadata=True)
    parts = sorted(Path(one.run_folder.path(), "scores").glob("*.parquet"))
    for path in parts[::2]:
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in parts[1::2]}
    assert score(one, adapter, 0.3).table.equals(found)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
