"""A training of seconds, and a screen that calls back while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psutil

from factories import make_prompt, run_config
from paft_ray.config import Config, Training
from paft_ray.config.loading import load_config
from paft_ray.pipeline.perform import open_context
from paft_ray.prompts.pool import PromptPool
from paft_ray.runs.progress import Stage
from paft_ray.serving.record import TrainedAdapter
from paft_ray.training.distributed.launch import Workers
from paft_ray.training.distributed.trainer import train

TEMPLATES = ("Review: {review}\nLabel:", "Read this: {review}\nHow does it feel?")


@dataclass
class TellingStage(Stage):
    """A stage that calls somebody with every step that the driver hears of."""

    heard: Callable[[int], None] = lambda step: None

    def reach(self, done: int) -> None:
        super().reach(done)
        self.heard(done)


@dataclass
class TellingScreen:
    """Keeps what it is told."""

    heard: Callable[[int], None] = lambda step: None
    lines: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        yield TellingStage(name, heard=self.heard)

    def line(self, text: str) -> None:
        self.lines.append(text)


def small_config(model: str, data: str, storage: str, steps: int, **workers) -> Config:
    """Trains the tiny model on short reviews, with a checkpoint at the end only."""
    return load_config(
        run_config(
            model,
            data,
            storage,
            seed=1,
            task={"max_length": 200},
            train={
                "steps": steps,
                "row_tokens": 256,
                "learning_rate": 0.01,
                "checkpoint": {"every_steps": 1000, "keep": 100},
                "workers": {"cpus": 1, **workers},
                "max_failures": 1,
            },
            tracking={"type": "none"},
        )
    )


def train_small(
    config: Config, screen: TellingScreen, workers: Workers | None = None, seed: int = 1
) -> TrainedAdapter:
    context = open_context(config, screen=screen)
    prompts = tuple(map(make_prompt, TEMPLATES))
    training = Training(config.trainings[0].variant, seed)
    return train(context, prompts, training, PromptPool(prompts, (), ()), workers)


def worker_processes() -> list[psutil.Process]:
    """Those that run; one that goes away while it is looked at is none."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.name().startswith("ray::RayTrain"):
                found.append(process)
    return sorted(found, key=lambda process: process.create_time())
