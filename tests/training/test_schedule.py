"""The learning rate: a pure function of the step."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paft_ray.config import ScheduleConfig
from paft_ray.training.schedule import learning_rate

# how long an example takes says how busy the machine is, not whether anything is wrong
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SHARES = st.floats(0, 1)
WARMUPS = st.floats(0, 0.99)
LENGTHS = st.integers(1, 300)


def rates(steps, peak=1.0, **schedule):
    config = ScheduleConfig(**schedule)
    return [learning_rate(peak, config, step, steps) for step in range(steps)]


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_warm_up_rises_linearly_from_the_first_step_to_the_peak(shape):
    begun = rates(100, peak=3.0, type=shape, warmup_share=0.1)[:10]
    assert begun == pytest.approx([0.3 * step for step in range(1, 11)])


@pytest.mark.parametrize("shape", ["cosine", "linear"])
@patient
@given(steps=LENGTHS, warmup=WARMUPS, final=SHARES)
def test_decay_never_rises_and_would_end_at_the_final_share_one_step_later(
    shape, steps, warmup, final
):
    found = rates(steps, type=shape, warmup_share=warmup, final_share=final)
    highest = found.index(max(found))
    assert found[: highest + 1] == sorted(found[: highest + 1])
    assert found[highest:] == sorted(found[highest:], reverse=True)
    assert all(0 <= rate <= 1 for rate in found)
    assert found[-1] > 0, "a step that moves nothing is wasted"
    if math.ceil(warmup * steps) < steps:  # else the whole training is warm-up
        config = ScheduleConfig(type=shape, warmup_share=warmup, final_share=final)
        assert learning_rate(1.0, config, steps, steps) == pytest.approx(final, abs=1e-12)


@patient
@given(LENGTHS, WARMUPS, SHARES)
def test_constant_after_warm_up_stays_at_the_peak_whatever_the_final_share(steps, warmup, final):
    found = rates(steps, type="constant", warmup_share=warmup, final_share=final)
    after = math.ceil(warmup * steps)
    assert all(rate == 1 for rate in found[after:])
    assert all(rate < 1 for rate in found[: max(0, after - 1)])


def test_linear_is_a_line_and_cosine_is_half_way_in_the_middle():
    line = rates(10, type="linear", warmup_share=0, final_share=0.5)
    assert line == pytest.approx([1 - 0.05 * step for step in range(10)])
    wave = rates(10, type="cosine", warmup_share=0, final_share=0.5)
    assert wave[5] == pytest.approx(0.75)
    assert wave[1] > line[1]
    assert wave[7] < line[7]


def test_rate_is_proportional_to_the_peak():
    one, other = (rates(50, peak=peak, type="cosine") for peak in (1.0, 2e-4))
    assert other == pytest.approx([2e-4 * rate for rate in one])
