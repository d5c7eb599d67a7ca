"""Results in a real MLflow: a run for every model, side by side below the command's own."""

import json
from pathlib import Path

from mlflow import MlflowClient

from factories import run_config, write_reviews
from paft_ray.config.loading import load_config
from paft_ray.report.recorded import track_results
from paft_ray.runs.context import RunContext
from paft_ray.storage.paths import Storage
from paft_ray.tasks import load_task
from paft_ray.tracking import open_tracker, send_waiting

RUN = Path(__file__).parents[1] / "fixtures/stored_run_2/storage/runs/from-files"


def test_models_are_runs_with_metrics_of_the_same_names_below_a_run_that_describes_them(
    tmp_path: Path,
) -> None:
    summary = json.loads((RUN / "summary.json").read_text(encoding="utf-8"))
    reviews = write_reviews(tmp_path / "reviews.jsonl")
    config = load_config(run_config("some/model", reviews, tmp_path / "storage"))
    storage = Storage.open(config.storage)
    context = RunContext.create(config, load_task(config.task, 0), storage).tracked()
    context.results_folder.write_bytes("summary.json", (RUN / "summary.json").read_bytes())
    tracker = open_tracker(context.tracking, context.tracked_run, context.tags)
    track_results(context, summary, tracker)
    tracker.finish("FINISHED")
    assert send_waiting(context.tracking) is None

    assert context.tracking is not None
    client = MlflowClient(context.tracking.uri)
    [experiment] = [e for e in client.search_experiments() if e.name == "paft"]
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    labels = ("base", "single_prompt", "paft")
    assert set(runs) == {"small", *(f"{label} evaluated in small" for label in labels)}
    parent = runs["small"]
    assert parent.data.metrics == {}
    said = parent.data.tags["mlflow.note.content"]
    assert said.startswith("PAFT - single prompt: mean +0.0")
    assert "\n| PAFT, 2 steps | 25.0 " in said
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["summary.json"]
    for label in labels:
        run = runs[f"{label} evaluated in small"]
        assert run.data.metrics["eval/accuracy/mean"] == summary["models"][label]["mean"]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.params["model"] == label
        assert run.data.params["base_model"] == run.data.tags["paft.base_model"] == "some/model"
        trained = label != "base"
        assert run.data.tags["paft.of"] == ("trained" if trained else "base")
        assert ("paft.seeds" in run.data.tags) == trained
