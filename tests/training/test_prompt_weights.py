"""What past losses make of draws and weights: bounded, at K-blocks only, exact after a restart."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from paft_ray.config import CVaR, GroupDRO, SamplingConfig
from paft_ray.training.prompt_weights import PromptWeights, draw_probabilities, worst_share_weights
from paft_ray.training.sampler import PromptSampler

LOSSES = arrays.arrays(
    np.float64, st.integers(1, 40), elements=st.one_of(st.floats(0, 30), st.just(math.nan))
)
ADAPTIVE = SamplingConfig(temperature=0.5, uniform_floor=0.2, steps_per_prompt=3, smoothing=0.5)


@given(LOSSES, st.floats(0.01, 100), st.floats(0, 1))
def test_probabilities_sum_to_one_above_the_floor_and_rise_with_the_loss(losses, heat, floor):
    p = draw_probabilities(losses, heat, floor)
    assert p.sum() == pytest.approx(1)
    assert (p >= floor / len(p) * (1 - 1e-12)).all()
    drawn = np.flatnonzero(~np.isnan(losses))
    order = drawn[np.argsort(losses[drawn], kind="stable")]
    assert (np.diff(p[order]) >= -1e-15).all()


def test_prompt_that_was_never_drawn_is_as_likely_as_one_with_the_mean_loss():
    p = draw_probabilities(np.array([1.0, 3.0, np.nan, 2.0]), 0.7, 0.1)
    assert p[2] == pytest.approx(p[3])


def test_probabilities_are_the_softmax_of_design():
    p = draw_probabilities(np.array([0.0, math.log(3.0)]), 1.0, 0.2)
    assert p == pytest.approx([0.8 * 0.25 + 0.1, 0.8 * 0.75 + 0.1])


@given(LOSSES, st.floats(0.01, 1), st.floats(0, 1))
def test_worst_share_weights_are_one_on_average_and_rise_with_the_loss(losses, share, floor):
    weights = worst_share_weights(losses, share, floor)
    assert weights.mean() == pytest.approx(1)
    drawn = np.flatnonzero(~np.isnan(losses))
    order = drawn[np.argsort(-losses[drawn], kind="stable")]
    assert (np.diff(weights[order]) <= 1e-12).all()


def test_worst_share_of_a_quarter_is_the_worst_of_four_and_its_border_carries_a_part():
    losses = np.array([1.0, 4.0, 2.0, 3.0])
    assert worst_share_weights(losses, 0.25, 0.0) == pytest.approx([0, 4, 0, 0])
    assert worst_share_weights(losses, 0.375, 0.0) == pytest.approx([0, 8 / 3, 0, 4 / 3])
    assert worst_share_weights(losses, 0.25, 0.5) == pytest.approx([0.5, 2.5, 0.5, 0.5])


def test_uniform_sampling_and_cross_entropy_learn_nothing_and_keep_nothing():
    weights = PromptWeights(3)
    weights.observe(np.array([0, 1]), np.array([5.0, 1.0]))
    assert weights.for_step(7).probability_N is None
    assert weights.for_step(7).weight(0) == 1.0
    assert weights.state() == {}


def test_probabilities_change_only_where_a_block_begins():
    weights = PromptWeights(2, ADAPTIVE)
    seen = []
    for step in range(8):
        seen.append(weights.for_step(step).probability_N)
        weights.observe(np.array([0, 1]), np.array([float(step), 0.1]))
    blocks = [tuple(p) for p in seen]
    assert len(set(blocks[0:3])) == len(set(blocks[3:6])) == len(set(blocks[6:8])) == 1
    assert len(set(blocks)) == 3
    assert blocks[0] == (0.5, 0.5)


def test_mean_is_exponential_in_the_order_of_slots():
    weights = PromptWeights(2, ADAPTIVE)
    weights.observe(np.array([1, 1, 1]), np.array([8.0, 4.0, 2.0]))
    assert np.isnan(weights.mean_N[0])
    assert weights.mean_N[1] == 0.5 * (0.5 * 8 + 0.5 * 4) + 0.5 * 2


def test_group_dro_weighs_by_the_sum_of_each_steps_mean_loss():
    weights = PromptWeights(2, objective=GroupDRO(type="group_dro", step_size=0.5))
    weights.observe(np.array([0, 0, 1]), np.array([1.0, 3.0, 1.0]))
    weights.observe(np.array([1]), np.array([1.0]))
    w = weights.for_step(2).weight_N
    q = np.exp([0.5 * 2.0, 0.5 * 1.0 + 0.5 * 1.0])
    assert w == pytest.approx(2 * q / q.sum())


@pytest.mark.parametrize("objective", [None, GroupDRO(type="group_dro"), CVaR(type="cvar")])
def test_restored_in_the_middle_of_a_block_it_goes_on_as_if_never_stopped(objective):
    def advance(weights: PromptWeights, first: int, last: int) -> list[tuple]:
        """As `plans` and `fit` do: the weights of a step are asked for before the last one ran."""
        seen = []
        for step in range(first, last):
            ahead = weights.for_step(step + 1)
            arrays = (ahead.probability_N, ahead.weight_N)
            seen.append(tuple(tuple(a) for a in arrays if a is not None))
            weights.observe(
                np.array([step % 5, (step * 3) % 5]), np.array([1.0 + step % 4, 0.3 * (step % 7)])
            )
        return seen

    whole = PromptWeights(5, ADAPTIVE, objective)
    whole.for_step(0)
    expected = advance(whole, 0, 20)
    for cut in (1, 2, 3, 10, 19):
        before, after = PromptWeights(5, ADAPTIVE, objective), PromptWeights(5, ADAPTIVE, objective)
        before.for_step(0)
        advance(before, 0, cut)
        after.restore({**before.state(), "weight/other": before.state()["sampler/mean"]})
        after.for_step(cut)
        assert advance(after, cut, 20) == expected[cut:], cut


def test_draws_follow_the_probabilities():
    sampler = PromptSampler(seed=1, prompts=4)
    p = np.array([0.5, 0.0, 0.3, 0.2])
    drawn = np.array([sampler.index(s, slot, 0, p) for s in range(500) for slot in range(8)])
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    assert shares[1] == 0
    assert shares == pytest.approx(p, abs=0.03)


def test_second_view_of_an_example_is_another_draw():
    sampler = PromptSampler(seed=1, prompts=100)
    pairs = [(sampler.index(s, 0), sampler.index(s, 0, 1)) for s in range(300)]
    assert sum(one == other for one, other in pairs) < 15
