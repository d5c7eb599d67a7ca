"""The training loop; engine, plans, tracker and report are arguments; no Ray.

A step: forward and backward of this rank's rows, one all-reduce of the per-slot losses, one read by
the host, an error if they are not finite, one optimizer step. Every `every_steps` steps state is
gathered on the main thread and written by another, and so is a step that validation wants to keep.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from paft_ray.cluster.control import At
from paft_ray.config import ObjectiveConfig
from paft_ray.config.errors import TrainingError
from paft_ray.models.packing import Row
from paft_ray.tracking import Metric, Tracker
from paft_ray.training.batch_plan import StepPlan
from paft_ray.training.engine import Engine
from paft_ray.training.ledger import Ledger
from paft_ray.training.objective import (
    CLIPPED,
    K3_BACKEND,
    K3_REFERENCE,
    PENALTY,
    REWARD,
    measures,
    row_loss,
)
from paft_ray.training.prompt_weights import PromptWeights
from paft_ray.training.sampler import uniform
from paft_ray.training.speed import Part
from paft_ray.training.state.checkpoint import Checkpoints, Progress

logger = logging.getLogger(__name__)

MOST_APART = 0.01
"""Divergence in nats a token between what wrote rollouts and the model above which it is another
one."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings that are the same for all steps."""

    steps: int
    """Optimizer steps in all."""
    learning_rate: Callable[[int], float]
    """Returns the rate of a step."""
    every_steps: int
    """Steps between two checkpoints."""
    seed: int
    """Dropout masks are a function of seed, step and rank."""
    objective: ObjectiveConfig


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the scores of a step ask of the loop."""

    checkpoint: bool = False
    """Save this step."""
    end: bool = False
    """Save it and train no further."""


@dataclass(frozen=True, slots=True)
class LoopHooks:
    """Objects and functions that the loop calls with its results and positions."""

    tracker: Tracker
    """Records metrics, on rank 0 only."""
    checkpoints: Checkpoints
    """Write state; every rank writes its part."""
    ledger: Ledger
    """Records draws and losses; rank 0 writes."""
    weights: PromptWeights
    """Updated with the losses; plans are made with it."""
    report: Callable[[Mapping[str, float]], None]
    """Called on every rank after every step, with metrics."""
    at: At = lambda phase, step=None, row=0: None
    """Called on every rank where its position changes: phase, step from 1, rows done."""
    validate: Callable[[int], Wanted] = lambda step: Wanted()
    """Called on every rank after every step, before it is saved; may score the model. All ranks
    return the same."""
    must_stop: Callable[[], bool] = lambda: False
    """Called on every rank in every step; where one returns true, all save that step and return."""
    recording: Callable[[int], AbstractContextManager[None]] = lambda step: nullcontext()
    """Returns a context manager around each step, from 1, which may record it."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """Losses and metrics of one step, the same on all ranks."""

    nll_S: Sequence[float]
    """Negative log-likelihood of every slot's answer, in nats."""
    badness_S: np.ndarray
    """By what prompts are weighted and drawn, where losses change that: the mean of these per
    token of the answer, or minus the reward."""
    metrics: Mapping[str, float]
    seconds: float
    stopping: bool
    """Whether some rank must stop."""


