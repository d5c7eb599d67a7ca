"""Actors of Ray Data that score units of a grid; they may stay for units that come later."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from paft_ray.cluster.remote import actor_beside, own_errors
from paft_ray.cluster.resources import fit_workers
from paft_ray.evaluation.actors import LogprobsActor, ScoreActor, ScoreJob
from paft_ray.evaluation.units import Grid, Unit, shares
from paft_ray.models.base_model import locate_base
from paft_ray.runs.context import RunContext
from paft_ray.runs.examples import store_examples
from paft_ray.runs.progress import Stage
from paft_ray.storage.parts import Parts

LOGPROBS = "logprobs"
"""Kind of units of which log-likelihoods are kept, and no grades."""


def score_job(context: RunContext, grid: Grid, parts: Parts, base: int) -> tuple[ScoreJob, float]:
    """What actors with a base model get, and the CPUs of each."""
    config = context.config
    cpus = fit_workers(config.evaluation.workers, "evaluation.workers")
    job = ScoreJob(
        config,
        context.task.without_examples(),
        store_examples(context.storage, grid.examples),
        locate_base(config.model.path, config.model.revision, context.storage),
        context.scoring_dtype,
        max(1, int(cpus)),
        grid.subjects,
        grid.conditions,
        parts,
        base,
    )
    return job, cpus


class ScoringActors:
    """Actors of Ray Data that score units of one base model and write their parts."""

    def __init__(self, grid: Grid, stage: Stage, kind: str = "scores", stay: bool = False) -> None:
        """Start none before there are units; with `stay`, more come after the first ones."""
        self._grid, self._stage, self._kind, self._stay = grid, stage, kind, stay
        self._queue: Any = None
        self._done: Iterator[Any] = iter(())

    def score(self, context: RunContext, units: list[Unit], parts: Parts) -> None:
        """Score units, by the actors that are there, or else by new ones."""
        import ray
        import ray.data

        num = context.config.evaluation.workers.num
        actors = min(num, len(units))
        rows = [{"units": share} for share in shares(units, actors)]
        if self._queue is not None:
            ray.get(self._queue.add.remote(rows))
        elif self._stay:
            self._queue = actor_beside(_Queue, rows)
            source = ray.data.from_items([0])
            source.context.target_max_block_size = 1  # byte, so that no row waits for others
            each: Any = _as_they_come
            source = source.flat_map(each, fn_args=(self._queue,), num_cpus=0)
            most = min(num, len(self._grid.subjects) * len(self._grid.prompts))
            self._done = self._start(context, units, parts, source, most)
        else:
            source = ray.data.from_items(rows, override_num_blocks=len(rows))
            self._done = self._start(context, units, parts, source, min(actors, len(rows)))
        with own_errors():
            for _ in rows:
                self._stage.advance(int(next(self._done)["done"][0]))

    def _start(
        self, context: RunContext, units: Sequence[Unit], parts: Parts, source: Any, actors: int
    ) -> Iterator[Any]:
        """What actors say of the rows of a source, as they are done."""
        import ray.data

        base = self._grid.subjects[units[0]["subject"]].base
        job, cpus = score_job(context, self._grid, parts, base)
        dataset = source.map_batches(
            LogprobsActor if self._kind == LOGPROBS else ScoreActor,
            batch_size=1,
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=cpus,
            num_gpus=context.config.evaluation.workers.gpus or None,
            fn_constructor_args=(job,),
        )
        return iter(dataset.iter_batches(batch_size=1, prefetch_batches=0))

    def end(self) -> None:
        """End the actors, which finished all units."""
        import ray

        if self._queue is not None:
            ray.get(self._queue.add.remote([], last=True))
        for _ in self._done:
            pass


class _Queue:
    """Rows in an order that stays, more of which may come: whoever wants one waits for it."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows, self._last = rows, False
        self._more = asyncio.Condition()

    async def add(self, rows: list[Any], last: bool = False) -> None:
        async with self._more:
            self._rows, self._last = self._rows + rows, last
            self._more.notify_all()

    async def row(self, place: int) -> Any:
        """The row at a place; None behind the last one."""
        async with self._more:
            await self._more.wait_for(lambda: self._last or place < len(self._rows))
            return self._rows[place] if place < len(self._rows) else None


def _as_they_come(_: Any, queue: Any) -> Iterator[Any]:
    """Rows of a queue; the same ones where Ray calls it again."""
    import ray

    place = 0
    while (row := ray.get(queue.row.remote(place))) is not None:
        yield row
        place += 1
