"""What the tests of searches share."""

import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from small_search import write_search


@pytest.fixture
def make_config(
    tmp_path: Path, tiny_model: Path, review_file: Path
) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Writes the configuration of a small search, with these settings of `tuning`."""
    return partial(write_search, tmp_path, tiny_model, review_file)


@pytest.fixture
def mark() -> str:
    """What the processes of one test have in their environment."""
    return uuid.uuid4().hex