def fit(
    engine: Engine,
    plans: Iterable[StepPlan],
    progress: Progress,
    recipe: Recipe,
    hooks: LoopHooks,
) -> Progress:
    """Train from `progress.step` to `recipe.steps`, or until a rank must stop or scores end it.

    Args:
        engine: Model and optimizer, already at `progress`.
        plans: The plan of every step from `progress.step` on, made with `hooks.weights`.
        progress: Where to start.
        recipe: Settings.
        hooks: Receive results; request a stop.

    Returns:
        The progress at the end, with fewer than `steps` steps where a rank had to stop or scores
        ended the training.

    Raises:
        TrainingError: The loss of a step is not finite, which leaves the weights as they were
            before it; or a checkpoint could not be written.
    """
    postponed = Wanted()  # between two updates on the same rollouts, which are not kept
    for plan, waited_s in _timed(plans):
        with hooks.recording(plan.step + 1):
            result = train_step(engine, plan, recipe, hooks, waited_s)
        policy = plan.policy
        if policy is None or policy.fresh:
            hooks.weights.observe(plan.draws.prompt_S, result.badness_S)
        progress = _after(progress, plan, result)
        hooks.tracker.log_metrics(result.metrics, progress.step)
        hooks.ledger.add(plan, result.nll_S)
        wanted = hooks.validate(progress.step)
        stopping = result.stopping or wanted.end or postponed.end
        due = progress.step % recipe.every_steps == 0 or progress.step == recipe.steps
        due = due or stopping or wanted.checkpoint or postponed.checkpoint
        last = policy is None or policy.last or progress.step == recipe.steps
        postponed = Wanted() if last else Wanted(due, stopping)
        stopping = stopping and last
        if due and last:
            hooks.at("checkpoint")
            hooks.checkpoints.wait()  # else two states are in memory
            state = {**engine.gather(), **hooks.weights.state()}
            write_ledger = hooks.ledger.take(progress.step, hooks.weights)
            before = partial(_write_records, write_ledger, hooks.tracker)
            hooks.checkpoints.save(progress, state, before)
        hooks.report({"step": float(progress.step), **result.metrics})
        if stopping:
            break
    hooks.at("checkpoint")
    hooks.checkpoints.wait()
    return progress


def _after(progress: Progress, plan: StepPlan, result: StepResult) -> Progress:
    """The progress after a step."""
    wrote, trimmed = plan.policy or plan.own, int(plan.draws.trimmed_S.sum())
    again = plan.policy is not None and not plan.policy.fresh  # the same texts
    return replace(
        progress,
        step=plan.step + 1,
        tokens=progress.tokens + plan.tokens,
        answer_tokens=progress.answer_tokens + plan.answer_tokens,
        rollout_tokens=progress.rollout_tokens + (wrote.new_tokens if wrote else 0),
        trimmed=progress.trimmed + (0 if again else trimmed),
        seconds=progress.seconds + result.seconds,
        loss=result.metrics[Metric.TRAIN_LOSS],
    )


def _timed(plans: Iterable[StepPlan]) -> Iterator[tuple[StepPlan, float]]:
    """Yield each plan with the seconds that it was waited for."""
    iterator = iter(plans)
    while True:
        started = time.perf_counter()
        if (plan := next(iterator, None)) is None:
            return
        yield plan, time.perf_counter() - started


def _write_records(write_ledger: Callable[[], None], tracker: Tracker) -> None:
    """Write ledger and metrics, which must be on storage before their checkpoint."""
    write_ledger()
    tracker.flush()


def train_step(
    engine: Engine, plan: StepPlan, recipe: Recipe, hooks: LoopHooks, waited_s: float = 0.0
) -> StepResult:
    """Take one optimizer step; `hooks` decide whether this rank must stop after it.

    `waited_s` are seconds that its plan was waited for, which count as part of the step.

    Raises:
        TrainingError: The loss, or the norm of the gradient, is not finite.
    """
    started, must_stop = time.perf_counter(), hooks.must_stop()
    torch.manual_seed(int(uniform("dropout", recipe.seed, plan.step, engine.rank) * 2**53))
    slots, kinds, clock = len(plan.draws), measures(recipe.objective), engine.clock
    clock.enter("forward_backward")
    sums_KS, flops = _forward_backward(engine, plan, recipe.objective, hooks)
    others = torch.tensor([float(must_stop), flops], dtype=torch.float64, device=engine.device)
    hooks.at("waiting")
    clock.enter("communication")
    *values, stopping, flops = engine.all_reduce(torch.cat([sums_KS.flatten(), others]))
    clock.enter("optimizer")
    losses_S, *of_kinds = np.reshape(values, (1 + len(kinds), slots))
    measured = dict(zip(kinds, of_kinds, strict=True))
    if not math.isfinite(sum(values)):
        raise TrainingError(_describe_bad_step(plan, losses_S.tolist()))
    if plan.policy is not None:
        losses_S = plan.policy.losses  # of all texts, whether they are learned from or not
    learned = _measured_metrics(plan, measured)
    _refuse_other_model(plan.step, learned)
    rate = recipe.learning_rate(plan.step)
    norm = engine.step(rate)
    if norm is not None and not math.isfinite(norm):
        raise TrainingError(
            f"step {plan.step + 1}: the gradient norm is {norm}; the last checkpoint is good: "
            "lower train.learning_rate or set train.gradient_clipping"
        )
    nll_S: list[float] = losses_S.tolist()
    waited: Part = "plan" if plan.policy is None and plan.own is None else "sampling"
    seconds = waited_s + time.perf_counter() - started
    metrics: dict[str, float] = {
        Metric.TRAIN_LOSS: sum(nll_S) / plan.answer_tokens,
        Metric.TRAIN_LEARNING_RATE: rate,
        **engine.meter.step(plan.tokens, flops, seconds, {waited: waited_s, **clock.take()}),
    }
    if norm is not None:
        metrics[Metric.TRAIN_GRADIENT_NORM] = norm
    metrics |= learned
    if plan.own is not None:
        metrics |= plan.own.metrics
    if (effective := plan.weights.effective_prompts) is not None:
        metrics[Metric.TRAIN_EFFECTIVE_PROMPTS] = effective
    if plan.weights.weight_N is not None:
        metrics[Metric.TRAIN_LARGEST_PROMPT_WEIGHT] = float(plan.weights.weight_N.max())
    reward_S = measured.get(REWARD) if plan.policy is None else plan.policy.reward_S
    badness_S = losses_S / plan.draws.answer_tokens_S if reward_S is None else -reward_S
    return StepResult(nll_S, badness_S, metrics, seconds, stopping > 0)


