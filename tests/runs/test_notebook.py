"""Progress in a notebook: HTML that is replaced in place, and texts from outside as text."""

import io
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from paft_ray.config.errors import ConfigError
from paft_ray.runs.log import log_of_call
from paft_ray.runs.notebook import NotebookScreen, screen_here
from paft_ray.runs.progress import SilentScreen
from paft_ray.storage.paths import Storage


class Page:
    """What a notebook would show below a cell."""

    def __init__(self) -> None:
        self.blocks: list[str] = []

    def display(self, html: str) -> Callable[[str], None]:
        self.blocks.append(html)
        place = len(self.blocks) - 1

        def update(html: str) -> None:
            self.blocks[place] = html

        return update


def test_stages_stand_in_one_block_with_a_bar_for_the_one_that_runs() -> None:
    page = Page()
    screen = NotebookScreen(page.display)
    with screen.stage("prompt <pool>") as stage:
        assert page.blocks[0].count("<progress") == 1
        stage.expect(4)
        stage.finish("3 <b>prompts\x1b[31m</b>")
    screen.line("note: <script>")
    [block] = page.blocks
    assert "<progress" not in block
    assert "<b>prompt &lt;pool&gt;</b> 3 &lt;b&gt;prompts\\u001b[31m&lt;/b&gt; (0 s)" in block
    assert "note: &lt;script&gt;" in block


def test_stage_that_fails_leaves_no_bar() -> None:
    page = Page()
    with pytest.raises(KeyboardInterrupt), NotebookScreen(page.display).stage("train"):
        assert "<progress" in page.blocks[0]
        raise KeyboardInterrupt
    assert "<progress" not in page.blocks[0]


def test_something_live_is_shown_and_gone_when_it_is_over() -> None:
    page, shown = Page(), threading.Event()

    def display(html: str) -> Callable[[str], None]:
        update = page.display(html)

        def watched(html: str) -> None:
            update(html)
            if "[b]&lt;table&gt;" in html:
                shown.set()

        return watched

    screen = NotebookScreen(display)
    screen.line("before")
    with screen.live(lambda: "[b]<table>"):
        assert shown.wait(60)
    assert len(page.blocks) == 1
    assert "before" in page.blocks[0] and "table" not in page.blocks[0]


def test_screen_is_silent_where_stderr_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with screen_here() as screen:
        assert isinstance(screen, SilentScreen)


def test_screen_writes_lines_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "log").open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with screen_here() as screen:
            screen.line("a stage")
            assert not stream.closed
        stream.write("after\n")
    assert (tmp_path / "log").read_text() == "a stage\nafter\n"


def test_log_of_a_call_takes_what_libraries_print_and_leaves_the_process_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Storage.open(str(tmp_path)).child("runs", "one")
    before = list(logging.getLogger().handlers), sys.stdout
    with log_of_call(folder):
        print("printed")  # noqa: T201
        os.write(1, b"written\n")
        logging.getLogger("library").warning("warned")
    assert (list(logging.getLogger().handlers), sys.stdout) == before
    log = (tmp_path / "runs/one/log.txt").read_text()
    assert all(word in log for word in ("printed", "written", "library WARNING warned"))
    assert capfd.readouterr().out == ""


def test_log_of_a_refused_call_stays_only_where_something_was_written(tmp_path: Path) -> None:
    folder = Storage.open(str(tmp_path)).child("runs", "one")
    with pytest.raises(ConfigError), log_of_call(folder):
        raise ConfigError("refused")
    assert list(tmp_path.iterdir()) == []
