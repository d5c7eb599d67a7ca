"""The ledger: draws and their losses, and weights of prompts from past losses, on storage."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from paft_ray.storage.paths import Storage, to_parquet
from paft_ray.training.batch_plan import StepPlan
from paft_ray.training.draws import Draw, Draws
from paft_ray.training.prompt_weights import UNIFORM, PromptWeights
from paft_ray.training.reinforcement.kept import FOLDER as ROLLOUTS
from paft_ray.training.reinforcement.kept import rollout_table

if TYPE_CHECKING:
    from paft_ray.training.reinforcement.own_labels import OwnLabels
    from paft_ray.training.reinforcement.rollouts import Policy


@dataclass
class Ledger:
    """Writes `ledger/`: one row per slot, one file per checkpoint.

    Where past losses change draws or weights, `sampling/` holds these for every prompt at each
    checkpoint; where the model writes what it learns from, `rollouts/` holds that. Labels that the
    model gave stand in its rows. Steps that are trained again after a crash write the same again.
    """

    home: Storage
    """The training's folder."""
    first_step: int
    prompt_ids: Sequence[str] = ()
    """Of every prompt, for `sampling/`."""
    describe: Callable[[int, int, Draw], str | None] | None = None
    """Returns what a slot of a step varied in besides the prompt, see `Planner.describe`."""
    _steps: list[tuple[int, Draws, Sequence[float]]] = field(default_factory=list)
    _written: list[tuple[int, Draws, "Policy | OwnLabels"]] = field(default_factory=list)
    _own: list["OwnLabels"] = field(default_factory=list)

    def prune(self) -> None:
        """Remove what an earlier attempt wrote of coming steps, before the first of them.

        A file is written before its checkpoint, which may be missing.
        """
        of_steps, of_checkpoints = ("ledger", ROLLOUTS), ("sampling",)
        for kind in (*of_steps, *of_checkpoints):
            first = self.first_step + (kind in of_checkpoints)
            folder = self.home.child(kind)
            for name in folder.names():
                step = re.match(r"steps?-(\d{9})\b", name)
                if step is not None and int(step[1]) >= first:
                    folder.delete(name)

    def add(self, plan: StepPlan, nll_S: Sequence[float]) -> None:
        """Record one step; `nll_S` is the summed answer loss of every slot."""
        self._steps.append((plan.step, plan.draws, nll_S))
        if plan.policy is not None and plan.policy.fresh:
            self._written.append((plan.step, plan.draws, plan.policy))
        if plan.own is not None:
            self._own.append(plan.own)
            if plan.own.rollouts:
                self._written.append((plan.step, plan.draws, plan.own))

    def take(self, last_step: int, weights: PromptWeights | None = None) -> Callable[[], None]:
        """Start a new file, and return a function that writes the one before.

        Args:
            last_step: Steps done.
            weights: Written too, where past losses change anything.
        """
        steps, self._steps = self._steps, []
        written, self._written = self._written, []
        own, self._own = self._own, []
        name = f"steps-{self.first_step:09d}-{last_step:09d}.parquet"
        self.first_step = last_step
        names = ("step", "slot", "example_id", "prompt_id", "loss", "answer_tokens")
        sampling = self._weights_table(last_step, weights) if weights and weights.active else None

        def write() -> None:
            rows = [
                (step, slot, draw.example_id, draw.prompt_id, nll, draw.answer_tokens)
                for step, draws, nll_S in steps
                for slot, (draw, nll) in enumerate(zip(draws, nll_S, strict=True))
            ]
            columns = [list(column) for column in zip(*rows, strict=True)]
            table = pa.table(dict(zip(names, columns, strict=True)))
            if self.describe is not None:
                varied = [
                    self.describe(step, slot, draw)
                    for step, draws, _ in steps
                    for slot, draw in enumerate(draws)
                ]
                table = table.append_column("variation", pa.array(varied, pa.string()))
            for column in own[0].columns if own else ():
                values = [value for labels in own for value in labels.columns[column]]
                table = table.append_column(column, pa.array(values))
            self.home.child("ledger").write_bytes(name, to_parquet(table))
            if written:
                rollouts = to_parquet(rollout_table(written))
                self.home.child(ROLLOUTS).write_bytes(name, rollouts)
            if sampling is not None:
                file = f"step-{last_step:09d}.parquet"
                self.home.child("sampling").write_bytes(file, to_parquet(sampling))

        return write if steps else lambda: None

    def _weights_table(self, step: int, weights: PromptWeights) -> pa.Table:
        current, n = weights.current or UNIFORM, len(self.prompt_ids)
        probability_N, weight_N = current.probability_N, current.weight_N
        return pa.table(
            {
                "step": np.full(n, step),
                "prompt_id": list(self.prompt_ids),
                "mean_loss": weights.mean_N.copy(),
                "probability": np.full(n, 1 / n) if probability_N is None else probability_N,
                "weight": np.ones(n) if weight_N is None else weight_N,
            }
        )
