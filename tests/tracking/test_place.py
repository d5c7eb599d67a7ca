"""Where runs are recorded, and stores that take no records until somebody does something."""

import json
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from paft_ray.config import Config
from paft_ray.config.errors import ConfigError
from paft_ray.storage.paths import Storage
from paft_ray.tracking import (
    TrackedRun,
    check_tracking,
    open_tracker,
    prepare_tracking,
    reach_server,
    send_waiting,
    tracking_place,
    tracking_server,
)
from paft_ray.tracking.event_log import Event, RunRef
from paft_ray.tracking.place import sqlite_path, sqlite_uri

ODD = "runs 100%25 [#1]? & 'x'"


def config(**tracking: str) -> Config:
    return Config.model_validate(
        {
            "name": "placed",
            "task": {"type": "builtin", "name": "sst2"},
            "prompts": {"files": ["prompts.txt"]},
            "model": {"path": "some/model"},
            "train": {"steps": 10},
            "tracking": tracking,
        }
    )


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A store that MLflow's own variables name."""
    uri = sqlite_uri(tmp_path / "team.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team")
    return uri


def test_variables_of_mlflow_are_honoured_unless_the_configuration_says_otherwise(
    team: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage.open(str(tmp_path / "storage"))
    place = tracking_place(config().tracking, storage)
    assert place is not None
    assert (place.uri, place.experiment) == (team, "team")
    assert place.variables == ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")
    own = tracking_place(config(uri="http://host:5000", experiment="own").tracking, storage)
    assert own is not None
    assert (own.uri, own.experiment, own.variables) == ("http://host:5000", "own", ())
    assert tracking_place(config(type="none").tracking, storage) is None
    assert tracking_server(config().tracking) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team:5000")
    assert tracking_server(config().tracking) == "http://team:5000"
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(name, " ")
    local = tracking_place(config().tracking, storage)
    assert local is not None
    assert (local.uri, local.experiment) == (f"sqlite:///{storage.root}/mlflow.db", "paft")


@given(st.text("ab /%?#[]&='\"ü:@+", min_size=1, max_size=12))
def test_every_file_has_a_uri_that_names_it(name: str) -> None:
    path = Path("/data", f"x{name}y")
    assert sqlite_path(sqlite_uri(path)) == path


def test_database_of_an_odd_name_keeps_its_records_and_what_is_elsewhere_stays_there(
    tmp_path: Path,
) -> None:
    """One test, because it takes seconds to create a database."""
    storage = Storage.open(str(tmp_path / ODD))
    target = prepare_tracking(config(), storage)
    assert target is not None
    database = tmp_path / ODD / "mlflow.db"
    assert database.is_file()
    tracker = open_tracker(target, TrackedRun("run", "a"))
    tracker.log_artifact("a/b.txt", b"content")
    tracker.finish("FINISHED")
    assert send_waiting(target) is None
    client = MlflowClient(tracking_uri=sqlite_uri(database))
    experiment = client.get_experiment_by_name("paft")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    [artifact] = client.list_artifacts(run.info.run_id, "a")
    assert artifact.path == "a/b.txt"
    assert (database.with_name("mlartifacts") / run.info.run_id / "artifacts/a/b.txt").is_file()

    (tmp_path / "secret").write_text("x")
    for number, path in enumerate((f"{storage.root}/../secret", str(tmp_path / "secret"))):
        header = asdict(
            Event("run", asdict(RunRef(run.data.tags["paft.key"], "a", None, {}, 1)), 1)
        )
        event = asdict(Event("artifact", {"name": f"a/{number}", "path": path}, 1))
        lines = "".join(json.dumps(line) + "\n" for line in (header, event))
        target.run_logs("x/run").child(f"{number}-artifacts").write_bytes(
            "000000.jsonl", lines.encode()
        )
    assert send_waiting(target) is None
    assert len(client.list_artifacts(run.info.run_id, "a")) == 1

    older = with_schema(database, tmp_path / "older 100%", "7f2a7d5fae7d")
    with pytest.raises(ConfigError, match=r"mlflow db upgrade 'sqlite:////.*/older 100%25/mlflow"):
        prepare_tracking(config(), older)
    stale = replace(target, uri=sqlite_uri(Path(older.path("mlflow.db"))))
    open_tracker(stale, TrackedRun("late", "b")).finish("FINISHED")
    waiting = send_waiting(stale)
    assert waiting is not None and waiting.logs >= 1
    assert waiting.reason is not None and "mlflow db upgrade" in waiting.reason

    newer = with_schema(database, tmp_path / "newer", "ffffffffffff")
    with pytest.raises(ConfigError, match="a newer MLflow than the one installed") as caught:
        prepare_tracking(config(), newer)
    assert "upgrade`" not in str(caught.value), "MLflow knows no way from there"
    cut = with_schema(database, tmp_path / "cut", "7f2a7d5fae7d")
    for size in (20, 1000, database.stat().st_size // 2):
        Path(cut.path("mlflow.db")).write_bytes(database.read_bytes()[:size])
        with pytest.raises(ConfigError, match=r"/cut/mlflow\.db is no whole .* put a copy"):
            prepare_tracking(config(), cut)


def with_schema(database: Path, folder: Path, revision: str) -> Storage:
    """A storage with a copy of a database, as another version of MLflow would have left it.

    MLflow keeps the first one open.
    """
    folder.mkdir()
    shutil.copy(database, folder / "mlflow.db")
    with sqlite3.connect(folder / "mlflow.db") as connection:
        connection.execute("update alembic_version set version_num = ?", [revision])
    return Storage.open(str(folder))


def test_name_of_an_experiment_that_mlflow_does_not_take_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    check_tracking(config(experiment="e" * 500).tracking)
    with pytest.raises(ConfigError, match=r"^tracking.experiment has 501 .* at most 500 .*shorten"):
        check_tracking(config(experiment="e" * 501).tracking)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "e" * 600)
    with pytest.raises(ConfigError, match=r"^MLFLOW_EXPERIMENT_NAME has 600 characters"):
        check_tracking(config().tracking)
    check_tracking(config(experiment="mine").tracking)
    check_tracking(config(type="none").tracking)


@pytest.fixture
def answering() -> Iterator[tuple[str, list[int]]]:
    """A server with a password in its address, and the code with which it answers."""
    code = [404]

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(code[0])
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *values: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://me:hunter2@127.0.0.1:{server.server_port}", code
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (401, "set MLFLOW_TRACKING_USERNAME"),
        (403, "lets this user write nothing there"),
        (404, "no MLflow server: mend the address"),
    ],
)
def test_server_that_refuses_is_not_called_away(
    answering: tuple[str, list[int]], code: int, remedy: str
) -> None:
    uri, answer = answering
    answer[0] = code
    reason = reach_server(uri)
    assert reason is not None and remedy in reason and "would wait" not in reason
    assert "hunter2" not in reason and "\n" not in reason
