"""Objectives: the loss of a step as a function of the log-probabilities of answer tokens.

Covered: the answer's cross-entropy, weighted by prompt (`prompt_weights` makes the weights of group
DRO and CVaR), a penalty on the difference between two renderings of the same example, the reward
that an answer would have on average, and GRPO on texts that the model wrote. All need
log-probabilities of answers only, so that the output head computes nothing else.

Shapes: A answer tokens of a row, S slots of the global batch, C choices, M measures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from paft_ray.config import GRPO, Consistency, ExpectedReward, ObjectiveConfig, VLLMRollouts
from paft_ray.models.packing import Row
from paft_ray.models.transfer import copy_to
from paft_ray.training.batch_plan import StepPlan

REWARD, PENALTY = "reward", "penalty"
K3_BACKEND, K3_REFERENCE, CLIPPED = "k3_backend", "k3_reference", "clipped"
"""What an objective measures of a slot besides the right answer's loss."""
CLIP = (0.8, 1.28)
"""Between which ratios of probabilities a later update still learns (arXiv 2503.14476)."""


def views(objective: ObjectiveConfig) -> int:
    """The number of renderings of every example that an objective compares."""
    return 2 if isinstance(objective, Consistency) else 1


def measures(objective: ObjectiveConfig) -> tuple[str, ...]:
    """What `row_loss` measures of every slot."""
    kinds = {
        Consistency: (PENALTY,),
        ExpectedReward: (REWARD,),
        GRPO: (K3_BACKEND, K3_REFERENCE, CLIPPED),
    }
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
    them. `reward`: what an answer of the model's would get on average. `k3_backend`,
    `k3_reference`: sums over tokens of the divergence, in nats, of what wrote a rollout from the
    model before the first update, and of the model from itself without its adapter. `clipped`:
    tokens that learn no more, as their probability has moved too far."""


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
    weight_A = weight_A.to(logprobs_A.dtype)
    if isinstance(objective, GRPO):
        loss, measured_MA = _policy_loss(objective, logprobs_A, row, plan, weight_A)
        measured_MS = measured_MA.new_zeros((len(measured_MA), slots))
        return RowLoss(loss, nll_S, measured_MS.index_add_(1, at, measured_MA))
    loss = -(logprobs_A * weight_A).sum() / plan.answer_tokens
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


def _policy_loss(
    objective: GRPO, logprobs_A: torch.Tensor, row: Row, plan: StepPlan, weight_A: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss on rollouts, and what is measured of each of their tokens: shape [M, A]."""
    policy = plan.policy
    assert policy is not None
    now_A = logprobs_A.detach()
    before_A = policy.before.setdefault(row.members, now_A)
    drawn_A: Any = copy_to(logprobs_A.device, policy.drawn(row))
    zero_A = torch.zeros_like(now_A, dtype=torch.float64)
    apart_A = before_A.double() - drawn_A
    measured = [_k3(apart_A), zero_A, zero_A]
    if isinstance(backend := objective.backend, VLLMRollouts):
        weight_A = weight_A * apart_A.exp().clamp(max=backend.ratio_cap).to(weight_A.dtype)
    if objective.updates == 1:
        gain_A = logprobs_A * weight_A
    else:
        ratio_A = (logprobs_A - before_A).exp()
        free_A, held_A = ratio_A * weight_A, ratio_A.clamp(*CLIP) * weight_A
        gain_A = torch.minimum(free_A, held_A)
        measured[2] = (held_A < free_A).double()
    loss = -gain_A.sum() / plan.answer_tokens
    if objective.kl:
        moved_A = _k3(policy.reference[row.members] - logprobs_A)
        measured[1] = moved_A.detach().double()
        loss = loss + objective.kl * policy.per_token * moved_A.sum() / plan.answer_tokens
    return loss, torch.stack(measured)


def _k3(difference_A: torch.Tensor) -> torch.Tensor:
    """An estimate of KL(p, q) at tokens drawn from p, from log q - log p; never negative."""
    return torch.expm1(difference_A) - difference_A


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
