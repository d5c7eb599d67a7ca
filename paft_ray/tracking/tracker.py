"""`Tracker`, and one that records in MLflow in the background.

One thread writes an event log on storage; another imports mlflow (1.2 s), opens the run and sends
the log; a third one measures the machine, where it is asked to.
"""

import logging
import threading
import time
import uuid
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from paft_ray.config import Config, TrackingConfig
from paft_ray.config.errors import ConfigError
from paft_ray.storage.paths import Storage
from paft_ray.tracking.event_log import (
    RunRef,
    TrackingTarget,
)
from paft_ray.tracking.machine import is_measured, measure
from paft_ray.tracking.mlflow_runs import (
    MlflowRuns,
    import_client,
    lasting_reason,
    remote_errors,
)
from paft_ray.tracking.place import tracking_place
from paft_ray.tracking.records import DESCRIPTION, TrackedRun, new_logs, run_ref, texts
from paft_ray.tracking.sender import Sender

logger = logging.getLogger(__name__)

FinalStatus = Literal["FINISHED", "FAILED", "KILLED"]

_IDENTITY = "identity.json"
_FLUSH_SECONDS = 2.0
_RETRY_SECONDS = 10.0
_FINISH_SECONDS = 20.0


class Metric(StrEnum):
    """Names of metrics; those of figures are in `evaluation.figures`."""

    TRAIN_LOSS = "train/loss"
    TRAIN_LEARNING_RATE = "train/learning_rate"
    TRAIN_GRADIENT_NORM = "train/gradient_norm"
    TRAIN_TOKENS_PER_SECOND = "train/tokens_per_second"
    TRAIN_MFU = "train/mfu"
    TRAIN_SHARE_OF_MATRIX_RATE = "train/share_of_matrix_rate"
    TRAIN_PEAK_GPU_MEMORY_GB = "train/peak_gpu_memory_gb"
    TRAIN_SECONDS_PLAN = "train/seconds/plan"
    TRAIN_SECONDS_SAMPLING = "train/seconds/sampling"
    TRAIN_SECONDS_FORWARD_BACKWARD = "train/seconds/forward_backward"
    TRAIN_SECONDS_COMMUNICATION = "train/seconds/communication"
    TRAIN_SECONDS_OPTIMIZER = "train/seconds/optimizer"
    TRAIN_INCONSISTENCY = "train/inconsistency"
    TRAIN_AGREEMENT = "train/agreement"
    TRAIN_LABELS_RIGHT = "train/labels_right"
    TRAIN_REWARD = "train/reward"
    TRAIN_REWARD_STD = "train/reward_std"
    TRAIN_REWARD_WORST_PROMPT = "train/reward_worst_prompt"
    TRAIN_K3_BACKEND = "train/k3/backend"
    TRAIN_K3_REFERENCE = "train/k3/reference"
    TRAIN_CLIPPED = "train/clipped"
    ROLLOUT_TOKENS = "rollouts/tokens"
    ROLLOUT_TRUNCATED = "rollouts/truncated"
    ROLLOUT_ENTROPY = "rollouts/entropy"
    ROLLOUT_WITHOUT_VARIANCE = "rollouts/without_variance"
    ROLLOUT_TOKENS_PER_SECOND = "rollouts/tokens_per_second"
    TRAIN_EFFECTIVE_PROMPTS = "train/sampling/effective_prompts"
    TRAIN_LARGEST_PROMPT_WEIGHT = "train/sampling/largest_weight"
    VALIDATION_GOAL = "validation/goal"
    VALIDATION_BEST_STEP = "validation/best_step"


def pool_version(task: str, fingerprint: str) -> tuple[str, str]:
    """Name and alias of a prompt pool in MLflow's registry: `models:/<name>@<alias>`."""
    return f"prompt-pool-{task}", f"pool-{fingerprint}"


