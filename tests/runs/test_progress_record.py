"""How far a run is, kept on its storage."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from paft_ray.runs import progress_record as module
from paft_ray.runs.progress import SilentScreen, Stage
from paft_ray.runs.progress_record import PROGRESS, RecordingScreen, read_progress
from paft_ray.storage.paths import Storage


class CountingScreen(SilentScreen):
    """Counts how often its stages change."""

    changes = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        def changed() -> None:
            self.changes += 1

        yield Stage(name, changed=changed)


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return Storage.open(str(tmp_path / "run"))


def states(folder: Storage) -> list[tuple[str, str, int, int | None]]:
    record = read_progress(folder)
    assert record is not None
    return [(stage.name, stage.state, stage.done, stage.total) for stage in record.stages]


def test_stage_at_work_is_on_storage_and_still_shown(
    folder: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EVERY_S", 0)
    shown = CountingScreen()
    screen = RecordingScreen(shown, folder)
    with screen.stage("prompt pool") as stage:
        stage.finish("12 prompts")
    with screen.stage("train paft") as stage:
        stage.expect(150)
        stage.reach(62)
        assert states(folder) == [
            ("prompt pool", "done", 0, None),
            ("train paft", "running", 62, 150),
        ]
    assert states(folder)[1][1] == "done"
    assert shown.changes == 2
    record = read_progress(folder)
    assert record is not None and record.stages[0].outcome == "12 prompts"


def test_changes_are_written_every_few_seconds_only(folder: Storage) -> None:
    screen = RecordingScreen(SilentScreen(), folder)
    with screen.stage("evaluate") as stage:
        stage.expect(10_000)
        for _ in range(5_000):
            stage.advance()
        assert states(folder) == [("evaluate", "running", 0, None)]  # as it began


def test_stage_that_ends_in_an_error_is_said_to_have_stopped(folder: Storage) -> None:
    screen = RecordingScreen(SilentScreen(), folder)
    with pytest.raises(KeyboardInterrupt), screen.stage("train paft") as stage:
        stage.expect(4)
        stage.advance()
        raise KeyboardInterrupt
    assert states(folder) == [("train paft", "stopped", 1, 4)]


def test_work_goes_on_where_storage_does_not_take_it(folder: Storage) -> None:
    Path(folder.path(PROGRESS)).mkdir(parents=True)
    with RecordingScreen(SilentScreen(), folder).stage("train paft") as stage:
        stage.advance()
    assert stage.done == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"written": "now", "stages": [{"name": "x"}]}'])
def test_damaged_record_is_none(text: str, folder: Storage) -> None:
    assert read_progress(folder) is None
    folder.write_bytes(PROGRESS, text.encode())
    assert read_progress(folder) is None
