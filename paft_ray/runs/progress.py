"""Progress for people: a line per stage, and a bar where the output is a terminal.

Library functions report to a `Screen`; the default is silent, the CLI passes a `RichScreen`.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from paft_ray.config.visible import visible

_MOST = 200
"""Most characters of a text in a line."""


_QUIET_S = 60.0
"""Seconds that a file, which shows no bar, goes without a line about a stage."""


@dataclass
class Stage:
    """A running stage, with its progress and outcome."""

    name: str
    started: float = field(default_factory=time.perf_counter)
    done: int = 0
    total: int | None = None
    outcome: str = ""
    changed: Callable[[], object] = lambda: None
    """Called after every change of `done` and `total`."""

    @property
    def seconds(self) -> float:
        """Seconds since the stage began."""
        return time.perf_counter() - self.started

    def expect(self, total: int) -> None:
        """Set how many units of work there are."""
        self.total = total
        self.changed()

    def advance(self, units: int = 1) -> None:
        """Add units that are done."""
        self.reach(self.done + units)

    def reach(self, done: int) -> None:
        """Set how many units are done in all."""
        self.done = done
        self.changed()

    def finish(self, outcome: str) -> None:
        """Set the stage's outcome, in a few words with counts."""
        self.outcome = outcome


class Screen(Protocol):
    """Shows stages and lines to people."""

    def stage(self, name: str) -> AbstractContextManager[Stage]:
        """A context manager around one stage."""
        ...

    def line(self, text: str) -> None:
        """Show one line."""
        ...

    def live(self, draw: Callable[[], RenderableType]) -> AbstractContextManager[object]:
        """A context manager in which something is shown and redrawn every second."""
        ...


def tell(screen: Screen, what: str, texts: Iterable[str]) -> None:
    """Show texts that a stage found, such as prompts, a line each, below the stage's own."""
    for text in texts:
        screen.line(f"    {what}: {in_a_line(text)}")


def in_a_line(text: str) -> str:
    """A text in quotes in one line, cut where it is long."""
    return json.dumps(text if len(text) <= _MOST else f"{text[:_MOST]} ...", ensure_ascii=False)


class SilentScreen:
    """Shows nothing."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Show no stage."""
        yield Stage(name)

    def line(self, text: str) -> None:
        """Show no line."""

    def live(self, draw: Callable[[], RenderableType]) -> AbstractContextManager[object]:
        """Show nothing."""
        return nullcontext()


@dataclass(frozen=True, slots=True)
class _Visible:
    """Something to show, without control characters of the texts in it."""

    shown: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.shown, options):
            end = "\n" if segment.text.endswith("\n") else ""
            text = segment.text if segment.control else visible(segment.text.rstrip("\n")) + end
            yield segment._replace(text=text)


class RichScreen:
    """Lines on a console, and a progress bar where that is a terminal."""

    def __init__(self, console: Console) -> None:
        """A screen on `console`."""
        self._console = console

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Show a bar while the stage runs, and one line when it is over."""
        stage = Stage(name)
        progress = Progress(
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=False,  # other output belongs to the log, not above the bar
            redirect_stderr=False,
        )
        bar = progress.add_task(visible(name), total=None)
        stage.changed = lambda: progress.update(bar, completed=stage.done, total=stage.total)
        if not self._console.is_terminal:
            stage.changed = self._each_minute(stage)
        with progress if self._console.is_terminal else nullcontext():
            yield stage
        text = visible(f"{name:<24} {stage.outcome}")
        line = Text.assemble(text, "  ", (f"{stage.seconds:.0f} s", "dim"))
        self._console.print(line, soft_wrap=True)

    def _each_minute(self, stage: Stage) -> Callable[[], object]:
        """What shows a line about a long stage, but not more often than once a minute."""
        shown = time.perf_counter()

        def show() -> None:
            nonlocal shown
            if stage.total and time.perf_counter() - shown >= _QUIET_S:
                shown = time.perf_counter()
                counted = f"{stage.done:,} of {stage.total:,} ({stage.done / stage.total:.0%})"
                self.line(f"    {stage.name}: {counted}, {stage.seconds:.0f} s so far")

        return show

    def line(self, text: str) -> None:
        """Show one line as it is."""
        self._console.print(Text(visible(text)), soft_wrap=True)

    def problem(self, text: str) -> None:
        """Show one line in red."""
        self._console.print(Text(visible(text), "red"), soft_wrap=True)

    def live(self, draw: Callable[[], RenderableType]) -> AbstractContextManager[object]:
        """Show something, redrawn every second, where the output is a terminal."""
        if not self._console.is_terminal:
            return nullcontext()
        return Live(
            get_renderable=lambda: _Visible(draw()),
            console=self._console,
            refresh_per_second=1,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
