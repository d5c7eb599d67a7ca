"""Losses of a row against the same sums written out, and what they promise."""

import math

import numpy as np
import pytest
import torch
from plans import make_draws

from paft_ray.config import Consistency, CrossEntropy, ExpectedReward
from paft_ray.models.packing import Row, TokenSequence, build_row
from paft_ray.training.batch_plan import StepPlan
from paft_ray.training.objective import RowLoss, row_loss

CHOICES = TokenSequence((5, 6, 7), (2, 2, 2), (10, 11, 12), (0, 1, 2))
CONSISTENCY = Consistency(type="consistency", weight=0.3)
REWARD = ExpectedReward(type="expected_reward")


def text(*targets: int) -> TokenSequence:
    positions = tuple(range(2, 2 + len(targets)))
    return TokenSequence((5, 6, 7, *targets[:-1]), positions, targets, (0,) * len(targets))


def make(sequences: list[TokenSequence], owners: list[int], weights: list[float]) -> StepPlan:
    """A step with one sequence per slot, all in one row."""
    row = build_row(sequences, range(len(sequences)))
    answers = [s.owners.count(owner) for s, owner in zip(sequences, owners, strict=True)]
    draws = make_draws(answers, owners=owners, weights=weights)
    return StepPlan(0, (row,), draws, np.arange(len(sequences)), row.tokens, sum(answers))


def row_of(plan: StepPlan) -> Row:
    return plan.rows[0]


def logprobs(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, requires_grad=True)


def penalty_of(found: RowLoss) -> float:
    return float(found.measured_MS.sum())


def binary_divergence(one: float, other: float) -> float:
    p, q = math.exp(one), math.exp(other)
    return 0.5 * (p - q) * (math.log(p / (1 - p)) - math.log(q / (1 - q)))


def test_cross_entropy_is_the_weighted_sum_over_answer_tokens_of_the_whole_batch():
    plan = make([text(1, 2), text(3)], [0, 0], [1.0, 2.0])
    given = logprobs([-1.0, -2.0, -0.5])
    found = row_loss(CrossEntropy(), given, row_of(plan), plan)
    assert float(found.loss.detach()) == pytest.approx((1.0 * 3.0 + 2.0 * 0.5) / 3)
    assert found.nll_S.tolist() == [3.0, 0.5]
    assert found.measured_MS.shape == (0, 2)
    found.loss.backward()
    assert given.grad.tolist() == pytest.approx([-1 / 3, -1 / 3, -2 / 3])


def test_only_the_right_choice_is_trained_on_where_all_are_read():
    plan = make([CHOICES, CHOICES], [1, 2], [1.0, 1.0])
    given = logprobs([-1.0, -2.0, -3.0, -1.5, -2.5, -0.5])
    found = row_loss(CrossEntropy(), given, row_of(plan), plan)
    assert found.nll_S.tolist() == [2.0, 0.5]
    assert float(found.loss.detach()) == pytest.approx(2.5 / 2)


def test_penalty_between_choices_is_the_symmetric_divergence_of_their_distributions():
    plan = make([CHOICES, CHOICES], [1, 1], [1.0, 1.0])
    one, other = [-1.0, -2.0, -3.0], [-2.5, -0.5, -1.0]
    found = row_loss(CONSISTENCY, logprobs(one + other), row_of(plan), plan)
    p, q = torch.tensor(one).softmax(0), torch.tensor(other).softmax(0)
    expected = 0.5 * float((p * (p / q).log()).sum() + (q * (q / p).log()).sum())
    assert penalty_of(found) == pytest.approx(expected, rel=1e-5)
    nll = float(found.nll_S.sum())
    assert float(found.loss.detach()) == pytest.approx(nll / 2 + 0.3 * expected, rel=1e-5)


