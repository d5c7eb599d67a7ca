"""What a person sees while work goes on: a line per stage, a bar where the output is a terminal.

Library functions speak to a `Screen`; by default it is silent. The CLI hands in a `RichScreen`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@dataclass
class Stage:
    """One stage under way; whoever works on it says how far it is and what came of it."""

    name: str
    started: float = field(default_factory=time.perf_counter)
    done: int = 0
    total: int | None = None
    outcome: str = ""

    @property
    def seconds(self) -> float:
        """Time since the stage began."""
        return time.perf_counter() - self.started

    def expect(self, total: int) -> None:
        """Say how many units of work there are."""
        self.total = total

    def advance(self, units: int = 1) -> None:
        """Say that some of them are done."""
        self.reach(self.done + units)

    def reach(self, done: int) -> None:
        """Say how many of them are done in all."""
        self.done = done

    def finish(self, outcome: str) -> None:
        """Say in a few words, with counts, what came of the stage."""
        self.outcome = outcome


class Screen(Protocol):
    """Shows stages and lines to a person."""

    def stage(self, name: str) -> AbstractContextManager[Stage]:
        """A context manager around one stage."""
        ...

    def line(self, text: str) -> None:
        """Show one line."""
        ...

    def live(self, draw: Callable[[], RenderableType]) -> AbstractContextManager[object]:
        """A context manager in which something is shown, drawn anew every second."""
        ...


class SilentScreen:
    """Shows nothing."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """A stage that nobody sees."""
        yield Stage(name)

    def line(self, text: str) -> None:
        """Drop the line."""

    def live(self, draw: Callable[[], RenderableType]) -> AbstractContextManager[object]:
        """Show nothing."""
        return nullcontext()


class _VisibleStage(Stage):
    progress: Progress | None = None
    task_id: int | None = None

    def expect(self, total: int) -> None:
        super().expect(total)
        self._show()

    def reach(self, done: int) -> None:
        super().reach(done)
        self._show()

    def _show(self) -> None:
        if self.progress is not None and self.task_id is not None:
            self.progress.update(self.task_id, completed=self.done, total=self.total)  # pyright: ignore[reportArgumentType]


class RichScreen:
    """Lines on a console, and a progress bar where that is a terminal."""

    def __init__(self, console: Console) -> None:
        """A screen on `console`."""
        self._console = console

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Show a bar while the stage runs, and one line when it is over."""
        stage = _VisibleStage(name)
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        if self._console.is_terminal:
            progress = Progress(
                *columns,
                console=self._console,
                transient=True,
                redirect_stdout=False,  # what others print belongs to the log, not above the bar
                redirect_stderr=False,
            )
            with progress:
                stage.progress = progress
                stage.task_id = progress.add_task(name, total=None)
                yield stage
        else:
            yield stage
        self._console.print(
            f"{name:<24} {stage.outcome}  [dim]{stage.seconds:.0f} s[/dim]",
            highlight=False,
            soft_wrap=True,
        )

    def line(self, text: str) -> None:
        """Show one line as it is."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def live(self, draw: Callable[[], RenderableType]) -> AbstractContextManager[object]:
        """Show something, drawn anew every second, where the output is a terminal."""
        if not self._console.is_terminal:
            return nullcontext()
        return Live(
            get_renderable=draw,
            console=self._console,
            refresh_per_second=1,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
