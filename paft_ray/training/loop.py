"""The training loop, readable in one go: engine, plans, tracker and report are handed in; no Ray.

A step: the rows of this rank forward and backward, one all-reduce of the per-slot losses, one read
by the host, a refusal if that is not finite, one optimizer step. Every `every_steps` steps state
is gathered on the main thread and written by another.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import torch

from paft_ray.artifacts import Storage, to_parquet
from paft_ray.errors import TrainingError
from paft_ray.modeling.scoring import score_sequences
from paft_ray.modeling.tokenization import TokenSequence
from paft_ray.tracking import Metric, Tracker
from paft_ray.training.checkpoint import Checkpoints, Progress
from paft_ray.training.engine import Engine
from paft_ray.training.plan import StepPlan
from paft_ray.training.sampler import uniform

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

PACKING_TOLERANCE = 1e-4
"""Largest difference of a row's mean loss, packed and unpacked in fp32, in nats."""


@dataclass
class Ledger:
    """What was drawn and what it cost, one row per slot; a part per stretch between checkpoints.

    A stretch that is trained again after a crash overwrites its part with the same rows.
    """

    folder: Storage
    first_step: int
    _rows: list[tuple[int, int, str, str, float, int]] = field(default_factory=list)

    def add(self, plan: StepPlan, nll_B: Sequence[float]) -> None:
        """Record one step; `nll_B` is the summed answer loss of every slot."""
        for slot, (draw, nll) in enumerate(zip(plan.draws, nll_B, strict=True)):
            self._rows.append(
                (plan.step, slot, draw.example_id, draw.prompt_id, nll, draw.answer_tokens)
            )

    def take(self, last_step: int) -> Callable[[], None]:
        """Start a new part, and return what writes the one that ends with `last_step` steps."""
        rows, self._rows = self._rows, []
        name = f"steps-{self.first_step:09d}-{last_step:09d}.parquet"
        self.first_step = last_step
        names = ("step", "slot", "example_id", "prompt_id", "loss", "answer_tokens")

        def write() -> None:
            columns = [list(column) for column in zip(*rows, strict=True)]
            table = pa.table(dict(zip(names, columns, strict=True)))
            self.folder.write_bytes(name, to_parquet(table))

        return write if rows else lambda: None


def fit(
    engine: Engine,
    plans: Iterable[StepPlan],
    progress: Progress,
    steps: int,
    learning_rate: Callable[[int], float],
    tracker: Tracker,
    checkpoints: Checkpoints,
    every_steps: int,
    ledger: Ledger,
    report: Callable[[Mapping[str, float]], None],
    seed: int = 0,
    leave: Callable[[], bool] = lambda: False,
) -> Progress:
    """Train from `progress.step` to `steps`, or until a rank has to leave.

    Args:
        engine: Model and optimizer, already at `progress`.
        plans: The plan of every step from `progress.step` on.
        progress: Where to start.
        steps: Optimizer steps in all.
        learning_rate: Rate of a step.
        tracker: Takes metrics; one that logs on rank 0 only.
        checkpoints: Where state goes; rank 0 writes.
        every_steps: Steps between two checkpoints.
        ledger: Takes draws and losses; rank 0 writes.
        report: Called on every rank after every step, with metrics.
        seed: Dropout masks are a function of it, the step and the rank.
        leave: Asked once per step; where it says yes on any rank, all of them end after that step
            with a checkpoint of it.

    Returns:
        The progress at the end, with fewer than `steps` steps where a rank had to leave.

    Raises:
        TrainingError: The loss of a step is not finite; the weights are those before the step.
    """
    for plan in plans:
        started = time.perf_counter()
        torch.manual_seed(int(uniform("dropout", seed, plan.step, engine.rank) * 2**53))
        slots = len(plan.draws)
        # one more than there are slots: how many ranks have to leave
        nll_B = torch.zeros(slots + 1, dtype=torch.float64, device=engine.device)
        nll_B[slots] = leave()
        for row in plan.rows[engine.rank]:
            nll = engine.accumulate(row, plan.answer_tokens)
            if row.members:
                nll_B[torch.tensor(row.members, device=engine.device)] = nll
        *losses_B, leaving = engine.all_reduce(nll_B)
        loss = sum(losses_B) / plan.answer_tokens
        if not math.isfinite(loss):
            raise TrainingError(_describe_bad_step(plan, losses_B))
        rate = learning_rate(plan.step)
        norm = engine.step(rate)
        if norm is not None and not math.isfinite(norm):
            raise TrainingError(
                f"step {plan.step + 1}: the gradient norm is {norm}; the last checkpoint is good: "
                "lower train.learning_rate or set train.gradient_clipping"
            )
        seconds = time.perf_counter() - started
        progress = replace(
            progress,
            step=plan.step + 1,
            tokens=progress.tokens + plan.tokens,
            answer_tokens=progress.answer_tokens + plan.answer_tokens,
            trimmed=progress.trimmed + sum(draw.trimmed for draw in plan.draws),
            seconds=progress.seconds + seconds,
            loss=loss,
        )
        metrics: dict[str, float] = {
            Metric.TRAIN_LOSS: loss,
            Metric.TRAIN_LEARNING_RATE: rate,
            Metric.TRAIN_TOKENS_PER_SECOND: plan.tokens / seconds,
        }
        if norm is not None:
            metrics[Metric.TRAIN_GRADIENT_NORM] = norm
        tracker.log_metrics(metrics, progress.step)
        ledger.add(plan, losses_B)
        if progress.step % every_steps == 0 or progress.step == steps or leaving:
            state = engine.gather()
            write_ledger = ledger.take(progress.step)
            if engine.rank == 0:
                checkpoints.save(progress, state, before=write_ledger)
        report({"step": float(progress.step), **metrics})
        if leaving:
            break
    checkpoints.wait()
    return progress


def packing_error(model: "PeftModel", sequences: Sequence[TokenSequence], row_tokens: int) -> float:
    """How far packing moves the mean answer loss of a few sequences, in nats, in fp32."""
    model.eval()  # dropout would differ between the two
    lengths = [len(sequence.input_ids) for sequence in sequences]
    with _perturbed(model):
        packed = score_sequences(model, sequences, "float32", max(row_tokens, sum(lengths)))
        alone = score_sequences(model, sequences, "float32", row_tokens, packing=False)
    tokens = sum(len(sequence.targets) for sequence in sequences)
    difference = sum(abs(p[0] - a[0]) for p, a in zip(packed, alone, strict=True)) / tokens
    return difference if math.isfinite(difference) else math.inf


@contextmanager
def _perturbed(model: "PeftModel") -> Iterator[None]:
    """The adapter moved away from its beginning, where most adapters do nothing at all."""
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in before:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.02 * noise.to(parameter))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in before:
                    parameter.copy_(before[name])


def _describe_bad_step(plan: StepPlan, losses_B: Sequence[float]) -> str:
    bad = [draw for draw, loss in zip(plan.draws, losses_B, strict=True) if not math.isfinite(loss)]
    named = ", ".join(f"example {d.example_id} under prompt {d.prompt_id}" for d in bad[:4])
    more = f" and {len(bad) - 4} more" if len(bad) > 4 else ""
    return (
        f"step {plan.step + 1}: the loss is not finite ({named}{more}); the step was refused and "
        "the last checkpoint is good: lower train.learning_rate, or look at these examples"
    )
