"""A training of seconds, and a screen that calls back while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from paft_ray.config import Config
from paft_ray.config.loading import load_config
from paft_ray.pipeline.perform import open_context
from paft_ray.prompts.layouts import instruction_of, layout_of
from paft_ray.prompts.pool import Origin, Prompt, PromptPool
from paft_ray.runs.progress import Stage
from paft_ray.serving.record import TrainedAdapter
from paft_ray.storage.fingerprint import fingerprint
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
        {
            "name": "small",
            "seed": 1,
            "storage": storage,
            "task": {
                "type": "custom",
                "name": "reviews",
                "description": "Say whether a short film review is positive or negative.",
                "path": data,
                "fields": {"review": "review"},
                "answer": "label",
                "choices": ["positive", "negative"],
                "max_length": 200,
            },
            "prompts": {"generation": {"llms": [{"type": "fake"}]}},
            "model": {
                "path": model,
                "dtype": "float32",
                "peft": {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]},
            },
            "train": {
                "steps": steps,
                "batch_size": 4,
                "row_tokens": 256,
                "learning_rate": 0.01,
                "checkpoint": {"every_steps": 1000, "keep": 100},
                "workers": {"cpus": 1, **workers},
                "max_failures": 1,
            },
            "tracking": {"type": "none"},
        }
    )


def train_small(config: Config, screen: TellingScreen) -> TrainedAdapter:
    context = open_context(config, screen=screen)
    slots = context.task.slots
    prompts = tuple(
        Prompt(
            id=fingerprint(text),
            text=text,
            instruction=instruction_of(text, slots),
            layout=layout_of(text, slots),
            split="train",
            cluster="",
            origin=Origin(file="test"),
        )
        for text in TEMPLATES
    )
    return train(context, prompts, config.trainings[0], PromptPool(prompts, (), ()))
