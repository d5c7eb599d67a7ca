"""The driver's side of a training on Ray Train: start ranks, monitor them, start them again.

Ray Train gets a temporary directory and none of our checkpoints. Covered: lost workers, ranks that
hang, requests to stop, a cluster that grows. Not covered: the work of a rank.
"""

import itertools
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from paft_ray.cluster.control import Control, ControlState, follow
from paft_ray.cluster.remote import own_errors
from paft_ray.cluster.resources import spare_workers
from paft_ray.config.errors import TrainingError, WorkersLostError, last_line
from paft_ray.runs.progress import Stage
from paft_ray.training.distributed.elastic_size import ElasticSize
from paft_ray.training.distributed.heartbeat import HangDetector, Verdict
from paft_ray.training.distributed.worker import run_rank
from paft_ray.training.job import Done, Job, TrainingHooks


class _Monitor:
    """Acts on what the ranks of a training report."""

    def __init__(
        self, job: Job, hooks: TrainingHooks, stage: Stage, report: Callable[[str], None]
    ) -> None:
        workers, cpus = job.config.train.workers, job.cpus - hooks.set_aside
        self._control, self._hooks, self._stage = job.control, hooks, stage
        self._validated = 0
        self._hang_detector = HangDetector(
            workers.heartbeat_timeout_s, report, partial(_end, job.control)
        )
        self.verdicts: Sequence[str] = self._hang_detector.verdicts
        """Which ranks were ended so far, and why; for a person."""
        self._elastic_size = ElasticSize(
            workers.most, partial(spare_workers, cpus, workers.gpus), job.control.request_stop
        )

    def check(self, state: ControlState) -> None:
        """Act on the latest state; called twice a second."""
        heartbeats = state.heartbeats.values()
        self._stage.reach(state.step)
        self._hang_detector.check(state)
        self._elastic_size.check(heartbeats)
        if state.validated > self._validated:
            self._validated = state.validated
            self._hooks.validated()
        if heartbeats and self._hooks.stopped():
            self._control.request_stop(max(heartbeat.attempt for heartbeat in heartbeats))


def launch(job: Job, hooks: TrainingHooks, stage: Stage, report: Callable[[str], None]) -> bool:
    """Run workers until a training is complete, again where they had to stop before.

    Args:
        job: Data for every rank.
        hooks: The caller's wishes.
        stage: Shows how many steps are done.
        report: Shows a person a line about the workers.

    Returns:
        Whether it is complete; if not, the hooks stopped the training.

    Raises:
        PaftError: The workers refused to continue.
        WorkersLostError: Workers were lost too often.
    """
    import ray

    stage.expect(job.steps)
    cpus = job.cpus - hooks.set_aside  # requested from Ray
    monitor = _Monitor(job, hooks, stage, report)
    reference = ray.put(job)
    with (
        tempfile.TemporaryDirectory(prefix="paft-train-") as scratch,
        follow(job.control.state, monitor.check),
    ):
        done: Done | None = Done()
        for attempt in itertools.count():
            done = _run_workers(job, reference, cpus, f"{scratch}/{attempt}", monitor.verdicts)
            if done is None or done.complete or hooks.stopped():
                break
            report(f"{done.steps} steps are saved, starting anew")
        refusal = job.control.state().refusal
    if refusal is not None:
        raise refusal
    return done is None or done.complete


def _run_workers(
    job: Job, reference: Any, cpus: float, scratch: str, verdicts: Sequence[str]
) -> Done | None:
    """Return what rank 0 returned; Ray Train replaces workers that are lost."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError

    from paft_ray.training.distributed.rank_group import RankGroupConfig, RankGroupTrainer

    train, workers = job.config.train, job.config.train.workers
    name, gpu = f"{job.label}-s{job.config.seed}", workers.gpus > 0
    trainer = RankGroupTrainer(
        run_rank,
        train_loop_config={"job": reference},
        backend_config=RankGroupConfig(
            job.control, "nccl" if gpu else "gloo", workers.interface, train.deterministic
        ),
        scaling_config=ScalingConfig(
            num_workers=(workers.fewest, workers.most) if workers.min else workers.most,
            elastic_resize_monitor_interval_s=math.inf,  # resizing is left to `ElasticSize`
            use_gpu=gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": workers.gpus} if gpu else {})},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=train.max_failures),
        ),
    )
    try:
        with own_errors():
            return trainer.fit().return_value
    except TrainingFailedError as error:
        if (refusal := job.control.state().refusal) is not None:
            raise refusal from error
        reasons = [*verdicts, last_line(error, 300)]
        raise WorkersLostError(
            f"training {name} stopped after step {job.control.state().step} of {job.steps}, having "
            f"lost workers more than {train.max_failures} times (train.max_failures): "
            f"{'; '.join(reasons)}; run the same command to continue"
        ) from error


def _end(control: Control, verdict: Verdict) -> None:
    """End the workers that hold the others up; Ray Train then restarts the whole group.

    Where the same happened before, the training is refused: its next attempt would end so too.
    """
    import ray

    if verdict.again:
        control.refuse(
            TrainingError(
                f"{verdict.text}, as in the attempt before: see to the storage and the devices of "
                "that node, or raise train.workers.heartbeat_timeout_s; the same command goes on "
                "from the last checkpoint"
            )
        )
    for rank in verdict.end:
        if (worker := control.worker(verdict.attempt, rank)) is not None:
            ray.kill(worker)
