"""Batches of a run's records on their way to MLflow: the one place that speaks to it.

Sending is safe to repeat: runs are found by our key before they are created, a metric's step that
the run already has is left out, everything else replaces what is there. So a batch whose sending
broke off half way is simply sent again.

Nothing here runs in the thread that trains.
"""

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from paft_ray.config.errors import ConfigError, one_line
from paft_ray.storage.paths import Storage
from paft_ray.tracking.spool import (
    Batch,
    RunRef,
    TrackingTarget,
    artifact_content,
    has_artifacts,
    keep,
    parts,
    read,
    remove,
    waiting,
    without_password,
)

logger = logging.getLogger(__name__)

KEY_TAG = "paft.key"
PARENT_KEY_TAG = "paft.parent_key"

_NESTING_TAG = "mlflow.parentRunId"
_PARAMS_OR_TAGS_PER_CALL = 100
_METRICS_PER_CALL = 1000
_CAUSE_CHARACTERS = 200
_REFUSAL = "INVALID_PARAMETER_VALUE"
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default of 7, with 120 s each, takes 4 minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # no handler of its own on stderr
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for --json
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nobody who trains here asked for it
}


def remote_errors() -> tuple[type[Exception], ...]:
    """What MLflow raises for a server, database or artifact store that does not do its part."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, RequestException, SQLAlchemyError, OSError, ImportError)


@dataclass
class _OpenRun:
    id: str
    params: dict[str, str]
    status: str
    metric_names: frozenset[str]
    """Metrics the run had when it was opened; their steps are read when first needed."""
    steps: dict[str, set[int]] = field(default_factory=dict)


class Sender:
    """A connection to MLflow and what it knows of the runs it has seen."""

    def __init__(self, target: TrackingTarget) -> None:
        self._target = target
        self._client: Any = None
        self._experiment_id = ""
        self._runs: dict[str, _OpenRun] = {}

    def connect(self, create_database: bool = False) -> None:
        """Import mlflow and find or create the experiment, once.

        Raises:
            Exception: One of `remote_errors`.
            ConfigError: The experiment is deleted at the server.
        """
        if self._client is not None:
            return
        client = _open_client(self._target, create_database)
        self._experiment_id = _experiment_id(client, self._target)
        self._client = client

    def send(self, batch: Batch) -> None:
        """Bring a batch into MLflow.

        Raises:
            Exception: One of `remote_errors`; sending again later is safe.
            ConfigError: The experiment is deleted at the server.
        """
        self.connect()
        run = self._runs.pop(batch.run.key, None) or self._open(batch.run)
        self._send_texts(run, batch)
        self._send_metrics(run, batch.metrics)
        for name, source in batch.artifacts.items():
            self._send_artifact(run, name, source)
        for name, (alias, artifact) in batch.versions.items():
            self._register(run, name, alias, artifact)
        if batch.status == "RUNNING" and run.status != "RUNNING":
            self._client.update_run(run.id, status="RUNNING")
        elif batch.status not in (None, "RUNNING"):
            self._client.set_terminated(run.id, batch.status, batch.ended_ms)
        run.status = batch.status or run.status
        self._runs[batch.run.key] = run  # only now: after a failure it is read afresh

    def end_open_runs(self) -> int:
        """End the target's runs that are still open, as KILLED at their last word; how many.

        Raises:
            Exception: One of `remote_errors`.
            ConfigError: The experiment is deleted at the server.
        """
        self.connect()
        ours = f"tags.`{KEY_TAG}` LIKE '{self._target.identity}/%'"
        ended = 0
        while found := self._client.search_runs(
            [self._experiment_id], f"{ours} AND attributes.status = 'RUNNING'"
        ):
            for run in found:
                self._client.set_terminated(run.info.run_id, "KILLED", self._last_word_ms(run))
            ended += len(found)
        return ended

    def _last_word_ms(self, run: Any) -> int | None:
        """When a run was last heard of: its process cannot say any more when it ended."""
        histories = (
            self._client.get_metric_history(run.info.run_id, name) for name in run.data.metrics
        )
        said = [metric.timestamp for history in histories for metric in history]
        return max(said, default=run.info.start_time)

    def _open(self, ref: RunRef) -> _OpenRun:
        found = self._find(KEY_TAG, ref.key)
        if found:
            run = found[0]
        else:
            parent = {PARENT_KEY_TAG: ref.parent_key} if ref.parent_key else {}
            run = self._client.create_run(
                self._experiment_id,
                start_time=ref.started_ms,
                tags={**ref.tags, KEY_TAG: ref.key, **parent},
                run_name=ref.name,
            )
        self._nest(ref, run.info.run_id)
        known, state = run.data, run.info.status
        return _OpenRun(run.info.run_id, dict(known.params), state, frozenset(known.metrics))

    def _nest(self, ref: RunRef, run_id: str) -> None:
        """Tie run and parent, and children to the run: whichever of them comes second does it."""
        for parent in self._find(KEY_TAG, ref.parent_key)[:1] if ref.parent_key else ():
            self._tie(run_id, parent.info.run_id)
        for child in self._find(PARENT_KEY_TAG, ref.key):
            if _NESTING_TAG not in child.data.tags:
                self._tie(child.info.run_id, run_id)

    def _tie(self, child_id: str, parent_id: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.set_tag(child_id, _NESTING_TAG, parent_id)
        except MlflowException:  # both sides at once break the table's unique key
            if _NESTING_TAG not in self._client.get_run(child_id).data.tags:
                raise

    def _find(self, tag: str, value: str) -> list[Any]:
        return self._client.search_runs([self._experiment_id], f"tags.`{tag}` = '{value}'")

    def _send_texts(self, run: _OpenRun, batch: Batch) -> None:
        from mlflow.entities import Param, RunTag

        changed = {n: v for n, v in batch.params.items() if run.params.get(n, v) != v}
        params = {n: v for n, v in batch.params.items() if n not in run.params}
        tags = {**batch.tags, **{f"resumed.{name}": text for name, text in changed.items()}}
        for part in _chunks(params.items(), _PARAMS_OR_TAGS_PER_CALL):
            self._client.log_batch(run.id, params=[Param(*item) for item in part], synchronous=True)
        for part in _chunks(tags.items(), _PARAMS_OR_TAGS_PER_CALL):
            self._client.log_batch(run.id, tags=[RunTag(*item) for item in part], synchronous=True)
        run.params.update(params)

    def _send_metrics(self, run: _OpenRun, rows: Sequence[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        fresh: list[Any] = []
        for name, value, at_ms, step in rows:
            if name not in run.steps:
                known = name in run.metric_names
                history = self._client.get_metric_history(run.id, name) if known else ()
                run.steps[name] = {metric.step for metric in history}
            if step not in run.steps[name]:
                run.steps[name].add(step)
                fresh.append(Metric(name, value, at_ms, step))
        for part in _chunks(fresh, _METRICS_PER_CALL):
            self._client.log_batch(run.id, metrics=part, synchronous=True)

    def _register(self, run: _OpenRun, name: str, alias: str, artifact: str) -> None:
        """Make an artifact of the run a version in the registry, unless one has the alias."""
        from mlflow.exceptions import MlflowException

        client = self._client
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        try:
            client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            home = client.get_run(run.id).info.artifact_uri
            version = client.create_model_version(name, f"{home}/{artifact}", run_id=run.id)
            client.set_registered_model_alias(name, alias, version.version)

    def _send_artifact(self, run: _OpenRun, name: str, source: str | bytes) -> None:
        content = artifact_content(self._target.storage, source)
        if content is None:
            return
        place = PurePosixPath(name)
        folder = None if len(place.parts) == 1 else str(place.parent)
        with tempfile.TemporaryDirectory(prefix="paft-artifact-") as scratch:
            file = Path(scratch) / place.name
            file.write_bytes(content)
            self._client.log_artifact(run.id, str(file), folder)


def deliver(sender: Sender, target: TrackingTarget, batch: Batch, quiet: bool = False) -> bool:
    """Send a batch; False where MLflow is away and sending later makes sense.

    A batch that MLflow refuses would be refused for ever: it is kept under `refused/`.

    Args:
        sender: The connection.
        target: Where to.
        batch: What.
        quiet: Say nothing about an absence that was reported already.
    """
    try:
        sender.send(batch)
    except (*remote_errors(), ConfigError) as error:
        reason, spool = without_password(str(error)), target.spool.path()
        if getattr(error, "error_code", "") != _REFUSAL:
            if not quiet:
                away = without_password(target.uri)
                cause = reason[-_CAUSE_CHARACTERS:]  # urllib3 says it last
                logger.warning("tracking: %s is away, records wait in %s: %s", away, spool, cause)
            return False
        if len(kinds := parts(batch)) > 1:  # what is right in it must not suffer
            return all(deliver(sender, target, part, quiet) for part in kinds)
        logger.warning("tracking: MLflow refused records, kept in %s/refused: %s", spool, reason)
        explained = replace(batch, tags={**batch.tags, "paft.refused": reason})
        keep(target, target.spool.child("refused"), explained)
    return True


def replay_folder(
    sender: Sender, target: TrackingTarget, folder: Storage, quiet: bool = False
) -> int:
    """Send what waits for one run, until something is away; the number of records left.

    Artifacts come last and are not in the number: one that its store does not take stays in the
    spool and holds up nothing else.
    """
    names = waiting(folder)
    for position, name in enumerate(names):
        batch = read(folder, name)
        if batch is None:
            continue
        if not deliver(sender, target, batch, quiet):
            return sum(not has_artifacts(name) for name in names[position:])
        remove(folder, name, batch)
    return 0


def reach_server(uri: str) -> str | None:
    """Why this process cannot speak to a tracking server now; None where it can."""
    where = without_password(uri)
    try:
        import_client()(tracking_uri=uri).search_experiments(max_results=1)
    except remote_errors() as error:
        reason = without_password(one_line(error))
        if "error code 401" in reason or "not authenticated" in reason.lower():
            return (
                f"tracking.uri: {where} does not take this node's name and password: set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD there"
            )
        return f"tracking.uri: {where} cannot be used from here, records would wait: {reason}"
    return None


def import_client() -> Any:
    """MLflow's client class; the first call imports mlflow, which takes seconds."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # we report it, once
    # MLflow's own table definitions; nothing that a user or we could change.
    warnings.filterwarnings("ignore", "The ``noload`` loader strategy", DeprecationWarning)
    from mlflow import MlflowClient

    return MlflowClient


def _open_client(target: TrackingTarget, create_database: bool) -> Any:
    database = target.database
    if database is not None and not create_database and not database.exists():
        raise FileNotFoundError(f"{database} is not on this node")
    return import_client()(tracking_uri=target.uri)


def _experiment_id(client: Any, target: TrackingTarget) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(target.experiment)
    if found is None:
        database = target.database
        artifacts = None if database is None else str(database.with_name("mlartifacts"))
        try:
            return client.create_experiment(target.experiment, artifact_location=artifacts)
        except MlflowException as error:
            found = client.get_experiment_by_name(target.experiment)
            if found is None:
                raise error  # not somebody who was faster
    if found.lifecycle_stage != "active":
        raise ConfigError(
            f"tracking.experiment ({target.experiment}) is deleted in MLflow: restore it "
            "(mlflow experiments restore), or name another"
        )
    return found.experiment_id


def _chunks(items: Any, size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part
