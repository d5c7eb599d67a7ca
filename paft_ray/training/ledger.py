"""What was drawn, what it cost, and what past losses made of the next draws, on storage."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from paft_ray.storage.paths import Storage, to_parquet
from paft_ray.training.batch_plan import StepPlan
from paft_ray.training.prompt_weights import UNIFORM, PromptWeights


@dataclass
class Ledger:
    """`ledger/`: one row per slot; a part per stretch between checkpoints.

    Where past losses change draws or weights, `sampling/` has these for every prompt as they stand
    at each checkpoint. A stretch that is trained again after a crash overwrites its part with the
    same rows, or `prune` has removed it.
    """

    home: Storage
    """The training's folder."""
    first_step: int
    prompt_ids: Sequence[str] = ()
    """Of every prompt, for the weights."""
    _rows: list[tuple[int, int, str, str, float, int]] = field(default_factory=list)

    def prune(self) -> None:
        """Remove what a dead attempt wrote of steps that are to come; before the first of them.

        A part is written before its checkpoint, which may never have come.
        """
        for kind, first in (("ledger", self.first_step), ("sampling", self.first_step + 1)):
            folder = self.home.child(kind)
            for name in folder.names():
                step = re.match(r"steps?-(\d{9})\b", name)
                if step is not None and int(step[1]) >= first:
                    folder.delete(name)

    def add(self, plan: StepPlan, nll_S: Sequence[float]) -> None:
        """Record one step; `nll_S` is the summed answer loss of every slot."""
        for slot, (draw, nll) in enumerate(zip(plan.draws, nll_S, strict=True)):
            self._rows.append(
                (plan.step, slot, draw.example_id, draw.prompt_id, nll, draw.answer_tokens)
            )

    def take(self, last_step: int, weights: PromptWeights | None = None) -> Callable[[], None]:
        """Start a new part, and return what writes the one that ends with `last_step` steps.

        Args:
            last_step: Steps done.
            weights: Recorded too, where past losses change anything.
        """
        rows, self._rows = self._rows, []
        name = f"steps-{self.first_step:09d}-{last_step:09d}.parquet"
        self.first_step = last_step
        names = ("step", "slot", "example_id", "prompt_id", "loss", "answer_tokens")
        weighed = self._weights_table(last_step, weights) if weights and weights.active else None

        def write() -> None:
            columns = [list(column) for column in zip(*rows, strict=True)]
            table = pa.table(dict(zip(names, columns, strict=True)))
            self.home.child("ledger").write_bytes(name, to_parquet(table))
            if weighed is not None:
                file = f"step-{last_step:09d}.parquet"
                self.home.child("sampling").write_bytes(file, to_parquet(weighed))

        return write if rows else lambda: None

    def _weights_table(self, step: int, weights: PromptWeights) -> pa.Table:
        current, n = weights.current or UNIFORM, len(self.prompt_ids)
        uniform_N, one_N = np.full(n, 1 / n), np.ones(n)
        return pa.table(
            {
                "step": np.full(n, step),
                "prompt_id": list(self.prompt_ids),
                "mean_loss": weights.mean_N.copy(),
                "probability": uniform_N
                if current.probability_N is None
                else current.probability_N,
                "weight": one_N if current.weight_N is None else current.weight_N,
            }
        )