def _forward_backward(
    engine: Engine, plan: StepPlan, objective: ObjectiveConfig, hooks: LoopHooks
) -> tuple[torch.Tensor, float]:
    """Go through this rank's rows; returns losses and measures of its slots, [K, S], and FLOPs."""
    shape = 1 + len(measures(objective)), len(plan.draws)
    sums_KS = torch.zeros(shape, dtype=torch.float64, device=engine.device)
    flops = 0.0
    for done, row in enumerate(plan.rows):
        hooks.at("forward", plan.step + 1, done)

        def loss_of(logprobs_A: torch.Tensor, row: Row = row) -> torch.Tensor:
            found = row_loss(objective, logprobs_A, row, plan)
            sums_KS[0] += found.nll_S
            sums_KS[1:] += found.measured_MS
            return found.loss

        engine.accumulate(row, loss_of)
        flops += engine.meter.flops(row)
    return sums_KS, flops


def _measured_metrics(plan: StepPlan, measured: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Metrics of what the objective measured of every slot."""
    metrics: dict[str, float] = {}
    if PENALTY in measured:
        metrics[Metric.TRAIN_INCONSISTENCY] = measured[PENALTY].sum() / (len(plan.draws) // 2)
    if REWARD in measured:
        metrics[Metric.TRAIN_REWARD] = measured[REWARD].mean()
    if plan.policy is not None:
        tokens = max(1, plan.policy.learned)
        metrics |= plan.policy.metrics
        for name, kind in (
            (Metric.TRAIN_K3_BACKEND, K3_BACKEND),
            (Metric.TRAIN_K3_REFERENCE, K3_REFERENCE),
            (Metric.TRAIN_CLIPPED, CLIPPED),
        ):
            metrics[name] = float(measured[kind].sum()) / tokens
    return metrics


def _refuse_other_model(step: int, metrics: Mapping[str, float]) -> None:
    """Refuse rollouts that another model wrote than the one that learns from them."""
    apart = metrics.get(Metric.TRAIN_K3_BACKEND, 0.0)
    if apart > MOST_APART:
        raise TrainingError(
            f"step {step + 1}: what wrote the rollouts is not the model that learns from them: "
            f"their divergence (k3) is {apart:.3g} nats a token, more than {MOST_APART:g}; the "
            "adapter may not have reached it; the last checkpoint is good"
        )


def _describe_bad_step(plan: StepPlan, nll_S: Sequence[float]) -> str:
    bad = [draw for draw, loss in zip(plan.draws, nll_S, strict=True) if not math.isfinite(loss)]
    named = ", ".join(f"example {d.example_id} under prompt {d.prompt_id}" for d in bad[:4])
    more = f" and {len(bad) - 4} more" if len(bad) > 4 else ""
    return (
        f"step {plan.step + 1}: the loss is not finite ({named}{more}); the step was refused and "
        "the last checkpoint is good: lower train.learning_rate, or look at these examples"
    )
