"""`Tracker`, and one that records in MLflow without ever making its caller wait.

A bounded queue and one thread do it, the import of mlflow (1.2 s) and the opening of the run
included. What cannot be sent goes to the spool.
"""

import json
import logging
import queue
import re
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Protocol

from paft_ray.config import Config
from paft_ray.config.errors import ConfigError
from paft_ray.storage.paths import Storage
from paft_ray.tracking.delivery import Sender, deliver, import_client, remote_errors, replay_folder
from paft_ray.tracking.spool import (
    Batch,
    RunRef,
    TrackingTarget,
    artifacts_apart,
    keep,
    merge,
    spool_folder,
    waiting,
    without_password,
)

logger = logging.getLogger(__name__)

FinalStatus = Literal["FINISHED", "FAILED", "KILLED"]

_QUEUE_RECORDS = 10_000
_FLUSH_SECONDS = 1.0
_RETRY_SECONDS = 10.0
_FINISH_SECONDS = 20.0
_TEXT_CHARACTERS = 5000


class Metric(StrEnum):
    """Names of all metrics, so that a chart made once fits every run."""

    TRAIN_LOSS = "train/loss"
    TRAIN_LEARNING_RATE = "train/learning_rate"
    TRAIN_GRADIENT_NORM = "train/gradient_norm"
    TRAIN_TOKENS_PER_SECOND = "train/tokens_per_second"
    TRAIN_INCONSISTENCY = "train/inconsistency"
    TRAIN_EFFECTIVE_PROMPTS = "train/sampling/effective_prompts"
    TRAIN_LARGEST_PROMPT_WEIGHT = "train/sampling/largest_weight"
    VALIDATION_ACCURACY_MEAN = "validation/accuracy/mean"
    VALIDATION_ACCURACY_STD = "validation/accuracy/std"
    VALIDATION_ACCURACY_WORST_PROMPT = "validation/accuracy/worst_prompt"
    VALIDATION_ACCURACY_P05 = "validation/accuracy/p05"
    VALIDATION_GOAL = "validation/goal"
    EVAL_ACCURACY_MEAN = "eval/accuracy/mean"
    EVAL_ACCURACY_STD = "eval/accuracy/std"
    EVAL_ACCURACY_STD_BY_CHANCE = "eval/accuracy/std_by_chance"
    EVAL_ACCURACY_WORST_PROMPT = "eval/accuracy/worst_prompt"
    EVAL_ACCURACY_P05 = "eval/accuracy/p05"
    EVAL_ACCURACY_BEST_PROMPT = "eval/accuracy/best_prompt"
    EVAL_CONSISTENCY = "eval/consistency"
    EVAL_PAIRWISE_AGREEMENT = "eval/pairwise_agreement"
    EVAL_FLIP_RATE = "eval/flip_rate"
    EVAL_CALIBRATION_ERROR = "eval/calibration_error"
    EVAL_GENERATED_TOKENS = "eval/generated_tokens"
    EVAL_SECONDS_PER_EXAMPLE = "eval/seconds_per_example"


def top_metric(threshold: float) -> str:
    """Name of Top@t, the share of prompts with at least that accuracy: "eval/accuracy/top_75"."""
    return f"eval/accuracy/top_{100 * threshold:g}"


def pool_version(task: str, fingerprint: str) -> tuple[str, str]:
    """Name and alias of a prompt pool in MLflow's registry: `models:/<name>@<alias>`."""
    return f"prompt-pool-{task}", f"pool-{fingerprint}"


class Tracker(Protocol):
    """Where a run is recorded; no method but `finish` waits for anything."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters; nested mappings become dotted names."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of one step; a step that the run already has is dropped."""
        ...

    def log_artifact(self, name: str, source: str | Path | bytes) -> None:
        """Record a file under `name` ("reports/report.html"), from a path or from its content."""
        ...

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, replacing values that are there."""
        ...

    def register(self, name: str, alias: str, artifact: str) -> None:
        """Make one of the run's artifacts a version in the registry, `models:/<name>@<alias>`."""
        ...

    def release(self) -> None:
        """Deliver what is left and leave the run open, for another process to go on with."""
        ...

    def finish(self, status: FinalStatus) -> None:
        """Deliver what is left and end the run in this state."""
        ...


class NullTracker:
    """Records nothing: `tracking.type: none`, and every rank but the first."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def log_artifact(self, name: str, source: str | Path | bytes) -> None:
        """Do nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Do nothing."""

    def register(self, name: str, alias: str, artifact: str) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing."""

    def finish(self, status: FinalStatus) -> None:
        """Do nothing."""


