"""Samples of a search space, and their configurations; no Ray.

A sample maps dotted paths to values. Samples of a random search and of a grid are a function of
space and seed alone, so that a search that is continued, or gets more trials, keeps its first ones.
"""

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

from paft_ray.config import (
    Choice,
    Config,
    DimensionConfig,
    GridSearch,
    LogRandInt,
    LogUniform,
    OptunaSearch,
    RandInt,
    TuningConfig,
)
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import dump_config, load_config

Sample = Mapping[str, Any]
"""Dotted path of a field to its value."""

DEFAULT_TRIALS = 16
_DRAWS_PER_SAMPLE = 100
"""Consecutive draws of known samples after which a space counts as exhausted."""


def apply(config: Config, sample: Sample) -> Config:
    """The configuration of one trial, checked like any other.

    Raises:
        ConfigError: There is no such field, or it cannot have this value.
    """
    tree = {key: value for key, value in dump_config(config).items() if key != "tuning"}
    overrides = [f"{path}={_as_yaml(value)}" for path, value in sample.items()]
    try:
        return load_config(tree, overrides)
    except ConfigError as error:
        raise ConfigError(f"tuning.space: {error}") from error


def edge_configs(config: Config, tuning: TuningConfig) -> list[tuple[str, Config]]:
    """The configurations at the edges of the space, one changed field each, by its path.

    Raises:
        ConfigError: There is no such field, or it cannot have one of the values.
    """
    return [
        (path, apply(config, {path: value}))
        for path, dimension in tuning.space.items()
        for value in edges(dimension)
    ]


def samples(tuning: TuningConfig, seed: int) -> list[Sample]:
    """The samples of a random search or a grid, in order, none twice.

    There are fewer than `tuning.trials` where the space is exhausted.
    """
    if isinstance(tuning.search, GridSearch):
        return list(itertools.islice(_grid(tuning.space), tuning.trials))
    return list(itertools.islice(draws(tuning.space, seed), tuning.trials or DEFAULT_TRIALS))


def trial_configs(config: Config, tuning: TuningConfig) -> list[Config]:
    """The configurations that trials may have: those of all samples, and of the space's edges."""
    drawn = [apply(config, sample) for sample in samples(tuning, config.seed)]
    return drawn + [trial for _, trial in edge_configs(config, tuning)]


def count_trials(tuning: TuningConfig, seed: int) -> int:
    """The most trials that a search can have."""
    if isinstance(tuning.search, OptunaSearch):
        return tuning.trials or DEFAULT_TRIALS
    return len(samples(tuning, seed))


def _grid(space: Mapping[str, DimensionConfig]) -> Iterator[Sample]:
    values = {p: all_values(d) for p, d in sorted(space.items()) if isinstance(d, Choice | RandInt)}
    seen: set[str] = set()
    for combination in itertools.product(*values.values()):
        sample = dict(zip(values, combination, strict=True))
        if sample_key(sample) not in seen:
            seen.add(sample_key(sample))
            yield sample


def draws(space: Mapping[str, DimensionConfig], seed: int) -> Iterator[Sample]:
    """Random samples, none twice, as long as there are others."""
    rng = random.Random(f"tuning {seed}")
    seen: set[str] = set()
    missed = 0
    while missed < _DRAWS_PER_SAMPLE:
        # sorted, so that the order in the configuration does not matter
        sample = {path: _draw(dimension, rng) for path, dimension in sorted(space.items())}
        key = sample_key(sample)
        if key in seen:
            missed += 1
            continue
        missed = 0
        seen.add(key)
        yield sample


def edges(dimension: DimensionConfig) -> tuple[Any, ...]:
    """The values to check before a search: all of a choice, the ends of a range."""
    return dimension.values if isinstance(dimension, Choice) else (dimension.low, dimension.high)


def all_values(dimension: Choice | RandInt) -> tuple[Any, ...]:
    """All values of a discrete dimension."""
    if isinstance(dimension, Choice):
        return dimension.values
    return tuple(range(dimension.low, dimension.high + 1))


def _draw(dimension: DimensionConfig, rng: random.Random) -> Any:
    if isinstance(dimension, Choice):
        return rng.choice(dimension.values)
    if isinstance(dimension, RandInt):
        return rng.randint(dimension.low, dimension.high)
    if isinstance(dimension, LogRandInt):
        # a whole number has the share of the axis from itself to the next one
        log = rng.uniform(math.log(dimension.low), math.log(dimension.high + 1))
        return min(dimension.high, int(math.exp(log)))
    if isinstance(dimension, LogUniform):
        return math.exp(rng.uniform(math.log(dimension.low), math.log(dimension.high)))
    return rng.uniform(dimension.low, dimension.high)


def sample_key(sample: Sample) -> str:
    """The sample as a text, equal for equal samples."""
    return json.dumps(dict(sample), sort_keys=True, default=str)


def describe(sample: Sample) -> str:
    """A sample for people: the last word of each path, and a short value."""
    return ", ".join(f"{path.rpartition('.')[2]} {_short(value)}" for path, value in sample.items())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _as_yaml(value: Any) -> str:
    if isinstance(value, float) and math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    return json.dumps(value)
