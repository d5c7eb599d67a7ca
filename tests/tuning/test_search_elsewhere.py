"""Whole searches with their parts elsewhere: MLflow behind a password, trials on two nodes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from small_search import left_of, marked, paft

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

USER, PASSWORD = "searcher", "a-passphrase-for-the-test"


class AuthServer:
    """`mlflow server` over sqlite that asks for a name and password; can go and come back."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()
        (folder / "auth.ini").write_text(
            "[mlflow]\ndefault_permission = READ\n"
            f"database_uri = sqlite:///{folder / 'auth.db'}\n"
            f"admin_username = {USER}\nadmin_password = {PASSWORD}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
            encoding="utf-8",
        )

    def start(self) -> None:
        """Start, and return when it answers."""
        command = [
            sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth",
            "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}",
            "--artifacts-destination", str(self._folder / "artifacts"),
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command,
            env={
                **os.environ,
                "MLFLOW_AUTH_CONFIG_PATH": str(self._folder / "auth.ini"),
                "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-the-test",
            },
            cwd=self._folder,
            stdout=(self._folder / "server.log").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            assert time.monotonic() < deadline, "the server never answered"
            time.sleep(0.2)

    def kill(self) -> None:
        """End it with all its workers, as a machine that fails does."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                return True
        except (urllib.error.URLError, OSError):
            return False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AuthServer]:
    server = AuthServer(tmp_path / "server")
    server.start()
    yield server
    server.kill()


def run_of(folder: Path) -> Path:
    return folder / "storage" / "runs" / "searched"


def wait_until(
    process: subprocess.Popen[str], done: Callable[[], Any], patience_s: float = 240
) -> Any:
    """What `done` says when it says something, while the process lives."""
    deadline = time.monotonic() + patience_s
    while not (found := done()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.1)
    return found


def test_no_metric_is_missing_after_a_minute_without_the_server(
    make_config, mark, tmp_path, server, monkeypatch
) -> None:
    """The server asks for a password, is killed in the second trial, and comes back a minute on."""
    path, _ = make_config(scheduler={"type": "none"}, concurrency=1)
    run = run_of(tmp_path)
    known = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    process = paft(
        mark, tmp_path, "tune", str(path), f"tracking.uri={server.uri}", "--json", **known
    )
    second = run / "training" / "trial_001-s0" / "validation"
    wait_until(process, lambda: list(second.glob("step-*.json")))
    server.kill()
    time.sleep(60)
    server.start()
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, out + err
    result = json.loads(out)
    assert left_of(mark) == []

    for name, value in known.items():
        monkeypatch.setenv(name, value)
    client = MlflowClient(tracking_uri=server.uri)
    [experiment] = [e for e in client.search_experiments() if e.name == "paft"]
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    steps = list(range(1, 41))
    for trial in result["trials"]:
        run_id = runs[f"trial_{trial['number']:03d} of searched"].info.run_id
        losses = client.get_metric_history(run_id, "train/loss")
        assert sorted(entry.step for entry in losses) == steps
        figures = client.get_metric_history(run_id, "validation/accuracy/p05")
        assert {entry.step: entry.value for entry in figures} == {
            report["step"]: pytest.approx(report["goal"]) for report in trial["reports"]
        }
    [finalist] = result["finalists"]
    losses = client.get_metric_history(
        runs[f"{finalist['label']}-s1 trained in searched"].info.run_id, "train/loss"
    )
    assert sorted(entry.step for entry in losses) == steps

    for file in (tmp_path / "storage").rglob("*"):
        if file.is_file():
            assert PASSWORD.encode() not in file.read_bytes(), file


def test_wrong_password_is_said_and_the_search_goes_on(make_config, mark, tmp_path, server) -> None:
    """What cannot be sent waits in event logs; the result does not depend on it."""
    path, _ = make_config(scheduler={"type": "none"}, trials=1)
    known = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": "wrong"}
    process = paft(mark, tmp_path, "tune", str(path), f"tracking.uri={server.uri}", **known)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, out + err
    assert "tracking" in out and "event logs wait" in out, out
    assert list((run_of(tmp_path) / "events").rglob("*.jsonl"))


@pytest.fixture
def two_nodes(monkeypatch) -> Iterator[tuple[str, str]]:
    """The address of a cluster of two nodes with two CPUs each, and its processes' mark."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PAFT_TEST_MARK", mark_of_nodes := "nodes-" + os.urandom(8).hex())
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    cluster.add_node(num_cpus=2)
    yield cluster.address, mark_of_nodes
    cluster.shutdown()


OF_RAY_ITSELF = (
    "ray::IDLE", "ray::Dashboard", "ray::RuntimeEnv",
    # Ray Data's, one for a cluster, which stay for the next job
    "ray::_AutoscalingCoordinatorActor", "ray::_StatsActor", "ray::ActorLocationTracker",
)  # fmt: skip


def at_work(mark: str) -> set[str]:
    """Titles of a cluster's processes that hold an actor or a task of a job."""
    titles = {line.strip() for line in marked(mark) if line.startswith("ray::")}
    return {title for title in titles if not title.startswith(OF_RAY_ITSELF)}


def test_eight_trials_share_two_nodes(make_config, mark, tmp_path, two_nodes) -> None:
    address, nodes = two_nodes
    path, _ = make_config(
        space={"train.learning_rate": {"type": "loguniform", "low": 1e-4, "high": 1e-2}},
        trials=8, scheduler={"type": "median", "grace_reports": 1},
    )  # fmt: skip
    process = paft(mark, tmp_path, "tune", str(path), "--json", RAY_ADDRESS=address)

    def workers() -> list[str]:
        return [line for line in marked(nodes) if line.startswith("ray::RayTrainWorker")]

    # more workers of one CPU each than a node has
    wait_until(process, lambda: len(workers()) > 2, 300)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    trials = json.loads(out)["trials"]
    assert len(trials) == 8
    assert {trial["state"] for trial in trials} <= {"finished", "stopped"}
    assert left_of(mark) == []
    deadline = time.monotonic() + 60
    while (left := at_work(nodes)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == set()
