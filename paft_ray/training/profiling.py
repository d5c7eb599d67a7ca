"""Recording some steps with torch's profiler, as a trace that Perfetto opens."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from paft_ray.cluster.control import At
from paft_ray.config import ProfileConfig
from paft_ray.storage.paths import Storage
from paft_ray.training.state.retries import retry_storage

FOLDER = "profile"


Recording = Callable[[int], AbstractContextManager[None]]
"""Returns a context manager around a step, from 1."""


@contextmanager
def recording(config: ProfileConfig | None, folder: Storage, at: At) -> Iterator[Recording]:
    """What records the steps of a training that are done in the block.

    Args:
        config: `train.profile`; None records nothing.
        folder: The training's folder.
        at: See `loop.LoopHooks`.
    """
    if config is None:
        yield lambda step: nullcontext()
        return
    recorder = _Recorder(*config.steps, folder.child(FOLDER), at)
    try:
        yield recorder.step
    finally:
        recorder.stop()


class _Recorder:
    """Records consecutive steps; the name of the trace says which of them were done.

    They are fewer where a training is resumed among them.
    """

    def __init__(self, first: int, last: int, folder: Storage, at: At) -> None:
        self._first, self._last, self._folder, self._at = first, last, folder, at
        self._began = 0
        self._recorder: profile | None = None

    def stop(self) -> profile | None:
        """Stop a recording that runs, and return it."""
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.stop()
        return recorder

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Record the block, if this step is one to record."""
        if self._first <= step <= self._last and self._recorder is None:
            kinds = [ProfilerActivity.CPU]
            kinds += [ProfilerActivity.CUDA] * torch.cuda.is_available()
            self._began, self._recorder = step, profile(activities=kinds)
            self._recorder.start()
        yield
        if step == self._last and (recorder := self.stop()) is not None:
            self._at("checkpoint")  # which may take long too
            self._write(recorder)

    def _write(self, recorder: profile) -> None:
        name = f"steps-{self._began:09d}-{self._last:09d}.json"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            recorder.export_chrome_trace(str(path))
            retry_storage(
                lambda: self._folder.write_bytes(name, path.read_bytes()),
                "writing the profile",
                self._folder.path(),
            )
