"""The driver's side of trainings on Ray Train: start ranks, monitor them, start them again.

Trainings that can share workers are done by the same ones, one after another, which wait for the
next with libraries and base model in memory. Each is monitored by itself, and workers of which one
was lost do only the training that they are at. Ray Train gets a temporary directory and none of our
checkpoints. Covered: lost workers, ranks that hang, requests to stop, a cluster that grows. Not
covered: the work of a rank.
"""

import math
import tempfile
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import cached_property, partial
from typing import Self

from paft_ray.cluster.control import Control, ControlState, follow
from paft_ray.cluster.remote import own_errors
from paft_ray.cluster.resources import spare_workers
from paft_ray.config.errors import TrainingError, WorkersLostError, last_line
from paft_ray.runs.progress import Stage
from paft_ray.training.distributed.elastic_size import ElasticSize
from paft_ray.training.distributed.heartbeat import HangDetector, Verdict
from paft_ray.training.distributed.worker import run_ranks
from paft_ray.training.job import Done, Job, TrainingHooks


class _Monitor:
    """Acts on what the ranks of a training report."""

    def __init__(
        self, job: Job, hooks: TrainingHooks, stage: Stage, report: Callable[[str], None]
    ) -> None:
        workers, cpus = job.config.train.workers, job.cpus - hooks.set_aside
        self._control, self._hooks, self._stage = job.control, hooks, stage
        self._validated = 0
        self.changed = threading.Event()
        """Set once the training is finished, or its workers have returned."""
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
        if state.finished:
            self.changed.set()


class Workers:
    """Workers that do trainings, in a block; they are started with the first one."""

    def __init__(self, shared: bool = False) -> None:
        """Start nothing yet.

        Args:
            shared: Keep them for the next training, where it can share them.
        """
        self._shared = shared
        self._group: _Group | None = None

    def __enter__(self) -> Self:
        """Begin the block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the workers; at once where the block failed."""
        if self._group is not None and kind is not None:
            self._group.abort()
        else:
            self._end_group()

    @cached_property
    def control(self) -> Control:
        """The actor through which driver and workers communicate, the same for all trainings."""
        return Control()

    def train(
        self, job: Job, hooks: TrainingHooks, stage: Stage, report: Callable[[str], None]
    ) -> bool:
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
        needs = _needs(job, hooks) if self._shared else None
        if self._group is not None and (needs is None or not self._group.serves(needs)):
            self._end_group()
        job = replace(job, shares_workers=needs is not None)
        self.control.begin(ray.put(job))
        monitor = _Monitor(job, hooks, stage, report)
        with follow(self.control.state, monitor.check):
            while True:
                if self._group is None:
                    self._group = _Group(job, job.cpus - hooks.set_aside, needs)
                done = self._group.wait(job, monitor)
                if self._group.over:
                    self._end_group()
                if done is None or done.complete or hooks.stopped():
                    break
                report(f"{done.steps} steps are saved, starting anew")
            refusal = self.control.state().refusal
        if refusal is not None:
            raise refusal
        return done is None or done.complete

    def _end_group(self) -> None:
        """End workers, which are through with their training or wait for the next one."""
        group, self._group = self._group, None
        if group is not None:
            group.end()


def _needs(job: Job, hooks: TrainingHooks) -> Hashable:
    """What two trainings must have in common to share workers; None where they cannot.

    A whole model that is trained leaves no base behind; weights in 4 bits belong to a library that
    keeps state beside them; code of a model's author may do anything; what torch compiled stays in
    the process, and so does DeepSpeed's engine of stage 3.
    """
    model, train = job.config.model, job.config.train
    alone = model.peft is None or model.quantization != "none" or model.trust_remote_code
    if alone or train.compile or train.deepspeed.stage == 3:
        return None
    base = model.model_copy(update={"peft": None})
    rest = (train.deepspeed, train.workers, train.deterministic, train.max_failures)
    return (repr(base), repr(rest), job.source, job.dtype, job.cpus, hooks.set_aside)


class _Group:
    """The workers of one run of Ray Train, which replaces those that are lost."""

    def __init__(self, job: Job, cpus: float, needs: Hashable) -> None:
        """Start it; it begins with the control's current job.

        Args:
            job: This job.
            cpus: CPUs of each worker, requested from Ray.
            needs: See `_needs`.
        """
        from ray.train import FailureConfig, RunConfig, ScalingConfig

        from paft_ray.training.distributed.rank_group import RankGroupConfig, RankGroupTrainer

        train, workers = job.config.train, job.config.train.workers
        gpu = workers.gpus > 0
        self._control, self._needs = job.control, needs
        self._earlier = job.control.state().ended_attempt
        self._scratch = tempfile.TemporaryDirectory(
            prefix="paft-train-", ignore_cleanup_errors=True
        )
        self._trainer = RankGroupTrainer(
            run_ranks,
            train_loop_config={"control": job.control},
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
                name=f"{job.label}-s{job.config.seed}",
                storage_path=self._scratch.name,
                failure_config=FailureConfig(max_failures=train.max_failures),
            ),
        )
        self._result: Future[Done | None] = Future()
        threading.Thread(target=self._run, name="train", daemon=True).start()

    def _run(self) -> None:
        try:
            with own_errors():
                self._result.set_result(self._trainer.fit().return_value)
        except BaseException as error:  # noqa: BLE001 -- raised where it is waited for
            self._result.set_exception(error)

    @property
    def over(self) -> bool:
        """Whether the workers have returned."""
        return self._result.done()

    def serves(self, needs: Hashable) -> bool:
        """Return whether the workers can do a training that needs this.

        After a loss they cannot: `train.max_failures` counts the losses of one training.
        """
        unharmed = self._control.state().ended_attempt == self._earlier
        return not self.over and self._needs == needs and unharmed

    def wait(self, job: Job, monitor: _Monitor) -> Done | None:
        """Wait until the training is over, and return how far it came.

        None where the workers refused it.

        Raises:
            PaftError: The workers refused to start.
            WorkersLostError: Workers were lost too often.
        """
        from ray.train import TrainingFailedError

        monitor.changed.clear()  # of workers before these
        self._result.add_done_callback(lambda _: monitor.changed.set())
        monitor.changed.wait()
        if not self._result.done():
            return Done(job.steps, complete=True)
        try:
            return self._result.result()
        except TrainingFailedError as error:
            state = self._control.state()
            if state.refusal is not None:
                raise state.refusal from error
            limit = job.config.train.max_failures
            reasons = "; ".join([*monitor.verdicts, last_line(error, 300)])
            raise WorkersLostError(
                f"training {job.label}-s{job.config.seed} stopped after step {state.step} of "
                f"{job.steps}, having lost workers more than {limit} times (train.max_failures): "
                f"{reasons}; run the same command to continue"
            ) from error

    def end(self) -> None:
        """Wait until workers that have nothing to do are gone."""
        if not self.over:
            self._control.begin(None)
        self._result.exception()  # waits
        self._scratch.cleanup()

    def abort(self) -> None:
        """End the workers in the middle of their work."""
        self._trainer.abort()


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
