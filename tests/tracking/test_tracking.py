"""Tracking against a real MLflow on sqlite, and against a server that is really not there."""

import json
import logging
import pickle
import shlex
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from pyarrow.fs import FileSelector, FSSpecHandler, PyFileSystem

from paft_ray.config import Config
from paft_ray.storage.paths import Storage
from paft_ray.tracking import (
    DESCRIPTION,
    Metric,
    NullTracker,
    TrackedRun,
    TrackingTarget,
    end_open_runs,
    open_tracker,
    page_of,
    prepare_tracking,
    record_figures,
    send_waiting,
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


@pytest.fixture(params=["disk", "s3"])
def anywhere(request: pytest.FixtureRequest, target: TrackingTarget) -> TrackingTarget:
    """The same run, with its storage on a local disk and on an object store."""
    if request.param == "disk":
        return target
    options = f"endpoint_override={request.getfixturevalue('s3')}&scheme=http"
    bucket = Storage.open(f"s3://paft/{uuid.uuid4().hex}?{options}")
    return replace(target, storage=bucket, logs=bucket.child("runs", "x", "events"))


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI, with a password, of a server that is not there."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        yield f"http://someone:hunter2-secret@127.0.0.1:{reserved.getsockname()[1]}"


@pytest.fixture
def away(target: TrackingTarget, closed_port: str) -> TrackingTarget:
    """The same run, but its server is a port that nobody listens on."""
    return replace(target, uri=closed_port)


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


def waiting(target: TrackingTarget) -> list[str]:
    """Paths of event logs, copies of artifacts, and what MLflow refused."""
    selector = FileSelector(target.logs.root, allow_not_found=True, recursive=True)
    found = target.storage.filesystem.get_file_info(selector)
    return sorted(f.path for f in found if f.is_file and f.base_name != "identity.json")


def events(target: TrackingTarget, kind: str) -> list[dict]:
    """Payloads of the events of a kind that are on storage, from the files themselves."""
    found = []
    for run in target.logs.names():
        for log in sorted(target.logs.child(run).names()) if "." not in run else ():
            folder = target.logs.child(run, log)
            for name in (name for name in folder.names() if name.endswith(".jsonl")):
                lines = folder.read_bytes(name).splitlines()
                found += [json.loads(line) for line in lines]
    return [event["payload"] for event in found if event["kind"] == kind]


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
    tracker = open_tracker(target, TrackedRun("run", "quiet"))
    tracker.log_metrics({Metric.TRAIN_LOSS: 1.0}, step=1)
    tracker.finish("FINISHED")
    assert isinstance(tracker, NullTracker)
    assert send_waiting(target) is None
    assert list(tmp_path.iterdir()) == []


def test_figures_recorded_again_replace_the_earlier_ones(target: TrackingTarget):
    open_tracker(target, TrackedRun("run", "name")).finish("FINISHED")
    evaluated = TrackedRun("evaluated/paft", "name/evaluation/paft", "run")
    for mean in (0.5, 0.75):
        about = {"params": {"model": "paft"}, "tags": {DESCRIPTION: f"mean {mean}"}}
        record_figures(target, evaluated, about, {"eval/mean": mean})
        assert send_waiting(target) is None
    found = runs(target)
    run = found["evaluated/paft"]
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"eval/mean": 0.75}
    assert run.data.params == {"model": "paft"}
    assert run.data.tags["mlflow.note.content"] == "mean 0.75"
    assert run.data.tags["mlflow.parentRunId"] == found["run"].info.run_id
    assert waiting(target) == []


def test_figures_wait_on_storage_while_the_server_is_away(target, away: TrackingTarget):
    about = {"params": {}, "tags": {}}
    record_figures(away, TrackedRun("evaluated/paft", "name"), about, {"eval/mean": 0.5})
    left = send_waiting(away)
    assert left is not None and left.logs == 1
    assert send_waiting(target) is None
    assert runs(target)["evaluated/paft"].data.metrics == {"eval/mean": 0.5}