class Tracker:
    """Records a run; only `flush`, `release` and `finish` wait for anything."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters; nested mappings become dotted names.

        MLflow keeps a parameter's first value; another value of a resumed run, such as more
        workers, becomes the tag `resumed.<name>`.
        """
        self._record("params", texts(params))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of one step; a step that the run already has is dropped."""
        values = {str(name): float(value) for name, value in metrics.items()}
        self._record("metrics", {"step": step, "values": values})

    def log_artifact(self, name: str, source: str | Path | bytes) -> None:
        """Record a file under `name`, from its content, a local path, or a path on storage.

        A file on storage is read when it is sent.
        """
        given = {"content": source} if isinstance(source, bytes) else {"path": str(source)}
        self._record("artifact", {"name": name, **given})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, replacing old values."""
        self._record("tags", texts(tags))

    def describe(self, text: str) -> None:
        """Set the description of the run, in Markdown."""
        self.set_tags({DESCRIPTION: text})

    def register(self, name: str, alias: str, artifact: str) -> None:
        """Register an artifact of the run as `models:/<name>@<alias>`, unless that exists."""
        self._record("version", {"name": name, "alias": alias, "artifact": artifact})

    def flush(self) -> None:
        """Wait until all records are on storage.

        Raises:
            OSError: Storage does not take them; nothing is lost, and another call may succeed.
        """

    def release(self) -> None:
        """Send what is left and leave the run open for another process to continue."""

    def finish(self, status: FinalStatus) -> None:
        """Send what is left, for 20 s at most, and end the run; a second call does nothing."""

    def _record(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Add an event."""


class NullTracker(Tracker):
    """Records nothing; for `tracking.type: none`, and for every rank but the first."""


def import_early(config: TrackingConfig) -> None:
    """Import mlflow, which takes seconds, in a thread."""
    if config.type != "none":
        threading.Thread(target=import_client, name="import mlflow", daemon=True).start()


def prepare_tracking(config: Config, storage: Storage) -> TrackingTarget | None:
    """Return where runs of `config` are recorded, or None. The driver calls this once.

    A sqlite database and its experiment are created here, so that workers do not race for it
    (about 3 s, most of it the import of mlflow). Servers are not contacted.

    Raises:
        ConfigError: The database takes no records until the user does something.
    """
    place = tracking_place(config.tracking, storage)
    if place is None:
        return None
    folder = storage.child("runs", config.name)
    target = TrackingTarget(
        uri=place.uri,
        experiment=place.experiment,
        logs=folder.child("events"),
        storage=storage,
        identity=_identity(folder),
    )
    if target.database is not None:
        target.database.parent.mkdir(parents=True, exist_ok=True)
        try:
            MlflowRuns(target).connect(create_database=True)
        except remote_errors() as error:
            if (reason := lasting_reason(error, target.uri)) is not None:
                raise ConfigError(reason) from error
            logger.warning("tracking: records wait in %s: %s", target.logs.path(), error)
    return target


def open_tracker(
    target: TrackingTarget | None,
    run: TrackedRun,
    tags: Mapping[str, str] | None = None,
    rank: int = 0,
    measured: bool = False,
) -> Tracker:
    """A tracker for a run in MLflow, which is created where there is none with this key.

    `target` comes from `prepare_tracking`. Of several workers only the one with rank 0 records.
    Where it is `measured`, it also records what this machine does meanwhile.
    """
    if target is None or rank != 0:
        return NullTracker()
    return _MlflowTracker(target, run_ref(target, run, tags or {}), measured and is_measured())


class _MlflowTracker(Tracker):
    """Records one run in MLflow through event logs on storage."""

    def __init__(self, target: TrackingTarget, run: RunRef, measured: bool) -> None:
        self._target, self._run_logs = target, target.run_logs(run.key)
        self._records, self._artifacts = new_logs(target, run)
        self._closing, self._written = threading.Event(), threading.Event()
        self._unsent = threading.Event()
        self._record("status", {"status": "RUNNING"})
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._write, self._send)]
        for thread in self._threads:
            thread.start()
        if measured:
            work = (self._record, self._closing)
            threading.Thread(target=measure, args=work, name="measure", daemon=True).start()

    def flush(self) -> None:
        if self._records.flush() | self._artifacts.flush():
            self._unsent.set()

    def release(self) -> None:
        if not self._closing.is_set():
            self._records.close()
            self._artifacts.close()
            self._closing.set()
            deadline = time.monotonic() + _FINISH_SECONDS
            for thread in self._threads:
                thread.join(max(0.0, deadline - time.monotonic()))

    def finish(self, status: FinalStatus) -> None:
        if not self._closing.is_set():
            self._record("status", {"status": status})
            self.release()

    def _record(self, kind: str, payload: Mapping[str, Any]) -> None:
        log = self._artifacts if kind in ("artifact", "version") else self._records
        log.add(kind, payload)

    def _write(self) -> None:
        """Flush every few seconds, and at the end up to three times until it succeeds."""
        while not self._closing.wait(_FLUSH_SECONDS):
            self._try_flush()
        if not any(self._try_flush() or time.sleep(pause) for pause in (1.0, 4.0, 0.0)):
            logger.warning("tracking: the last records of %s are lost", self._run_logs.path())
        self._written.set()

    def _try_flush(self) -> bool:
        try:
            self.flush()
        except OSError as error:
            logger.warning("tracking: %s cannot be written: %s", self._run_logs.path(), error)
            return False
        return True

    def _send(self) -> None:
        """Send the run's logs of earlier processes, and this one's as it grows."""
        sender = Sender(self._target)
        while not self._written.wait(_RETRY_SECONDS if sender.away else _FLUSH_SECONDS):
            if self._unsent.is_set() or sender.away:
                self._unsent.clear()
                sender.send(self._run_logs)
        if not sender.away:
            sender.send(self._run_logs)


def _identity(folder: Storage) -> str:
    """The identity of the run in this folder; earlier versions kept it in `spool/`."""
    logs, earlier = folder.child("events"), folder.child("spool")
    if not logs.exists(_IDENTITY):
        known = earlier.exists(_IDENTITY)
        made = earlier.read_json(_IDENTITY) if known else {"id": uuid.uuid4().hex}
        logs.write_json(_IDENTITY, made)
    return str(logs.read_json(_IDENTITY)["id"])
