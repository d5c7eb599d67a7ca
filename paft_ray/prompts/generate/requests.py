"""Requests to LLMs for candidate prompts.

Requests are pure functions of (seed, LLM, strategy, index): the same configuration makes the same
requests, so that finished answers are found again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from paft_ray.config import Endpoint, FakeLLM, GenerationConfig, LLMConfig
from paft_ray.config.affects import affecting, take
from paft_ray.prompts.generate.meta_prompt import build_message
from paft_ray.prompts.layouts import Layout, enumerate_layouts
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.tasks.example import Task

Strategy = Literal["zero_shot", "few_shot"]


@dataclass(frozen=True, slots=True)
class Request:
    """One request to one LLM."""

    id: str
    """Sixteen hex digits of all that determines the answer; finished answers are kept under it."""
    llm: int
    """Which of `prompts.generation.llms`."""
    strategy: str
    """`zero_shot` or `few_shot`."""
    messages: tuple[tuple[str, str], ...]
    """Role and content."""
    temperature: float
    """The LLM's decoding temperature."""
    top_p: float
    """Decode from the likeliest tokens that together have this probability."""
    seed: int
    """The LLM's decoding seed, of 31 bits."""
    max_tokens: int
    """Longest answer, in tokens."""
    prefill: str = ""
    """How the answer begins, for a model that can be made to continue; its last line is part of
    the answer. Small models need it, for other LLMs `messages` says the same."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Requests that are sent together: of one LLM, strategy and decoding temperature."""

    llm: int
    """Which of `prompts.generation.llms`."""
    strategy: Strategy
    temperature: float
    start: int
    """First index of the requests of this LLM, strategy and temperature."""
    stop: int
    """The index behind the last one."""

    def __len__(self) -> int:
        return self.stop - self.start


def decoding(kind: str, *position: int | str) -> int:
    """The decoding seed of a request, of 31 bits."""
    return int(fingerprint(kind, *position)[:8], 16) & 0x7FFFFFFF


def longest_answer(llm: LLMConfig) -> int:
    """Most tokens of an LLM's answer."""
    if isinstance(llm, FakeLLM):
        return 96
    return llm.longest_answer if isinstance(llm, Endpoint) else llm.max_tokens


@dataclass(frozen=True)
class RequestBook:
    """Every request of a configuration, made when it is looked at: a million cost no memory."""

    task: Task
    """What the prompts are for; its examples are not needed."""
    config: GenerationConfig
    seed: int
    """The run's seed."""
    keys: tuple[str, ...]
    """For each LLM of `config.llms`, what identifies it and its weights; part of the requests'
    ids and of their messages."""

    def __post_init__(self) -> None:
        if len(self.keys) != len(self.config.llms):
            raise ValueError(f"{len(self.keys)} keys for {len(self.config.llms)} LLMs")

    @cached_property
    def _layouts(self) -> tuple[Layout, ...]:
        return tuple(enumerate_layouts(self.task)) if "few_shot" in self.config.strategies else ()

    @cached_property
    def _decoding(self) -> list[Any]:
        """Settings of decoding besides a request's own temperature."""
        [_, top_p, _], later = take(
            affecting(self.config, "answers"), "temperature", "top_p", "llms"
        )
        return [top_p, *([later] if later else [])]

    def units(self, llm: int, size: int) -> list[Unit]:
        """All requests of one LLM, by strategy and temperature, in units of `size`.

        Units are cut before anything is known to be finished, and from the first index on: what is
        generated together never changes, and raising `per_llm` only adds units.
        """
        temperatures = self.config.llms[llm].temperatures or (self.config.temperature,)
        share, more = divmod(self.config.per_llm, len(temperatures))
        return [
            Unit(llm, strategy, temperature, start, min(start + size, count))
            for strategy in self.config.strategies
            for place, temperature in enumerate(temperatures)
            for count in [share + (place < more)]
            for start in range(0, count, size)
        ]

    def requests(self, unit: Unit) -> Iterator[Request]:
        """The requests of a unit, in order."""
        for index in range(unit.start, unit.stop):
            yield self.request(unit, index)

    def request(self, unit: Unit, index: int) -> Request:
        """The request with this index among those of the unit's LLM, strategy and temperature."""
        llm, config = self.config.llms[unit.llm], self.config
        max_tokens = longest_answer(llm)
        place = (self.seed, self.keys[unit.llm], unit.strategy, index)
        content, prefill = build_message(self.task, config.form, self._layouts, place)
        messages = (("user", content),)
        decoding_seed = decoding("decoding", *place)
        return Request(
            id=fingerprint(
                self.keys[unit.llm],
                [messages, prefill],
                [unit.temperature, *self._decoding],
                decoding_seed,
                max_tokens,
            ),
            llm=unit.llm,
            strategy=unit.strategy,
            messages=messages,
            temperature=unit.temperature,
            top_p=config.top_p,
            seed=decoding_seed,
            max_tokens=max_tokens,
            prefill=prefill,
        )
