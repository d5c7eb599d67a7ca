"""The draw of examples and prompts: a function of position, fair, and the same after a restart."""

import json
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paft_ray.config import SamplingConfig
from paft_ray.training.sampler import PromptSampler, epoch_order, example_index, uniform

# how long an example takes says how busy the machine is, not whether anything is wrong
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SAMPLERS = st.builds(
    PromptSampler,
    seed=st.integers(0, 2**40),
    prompts=st.integers(1, 500),
    sampling=st.builds(
        SamplingConfig,
        unit=st.sampled_from(["example", "step", "bound"]),
        steps_per_prompt=st.integers(1, 9),
    ),
)
STEPS, SLOTS = st.integers(0, 10**6), st.integers(0, 4096)
POSITIONS = st.lists(st.tuples(STEPS, SLOTS), min_size=1, max_size=20, unique=True)


def draws(sampler: PromptSampler, steps: Sequence[int], slots: int = 8) -> np.ndarray:
    """Prompt indices, shape [steps, slots]."""
    return np.array([[sampler.index(step, slot) for slot in range(slots)] for step in steps])


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


@patient
@given(SAMPLERS, POSITIONS, st.randoms())
def test_sampler_in_any_order_of_calls_draws_the_same_and_within_range(sampler, positions, rng):
    in_order = {position: sampler.index(*position) for position in positions}
    rng.shuffle(positions)
    again = {position: sampler.index(*position) for position in positions}
    assert in_order == again
    assert all(0 <= index < sampler.prompts for index in in_order.values())


def test_bound_prompts_are_kept_by_each_example_and_spread_over_the_pool():
    sampler = PromptSampler(1, 12, SamplingConfig(unit="bound", steps_per_prompt=3))
    bound = [sampler.index(0, 0, example=e) for e in range(600)]
    later = [sampler.index(77, e % 8, example=e) for e in range(600)]
    assert bound == later
    assert chi_square(np.bincount(bound, minlength=12)) < 35  # 11 degrees of freedom, p < 1e-3


@patient
@given(st.integers(0, 2**40), st.integers(1, 60), st.lists(STEPS, min_size=6), st.randoms())
def test_examples_in_any_order_of_calls_are_the_same_and_within_range(
    seed, examples, positions, rng
):
    in_order = {p: example_index(seed, p, examples) for p in positions}
    rng.shuffle(positions)
    epoch_order.cache_clear()
    assert in_order == {p: example_index(seed, p, examples) for p in positions}
    assert all(0 <= index < examples for index in in_order.values())


@patient
@given(SAMPLERS, STEPS, SLOTS)
def test_sampler_within_a_block_of_k_steps_keeps_its_draw(sampler, step, slot):
    steps = sampler.sampling.steps_per_prompt
    first = step - step % steps
    block = range(first, first + steps)
    assert len({sampler.index(s, slot) for s in block}) == 1


@pytest.mark.parametrize("unit", ["example", "step"])
def test_sampler_after_a_block_of_k_steps_draws_anew(unit):
    sampler = PromptSampler(1, 100, SamplingConfig(unit=unit, steps_per_prompt=4))
    table = draws(sampler, range(400))
    changes = (table[1:] != table[:-1]).mean(axis=1)
    boundary = np.arange(1, 400) % 4 == 0
    assert not changes[~boundary].any()
    assert 0.95 < changes[boundary].mean() < 1  # 0.99 is expected: a draw may repeat itself


@patient
@given(SAMPLERS, STEPS)
def test_sampler_of_unit_step_shares_one_draw_in_the_whole_batch(sampler, step):
    by_step = sampler.sampling.model_copy(update={"unit": "step"})
    shared = PromptSampler(sampler.seed, sampler.prompts, by_step)
    assert len({shared.index(step, slot) for slot in range(16)}) == 1


def test_sampler_of_unit_example_draws_for_every_slot():
    table = draws(PromptSampler(seed=1, prompts=50), range(50))
    assert (table[:, 1:] == table[:, :1]).mean() < 0.05  # 0.02 is expected


def test_sampler_with_another_seed_draws_otherwise():
    one, other = (draws(PromptSampler(seed, prompts=50), range(50)) for seed in (1, 2))
    assert (one == other).mean() < 0.06  # 0.02 is expected


@patient
@given(st.integers(0, 2**40), st.integers(1, 80), st.integers(0, 1000))
def test_every_epoch_visits_every_example_once(seed, examples, epoch):
    positions = range(epoch * examples, (epoch + 1) * examples)
    assert sorted(example_index(seed, p, examples) for p in positions) == list(range(examples))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(epoch_order(seed, epoch, 40)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert tuple(range(40)) not in orders


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("unit", ["example", "step"])
def test_sampler_draws_every_prompt_about_equally_often(unit, seed):
    sampler = PromptSampler(seed, 20, SamplingConfig(unit=unit))
    table = draws(sampler, range(600), slots=8 if unit == "example" else 1)
    counts = np.bincount(table.ravel(), minlength=20)
    assert chi_square(counts) < 43.8  # one in a thousand fair samplers is above, at 19 degrees


@pytest.mark.parametrize("axis", [0, 1])
def test_sampler_draws_neighbouring_steps_and_slots_independently(axis):
    table = draws(PromptSampler(seed=0, prompts=10), range(600))
    before, after = np.delete(table, -1, axis).ravel(), np.delete(table, 0, axis).ravel()
    pairs = np.bincount(before * 10 + after, minlength=100)
    assert chi_square(pairs) < 148.2  # one in a thousand is above, at 99 degrees


@patient
@given(st.tuples(st.integers(), st.text(), st.integers()))
def test_uniform_lies_in_the_half_open_unit_interval(position):
    assert 0 <= uniform(*position) < 1
    assert uniform(*position) == uniform(*position)


def test_sampler_resumed_at_step_7_draws_the_same_prompts():
    sampler = PromptSampler(3, 17, SamplingConfig(steps_per_prompt=3))  # 7 lies within a block
    whole = draws(sampler, range(20)).tolist()
    examples = [example_index(3, position, 11) for position in range(20 * 8)]
    program = (
        "import json; from paft_ray.training.sampler import *;"
        "sampler = PromptSampler(3, 17, SamplingConfig(steps_per_prompt=3));"
        "print(json.dumps(["
        "[[sampler.index(step, slot) for slot in range(8)] for step in range(7, 20)],"
        "[example_index(3, position, 11) for position in range(7 * 8, 20 * 8)]]))"
    )
    resumed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(resumed.stdout) == [whole[7:], examples[56:]]
