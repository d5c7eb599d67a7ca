"""Events into MLflow, through its client.

Recording is safe to repeat: runs are found by `RunRef.key` before they are created, a metric's step
that the run already has is left out, everything else replaces old values. Nothing here runs in the
thread that trains.
"""

import logging
import os
import re
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from paft_ray.config.errors import ConfigError, one_line
from paft_ray.config.uris import without_password
from paft_ray.config.visible import shell_words
from paft_ray.storage.paths import is_inner_name
from paft_ray.tracking.event_log import Event, RunRef, TrackingTarget

logger = logging.getLogger(__name__)

KEY_TAG = "paft.key"
PARENT_KEY_TAG = "paft.parent_key"

_NESTING_TAG = "mlflow.parentRunId"
_PER_CALL = {"params": 100, "tags": 100, "metrics": 1000}
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default of 7, with 120 s each, takes 4 minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_ALLOW_HTTP_REDIRECTS": "false",  # credentials would go along
    "MLFLOW_CONFIGURE_LOGGING": "false",  # no MLflow handler on stderr
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for --json
    "MLFLOW_DISABLE_TELEMETRY": "true",  # users did not agree to it
}


def remote_errors() -> tuple[type[Exception], ...]:
    """Exceptions for a server, database or artifact store that fails."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, RequestException, SQLAlchemyError, OSError, ImportError, ConfigError)


@dataclass
class _OpenRun:
    id: str
    params: dict[str, str]
    status: str
    metric_names: frozenset[str]
    """Metrics that the run had when it was opened; their steps are read when first needed."""
    steps: dict[str, set[int]] = field(default_factory=dict)


class MlflowRuns:
    """A connection to MLflow, with a cache of the runs that it has recorded.

    Every method may raise one of `remote_errors`; calling it again later is safe.
    """

    def __init__(self, target: TrackingTarget) -> None:
        """Connect at the first use, not now."""
        self._target = target
        self._client: Any = None
        self._experiment_id = ""
        self._runs: dict[str, _OpenRun] = {}

    def connect(self, create_database: bool = False) -> None:
        """Import mlflow and find or create the experiment, once."""
        if self._client is None:
            database = self._target.database
            if database is not None and not create_database and not database.exists():
                raise FileNotFoundError(f"{database} is not on this node")
            client = import_client()(tracking_uri=self._target.uri)
            self._experiment_id = _experiment_id(client, self._target)
            self._client = client

    def record(self, ref: RunRef, events: Sequence[Event]) -> None:
        """Record events of one run in MLflow."""
        self.connect()
        run = self._runs.pop(ref.key, None) or self._open(ref)
        by_kind: dict[str, list[Event]] = defaultdict(list)
        for event in events:
            by_kind[event.kind].append(event)
        self._record_texts(run, by_kind["params"], by_kind["tags"])
        self._record_metrics(run, by_kind["metrics"])
        self._record_figures(run, by_kind["figures"])
        for event in by_kind["artifact"]:
            self._record_artifact(run, **event.payload)
        for event in by_kind["version"]:
            self._register(run, **event.payload)
        for event in by_kind["status"][-1:]:
            status = event.payload["status"]
            if status != "RUNNING":
                self._client.set_terminated(run.id, status, event.time_ms)
            elif run.status != "RUNNING":
                self._client.update_run(run.id, status="RUNNING")
            run.status = status
        self._runs[ref.key] = run  # after a failure it is read again instead

    def end_open_runs(self) -> None:
        """End the target's open runs as KILLED, at the time of their last record."""
        self.connect()
        ours = f"tags.`{KEY_TAG}` LIKE '{self._target.identity}/%'"
        are_open = f"{ours} AND attributes.status = 'RUNNING'"
        while found := self._client.search_runs([self._experiment_id], are_open):
            for run in found:
                self._client.set_terminated(run.info.run_id, "KILLED", self._last_record_ms(run))
            logger.info("tracking: %s runs of processes that died are now KILLED", len(found))

    def _last_record_ms(self, run: Any) -> int | None:
        histories = (
            self._client.get_metric_history(run.info.run_id, name) for name in run.data.metrics
        )
        times_ms = [metric.timestamp for history in histories for metric in history]
        return max(times_ms, default=run.info.start_time)

    def _open(self, ref: RunRef) -> _OpenRun:
        if found := self._find(KEY_TAG, ref.key):
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
        """Link the run with its parent and children, as far as MLflow has them already."""
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

    def _record_texts(self, run: _OpenRun, params: Sequence[Event], tags: Sequence[Event]) -> None:
        from mlflow.entities import Param, RunTag

        given = {name: text for event in params for name, text in event.payload.items()}
        texts = {name: text for event in tags for name, text in event.payload.items()}
        for name, text in given.items():
            if run.params.get(name, text) != text:
                texts[f"resumed.{name}"] = text
        new = {name: text for name, text in given.items() if name not in run.params}
        self._log(run, "params", [Param(*item) for item in new.items()])
        self._log(run, "tags", [RunTag(*item) for item in texts.items()])
        run.params.update(new)

    def _record_metrics(self, run: _OpenRun, events: Sequence[Event]) -> None:
        from mlflow.entities import Metric

        new: list[Any] = []
        for event in events:
            step = event.payload["step"]
            for name, value in event.payload["values"].items():
                if name not in run.steps:
                    known = name in run.metric_names
                    history = self._client.get_metric_history(run.id, name) if known else ()
                    run.steps[name] = {metric.step for metric in history}
                if step not in run.steps[name]:
                    run.steps[name].add(step)
                    new.append(Metric(name, value, event.time_ms, step))
        self._log(run, "metrics", new)

    def _record_figures(self, run: _OpenRun, events: Sequence[Event]) -> None:
        """Of values of one step MLflow shows the last."""
        from mlflow.entities import Metric

        given = {n: (v, event.time_ms) for event in events for n, v in event.payload.items()}
        self._log(run, "metrics", [Metric(name, *found, 0) for name, found in given.items()])

    def _log(self, run: _OpenRun, kind: str, records: Sequence[Any]) -> None:
        for start in range(0, len(records), _PER_CALL[kind]):
            part = records[start : start + _PER_CALL[kind]]
            self._client.log_batch(run.id, **{kind: part}, synchronous=True)

    def _register(self, run: _OpenRun, name: str, alias: str, artifact: str) -> None:
        """Register an artifact of the run as a version, unless one has the alias already."""
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

    def _record_artifact(self, run: _OpenRun, name: str, path: str) -> None:
        if not (is_inner_name(name) and self._target.storage.holds(path)):
            # an event log is a file on storage, which others may write to
            logger.warning("tracking: artifact %s is not on storage, left out", path)
            return
        try:
            with self._target.storage.filesystem.open_input_stream(path) as stream:
                content = stream.read()
        except FileNotFoundError:
            logger.warning("tracking: artifact %s is gone, left out", path)
            return
        place = PurePosixPath(name)
        folder = None if len(place.parts) == 1 else str(place.parent)
        with tempfile.TemporaryDirectory(prefix="paft-artifact-") as scratch:
            file = Path(scratch) / place.name
            file.write_bytes(content)
            self._client.log_artifact(run.id, str(file), folder)