def import_early(config: Config) -> None:
    """Import mlflow, which takes seconds, in a thread beside whatever else has to start."""
    if config.tracking.type != "none":
        threading.Thread(target=import_client, name="import mlflow", daemon=True).start()


def tracking_server(config: Config) -> str | None:
    """URI of the server that a configuration names; None for none, and for a sqlite file.

    A sqlite file belongs to the driver's node: other nodes' records wait in the spool for it.
    """
    uri = config.tracking.uri
    if config.tracking.type == "none" or uri is None or uri.startswith("sqlite:"):
        return None
    return uri


def prepare_tracking(config: Config, storage: Storage) -> TrackingTarget | None:
    """Where `config` wants runs recorded; None for nowhere. The driver calls this, once.

    A sqlite database and its experiment are created here, so that workers do not race for it
    (about 3 s, most of it the import of mlflow). A server is not spoken to, so one that is away
    costs nothing.
    """
    if config.tracking.type == "none":
        return None
    spool = storage.child("runs", config.name, "spool")
    if not spool.exists("identity.json"):
        spool.write_json("identity.json", {"id": uuid.uuid4().hex})
    home = Path(storage.root) if storage.is_local else Path.cwd()
    target = TrackingTarget(
        uri=_absolute(config.tracking.uri or f"sqlite:///{home / 'mlflow.db'}"),
        experiment=config.tracking.experiment,
        spool=spool,
        storage=storage,
        identity=str(spool.read_json("identity.json")["id"]),
    )
    if target.database is not None:
        target.database.parent.mkdir(parents=True, exist_ok=True)
        try:
            Sender(target).connect(create_database=True)
        except (*remote_errors(), ConfigError) as error:
            reason = without_password(str(error))
            logger.warning("tracking: records wait in %s: %s", spool.path(), reason)
    return target


def open_tracker(
    target: TrackingTarget | None,
    key: str,
    name: str,
    parent_key: str | None = None,
    tags: Mapping[str, str] | None = None,
    rank: int = 0,
) -> Tracker:
    """A tracker for the run of this key: a new MLflow run, or the one that has the key already.

    Args:
        target: From `prepare_tracking`.
        key: Ours, one per run in this target ("run", "training/paft-s0"): letters, digits, /._-
        name: Shown by MLflow.
        parent_key: Key of the run that this one is nested under.
        tags: Set when the run is created.
        rank: Of a worker; only rank 0 records anything.
    """
    if target is None or rank != 0:
        return NullTracker()
    parent = None if parent_key is None else f"{target.identity}/{parent_key}"
    run = RunRef(f"{target.identity}/{key}", name, parent, _texts(tags or {}), _now_ms())
    return MlflowTracker(target, run)


def replay(target: TrackingTarget | None) -> int:
    """Send what waits in the spool, for all runs of the target; the number of batches left.

    The driver calls this after all trackers have finished, never beside a live one: both would
    send the same file. (What an earlier process left for its own run, a tracker sends itself.)
    It gives up at the first sign that MLflow is away.
    """
    if target is None:
        return 0
    folders = [target.spool.child(n) for n in target.spool.names() if n[-5:] != ".json"]
    folders = [f for f in folders if waiting(f) and f.root != target.spool.path("refused")]
    sender = Sender(target)
    for folder in folders:
        if replay_folder(sender, target, folder):
            break
    return sum(len(waiting(folder)) for folder in folders)


def end_open_runs(target: TrackingTarget | None) -> None:
    """End the runs that dead processes left open, as KILLED; what continues them opens them again.

    The driver calls this while it holds the run's name and before or after all its trackers, so
    that no run of the target is alive. Where MLflow is away the runs stay open until the next time.
    """
    if target is None:
        return
    try:
        ended = Sender(target).end_open_runs()
    except (*remote_errors(), ConfigError) as error:
        reason = without_password(str(error))
        logger.warning("tracking: runs that were left open stay so for now: %s", reason)
        return
    if ended:
        logger.info("tracking: %s runs of processes that died are now KILLED", ended)


