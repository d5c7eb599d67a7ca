"""Batch plans of steps whose texts the model writes itself, just before it learns from them.

All ranks exchange what they wrote, so that each plan is made from the whole batch, as every other
batch plan is. Where a batch has several optimizer steps, their plans share its rows.

Shapes: S rollouts of a batch, Q questions, G rollouts of each.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from paft_ray.cluster.control import At
from paft_ray.config import GRPO
from paft_ray.models.generation import Ending
from paft_ray.models.sampling import Sampling
from paft_ray.models.tokenization import Encoded
from paft_ray.tracking import Metric
from paft_ray.training.batch_plan import Planner, StepPlan
from paft_ray.training.engine import Engine
from paft_ray.training.prompt_weights import BlockWeights
from paft_ray.training.reinforcement.advantages import advantages
from paft_ray.training.reinforcement.backends import Backend, Group, own_backend
from paft_ray.training.reinforcement.dealing import OwnText, deal_texts
from paft_ray.training.reinforcement.rewards import Rewards
from paft_ray.training.reinforcement.rollouts import Asked, Policy, Rollout, asked_at

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Writer:
    """Writes and grades the rollouts of one rank."""

    planner: Planner
    objective: GRPO
    rewards: Rewards
    engine: Engine
    stop: tuple[str, ...] = ()
    """`task.stop`."""
    at: At = lambda phase, step=None, row=0: None
    """See `loop.LoopHooks`."""
    backend: Backend | None = None
    """What writes them; by default the model that is trained."""

    @cached_property
    def _backend(self) -> Backend:
        if self.backend is not None:
            return self.backend
        return own_backend(self.objective, self.engine, self.planner.encoder.tokenizer)

    def write(self, step: int, asked: Sequence[Asked]) -> list[Rollout]:
        """The rollouts of this rank's part of a batch.

        Raises:
            DataError: A question does not fit `task.max_length`.
            GradeError: A reward is none; see `Rewards.of`.
        """
        encoder, found = self.planner.encoder, []
        sampling = Sampling(
            self.objective.max_new_tokens,
            self.objective.decoding_temperature,
            Ending(encoder.end_ids, self.stop),
        )
        self.at("sampling", step + 1)
        encoded = [self._encode(one) for one in asked]
        groups = [
            Group(e.context_ids, one.count, one.seed) for e, one in zip(encoded, asked, strict=True)
        ]
        written = self._backend.sample(groups, sampling)
        for done, (one, read, texts) in enumerate(zip(asked, encoded, written, strict=True), 1):
            for number, text in enumerate(texts):
                rewarded = self.rewards.of(one.put.example, text.text, one.where)
                self.engine.work()
                slot = one.first + number
                found.append(Rollout(slot, text, rewarded, read.context_ids, read.trimmed))
            self.at("sampling", step + 1, done)
        return found

    def _encode(self, one: Asked) -> Encoded:
        """The context of a question, before its right answer."""
        example, encode = one.put.example, self.planner.encoder.encode
        [encoded] = encode(one.put.render, example.fields, [example.answer], one.where)
        return encoded

    def timed(self, step: int, asked: Sequence[Asked]) -> tuple[list[Rollout], float]:
        """Write this rank's share of a batch, and wait for the others; also returns seconds."""
        started = time.perf_counter()
        try:
            own = self.write(step, asked[self.engine.rank :: self.engine.ranks])
            return own, time.perf_counter() - started
        finally:
            self.at("waiting")


def rollout_plans(
    writer: Writer, first: int, last: int, weigh: Callable[[int], BlockWeights]
) -> Iterator[StepPlan]:
    """The plans of optimizer steps `first` to `last - 1`; collective.

    Args:
        writer: Writes this rank's rollouts, with the weights as they are when a plan is asked for.
        first: First step, with which a batch begins.
        last: One after the last.
        weigh: Returns the weights of prompts at a step.
    """
    objective, engine = writer.objective, writer.engine
    for begin in range(first, last, objective.updates):
        weights = weigh(begin)
        asked = asked_at(writer.planner, objective, begin, weights)
        everyone = engine.share(partial(writer.timed, begin, asked))
        writer.at("forward", begin + 1)
        rollouts = sorted((r for own, _ in everyone for r in own), key=lambda r: r.slot)
        slowest = max(seconds for _, seconds in everyone)
        plan = batch_plan(writer, begin, asked, rollouts, weights)
        if begin == 0 and engine.rank == 0:
            _warn(writer, asked, rollouts)
        assert plan.policy is not None
        if objective.kl:
            for row in plan.rows:
                plan.policy.reference[row.members] = engine.reference_logprobs(row)
                engine.work()
        tokens = sum(len(rollout.sampled.token_ids) for rollout in rollouts)
        speed = {Metric.ROLLOUT_TOKENS_PER_SECOND: tokens / slowest}
        for step in range(begin, min(begin + objective.updates, last)):
            ends = step + 1 == begin + objective.updates
            new = {**plan.policy.metrics, **speed} if step == begin else {}
            yield replace(
                plan,
                step=step,
                policy=replace(plan.policy, metrics=new, fresh=step == begin, last=ends),
            )


