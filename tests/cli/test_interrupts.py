"""Exit codes of work that a signal ends, whatever Ray makes of the signal."""

import os
import signal
import sys
from collections.abc import Callable

import pytest

from paft_ray.cli.command import _perform
from paft_ray.cli.streams import open_streams
from paft_ray.config import Config
from paft_ray.models.check_process import ModelCheckProcess
from paft_ray.pipeline.perform import Options, Result, Verb, Work
from paft_ray.runs.context import RunContext
from paft_ray.runs.progress import RichScreen
from paft_ray.storage.paths import Storage
from paft_ray.tasks import Task


def interrupted() -> None:
    raise KeyboardInterrupt


def interrupted_twice_while_ray_train_listens() -> None:
    """Ray Train has a handler of its own, which ends the process with code 0 for a later Ctrl-C."""
    before = signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    try:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    finally:
        signal.signal(signal.SIGINT, before)


def interrupted_while_it_cleans_up() -> None:
    try:
        raise KeyboardInterrupt
    finally:
        interrupted_twice_while_ray_train_listens()


def terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()


def terminated_with_another_code() -> None:
    try:
        terminated()
    except SystemExit:
        sys.exit(1)


@pytest.mark.parametrize(
    ("work", "code"),
    [
        (interrupted, 130),
        (interrupted_twice_while_ray_train_listens, 130),
        (interrupted_while_it_cleans_up, 130),
        (terminated, 143),
        (terminated_with_another_code, 143),
    ],
)
def test_interrupt_ends_with_130_and_termination_with_143(
    work: Callable[[], None], code: int, tmp_path, capfd
) -> None:
    def run(_: Work) -> Result:
        work()
        raise AssertionError

    handler = signal.getsignal(signal.SIGTERM)
    verb = Verb("a verb of this test", run, needs_ray=False, logged=False)
    config = Config.model_validate(
        {
            "name": "x",
            "task": {"type": "builtin", "name": "sst2"},
            "prompts": {"files": ["prompts.txt"]},
            "model": {"path": "owner/model"},
            "train": {"steps": 10},
        }
    )
    task = Task("x", "", ("text",), {}, None, (), (), ())
    with open_streams(False) as streams, ModelCheckProcess() as checks:
        screen = RichScreen(streams.console)
        context = RunContext.create(config, task, Storage.open(str(tmp_path)), screen)
        assert _perform(Work(verb, context, Options(), None, checks), streams) == code
    assert signal.getsignal(signal.SIGTERM) == handler
    assert "run the same command to continue" in capfd.readouterr().out
