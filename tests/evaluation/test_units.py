"""A grid in units: what is scored together, and in which shares actors get it."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories import make_prompt, run_config
from paft_ray.config.affects import PROMPT_RULES
from paft_ray.config.loading import load_config
from paft_ray.evaluation.units import MOST_UNITS, Grid, Subject, Unit, cut, shares
from paft_ray.prompts.variation import conditions
from paft_ray.runs.context import RunContext
from paft_ray.storage.paths import Storage
from paft_ray.tasks import load_task

SUBJECTS = [Subject("base", 0, ""), Subject("paft", 0, "trained")]


@pytest.fixture
def units_of(tmp_path: Path, tiny_model: Path, review_file: Path) -> Callable[..., list[Unit]]:
    """The units of a grid of 40 prompts on some 100 reviews."""

    def make(
        choices: list[str] | None, gpus: int, text: str = "{review} ->", **evaluation: Any
    ) -> list[Unit]:
        config = run_config(
            tiny_model,
            review_file,
            tmp_path / "storage",
            task={"choices": choices, "validation_share": 0.05, "test_share": 0.05},
            prompts={"generation": {"llms": [{"type": "fake"}], "per_llm": 8}},
            evaluation={"workers": {"gpus": gpus}, **evaluation},
            tracking={"type": "none"},
        )
        loaded = load_config(config)
        task = load_task(loaded.task, loaded.seed)
        context = RunContext.create(loaded, task, Storage.open(loaded.storage))
        prompts = [make_prompt(f"{number}: {text}", "test") for number in range(40)]
        ways = conditions(task, loaded.evaluation.variation, 0, task.train)
        grid = Grid(SUBJECTS, prompts, context.task.train, conditions=ways[-1:])
        return cut(context, grid, [np.ones(grid.shape, bool)] * 2)

    return make


@pytest.mark.parametrize(
    ("choices", "gpus", "together"),
    [(None, 1, 16), (None, 0, 1), (["positive", "negative"], 1, 1)],
    ids=["text on a GPU", "text on CPUs", "choices"],
)
def test_only_texts_on_a_gpu_are_written_with_those_of_other_units(
    choices: list[str] | None, gpus: int, together: int, units_of: Callable[..., list[Unit]]
) -> None:
    units = units_of(choices, gpus)
    assert len(units) == 2 * 40 * 2
    assert [unit["group"] for unit in units] == [n // together for n in range(80)] * 2
    # where they are computed is no part of what they are kept under
    assert [u["key"] for u in units] == [u["key"] for u in units_of(choices, 1 - gpus)]


def test_backend_names_scores_anew_but_not_the_memory_it_takes(units_of) -> None:
    choices = ["positive", "negative"]
    plain, named = units_of(choices, 0), units_of(choices, 0, backend={"type": "transformers"})
    served = units_of(choices, 0, backend={"type": "vllm"})
    small = units_of(choices, 0, backend={"type": "vllm", "memory": 0.3, "cache_gb": 1})
    keys = [[unit["key"] for unit in units] for units in (plain, named, served, small)]
    assert keys[0] == keys[1]
    assert keys[2] == keys[3]
    assert not {*keys[0]} & {*keys[2]}
    assert [unit["group"] for unit in served] == [n // 16 for n in range(80)] * 2


@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(1, 20)), min_size=1, max_size=4),
    st.integers(1, 40),
    st.randoms(use_true_random=False),
)
def test_shares_hold_each_unit_once_in_whole_groups_of_one_subject(sizes, actors, rng) -> None:
    units = [
        {"key": f"{subject}-{n}", "subject": subject, "group": n // together}
        for subject, (count, together) in enumerate(sizes)
        for n in range(count)
        if rng.random() < 0.8
    ]
    found = list(shares(units, actors))
    assert [unit for share in found for unit in share] == units
    assert all(found)
    assert all(len({unit["subject"] for unit in share}) == 1 for share in found)
    assert all(len(share) <= MOST_UNITS for share in found)
    for one, other in pairwise(found):
        assert (one[-1]["subject"], one[-1]["group"]) != (other[0]["subject"], other[0]["group"])


@pytest.mark.parametrize("more", [{}, {"design": "crossed"}])
@pytest.mark.parametrize(
    ("text", "moves"),
    [("{demonstrations}{review} ->", True), ("{demonstrations}\n{review} ->", False)],
)
def test_scores_of_demonstrations_that_were_not_set_apart_are_made_anew(
    text: str, moves: bool, more: dict[str, Any], units_of: Callable[..., list[Unit]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    variation = {"demonstrations": {"shots": 1, "draws": 2}, **more}
    now, plain = units_of(None, 0, text, variation=variation), units_of(None, 0, text)
    monkeypatch.setitem(PROMPT_RULES, "demonstrations_apart", 1)
    before = units_of(None, 0, text, variation=variation)
    assert ({u["key"] for u in now} != {u["key"] for u in before}) is moves
    assert plain == units_of(None, 0, text)
