"""What people see: texts from outside as text, on a terminal and in a log."""

import io

from rich.console import Console
from rich.table import Table

from paft_ray.runs.progress import RichScreen

HOSTILE = (
    "a [/x] [red] :smile: \x1b]0;title\x07\x1b[31mred\x1b[0m\x9b2J\r\u202eabc\u2066"
    "\U000e0041\ud800 ü 漢"
)
SHOWN = (
    r"a [/x] [red] :smile: \u001b]0;title\u0007\u001b[31mred\u001b[0m\u009b2J\u000d\u202eabc\u2066"
    r"\udb40\udc41\ud800 ü 漢"
)


def screen(terminal: bool) -> tuple[RichScreen, io.StringIO]:
    sink = io.StringIO()
    console = Console(file=sink, force_terminal=terminal, width=200, markup=False, emoji=False)
    return RichScreen(console), sink


def test_stage_and_lines_show_texts_from_outside_as_they_are():
    shown, sink = screen(terminal=False)
    with shown.stage(HOSTILE) as stage:
        stage.finish(HOSTILE)
    shown.line(HOSTILE)
    shown.problem(HOSTILE)
    assert sink.getvalue() == f"{SHOWN} {SHOWN}  0 s\n{SHOWN}\n{SHOWN}\n"


def test_file_gets_a_line_a_minute_about_a_long_stage(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("paft_ray.runs.progress.time.perf_counter", lambda: now[0])
    shown, sink = screen(terminal=False)
    with shown.stage("train paft") as stage:
        stage.started = 0.0
        stage.expect(150)
        for step in range(150):
            now[0] += 1.0
            stage.reach(step + 1)
        stage.finish("150 steps")
    assert sink.getvalue().splitlines() == [
        "    train paft: 60 of 150 (40%), 60 s so far",
        "    train paft: 120 of 150 (80%), 120 s so far",
        "train paft               150 steps  150 s",
    ]


def test_terminal_gets_no_sequence_of_a_text_from_outside():
    shown, sink = screen(terminal=True)

    def draw() -> Table:
        table = Table(title=HOSTILE, box=None)
        table.add_column(HOSTILE)
        table.add_row(HOSTILE)
        return table

    with shown.stage(HOSTILE) as stage:
        stage.expect(3)
        stage.advance()
    with shown.live(draw):
        pass
    shown.problem(HOSTILE)
    text = sink.getvalue()
    assert "[/x]" in text and r"\u001b]0;title" in text
    for sequence in ("\x1b]", "\x1b[31mred", "\x07", "\x9b", "\u202e", "\u2066", "\ud800"):
        assert sequence not in text, repr(sequence)
