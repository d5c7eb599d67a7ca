"""Losses of a row against the same sums written out, and what they promise."""

import math

import numpy as np
import pytest
import torch
from plans import make_draws

from paft_ray.config import Consistency, CrossEntropy
from paft_ray.models.packing import Row, TokenSequence, build_row
from paft_ray.training.batch_plan import StepPlan
from paft_ray.training.objective import row_loss

CHOICES = TokenSequence((5, 6, 7), (2, 2, 2), (10, 11, 12), (0, 1, 2))
CONSISTENCY = Consistency(type="consistency", weight=0.3)


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


def binary_divergence(one: float, other: float) -> float:
    p, q = math.exp(one), math.exp(other)
    return 0.5 * (p - q) * (math.log(p / (1 - p)) - math.log(q / (1 - q)))


def test_cross_entropy_is_the_weighted_sum_over_answer_tokens_of_the_whole_batch():
    plan = make([text(1, 2), text(3)], [0, 0], [1.0, 2.0])
    given = logprobs([-1.0, -2.0, -0.5])
    loss, nll, penalty = row_loss(CrossEntropy(), given, row_of(plan), plan)
    assert float(loss.detach()) == pytest.approx((1.0 * 3.0 + 2.0 * 0.5) / 3)
    assert nll.tolist() == [3.0, 0.5]
    assert float(penalty) == 0
    loss.backward()
    assert given.grad.tolist() == pytest.approx([-1 / 3, -1 / 3, -2 / 3])


def test_only_the_right_choice_is_trained_on_where_all_are_read():
    plan = make([CHOICES, CHOICES], [1, 2], [1.0, 1.0])
    given = logprobs([-1.0, -2.0, -3.0, -1.5, -2.5, -0.5])
    loss, nll, _ = row_loss(CrossEntropy(), given, row_of(plan), plan)
    assert nll.tolist() == [2.0, 0.5]
    assert float(loss.detach()) == pytest.approx(2.5 / 2)


def test_penalty_between_choices_is_the_symmetric_divergence_of_their_distributions():
    plan = make([CHOICES, CHOICES], [1, 1], [1.0, 1.0])
    one, other = [-1.0, -2.0, -3.0], [-2.5, -0.5, -1.0]
    loss, nll, penalty = row_loss(CONSISTENCY, logprobs(one + other), row_of(plan), plan)
    p, q = torch.tensor(one).softmax(0), torch.tensor(other).softmax(0)
    expected = 0.5 * float((p * (p / q).log()).sum() + (q * (q / p).log()).sum())
    assert float(penalty) == pytest.approx(expected, rel=1e-5)
    assert float(loss.detach()) == pytest.approx(float(nll.sum()) / 2 + 0.3 * expected, rel=1e-5)


def test_penalty_of_two_pairs_is_their_sum_and_is_averaged_over_the_batch():
    pair = make([CHOICES, CHOICES], [1, 1], [1.0, 1.0])
    two = make([CHOICES] * 4, [1] * 4, [1.0] * 4)
    a, b, c, d = [-1.0, -2.0, -3.0], [-1.0, -1.0, -3.0], [-2.5, -0.5, -1.0], [-0.1, -4.0, -5.0]
    _, _, first = row_loss(CONSISTENCY, logprobs(a + c), row_of(pair), pair)
    _, _, second = row_loss(CONSISTENCY, logprobs(b + d), row_of(pair), pair)
    loss, nll, both = row_loss(CONSISTENCY, logprobs(a + b + c + d), row_of(two), two)
    assert float(both) == pytest.approx(float(first + second), rel=1e-5)
    assert float(loss.detach()) == pytest.approx(
        float(nll.sum()) / 4 + 0.3 * float(both) / 2, rel=1e-5
    )


def test_penalty_between_texts_matches_tokens_from_the_end():
    plan = make([text(1, 2, 3), text(9, 2, 3)], [0, 0], [1.0, 1.0])
    shorter = make([text(1, 2, 3), text(2, 3)], [0, 0], [1.0, 1.0])
    one, other = [-0.3, -1.0, -2.0], [-0.5, -1.0]
    _, _, penalty = row_loss(CONSISTENCY, logprobs(one + other), row_of(shorter), shorter)
    expected = (binary_divergence(-1.0, -0.5) + binary_divergence(-2.0, -1.0)) / 2
    assert float(penalty) == pytest.approx(expected, rel=1e-5)
    _, _, same = row_loss(CONSISTENCY, logprobs(one + one), row_of(plan), plan)
    assert float(same) == 0


def test_penalty_of_a_certain_token_stays_finite_and_has_a_gradient():
    plan = make([text(1), text(1)], [0, 0], [1.0, 1.0])
    given = logprobs([0.0, -3.0])
    loss, _, penalty = row_loss(CONSISTENCY, given, row_of(plan), plan)
    loss.backward()
    assert math.isfinite(float(penalty))
    assert all(map(math.isfinite, given.grad.tolist()))


def test_gradient_of_the_penalty_pulls_the_two_renderings_together():
    plan = make([CHOICES, CHOICES], [0, 0], [0.0, 0.0])
    values = logprobs([-0.1, -3.0, -4.0, -2.0, -0.3, -2.5])
    before = None
    for _ in range(20):
        loss, _, penalty = row_loss(CONSISTENCY, values, row_of(plan), plan)
        before = float(penalty) if before is None else before
        (gradient,) = torch.autograd.grad(loss, values)
        values = (values - 2.0 * gradient).detach().requires_grad_(True)
    assert float(penalty) < 0.2 * before
