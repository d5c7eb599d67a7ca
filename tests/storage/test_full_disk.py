"""A real disk without space: which one is named, what to do, and what is kept."""

import errno
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from paft_ray.cli import call
from paft_ray.config.errors import DiskFullError, PaftError
from paft_ray.config.loading import load_config
from paft_ray.pipeline.perform import open_context
from paft_ray.prompts.build import build_prompt_pool
from paft_ray.prompts.generate.completions import Completion
from paft_ray.prompts.generate.kept_answers import Answers
from paft_ray.storage.full_disk import disk_full, naming_full_disk
from paft_ray.storage.lock import lock
from paft_ray.storage.paths import Storage
from paft_ray.tracking.event_log import EventLog, RunRef
from paft_ray.training.state.retries import retry_storage


def fill(disk: Path, leave: int = 0) -> Path:
    """Take all space of a disk but some bytes; the file that takes it."""
    file = disk / "other-file"
    with file.open("wb", buffering=0) as stream:
        try:
            while stream.write(b"x" * 4096) == 4096:
                pass
        except OSError:
            pass
        stream.truncate(max(0, stream.tell() - leave))
    return file


def test_storage_names_the_folder_and_what_to_do_and_keeps_what_was_there(small_disk: Path) -> None:
    folder = Storage.open(str(small_disk)).child("pools", "x")
    folder.write_bytes("a", b"before")
    fill(small_disk)
    with pytest.raises(DiskFullError) as caught:
        folder.write_bytes("a", b"x" * 100_000)
    said = str(caught.value)
    assert f"{small_disk}/pools/x: no space is left there" in said
    assert "free some, or name another storage" in said
    assert folder.read_bytes("a") == b"before"
    assert [path.name for path in Path(folder.path()).iterdir()] == ["a"], (
        "a piece of the file is still there"
    )
    assert isinstance(caught.value, OSError), "who waits for storage would not wait for this"
    assert str(pickle.loads(pickle.dumps(caught.value))) == said


def test_training_that_tried_several_times_says_it_once(small_disk: Path) -> None:
    folder = Storage.open(str(small_disk))
    fill(small_disk)
    with pytest.raises(PaftError) as caught:
        retry_storage(
            lambda: folder.write_bytes("a", b"x" * 5000), "writing it", folder.path(), (0,)
        )
    said = str(caught.value)
    assert "failed 2 times" in said
    assert "No space left on device" in said
    assert said.count("free") == 1


@pytest.mark.parametrize("write", ["answers", "events", "lock"])
def test_whatever_is_appended_beside_storage_names_it_too(small_disk: Path, write: str) -> None:
    folder = Storage.open(str(small_disk)).child("home")
    fill(small_disk)
    with pytest.raises(DiskFullError, match=rf"^{small_disk}/home: no space"):
        if write == "answers":
            answer = Completion("id", "x" * 100_000, None, 200, 1, 0.1)
            Answers(folder, "unit").add([answer])
        elif write == "events":
            log = EventLog(folder, folder, RunRef("key", "name", None, {}, 0))
            log.add("tags", {"a": "b"})
            log.flush()
        else:
            with lock(folder, "it"):
                pass


def test_command_ends_with_1_names_the_disk_and_goes_on_when_there_is_space(
    small_run: dict[str, Any], small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = small_disk.parent / "config.yaml"
    path.write_text(yaml.safe_dump(small_run))
    build_prompt_pool(open_context(load_config(str(path))))
    other = fill(small_disk)
    order = ["export", str(path), "--lm-eval", "--out", str(small_disk / "out")]
    assert call(order) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {small_disk}/out: no space is left there: free some")
    other.unlink()
    assert call(order) == 0


@pytest.mark.slow
def test_command_whose_log_finds_no_space_ends_the_same_way(
    small_run: dict[str, Any], small_disk: Path
) -> None:
    small_run["storage"] = str(small_disk / "storage")
    path = small_disk.parent / "config.yaml"
    path.write_text(yaml.safe_dump(small_run))
    build_prompt_pool(open_context(load_config(str(path))))
    fill(small_disk)
    order = [sys.executable, "-m", "paft_ray.cli", "export", str(path), "--lm-eval", "--json"]
    done = subprocess.run(order, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == "", "what belongs to the log came to the result"
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: {small_disk}/storage/runs/small")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "place", "found"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/ray/log.txt"), "/ray", "no space"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "/temp", "no space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "/temp", "your quota is used up"),
    ],
)
def test_unexpected_errors_of_libraries_are_known(
    error: Exception, place: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/temp")
    outer = RuntimeError("something failed")
    outer.__cause__ = error
    assert str(disk_full(outer)).startswith(f"{place}: {found}")


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), naming_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert disk_full(OSError(errno.EIO, "Input/output error")) is None