def reach_server(uri: str) -> str | None:
    """The reason why this process cannot use a tracking server now; None where it can."""
    try:
        import_client()(tracking_uri=uri).search_experiments(max_results=1)
    except remote_errors() as error:
        where, reason = without_password(uri), without_password(one_line(error))
        away = f"tracking.uri: {where} cannot be used from here, records would wait: {reason}"
        return lasting_reason(error, uri) or away
    return None


def lasting_reason(error: Exception, uri: str) -> str | None:
    """Why a store takes no records until somebody does something about it, and what to do.

    None where waiting may be enough: the store is away.
    """
    if isinstance(error, ConfigError):
        return str(error)
    where, reason = without_password(uri), without_password(one_line(error))
    code, text = getattr(error, "error_code", ""), reason.lower()
    if schema := re.search(r"out-of-date database schema \(found version (\w+)", text):
        return f"tracking.uri: {where} has the schema of {_other_schema(schema[1], uri)}"
    if code == "UNAUTHENTICATED" or "error code 401" in text or "not authenticated" in text:
        return (
            f"tracking.uri: {where} does not take this node's name and password: set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD there"
        )
    if code == "PERMISSION_DENIED" or "error code 403" in text:
        return f"tracking.uri: {where} lets this user write nothing there ({reason}): ask for it"
    if redirect := re.search(r"error code 30[12378]\b", text):
        return (
            f"tracking.uri: {where} redirects ({redirect[0]}), and credentials follow no redirect: "
            "name the address that it leads to"
        )
    if "error code 404" in text:
        return f"tracking.uri: {where} answers that it is no MLflow server: mend the address"
    if isinstance(error, ImportError):
        return f"tracking.uri: {where} needs a package that is missing here: {reason}"
    if re.search("readonly database|permission denied", text):
        return f"tracking.uri: {where} is no database that this user can write ({reason})"
    if re.search("image is malformed|not a database", text):
        return (
            f"tracking.uri: {where} is no whole sqlite database (it was cut short or damaged): put "
            "a copy of it back, or move it away, and a new one is begun"
        )
    if "database or disk is full" in text:
        return f"tracking.uri: {where} lies on a disk without space: free some there"
    return None


def _other_schema(revision: str, uri: str) -> str:
    """Whose schema a database has, and what to do."""
    import mlflow

    steps = Path(mlflow.__file__).parent / "store/db_migrations/versions"
    if revision != "none" and not any(steps.glob(f"{revision}_*.py")):
        return (
            f"a newer MLflow than the one installed here ({mlflow.__version__}), which cannot be "
            "taken back: install that version (pip install -U mlflow), or name another database"
        )
    command = without_password(shell_words(["mlflow", "db", "upgrade", uri]))
    return (
        "an older version of MLflow than the one installed here: make a copy of the database, then "
        f"run `{command}`"
    )


def import_client() -> Any:
    """MLflow's client class; the first call imports mlflow, which takes seconds."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # we report it, once
    # from MLflow's own table definitions
    warnings.filterwarnings("ignore", "The ``noload`` loader strategy", DeprecationWarning)
    from mlflow import MlflowClient

    return MlflowClient


def _experiment_id(client: Any, target: TrackingTarget) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(target.experiment)
    if found is None:
        database = target.database
        artifacts = None if database is None else _artifact_place(database)
        try:
            return client.create_experiment(target.experiment, artifact_location=artifacts)
        except MlflowException as error:
            if error.error_code == "INVALID_PARAMETER_VALUE":
                raise ConfigError(
                    f"tracking.experiment ({one_line(ValueError(target.experiment), 60)}) is no "
                    f"name that MLflow takes: {one_line(error)}"
                ) from error
            found = client.get_experiment_by_name(target.experiment)
            if found is None:  # no other process created it meanwhile
                raise
    if found.lifecycle_stage != "active":
        raise ConfigError(
            f"tracking.experiment ({target.experiment}) is deleted in MLflow: restore it "
            "(mlflow experiments restore), or name another"
        )
    return found.experiment_id


def _artifact_place(database: Path) -> str:
    """The folder of artifacts beside a database, as a URI where MLflow would misread the path."""
    folder = database.with_name("mlartifacts")
    return folder.as_uri() if re.search("[%?#]", str(folder)) else str(folder)
