"""Tracking against a real MLflow on sqlite, and against a server that is really not there."""

import json
import logging
import pickle
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from paft_ray.config import Config
from paft_ray.storage.paths import Storage
from paft_ray.tracking import (
    Metric,
    NullTracker,
    TrackingTarget,
    end_open_runs,
    open_tracker,
    prepare_tracking,
    replay,
    top_metric,
)


def config(name: str, **tracking: str) -> Config:
    return Config.model_validate(
        {
            "name": name,
            "task": {"type": "builtin", "name": "sst2"},
            "prompts": {"files": ["prompts.txt"]},
            "model": {"path": "some/model"},
            "train": {"steps": 10},
            "tracking": tracking,
        }
    )


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """One storage, and so one sqlite database, for the whole module: creating it takes seconds."""
    return Storage.open(str(tmp_path_factory.mktemp("a storage with ümläuts")))


@pytest.fixture
def target(storage: Storage) -> TrackingTarget:
    prepared = prepare_tracking(config(f"run-{uuid.uuid4().hex[:8]}"), storage)
    assert prepared is not None
    return prepared


@pytest.fixture
def away(target: TrackingTarget, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrackingTarget]:
    """The same run, but its server is a port that nobody listens on."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        port = reserved.getsockname()[1]
        yield replace(target, uri=f"http://someone:hunter2-secret@127.0.0.1:{port}")


def runs(target: TrackingTarget) -> dict[str, Run]:
    """Runs of this target by our key, from MLflow itself; fails if a key occurs twice."""
    client = MlflowClient(tracking_uri=target.uri)
    experiment = client.get_experiment_by_name(target.experiment)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    mine = [run for run in found if run.data.tags["paft.key"].startswith(target.identity)]
    by_key = {run.data.tags["paft.key"].partition("/")[2]: run for run in mine}
    assert len(by_key) == len(mine)
    return by_key


def steps(target: TrackingTarget, key: str, metric: str = Metric.TRAIN_LOSS) -> list[int]:
    client = MlflowClient(tracking_uri=target.uri)
    history = client.get_metric_history(runs(target)[key].info.run_id, metric)
    return sorted(entry.step for entry in history)


def spooled(target: TrackingTarget) -> list[Path]:
    return [
        path
        for path in sorted(Path(target.spool.root).rglob("*.json"))
        if "identity" not in str(path)
    ]


def test_import_of_tracking_brings_no_mlflow_and_no_torch():
    code = (
        "import sys, paft_ray.tracking; print([m for m in ('mlflow', 'torch') if m in sys.modules])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == "[]"


def test_tracking_none_gives_null_trackers_and_writes_nothing(tmp_path: Path):
    target = prepare_tracking(config("quiet", type="none"), Storage.open(str(tmp_path)))
    tracker = open_tracker(target, "run", "quiet")
    tracker.log_metrics({Metric.TRAIN_LOSS: 1.0}, step=1)
    tracker.finish("FINISHED")
    assert isinstance(tracker, NullTracker)
    assert replay(target) == 0
    assert list(tmp_path.iterdir()) == []


def test_tracker_of_another_rank_records_nothing(target: TrackingTarget):
    assert isinstance(open_tracker(target, "run", "rank 1", rank=1), NullTracker)


def test_target_pickled_keeps_all_but_shows_no_password(away: TrackingTarget):
    assert pickle.loads(pickle.dumps(away)) == away
    assert "hunter2" not in repr(away)


def test_run_with_everything_arrives_complete(target: TrackingTarget, tmp_path: Path):
    figure = tmp_path / "figure.png"
    figure.write_bytes(b"png")
    tracker = open_tracker(target, "run", "the name", tags={"variant": "paft"})
    tracker.log_params({"train": {"steps": 10, "betas": [0.9, 0.999]}, "model.path": "some/model"})
    for step in range(1, 2501):
        tracker.log_metrics({Metric.TRAIN_LOSS: 1 / step, top_metric(0.75): 0.5}, step)
    tracker.set_tags({"commit": "abc"})
    tracker.log_artifact("figures/figure.png", figure)
    tracker.log_artifact("report.html", b"<p>report</p>")
    tracker.finish("FINISHED")

    run = runs(target)["run"]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "the name"
    assert run.data.params == {
        "train.steps": "10",
        "train.betas": "[0.9, 0.999]",
        "model.path": "some/model",
    }
    assert run.data.tags["variant"] == "paft"
    assert run.data.tags["commit"] == "abc"
    assert steps(target, "run") == list(range(1, 2501))
    assert steps(target, "run", "eval/accuracy/top_75") == list(range(1, 2501))
    client = MlflowClient(tracking_uri=target.uri)
    assert (
        Path(client.download_artifacts(run.info.run_id, "figures/figure.png")).read_bytes()
        == b"png"
    )
    assert [f.path for f in client.list_artifacts(run.info.run_id)] == ["figures", "report.html"]
    assert str(target.storage.root) in str(run.info.artifact_uri)
    assert spooled(target) == []


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_finish_leaves_the_run_in_the_state_asked_for(target: TrackingTarget, status: str):
    tracker = open_tracker(target, "run", "ends")
    tracker.finish(status)  # pyright: ignore[reportArgumentType]
    tracker.finish("FINISHED")
    assert runs(target)["run"].info.status == status


def test_resumed_run_continues_and_drops_repeated_steps(target: TrackingTarget):
    first = open_tracker(target, "run", "name")
    first.log_params({"workers": 1, "seed": 0})
    for step in range(1, 8):
        first.log_metrics({Metric.TRAIN_LOSS: float(step)}, step)
    first.finish("KILLED")
    second = open_tracker(target, "run", "name")
    second.log_params({"workers": 2, "seed": 0})
    for step in range(5, 11):
        second.log_metrics({Metric.TRAIN_LOSS: float(step)}, step)
        second.log_metrics({Metric.TRAIN_LOSS: float(step)}, step)
    second.finish("FINISHED")

    assert steps(target, "run") == list(range(1, 11))
    run = runs(target)["run"]
    assert run.info.status == "FINISHED"
    assert run.data.params["workers"] == "1"
    assert run.data.tags["resumed.workers"] == "2"
    assert "resumed.seed" not in run.data.tags


def test_resumed_run_is_running_again(target: TrackingTarget):
    open_tracker(target, "run", "name").finish("FINISHED")
    again = open_tracker(target, "run", "name")
    deadline = time.monotonic() + 20
    while runs(target)["run"].info.status != "RUNNING" and time.monotonic() < deadline:
        pass
    assert runs(target)["run"].info.status == "RUNNING"
    again.finish("FINISHED")


@pytest.mark.parametrize("order", ["parent first", "child first"])
def test_training_is_nested_whichever_run_is_opened_first(target: TrackingTarget, order: str):
    def parent() -> None:
        open_tracker(target, "run", "the run").finish("FINISHED")

    def child() -> None:
        open_tracker(target, "training/paft-s0", "paft", parent_key="run").finish("FINISHED")

    for record in (parent, child) if order == "parent first" else (child, parent):
        record()
    found = runs(target)
    assert found["training/paft-s0"].data.tags["mlflow.parentRunId"] == found["run"].info.run_id
    assert "mlflow.parentRunId" not in found["run"].data.tags


def test_same_name_after_overwrite_is_a_new_run(storage: Storage):
    first = prepare_tracking(config("overwritten"), storage)
    storage.child("runs").delete("overwritten")
    second = prepare_tracking(config("overwritten"), storage)
    assert first is not None
    assert second is not None
    assert first.identity != second.identity
    assert prepare_tracking(config("overwritten"), storage) == second


def record_while_away(away: TrackingTarget, tmp_path: Path) -> None:
    tracker = open_tracker(away, "run", "name")
    tracker.log_params({"llm": "https://me:hunter2-secret@example.org/v1", "seed": 0})
    for step in range(1, 31):
        tracker.log_metrics({Metric.TRAIN_LOSS: 1 / step}, step)
    kept = tmp_path / "scratch.txt"
    kept.write_text("outside of storage")
    away.storage.write_bytes("runs/x/report.html", b"inside of storage")
    tracker.log_artifact("scratch.txt", kept)
    tracker.log_artifact("report.html", away.storage.path("runs/x/report.html"))
    tracker.finish("FAILED")
    kept.unlink()


def test_absent_server_delays_no_call_and_fills_the_spool(
    away: TrackingTarget, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    started = time.perf_counter()
    tracker = open_tracker(away, "run", "name")
    for step in range(2000):
        tracker.log_metrics({Metric.TRAIN_LOSS: 1.0}, step)
    called = time.perf_counter() - started
    tracker.finish("FINISHED")
    assert called < 1.0
    assert time.perf_counter() - started < 15
    batches = [json.loads(path.read_text()) for path in spooled(away)]
    assert sum(len(batch["metrics"]) for batch in batches) == 2000
    assert batches[-1]["status"] == "FINISHED"


def test_absent_server_replayed_later_is_complete_and_has_nothing_twice(
    away: TrackingTarget, target: TrackingTarget, tmp_path: Path
):
    record_while_away(away, tmp_path)
    assert runs(target) == {}
    waiting = spooled(away)
    assert replay(away) == len(waiting) > 0
    assert spooled(away) == waiting

    copies = {path: path.read_bytes() for path in waiting}
    assert replay(target) == 0
    assert spooled(target) == []
    for path, content in copies.items():  # as if the answer had been lost after it arrived
        path.write_bytes(content)
    assert replay(target) == 0

    run = runs(target)["run"]
    assert run.info.status == "FAILED"
    assert run.data.params["seed"] == "0"
    assert steps(target, "run") == list(range(1, 31))
    client = MlflowClient(tracking_uri=target.uri)
    texts = [
        Path(client.download_artifacts(run.info.run_id, name)).read_text()
        for name in ("report.html", "scratch.txt")
    ]
    assert texts == ["inside of storage", "outside of storage"]


def test_resumed_run_first_sends_what_the_last_process_left(
    away: TrackingTarget, target: TrackingTarget, tmp_path: Path
):
    record_while_away(away, tmp_path)
    resumed = open_tracker(target, "run", "name")
    for step in range(25, 36):
        resumed.log_metrics({Metric.TRAIN_LOSS: 1 / step}, step)
    resumed.finish("FINISHED")
    assert steps(target, "run") == list(range(1, 36))
    assert runs(target)["run"].info.status == "FINISHED"
    assert spooled(target) == []


def test_spool_and_log_of_an_absent_server_hold_no_password(
    away: TrackingTarget, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.DEBUG):
        record_while_away(away, tmp_path)
    assert all("hunter2" not in path.read_text() for path in spooled(away))
    assert all("hunter2" not in r.getMessage() for r in caplog.records if "paft" in r.name)


def test_artifact_store_that_fails_holds_up_no_records(target: TrackingTarget, tmp_path: Path):
    store = tmp_path / "a file where a folder should be"
    store.write_text("")
    client = MlflowClient(tracking_uri=target.uri)
    experiment = f"broken-{uuid.uuid4().hex[:8]}"
    client.create_experiment(experiment, artifact_location=str(store))
    broken = replace(target, experiment=experiment)
    tracker = open_tracker(broken, "run", "name")
    tracker.log_artifact("report.html", b"report")
    tracker.log_metrics({Metric.TRAIN_LOSS: 1.0}, 1)
    tracker.finish("FINISHED")
    again = open_tracker(broken, "run", "name")
    again.log_metrics({Metric.TRAIN_LOSS: 1.0}, 2)
    again.finish("FINISHED")
    assert steps(broken, "run") == [1, 2]
    assert runs(broken)["run"].info.status == "FINISHED"
    assert replay(broken) == len(spooled(broken)) == 1

    store.unlink()
    assert replay(broken) == 0
    assert [f.path for f in client.list_artifacts(runs(broken)["run"].info.run_id)] == [
        "report.html"
    ]


def test_runs_that_a_dead_process_left_open_end_as_killed_at_their_last_word(
    target: TrackingTarget, storage: Storage
):
    another = prepare_tracking(config(f"run-{uuid.uuid4().hex[:8]}"), storage)
    assert another is not None
    for place in (target, another):
        for key in ("run", "training/paft-s0"):
            tracker = open_tracker(place, key, "name")
            tracker.log_metrics({Metric.TRAIN_LOSS: 1.0}, 1)
            tracker.release()  # as far as MLflow knows, its process died here
    finished = open_tracker(target, "pool", "pool")
    finished.finish("FINISHED")
    end_open_runs(target)

    found = runs(target)
    assert {key: run.info.status for key, run in found.items()} == {
        "run": "KILLED", "training/paft-s0": "KILLED", "pool": "FINISHED",
    }  # fmt: skip
    client = MlflowClient(tracking_uri=target.uri)
    [last] = client.get_metric_history(found["run"].info.run_id, Metric.TRAIN_LOSS)
    assert found["run"].info.end_time == last.timestamp
    assert {run.info.status for run in runs(another).values()} == {"RUNNING"}

    resumed = open_tracker(target, "run", "name")
    resumed.log_metrics({Metric.TRAIN_LOSS: 0.5}, 2)
    resumed.release()
    assert runs(target)["run"].info.status == "RUNNING"
    assert steps(target, "run") == [1, 2]


def test_runs_left_open_wait_where_the_server_is_away(away: TrackingTarget):
    began = time.perf_counter()
    end_open_runs(away)
    assert time.perf_counter() - began < 15


def test_registered_artifact_is_one_version_however_often_it_is_sent(target: TrackingTarget):
    client = MlflowClient(tracking_uri=target.uri)
    name = f"prompt-pool-{uuid.uuid4().hex[:6]}"
    for alias, attempts in (("pool-aaaa", 2), ("pool-bbbb", 1)):
        for _ in range(attempts):
            tracker = open_tracker(target, f"pool/{alias}", "pool")
            tracker.log_artifact("pool/pool.json", alias.encode())
            tracker.register(name, alias, "pool")
            tracker.finish("FINISHED")
    versions = client.search_model_versions(f"name='{name}'")
    assert len(versions) == 2
    found = client.get_model_version_by_alias(name, "pool-aaaa")
    assert Path(str(found.source), "pool.json").read_text() == "pool-aaaa"


def test_prepare_with_an_absent_server_returns_at_once(away: TrackingTarget, tmp_path: Path):
    started = time.perf_counter()
    prepared = prepare_tracking(config("far", uri=away.uri), Storage.open(str(tmp_path)))
    assert time.perf_counter() - started < 1.0
    assert prepared is not None
    assert prepared.uri == away.uri


def test_database_of_another_node_is_not_created_here_but_spooled(
    target: TrackingTarget, tmp_path: Path
):
    elsewhere = replace(target, uri=f"sqlite:///{tmp_path / 'not-here.db'}")
    tracker = open_tracker(elsewhere, "run", "name")
    tracker.log_metrics({Metric.TRAIN_LOSS: 1.0}, 1)
    tracker.finish("FINISHED")
    assert not (tmp_path / "not-here.db").exists()
    assert replay(target) == 0
    assert steps(target, "run") == [1]


def test_records_that_mlflow_refuses_are_kept_and_stop_nothing(target: TrackingTarget):
    tracker = open_tracker(target, "run", "name")
    tracker.log_params({"seed": 0})
    tracker.log_metrics({"no @ in names": 1.0}, 1)
    tracker.finish("FINISHED")
    assert runs(target)["run"].info.status == "FINISHED"
    assert runs(target)["run"].data.params == {"seed": "0"}
    assert [path.parent.name for path in spooled(target)] == ["refused"]
    after = open_tracker(target, "run", "name")
    after.log_metrics({Metric.TRAIN_LOSS: 1.0}, 1)
    after.finish("FINISHED")
    assert steps(target, "run") == [1]
    assert replay(target) == 0