def test_penalty_of_two_pairs_is_their_sum_and_is_averaged_over_the_batch():
    pair = make([CHOICES, CHOICES], [1, 1], [1.0, 1.0])
    two = make([CHOICES] * 4, [1] * 4, [1.0] * 4)
    a, b, c, d = [-1.0, -2.0, -3.0], [-1.0, -1.0, -3.0], [-2.5, -0.5, -1.0], [-0.1, -4.0, -5.0]
    first = penalty_of(row_loss(CONSISTENCY, logprobs(a + c), row_of(pair), pair))
    second = penalty_of(row_loss(CONSISTENCY, logprobs(b + d), row_of(pair), pair))
    both = row_loss(CONSISTENCY, logprobs(a + b + c + d), row_of(two), two)
    assert both.measured_MS[0].tolist() == pytest.approx([first, second, 0, 0], rel=1e-5)
    assert float(both.loss.detach()) == pytest.approx(
        float(both.nll_S.sum()) / 4 + 0.3 * penalty_of(both) / 2, rel=1e-5
    )


def test_penalty_between_texts_matches_tokens_from_the_end():
    plan = make([text(1, 2, 3), text(9, 2, 3)], [0, 0], [1.0, 1.0])
    shorter = make([text(1, 2, 3), text(2, 3)], [0, 0], [1.0, 1.0])
    one, other = [-0.3, -1.0, -2.0], [-0.5, -1.0]
    found = row_loss(CONSISTENCY, logprobs(one + other), row_of(shorter), shorter)
    expected = (binary_divergence(-1.0, -0.5) + binary_divergence(-2.0, -1.0)) / 2
    assert penalty_of(found) == pytest.approx(expected, rel=1e-5)
    assert penalty_of(row_loss(CONSISTENCY, logprobs(one + one), row_of(plan), plan)) == 0


def test_penalty_of_a_certain_token_stays_finite_and_has_a_gradient():
    plan = make([text(1), text(1)], [0, 0], [1.0, 1.0])
    given = logprobs([0.0, -3.0])
    found = row_loss(CONSISTENCY, given, row_of(plan), plan)
    found.loss.backward()
    assert math.isfinite(penalty_of(found))
    assert all(map(math.isfinite, given.grad.tolist()))


def test_gradient_of_the_penalty_pulls_the_two_renderings_together():
    plan = make([CHOICES, CHOICES], [0, 0], [0.0, 0.0])
    values = logprobs([-0.1, -3.0, -4.0, -2.0, -0.3, -2.5])
    before = None
    for _ in range(20):
        found = row_loss(CONSISTENCY, values, row_of(plan), plan)
        before = penalty_of(found) if before is None else before
        (gradient,) = torch.autograd.grad(found.loss, values)
        values = (values - 2.0 * gradient).detach().requires_grad_(True)
    assert penalty_of(found) < 0.2 * before


def test_expected_reward_is_the_probability_of_the_right_choice_among_the_choices():
    plan = make([CHOICES, CHOICES], [1, 2], [1.0, 1.0])
    one, other = [-1.0, -2.0, -3.0], [-1.5, -2.5, -0.5]
    given = logprobs(one + other)
    found = row_loss(REWARD, given, row_of(plan), plan)
    share = [torch.tensor(values).softmax(0) for values in (one, other)]
    right = [float(share[0][1]), float(share[1][2])]
    assert found.measured_MS[0].tolist() == pytest.approx(right, rel=1e-6)
    assert float(found.loss.detach()) == pytest.approx(-sum(right) / 2, rel=1e-6)
    found.loss.backward()
    expected = [
        -right[n] * (float(c == owner) - float(p)) / 2
        for n, owner in enumerate((1, 2))
        for c, p in enumerate(share[n])
    ]
    assert given.grad.tolist() == pytest.approx(expected, rel=1e-5)


def test_expected_reward_adds_up_the_tokens_of_each_choice_over_its_sequences():
    choices = [
        TokenSequence((5, 6, 7), (1, 2), (8, 9), (0, 0)),
        TokenSequence((5, 6), (1,), (4,), (1,)),
    ]
    row = build_row(choices, range(2))
    plan = StepPlan(0, (row,), make_draws([2], owners=[0]), np.array([0, 0]), row.tokens, 2)
    found = row_loss(REWARD, logprobs([-0.5, -0.25, -2.0]), row, plan)
    right = math.exp(-0.75) / (math.exp(-0.75) + math.exp(-2.0))
    assert float(found.loss.detach()) == pytest.approx(-right, rel=1e-6)
    assert found.nll_S.tolist() == [0.75]