def _warn(writer: Writer, asked: Sequence[Asked], rollouts: Sequence[Rollout]) -> None:
    """Name what will teach the model nothing, from the first batch."""
    objective = writer.objective
    if objective.truncated == "mask" and not any(r.sampled.ended for r in rollouts):
        logger.warning(
            "all texts of the first step reached train.objective.max_new_tokens (%d) without an "
            "end, and nothing is learned from such texts: raise it, or set truncated: keep",
            objective.max_new_tokens,
        )
    reward_S = np.array([rollout.rewarded.value for rollout in rollouts])
    if not advantages(reward_S.reshape(-1, objective.rollouts))[1].any():
        logger.warning(
            "no two texts of a question got different rewards at the first step (%d texts, mean "
            "reward %.3g), and nothing is learned from such texts; rewards: %s",
            len(rollouts),
            reward_S.mean(),
            ", ".join(writer.rewards.names),
        )
    read: dict[int, bool] = {}
    for one in asked:
        own = rollouts[one.first : one.first + one.count]
        read[one.prompt] = read.get(one.prompt, False) or any(r.rewarded.read for r in own)
    for prompt in (prompt for prompt, found in read.items() if not found):
        logger.warning(
            "prompt %s: the rewards (%s) found an answer in none of the texts that the model wrote "
            "under it at the first step; it may ask for a form that they do not read",
            writer.planner.prompts[prompt][0],
            ", ".join(writer.rewards.names),
        )


def batch_plan(
    writer: Writer,
    step: int,
    asked: Sequence[Asked],
    rollouts: Sequence[Rollout],
    weights: BlockWeights,
) -> StepPlan:
    """The plan of this rank for a batch of rollouts, all of which are given by slot."""
    planner, objective, engine = writer.planner, writer.objective, writer.engine
    reward_S = np.array([rollout.rewarded.value for rollout in rollouts])
    advantage_QG, differ_Q = advantages(reward_S.reshape(-1, objective.rollouts), objective.scale)
    kept_S = np.repeat(differ_Q, objective.rollouts)
    if objective.truncated == "mask":
        kept_S &= np.array([rollout.sampled.ended for rollout in rollouts])
    if not objective.kl:
        kept_S &= advantage_QG.ravel() != 0
    tokens_S = np.array([len(rollout.sampled.token_ids) for rollout in rollouts])
    most = objective.max_new_tokens * len(rollouts)
    per_token = float(tokens_S.sum() / most) if objective.normalize == "constant" else 1.0
    asked_S = [one for one in asked for _ in range(one.count)]
    texts = [
        OwnText(one.example, one.prompt, Encoded(r.context, r.sampled.token_ids, r.trimmed))
        for one, r in zip(asked_S, rollouts, strict=True)
    ]
    weight_S = np.where(kept_S, advantage_QG.ravel() * per_token, 0.0)
    policy = Policy(
        tuple(asked),
        tuple(rollouts),
        reward_S,
        per_token,
        int(tokens_S[kept_S].sum()),
        measure(asked, rollouts, reward_S, differ_Q),
        fresh=True,
        last=False,
    )
    plan = deal_texts(planner, engine, step, texts, weight_S, weights, kept_S)
    return replace(plan, policy=policy)


def measure(
    asked: Sequence[Asked],
    rollouts: Sequence[Rollout],
    reward_S: NDArray[np.float64],
    differ_Q: NDArray[np.bool_],
) -> dict[str, float]:
    """Metrics of a batch of rollouts."""
    prompt_S = np.repeat([one.prompt for one in asked], [one.count for one in asked])
    by_prompt = [float(reward_S[prompt_S == prompt].mean()) for prompt in np.unique(prompt_S)]
    tokens = sum(len(rollout.sampled.token_ids) for rollout in rollouts)
    nll = -sum(sum(rollout.sampled.logprobs) for rollout in rollouts)
    return {
        Metric.TRAIN_REWARD: float(reward_S.mean()),
        Metric.TRAIN_REWARD_STD: float(reward_S.std()),
        Metric.TRAIN_REWARD_WORST_PROMPT: min(by_prompt),
        Metric.ROLLOUT_TOKENS: tokens / len(rollouts),
        Metric.ROLLOUT_TRUNCATED: float(np.mean([not r.sampled.ended for r in rollouts])),
        Metric.ROLLOUT_ENTROPY: nll / tokens,
        Metric.ROLLOUT_WITHOUT_VARIANCE: float(1 - differ_Q.mean()),
    }
