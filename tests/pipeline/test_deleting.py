"""`paft delete RUN`: what goes, what stays, and what is refused; no Ray."""

import io
import json
import shutil
from pathlib import Path

import pytest

from paft_ray.cli import call
from paft_ray.config.errors import ConfigError
from paft_ray.pipeline.deleting import plan_deletion
from paft_ray.runs.progress import SilentScreen
from paft_ray.runs.progress_record import RecordingScreen
from paft_ray.storage.lock import lock
from paft_ray.storage.paths import Storage

STORED = Path(__file__).parents[1] / "fixtures/stored_run/storage/runs"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A run with a further evaluation, another run, and things that runs share."""
    folder = tmp_path / "storage"
    for name in ("from-files", "searched"):
        shutil.copytree(STORED / name, folder / "runs" / name)
    more = folder / "runs/from-files/evaluations/more"
    more.mkdir(parents=True)
    (more / "config.json").write_bytes((folder / "runs/from-files/config.json").read_bytes())
    for shared in ("pools/p", "generations/g", "models/m"):
        (folder / shared).mkdir(parents=True)
        (folder / shared / "file").write_text("x")
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_run_goes_with_its_evaluations_and_what_runs_share_stays(
    storage: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = files(storage)
    of_run = {name for name in before if name.startswith("runs/from-files/")}
    size = sum((storage / name).stat().st_size for name in of_run)
    names = ["from-files", "from-files/more"]  # which is in it
    assert call(["delete", *names, f"storage={storage}", "--yes", "--json"]) == 0
    out, err = capfd.readouterr()
    [run] = json.loads(out)["runs"]
    assert (run["files"], run["bytes"]) == (len(of_run), size)
    assert f"{storage}/runs/from-files: {len(of_run)} files" in err
    assert "trained weights and checkpoints" in err and "further evaluations" in err
    assert files(storage) == before - of_run
    assert not (storage / "runs/from-files").exists()


def test_evaluation_goes_alone(storage: Path) -> None:
    before = files(storage)
    assert call(["delete", "from-files/more", f"storage={storage}", "--yes"]) == 0
    assert files(storage) == before - {"runs/from-files/evaluations/more/config.json"}


def test_nothing_goes_where_nobody_says_so(
    storage: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, command = files(storage), ["delete", "from-files", f"storage={storage}"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert call(command) == 2
    out, err = capfd.readouterr()
    assert "pass --yes" in err and "runs/from-files: " in out

    class Person(io.StringIO):
        def isatty(self) -> bool:
            return True

    for answer in ("\n", "no\n", ""):
        monkeypatch.setattr("sys.stdin", Person(answer))
        assert call(command) == 0
        assert "nothing is removed" in capfd.readouterr().out
    assert files(storage) == before
    monkeypatch.setattr("sys.stdin", Person("y\n"))
    assert call(command) == 0
    assert "deleted: from-files" in capfd.readouterr().out
    assert not (storage / "runs/from-files").exists()


@pytest.mark.parametrize("part", ["", "/evaluations/more"])
def test_run_in_which_a_process_is_at_work_is_kept(part: str, storage: Path) -> None:
    opened = Storage.open(str(storage))
    before = files(storage)
    with (
        lock(Storage.open(f"{storage}/runs/from-files{part}"), "run"),
        pytest.raises(ConfigError, match=r"from-files: process .* is at work in from-files"),
    ):
        plan_deletion(opened, ["from-files"])
    assert files(storage) >= before
    planned = plan_deletion(opened, ["from-files"])
    with (
        lock(Storage.open(f"{storage}/runs/from-files"), "run"),
        pytest.raises(ConfigError, match="is in use by process"),
    ):
        planned.perform()  # it began to work after the look
    assert files(storage) >= before


@pytest.mark.parametrize(
    "path",
    [
        "storage/runs/from-files/training/paft-s0/adapter",
        "/elsewhere/runs/from-files/training/paft-s0/adapter",
        "s3://bucket/paft/runs/from-files/",
    ],
)
def test_run_of_which_another_one_uses_a_file_goes_with_that_one_only(
    path: str, storage: Path
) -> None:
    record = storage / "runs/searched/config.json"
    tree = json.loads(record.read_text())
    tree["config"]["train"]["warm_start"] = path
    record.write_text(json.dumps(tree))
    opened = Storage.open(str(storage))
    with pytest.raises(ConfigError, match=f"from-files: run searched uses {path}"):
        plan_deletion(opened, ["from-files"])
    plan_deletion(opened, ["from-files", "searched"]).perform()
    assert list((storage / "runs").iterdir()) == []
    shared = {"pools/p/file", "generations/g/file", "models/m/file"}
    assert files(storage) == shared


def test_run_whose_name_begins_alike_does_not_count(storage: Path) -> None:
    record = storage / "runs/searched/config.json"
    tree = json.loads(record.read_text())
    tree["config"]["train"]["warm_start"] = "storage/runs/from-files-2/training/paft-s0/adapter"
    record.write_text(json.dumps(tree))
    assert plan_deletion(Storage.open(str(storage)), ["from-files"]).runs[0].name == "from-files"


def test_names_that_are_not_there_exit_2(storage: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = files(storage)
    for names in (["from-files", "nothing"], [], ["../pools"]):
        assert call(["delete", *names, f"storage={storage}", "--yes"]) == 2
        assert capfd.readouterr().err.startswith("error: ")
    assert files(storage) == before


@pytest.mark.slow
def test_run_on_an_object_store_says_how_far_it_is_and_is_deleted(
    s3: str, storage: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    location = f"s3://paft/deleting?endpoint_override={s3}&scheme=http"
    remote, before = Storage.open(location), files(storage)
    for name in before:
        remote.write_bytes(name, (storage / name).read_bytes())
    command = ["from-files", f"storage={location}"]
    folder = remote.child("runs", "from-files")
    remote.delete("runs/from-files/manifest.json")
    with RecordingScreen(SilentScreen(), folder).stage("train paft") as stage:
        stage.expect(4)
    assert call(["status", *command]) == 0
    assert "train paft  done: 0 of 4" in capfd.readouterr().out
    with lock(folder, "run"):
        assert call(["delete", *command, "--yes"]) == 2
        assert "is at work in from-files" in capfd.readouterr().err
    assert call(["delete", *command, "--yes"]) == 0
    kept = {name for name in before if not name.startswith("runs/from-files/")}
    assert all(remote.exists(name) for name in kept)
    assert remote.child("runs").names() == ["searched"]
    gone = "storage=s3://paft/x?endpoint_override=127.0.0.1:1&scheme=http&region=x"
    assert call(["delete", "from-files", gone, "--yes"]) == 2
    assert "storage: s3://paft/x" in capfd.readouterr().err