class MlflowTracker:
    """Records one run in MLflow, from a thread of its own; made by `open_tracker`."""

    def __init__(self, target: TrackingTarget, run: RunRef) -> None:
        self._target = target
        self._run = run
        self._folder = spool_folder(target, run.key)
        self._queue: queue.Queue[Batch] = queue.Queue(_QUEUE_RECORDS)
        self._in_hand: list[Batch] = []
        self._closing = threading.Event()
        self._away = False
        self._lost_records = 0
        self._put(Batch(run, status="RUNNING"))
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters; nested mappings become dotted names.

        MLflow keeps a parameter's first value: where a resumed run has another (more workers,
        say), it becomes the tag `resumed.<name>`.
        """
        self._put(Batch(self._run, params=_texts(params)))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of one step; a step that the run already has is dropped."""
        now = _now_ms()
        rows = [(str(name), float(value), now, step) for name, value in metrics.items()]
        self._put(Batch(self._run, metrics=rows))

    def log_artifact(self, name: str, source: str | Path | bytes) -> None:
        """Record a file under `name`, from a path (local, or as storage names it) or content."""
        content = source if isinstance(source, bytes) else str(source)
        self._put(Batch(self._run, artifacts={name: content}))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, replacing values that are there."""
        self._put(Batch(self._run, tags=_texts(tags)))

    def register(self, name: str, alias: str, artifact: str) -> None:
        """Make one of the run's artifacts a version in the registry; one with the alias stays."""
        self._put(Batch(self._run, versions={name: (alias, artifact)}))

    def release(self) -> None:
        """Deliver what is left and leave the run open; see `finish`."""
        self._end(Batch(self._run))

    def finish(self, status: FinalStatus) -> None:
        """Deliver what is left and end the run in this state; a second call does nothing.

        It waits for the thread, 20 s at most; what is not delivered then is in the spool.
        """
        self._end(Batch(self._run, status=status, ended_ms=_now_ms()))

    def _end(self, last: Batch) -> None:
        if self._closing.is_set():
            return
        lost = {"paft.lost_records": str(self._lost_records)} if self._lost_records else {}
        last = replace(last, tags=lost)
        self._closing.set()
        queued = self._put(last)
        self._thread.join(_FINISH_SECONDS)
        left = [*self._in_hand, *_drain(self._queue), *([] if queued else [last])]
        self._keep(left)
        if self._lost_records:
            logger.warning("tracking: %s records lost, the queue was full", self._lost_records)

    def _put(self, batch: Batch) -> bool:
        try:
            self._queue.put_nowait(batch)
        except queue.Full:
            self._lost_records += 1
            return False
        return True

    def _work(self) -> None:
        sender = Sender(self._target)
        spooled = True  # by an earlier process, perhaps
        while batches := self._collect():
            self._in_hand = batches
            if self._away and self._closing.is_set():
                self._keep(batches)
            else:
                if spooled:
                    left = replay_folder(sender, self._target, self._folder, quiet=self._away)
                    self._away = left > 0
                self._deliver_or_keep(sender, batches)
                spooled = self._away
            self._in_hand = []

    def _deliver_or_keep(self, sender: Sender, batches: list[Batch]) -> None:
        for part in artifacts_apart(merge(batches)):
            delivered = not self._away and deliver(sender, self._target, part)
            if not delivered:
                keep(self._target, self._folder, part)
            self._away = self._away or not (delivered or part.artifacts)

    def _keep(self, batches: list[Batch]) -> None:
        if batches:
            for part in artifacts_apart(merge(batches)):
                keep(self._target, self._folder, part)

    def _collect(self) -> list[Batch]:
        """What comes in during a second, or longer while MLflow is away; nothing when done."""
        if self._closing.is_set() and self._queue.empty():
            return []
        batches = [self._queue.get()]
        deadline = time.monotonic() + (_RETRY_SECONDS if self._away else _FLUSH_SECONDS)
        while batches[-1].ended_ms is None:
            try:
                batches.append(self._queue.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                break
        return batches


def _drain(records: queue.Queue[Batch]) -> list[Batch]:
    batches: list[Batch] = []
    while True:
        try:
            batches.append(records.get_nowait())
        except queue.Empty:
            return batches


def _texts(tree: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """Dotted names to texts, of characters and lengths that MLflow takes, without passwords."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        name = re.sub(r"[^\w\-./ :]", "_", f"{path}{key}")
        if isinstance(value, Mapping):
            flat |= _texts(value, f"{path}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[name] = without_password(text)[:_TEXT_CHARACTERS]
    return flat


def _absolute(uri: str) -> str:
    """A sqlite URI that means the same in every working directory; others as they are."""
    prefix = "sqlite:///"
    if not uri.startswith(prefix):
        return uri
    return f"{prefix}{Path(uri.removeprefix(prefix)).expanduser().absolute()}"


def _now_ms() -> int:
    return int(time.time() * 1000)