@pytest.mark.slow
def test_machine_is_measured_where_it_is_asked_for(
    target: TrackingTarget, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    measured = open_tracker(target, TrackedRun("run", "measured"), measured=True)
    time.sleep(3)
    measured.finish("FINISHED")
    open_tracker(target, TrackedRun("other", "not measured")).finish("FINISHED")
    found = {key: run.data.metrics for key, run in runs(target).items()}
    assert found["run"]["system/system_memory_usage_megabytes"] > 0
    assert found["other"] == {}
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    off = open_tracker(target, TrackedRun("off", "switched off"), measured=True)
    time.sleep(2)
    off.finish("FINISHED")
    assert runs(target)["off"].data.metrics == {}


def test_tracker_of_another_rank_records_nothing(target: TrackingTarget):
    assert isinstance(open_tracker(target, TrackedRun("run", "rank 1"), rank=1), NullTracker)


def test_target_pickled_keeps_all_but_shows_no_password(away: TrackingTarget):
    assert pickle.loads(pickle.dumps(away)) == away
    assert "hunter2" not in repr(away)


def test_run_with_everything_arrives_complete(target: TrackingTarget, tmp_path: Path):
    figure = tmp_path / "figure.png"
    figure.write_bytes(b"png")
    tracker = open_tracker(target, TrackedRun("run", "the name"), tags={"variant": "paft"})
    tracker.log_params({"train": {"steps": 10, "betas": [0.9, 0.999]}, "model.path": "some/model"})
    for step in range(1, 2501):
        tracker.log_metrics({Metric.TRAIN_LOSS: 1 / step, "eval/accuracy/top_75": 0.5}, step)
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
    assert waiting(target) == []


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_finish_leaves_the_run_in_the_state_asked_for(target: TrackingTarget, status: str):
    tracker = open_tracker(target, TrackedRun("run", "ends"))
    tracker.finish(status)  # pyright: ignore[reportArgumentType]
    tracker.finish("FINISHED")
    assert runs(target)["run"].info.status == status


def test_resumed_run_continues_and_drops_repeated_steps(target: TrackingTarget):
    first = open_tracker(target, TrackedRun("run", "name"))
    first.log_params({"workers": 1, "seed": 0})
    for step in range(1, 8):
        first.log_metrics({Metric.TRAIN_LOSS: float(step)}, step)
    first.finish("KILLED")
    second = open_tracker(target, TrackedRun("run", "name"))
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
    open_tracker(target, TrackedRun("run", "name")).finish("FINISHED")
    again = open_tracker(target, TrackedRun("run", "name"))
    deadline = time.monotonic() + 20
    while runs(target)["run"].info.status != "RUNNING" and time.monotonic() < deadline:
        pass
    assert runs(target)["run"].info.status == "RUNNING"
    again.finish("FINISHED")


@pytest.mark.parametrize("order", ["parent first", "child first"])
def test_training_is_nested_whichever_run_is_opened_first(target: TrackingTarget, order: str):
    def parent() -> None:
        open_tracker(target, TrackedRun("run", "the run")).finish("FINISHED")

    def child() -> None:
        open_tracker(target, TrackedRun("training/paft-s0", "paft", "run")).finish("FINISHED")

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
    tracker = open_tracker(away, TrackedRun("run", "name"))
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


def test_page_of_a_run_is_that_of_its_record_and_none_where_there_is_no_record(
    target: TrackingTarget, away: TrackingTarget
):
    assert page_of(None, "run") is None
    assert page_of(target, "run") is None, "nothing is recorded yet"
    tracker = open_tracker(target, TrackedRun("run", "mine"))
    tracker.finish("FINISHED")
    info = runs(target)["run"].info
    found = page_of(target, "run")
    assert found is not None
    assert found.page.endswith(f"/#/experiments/{info.experiment_id}/runs/{info.run_id}")
    assert shlex.split(found.command)[:2] == ["mlflow", "ui"]
    assert shlex.split(found.command)[-1] == target.uri
    assert page_of(away, "run") is None


def test_absent_server_delays_no_call_and_leaves_all_in_the_log(
    away: TrackingTarget, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    started = time.perf_counter()
    tracker = open_tracker(away, TrackedRun("run", "name"))
    for step in range(2000):
        tracker.log_metrics({Metric.TRAIN_LOSS: 1.0}, step)
    called = time.perf_counter() - started
    tracker.finish("FINISHED")
    assert called < 1.0
    assert time.perf_counter() - started < 15
    assert [metrics["step"] for metrics in events(away, "metrics")] == list(range(2000))
    assert events(away, "status") == [{"status": "RUNNING"}, {"status": "FINISHED"}]


def test_log_sent_when_the_server_is_back_is_complete_and_has_nothing_twice(
    away: TrackingTarget, target: TrackingTarget, tmp_path: Path
):
    record_while_away(away, tmp_path)
    assert runs(target) == {}
    left = waiting(away)
    assert send_waiting(away).logs == 2  # the records, and the artifacts
    assert waiting(away) == left

    copies = {Path(path): Path(path).read_bytes() for path in left}
    assert send_waiting(target) is None
    assert waiting(target) == []
    for path, content in copies.items():  # as if the answer had been lost after it arrived
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert send_waiting(target) is None

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
    resumed = open_tracker(target, TrackedRun("run", "name"))
    for step in range(25, 36):
        resumed.log_metrics({Metric.TRAIN_LOSS: 1 / step}, step)
    resumed.finish("FINISHED")
    assert steps(target, "run") == list(range(1, 36))
    assert runs(target)["run"].info.status == "FINISHED"
    assert waiting(target) == []


def test_events_and_messages_of_an_absent_server_hold_no_password(
    away: TrackingTarget, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.DEBUG):
        record_while_away(away, tmp_path)
    assert all("hunter2" not in Path(path).read_text() for path in waiting(away))
    assert all("hunter2" not in r.getMessage() for r in caplog.records if "paft" in r.name)


def test_artifact_store_that_fails_holds_up_no_records(target: TrackingTarget, tmp_path: Path):
    store = tmp_path / "a file where a folder should be"
    store.write_text("")
    client = MlflowClient(tracking_uri=target.uri)
    experiment = f"broken-{uuid.uuid4().hex[:8]}"
    client.create_experiment(experiment, artifact_location=str(store))
    broken = replace(target, experiment=experiment)
    tracker = open_tracker(broken, TrackedRun("run", "name"))
    tracker.log_artifact("report.html", b"report")
    tracker.log_metrics({Metric.TRAIN_LOSS: 1.0}, 1)
    tracker.finish("FINISHED")
    again = open_tracker(broken, TrackedRun("run", "name"))
    again.log_artifact("table.json", b"table")
    again.log_metrics({Metric.TRAIN_LOSS: 1.0}, 2)
    again.finish("FINISHED")
    assert steps(broken, "run") == [1, 2]
    assert runs(broken)["run"].info.status == "FINISHED"
    assert send_waiting(broken).logs == 2  # the artifacts of two processes

    store.unlink()
    assert send_waiting(broken) is None
    assert [f.path for f in client.list_artifacts(runs(broken)["run"].info.run_id)] == [
        "report.html",
        "table.json",
    ]
    assert waiting(broken) == []


def test_runs_that_a_dead_process_left_open_end_as_killed_at_their_last_word(
    target: TrackingTarget, storage: Storage
):
    another = prepare_tracking(config(f"run-{uuid.uuid4().hex[:8]}"), storage)
    assert another is not None
    for place in (target, another):
        for key in ("run", "training/paft-s0"):
            tracker = open_tracker(place, TrackedRun(key, "name"))
            tracker.log_metrics({Metric.TRAIN_LOSS: 1.0}, 1)
            tracker.release()  # as far as MLflow knows, its process died here
    finished = open_tracker(target, TrackedRun("pool", "pool"))
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

    resumed = open_tracker(target, TrackedRun("run", "name"))
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
            tracker = open_tracker(target, TrackedRun(f"pool/{alias}", "pool"))
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


def test_database_of_another_node_is_not_created_here_and_its_events_wait(
    target: TrackingTarget, tmp_path: Path
):
    elsewhere = replace(target, uri=f"sqlite:///{tmp_path / 'not-here.db'}")
    tracker = open_tracker(elsewhere, TrackedRun("run", "name"))
    tracker.log_metrics({Metric.TRAIN_LOSS: 1.0}, 1)
    tracker.finish("FINISHED")
    assert not (tmp_path / "not-here.db").exists()
    assert send_waiting(target) is None
    assert steps(target, "run") == [1]


def test_records_that_mlflow_refuses_are_kept_and_stop_nothing(target: TrackingTarget):
    tracker = open_tracker(target, TrackedRun("run", "name"))
    tracker.log_params({"seed": 0})
    for step in (1, 2, 3):
        tracker.log_metrics({Metric.TRAIN_GRADIENT_NORM: 1.0}, step)
        if step == 2:
            tracker.log_metrics({"no @ in names": 1.0}, step)
    tracker.finish("FINISHED")
    assert runs(target)["run"].info.status == "FINISHED"
    assert runs(target)["run"].data.params == {"seed": "0"}
    assert steps(target, "run", Metric.TRAIN_GRADIENT_NORM) == [1, 2, 3]
    assert [Path(path).parent.name for path in waiting(target)] == ["refused"]
    after = open_tracker(target, TrackedRun("run", "name"))
    after.log_metrics({Metric.TRAIN_LOSS: 1.0}, 1)
    after.finish("FINISHED")
    assert steps(target, "run") == [1]
    assert send_waiting(target) is None


RECORDER = """
import pickle, sys, time
from paft_ray.tracking import TrackedRun, open_tracker
tracker = open_tracker(pickle.load(sys.stdin.buffer), TrackedRun("run", "name"))
tracker.log_params({"seed": 0})
tracker.log_artifact("notes.txt", b"outside of storage")
for step in range(1, 21):
    tracker.log_metrics({"train/loss": 1 / step}, step)
tracker.flush()
print("flushed", flush=True)
for step in range(21, 1_000_000):
    tracker.log_metrics({"train/loss": 1 / step}, step)
    time.sleep(0.01)
"""


def kill_one_that_records(target: TrackingTarget) -> None:
    """SIGKILL a process that has flushed 20 steps, while it records more."""
    process = subprocess.Popen(
        [sys.executable, "-c", RECORDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    pickle.dump(target, process.stdin)
    process.stdin.close()
    assert process.stdout.readline() == b"flushed\n"
    process.kill()
    process.wait()


@pytest.mark.parametrize("server", ["there", "away"])
def test_process_killed_leaves_all_that_it_flushed_for_the_driver_to_send(
    server: str, anywhere: TrackingTarget, closed_port: str
):
    uri = anywhere.uri if server == "there" else closed_port
    kill_one_that_records(replace(anywhere, uri=uri))
    assert send_waiting(anywhere) is None
    end_open_runs(anywhere)
    run = runs(anywhere)["run"]
    recorded = steps(anywhere, "run")
    assert recorded == list(range(1, len(recorded) + 1))
    assert len(recorded) >= 20
    assert run.data.params == {"seed": "0"}
    assert run.info.status == "KILLED"
    notes = MlflowClient(tracking_uri=anywhere.uri).download_artifacts(run.info.run_id, "notes.txt")
    assert Path(notes).read_text() == "outside of storage"
    assert waiting(anywhere) == []


def test_worker_killed_is_continued_by_its_successor_with_no_step_lost_or_twice(
    anywhere: TrackingTarget,
):
    kill_one_that_records(anywhere)
    resumed = open_tracker(anywhere, TrackedRun("run", "name"))
    for step in range(16, 31):  # it goes on from the checkpoint of step 15
        resumed.log_metrics({Metric.TRAIN_LOSS: 1 / step}, step)
    resumed.finish("FINISHED")
    recorded = steps(anywhere, "run")
    assert recorded == list(range(1, len(recorded) + 1))
    assert len(recorded) >= 30
    assert send_waiting(anywhere) is None
    assert steps(anywhere, "run") == recorded
    assert runs(anywhere)["run"].info.status == "FINISHED"
    end_open_runs(anywhere)
    assert runs(anywhere)["run"].info.status == "FINISHED"
    assert waiting(anywhere) == []


def test_metric_is_on_storage_within_5_s_while_the_server_is_away(
    anywhere: TrackingTarget, closed_port: str
):
    tracker = open_tracker(replace(anywhere, uri=closed_port), TrackedRun("run", "name"))
    began = time.monotonic()
    tracker.log_metrics({Metric.TRAIN_LOSS: 1.0}, 1)
    while not events(anywhere, "metrics"):
        assert time.monotonic() - began < 5
    tracker.finish("FINISHED")


def test_log_of_a_live_process_on_an_object_store_keeps_only_what_is_not_sent(
    anywhere: TrackingTarget,
):
    tracker = open_tracker(anywhere, TrackedRun("run", "name"))
    for step in range(1, 6):
        tracker.log_metrics({Metric.TRAIN_LOSS: 1.0}, step)
        tracker.flush()
    deadline = time.monotonic() + 30
    while len(waiting(anywhere)) != 2:  # the last file, and the offset
        assert time.monotonic() < deadline
    assert steps(anywhere, "run") == [1, 2, 3, 4, 5]
    tracker.finish("FINISHED")
    assert waiting(anywhere) == []


@pytest.mark.slow
def test_large_log_is_many_files_of_which_all_arrive(away: TrackingTarget, target: TrackingTarget):
    tracker = open_tracker(away, TrackedRun("run", "name"))
    for part in range(3):
        tracker.set_tags({f"part-{part}-{tag}": 4900 * "x" for tag in range(300)})
        tracker.flush()
    tracker.finish("FINISHED")
    assert len([path for path in waiting(away) if path.endswith(".jsonl")]) > 1
    assert send_waiting(target) is None
    assert len([t for t in runs(target)["run"].data.tags if t.startswith("part-")]) == 900


def test_line_cut_off_by_a_kill_is_left_out_and_what_stands_before_it_arrives(
    away: TrackingTarget, target: TrackingTarget
):
    tracker = open_tracker(away, TrackedRun("run", "name"))
    tracker.log_metrics({Metric.TRAIN_LOSS: 1.0}, 1)
    tracker.flush()
    [log] = [Path(path) for path in waiting(away)]
    log.write_bytes(log.read_bytes() + b'{"kind": "metrics", "payload": {"st')
    assert send_waiting(target) is None
    assert steps(target, "run") == [1]


def test_damaged_log_stays_where_it_is_and_stops_nothing(
    away: TrackingTarget, target: TrackingTarget
):
    for key in ("one", "two"):
        tracker = open_tracker(away, TrackedRun(key, "name"))
        tracker.log_metrics({Metric.TRAIN_LOSS: 1.0}, 1)
        tracker.finish("FINISHED")
    first, second = (Path(path) for path in waiting(away))
    first.write_bytes(first.read_bytes()[5:])
    assert send_waiting(target) is None
    end_open_runs(target)
    assert list(runs(target)) == ["two"]
    assert waiting(target) == [str(first)]
    assert second != first


def test_storage_that_fails_loses_only_what_its_buffer_cannot_hold_and_says_how_much(
    target: TrackingTarget,
):
    obstacle = Path(target.run_logs(f"{target.identity}/run").root)
    obstacle.write_text("a file where a folder should be")
    tracker = open_tracker(target, TrackedRun("run", "name"))
    for step in range(10_010):
        tracker.log_metrics({Metric.TRAIN_LOSS: 1.0}, step)
    with pytest.raises(OSError):
        tracker.flush()
    obstacle.unlink()
    tracker.finish("FINISHED")
    assert send_waiting(target) is None
    assert steps(target, "run") == list(range(9_999))  # the first event was the state
    assert runs(target)["run"].data.tags["paft.lost_records"] == "11"
    assert runs(target)["run"].info.status == "FINISHED"


class StuckStorage(FSSpecHandler):
    """An object store whose writes hang until `gate` is open."""

    def __init__(self, gate: threading.Event) -> None:
        super().__init__(fsspec.filesystem("memory"))
        self.gate = gate

    def open_output_stream(self, path, metadata):
        assert self.gate.wait(60)
        return super().open_output_stream(path, metadata)


def test_storage_that_hangs_delays_no_step(target: TrackingTarget):
    gate = threading.Event()
    stuck = Storage(PyFileSystem(StuckStorage(gate)), f"/{uuid.uuid4().hex}")
    hanging = replace(target, storage=stuck, logs=stuck.child("events"))
    tracker = open_tracker(hanging, TrackedRun("run", "name"))
    flush = threading.Thread(target=tracker.flush)
    flush.start()
    began = time.monotonic()
    for step in range(1000):
        tracker.log_metrics({Metric.TRAIN_LOSS: 1.0}, step)
    assert time.monotonic() - began < 1
    assert flush.is_alive()
    gate.set()
    flush.join()
    tracker.finish("FINISHED")
    assert send_waiting(hanging) is None
    assert steps(target, "run") == list(range(1000))


def test_run_of_an_earlier_version_is_continued_and_its_spool_sent(storage: Storage):
    name = f"run-{uuid.uuid4().hex[:8]}"
    spool = storage.child("runs", name, "spool")
    spool.write_json("identity.json", {"id": "0123456789abcdef"})
    run = {
        "key": "0123456789abcdef/training/paft-s0", "name": "paft", "parent_key": None,
        "tags": {"paft.variant": "paft"}, "started_ms": 1_700_000_000_000,
    }  # fmt: skip
    nothing = {"params": {}, "metrics": [], "tags": {}, "artifacts": {}, "versions": {}}
    folder = spool.child("training-paft-s0-8d2a1c0f")
    rows = [["train/loss", 1 / step, 1_700_000_000_000 + step, step] for step in range(1, 21)]
    spool.child("training-paft-s0-8d2a1c0f", "files").write_bytes("00-0", b"card")
    folder.write_json(
        "01700000000000000001.json",
        {
            "run": run, **nothing, "params": {"seed": "0"}, "metrics": rows,
            "status": "KILLED", "ended_ms": 1_700_000_001_000,
        },
    )  # fmt: skip
    artifacts = {"adapter/README.md": folder.path("files/00-0")}
    folder.write_json(
        "01700000000000000001.artifacts.json",
        {"run": run, **nothing, "artifacts": artifacts, "status": None, "ended_ms": None},
    )
    target = prepare_tracking(config(name), storage)
    assert target is not None
    assert target.identity == "0123456789abcdef"
    assert send_waiting(target) is None
    found = runs(target)["training/paft-s0"]
    assert found.info.status == "KILLED"
    assert found.info.end_time == 1_700_000_001_000
    assert found.data.params == {"seed": "0"}
    assert steps(target, "training/paft-s0") == list(range(1, 21))
    card = MlflowClient(tracking_uri=target.uri).download_artifacts(
        found.info.run_id, "adapter/README.md"
    )
    assert Path(card).read_text() == "card"
    assert [n for n in folder.names() if n.endswith(".json")] == []
    resumed = open_tracker(target, TrackedRun("training/paft-s0", "paft"))
    resumed.finish("FINISHED")
    assert runs(target)["training/paft-s0"].info.status == "FINISHED"
    storage.delete(f"runs/{name}")
