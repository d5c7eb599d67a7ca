"""Scores of one model on a few examples under one prompt after another, as they are asked for."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from paft_ray.cluster.remote import own_errors
from paft_ray.evaluation.actor_pool import score_job
from paft_ray.evaluation.actors import ScoreActor
from paft_ray.evaluation.endpoint import Questions
from paft_ray.evaluation.endpoint_runner import score_by_endpoint
from paft_ray.evaluation.units import Grid, Unit, cut
from paft_ray.prompts.pool import Prompt
from paft_ray.runs.context import RunContext
from paft_ray.runs.progress import Stage
from paft_ray.storage.parts import Parts
from paft_ray.tasks import Example


class PairScorer:
    """Scores one model on a few examples under one prompt after another, and keeps the scores.

    A model that is loaded here stays in an actor until this is closed.
    """

    def __init__(self, context: RunContext, grid: Grid, parts: Parts) -> None:
        """Load nothing yet: scores that are kept need no model.

        Args:
            context: The run.
            grid: One subject, one condition, all examples that may be asked about; no prompts.
            parts: Where scores are kept.
        """
        self._context, self._grid, self._parts = context, grid, parts
        self._finished = parts.finished()
        self._actor: Any = None

    def score(self, prompt: Prompt, examples: Sequence[Example]) -> pa.Table:
        """The scores of examples under a prompt, in their order.

        Raises:
            PaftError: They cannot be scored.
        """
        grid = replace(self._grid, prompts=[prompt], examples=examples)
        units = cut(self._context, grid, [np.ones(grid.shape, bool)])
        missing = [unit for unit in units if unit["key"] not in self._finished]
        [subject] = grid.subjects
        if missing and subject.endpoint is not None:
            questions = Questions.of(self._context, subject.endpoint)
            kept = self._context.storage, self._parts
            score_by_endpoint(questions, missing, grid, kept, Stage(""))
        elif missing:
            self._by_actor(missing)
        keys = [unit["key"] for unit in units]
        self._finished.update(keys)
        return pa.concat_tables(
            [t.replace_schema_metadata(None) for t in self._parts.read(keys)],
            promote_options="default",
        )

    def close(self) -> None:
        """End the actor, so that its place is free."""
        if self._actor is not None:
            import ray

            ray.kill(self._actor)
            self._actor = None

    def _by_actor(self, units: Sequence[Unit]) -> None:
        import ray

        if self._actor is None:
            base = self._grid.subjects[0].base
            of_base = (self._context, *self._grid.others)[base]
            job, cpus = score_job(of_base, self._grid, self._parts, base)
            gpus = of_base.config.evaluation.workers.gpus
            again: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1}
            remote: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, **again)(ScoreActor)
            self._actor = remote.remote(job)
        with own_errors():
            ray.get(self._actor.__call__.remote({"units": [units]}))
