"""Progress in a notebook: one block of HTML below the cell, changed in place.

It needs what every notebook has, `IPython.display`, and no widgets. `screen_here` chooses among the
screens by what runs this process.
"""

import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

from rich.console import Console, RenderableType

from paft_ray.config.visible import visible
from paft_ray.runs.progress import RichScreen, Screen, SilentScreen, Stage

Display = Callable[[str], Callable[[str], None]]
"""Shows HTML and returns what replaces it."""
_REDRAWN_S = 0.25
"""Seconds between two changes of a bar, which each travel to a browser."""


class NotebookScreen:
    """A line for every stage that is over, and a bar for one that runs."""

    def __init__(self, display: Display | None = None) -> None:
        """Show below the cell that runs, or by `display`."""
        self._display = display or _display
        self._lines: list[str] = []
        self._update: Callable[[str], None] | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Show a bar while the stage runs, and one line when it is over."""
        stage, drawn = Stage(name), 0.0

        def redraw() -> None:
            nonlocal drawn
            if time.monotonic() - drawn >= _REDRAWN_S:
                drawn = time.monotonic()
                self._show(_bar(stage))

        stage.changed = redraw
        redraw()
        try:
            yield stage
        except BaseException:
            self._show()  # no bar stays where nothing runs
            raise
        finally:
            stage.changed = lambda: None
        self._lines.append(f"<b>{_text(name)}</b> {_text(stage.outcome)} ({stage.seconds:.0f} s)")
        self._show()

    def line(self, text: str) -> None:
        """Show one line."""
        self._lines.append(_text(text))
        self._show()

    @contextmanager
    def live(self, draw: Callable[[], RenderableType]) -> Iterator[None]:
        """Show something, redrawn every second."""
        over = threading.Event()

        def redraw() -> None:
            while not over.wait(1.0):
                self._show(_drawn(draw()))

        thread = threading.Thread(target=redraw, name="live", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._show()

    def _show(self, below: str = "") -> None:
        lines = "".join(f"<div>{line}</div>" for line in self._lines)
        page = f'<div style="font-family:monospace;white-space:pre-wrap">{lines}{below}</div>'
        if self._update is None:
            self._update = self._display(page)
        else:
            self._update(page)


@contextmanager
def screen_here() -> Iterator[Screen]:
    """Return the screen for people who call from Python here: silent where there is no stderr.

    A terminal's or a file's has a stream of its own, so that what else is printed may be sent
    elsewhere.
    """
    if _in_notebook():
        yield NotebookScreen()
        return
    try:
        copy = os.dup(sys.stderr.fileno())
    except (AttributeError, OSError):  # replaced by something that is no file
        yield SilentScreen()
        return
    with os.fdopen(copy, "w", encoding="utf-8") as stream:
        yield RichScreen(Console(file=stream, markup=False, emoji=False, highlight=False))


def _in_notebook() -> bool:
    """Whether a kernel of Jupyter runs this process."""
    ipython = sys.modules.get("IPython")
    shell: Any = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _display(page: str) -> Callable[[str], None]:
    from IPython.display import HTML, display  # pyright: ignore[reportMissingImports]

    shown = display(HTML(page), display_id=True)
    return lambda changed: shown.update(HTML(changed))


def _bar(stage: Stage) -> str:
    known = stage.total is not None
    size = f' value="{stage.done}" max="{stage.total}"' if known else ""
    count = f" {stage.done}/{stage.total}" if known else ""
    return f"<div>{_text(stage.name)} <progress{size}></progress>{count}</div>"


def _drawn(shown: RenderableType) -> str:
    sink = io.StringIO()  # rich would show it below the cell itself
    console = Console(
        file=sink, width=100, force_jupyter=False, markup=False, emoji=False, highlight=False
    )
    console.print(shown)
    return f"<div>{_text(sink.getvalue())}</div>"


def _text(text: str) -> str:
    return escape(visible(text))
