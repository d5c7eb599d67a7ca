"""Trainings of seconds on Ray."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small_training import small_config

from paft_ray.config import Config


@pytest.fixture(scope="module")
def make_config(
    tiny_model: Path,
    review_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Callable[..., Config]:
    """Makes configurations of trainings with as many steps as the module's `STEPS`."""

    steps = request.module.STEPS

    def make(label: str, **workers) -> Config:
        storage = str(tmp_path_factory.mktemp(label))
        return small_config(str(tiny_model), str(review_file), storage, steps, **workers)

    return make
