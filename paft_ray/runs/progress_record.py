"""How far a run is, kept on its storage, so that any machine that sees it can say so.

The file holds what the screen of the process at work shows: its stages, with what is done of each.
It is replaced every few seconds while work goes on. A process that continues a run starts it anew.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Literal

from rich.console import RenderableType

from paft_ray.config.errors import ArtifactError, DiskFullError
from paft_ray.runs.progress import Screen, Stage
from paft_ray.storage.paths import Storage

logger = logging.getLogger(__name__)

PROGRESS = "progress.json"
"""File of a run's folder."""
_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage of a run's newest attempt."""

    name: str
    state: Literal["running", "done", "stopped"]
    done: int
    """Units of work: requests, steps, answers, trials."""
    total: int | None
    outcome: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ProgressRecord:
    """The stages of a run's newest attempt, and when this was written."""

    written: str
    """Date and time in UTC, by the clock of the process at work."""
    stages: tuple[StageRecord, ...]


@dataclass
class _Kept:
    stage: Stage
    over: StageRecord | None = None
    """Set when the stage has ended."""

    def record(self, state: Literal["running", "done", "stopped"] = "running") -> StageRecord:
        stage = self.stage
        seconds = round(stage.seconds, 1)
        return StageRecord(stage.name, state, stage.done, stage.total, stage.outcome, seconds)


@dataclass
class RecordingScreen:
    """Shows what another screen shows, and keeps the stages in a run's folder."""

    screen: Screen
    folder: Storage
    _stages: list[_Kept] = field(default_factory=list)
    _written_s: float = -_EVERY_S

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Show a stage, and keep how far it is."""
        with self.screen.stage(name) as stage:
            kept, shown = _Kept(stage), stage.changed

            def changed() -> None:
                shown()
                if time.monotonic() - self._written_s >= _EVERY_S:
                    self._write()

            stage.changed = changed
            self._stages.append(kept)
            self._write()
            try:
                yield stage
            except BaseException:
                kept.over = kept.record("stopped")
                raise
            else:
                kept.over = kept.record("done")
            finally:
                self._write()

    def line(self, text: str) -> None:
        """Show one line."""
        self.screen.line(text)

    def live(self, draw: Callable[[], RenderableType]) -> AbstractContextManager[object]:
        """Show something that is redrawn."""
        return self.screen.live(draw)

    def _write(self) -> None:
        """Write the file; work goes on where storage does not take it."""
        self._written_s = time.monotonic()
        stages = tuple(kept.over or kept.record() for kept in self._stages)
        record = ProgressRecord(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}", stages)
        try:
            self.folder.write_json(PROGRESS, asdict(record))
        except (OSError, DiskFullError) as error:
            logger.warning("%s not written: %s", self.folder.path(PROGRESS), error)


def read_progress(folder: Storage) -> ProgressRecord | None:
    """The progress of the run in a folder; None where none was kept, or it cannot be read."""
    if not folder.exists(PROGRESS):
        return None
    try:
        tree = folder.read_json(PROGRESS)
        return ProgressRecord(str(tree["written"]), _stages(tree["stages"]))
    except (ArtifactError, KeyError, TypeError):
        return None


def _stages(trees: Sequence[dict[str, object]]) -> tuple[StageRecord, ...]:
    return tuple(StageRecord(**tree) for tree in trees)  # pyright: ignore[reportArgumentType]
