"""Objectives: the loss of a step as a function of the log-probabilities of answer tokens.

Covered: the answer's cross-entropy, weighted by prompt (`prompt_weights` makes the weights of group
DRO and CVaR), a penalty on the difference between two renderings of the same example, and the
reward that an answer would have on average. All need log-probabilities of answers only, so that the
output head computes nothing else.

Shapes: A answer tokens of a row, S slots of the global batch, C choices, M measures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from paft_ray.config import Consistency, ExpectedReward, ObjectiveConfig
from paft_ray.models.packing import Row
from paft_ray.models.transfer import copy_to
from paft_ray.training.batch_plan import StepPlan

REWARD, PENALTY = "reward", "penalty"
"""What an objective measures of a slot besides the right answer's loss."""


def views(objective: ObjectiveConfig) -> int:
    """The number of renderings of every example that an objective compares."""
    return 2 if isinstance(objective, Consistency) else 1


def measures(objective: ObjectiveConfig) -> tuple[str, ...]:
    """What `row_loss` measures of every slot."""
    kinds = {Consistency: (PENALTY,), ExpectedReward: (REWARD,)}
    return kinds.get(type(objective), ())


@dataclass(frozen=True, slots=True)
class RowLoss:
    """One row's part of the loss of its global batch; values of slots of other rows are 0."""

    loss: torch.Tensor
    """To differentiate; its sum over rows and ranks is the step's."""
    nll_S: torch.Tensor
    """Negative log-likelihood of every slot's right answer, float64."""
    measured_MS: torch.Tensor
    """What `measures` names, float64. `penalty`: in nats, of a pair of renderings, at the first of
    them. `reward`: what an answer of the model's would get on average."""


def row_loss(
    objective: ObjectiveConfig, logprobs_A: torch.Tensor, row: Row, plan: StepPlan
) -> RowLoss:
    """One row's part of the loss of its global batch.

    Args:
        objective: `train.objective`.
        logprobs_A: Log-probability of every answer token of the row.
        row: The row.
        plan: The plan of its step.
    """
    device, slots = logprobs_A.device, len(plan.draws)
    slot_A, right_A = _slots(row, plan)
    weights = np.where(right_A, plan.draws.weight_S[slot_A], 0.0)
    moved: Any = copy_to(device, (weights, right_A, slot_A))
    weight_A, right, at = moved
    nll_S = torch.zeros(slots, dtype=torch.float64, device=device)
    nll_S.index_add_(0, at, torch.where(right, -logprobs_A.detach().double(), 0.0))
    if isinstance(objective, ExpectedReward):
        reward_S = _expected_rewards(logprobs_A, row, slot_A, plan)
        return RowLoss(-reward_S.sum() / slots, nll_S, reward_S.detach().double()[None])
    loss = -(logprobs_A * weight_A.to(logprobs_A.dtype)).sum() / plan.answer_tokens
    measured_MS = torch.zeros((0, slots), dtype=torch.float64, device=device)
    if isinstance(objective, Consistency):
        penalty_S = _penalties(logprobs_A, row, slot_A, right_A, slots)
        loss = loss + objective.weight * penalty_S.sum() / (slots // 2)
        measured_MS = penalty_S.detach().double()[None]
    return RowLoss(loss, nll_S, measured_MS)


def _slots(row: Row, plan: StepPlan) -> tuple[np.ndarray, np.ndarray]:
    """The slot of every target of a row, and whether it belongs to the right answer."""
    slot_A = plan.slot_of[np.asarray(row.members)[row.members_A]]
    return slot_A, row.owners_A == plan.draws.owner_S[slot_A]


def _expected_rewards(
    logprobs_A: torch.Tensor, row: Row, slot_A: np.ndarray, plan: StepPlan
) -> torch.Tensor:
    """Probability of the right choice among the choices of every slot: shape [S], 0 elsewhere."""
    found = logprobs_A.new_zeros(len(plan.draws))
    for slot in np.unique(slot_A):
        share_C = _by_owner(logprobs_A, row.owners_A, slot_A == slot).softmax(0)
        found[slot] = share_C[plan.draws.owner_S[slot]]
    return found


def _penalties(
    logprobs_A: torch.Tensor, row: Row, slot_A: np.ndarray, right_A: np.ndarray, slots: int
) -> torch.Tensor:
    """The symmetric divergence between the two renderings of every pair: shape [S]."""
    pairs, found = slots // 2, logprobs_A.new_zeros(slots)
    for place in np.unique(slot_A % pairs):
        one, other = ((slot_A == place + view * pairs) for view in (0, 1))
        if row.owners_A[one].max() > 0:
            found[place] = _between_choices(
                *(_by_owner(logprobs_A, row.owners_A, chosen) for chosen in (one, other))
            )
        else:
            tokens = [
                logprobs_A[torch.from_numpy(np.flatnonzero(chosen & right_A)).to(logprobs_A.device)]
                for chosen in (one, other)
            ]
            found[place] = _between_tokens(tokens)
    return found


def _by_owner(logprobs_A: torch.Tensor, owners_A: np.ndarray, chosen_A: np.ndarray) -> torch.Tensor:
    """Log-likelihood of every choice of one slot: shape [C]."""
    at = np.flatnonzero(chosen_A)
    sums = logprobs_A.new_zeros(int(owners_A[at].max()) + 1)
    device = logprobs_A.device
    return sums.index_add(
        0, torch.from_numpy(owners_A[at]).to(device), logprobs_A[torch.from_numpy(at).to(device)]
    )


def _between_choices(one_C: torch.Tensor, other_C: torch.Tensor) -> torch.Tensor:
    """(KL(p, q) + KL(q, p)) / 2 of two distributions over the choices."""
    one_C, other_C = one_C.log_softmax(0), other_C.log_softmax(0)
    return 0.5 * ((one_C.exp() - other_C.exp()) * (one_C - other_C)).sum()


def _between_tokens(logprobs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The same, per token, of "this token or any other"; tokens are matched from the end.

    By the data-processing inequality no more than the divergence over the whole vocabulary.
    """
    tokens = min(len(part) for part in logprobs)
    one, other = (part[len(part) - tokens :].double() for part in logprobs)
    rest = [torch.log1p(-part.exp().clamp(max=1 - 1e-12)) for part in (one, other)]
    divergence = (one.exp() - other.exp()) * ((one - rest[0]) - (other - rest[1]))
    return (0.5 * divergence.mean()).to(logprobs[0].dtype)
