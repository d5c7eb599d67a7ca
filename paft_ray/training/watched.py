"""An engine that says where it stands, so that a stuck rank can be named."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch

from paft_ray.config import TrainConfig
from paft_ray.modeling.tokenization import Row
from paft_ray.training.engine import Engine
from paft_ray.training.heartbeat import Pulse
from paft_ray.training.plan import StepPlan

if TYPE_CHECKING:
    from peft import PeftModel


class WatchedEngine(Engine):
    """An `Engine` whose every call moves a pulse."""

    def __init__(self, pulse: Pulse, model: "PeftModel", train: TrainConfig, dtype: str) -> None:
        """Build the engine; collective over all ranks of the default process group."""
        super().__init__(model, train, dtype)
        self._pulse = pulse

    def accumulate(self, row: Row, answer_tokens: int) -> torch.Tensor:
        """See `Engine`; another row is done."""
        nll_A = super().accumulate(row, answer_tokens)
        self._pulse.move("forward", row=self._pulse.beat.row + 1)
        return nll_A

    def all_reduce(self, values: torch.Tensor) -> list[float]:
        """See `Engine`; from here on this rank waits for the others."""
        self._pulse.move("waiting")
        return super().all_reduce(values)

    def gather(self) -> dict[str, torch.Tensor]:
        """See `Engine`; a checkpoint begins, which may wait for storage."""
        self._pulse.move("checkpoint")
        return super().gather()


def watched_plans(plans: Iterable[StepPlan], pulse: Pulse) -> Iterator[StepPlan]:
    """The same plans; taking one moves the pulse to its step."""
    for plan in plans:
        pulse.move("forward", step=plan.step + 1)
        yield plan
