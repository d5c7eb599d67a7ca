"""Sends event logs to MLflow, each from the offset of the events that MLflow has already.

A tracker's sender sends the logs of its run: those of earlier processes first, then its own while
it grows. The driver sends other runs' logs of dead processes with `send_waiting`. Several senders
of one log do no harm, because recording an event again changes nothing.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from paft_ray.config.errors import ArtifactError
from paft_ray.config.uris import without_password
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.paths import Storage
from paft_ray.tracking.earlier import convert_spool
from paft_ray.tracking.event_log import (
    ARTIFACTS,
    Event,
    RunRef,
    TrackingTarget,
    advance,
    log_names,
    read_unsent,
)
from paft_ray.tracking.mlflow_runs import MlflowRuns, lasting_reason, remote_errors

logger = logging.getLogger(__name__)

_REFUSED = "refused"
_REFUSAL = "INVALID_PARAMETER_VALUE"
_CAUSE_CHARACTERS = 200


class Sender:
    """Sends logs of the target's runs."""

    def __init__(self, target: TrackingTarget) -> None:
        """Connect when there is something to send, not now."""
        self._target, self._runs = target, MlflowRuns(target)
        self.away = False
        """Whether MLflow or storage was unreachable at the last attempt."""
        self._artifacts_away = False
        self.reason: str | None = None
        """Why waiting is not enough, after an attempt that failed for that."""

    def send(self, run_logs: Storage) -> int:
        """Send the logs of one run until something is unreachable; returns the number of logs left.

        Artifacts come last, so that a failing artifact store delays nothing else; they then wait
        for another sender.
        """
        names: list[str] = []
        try:
            names = log_names(run_logs)
            while names and not (self._artifacts_away and names[0].endswith(ARTIFACTS)):
                self._send_log(run_logs.child(names[0]))
                del names[0]
            self.away = False
        except remote_errors() as error:
            self.reason = lasting_reason(error, self._target.uri)
            if not self.away:  # one message per outage
                where, logs = without_password(self._target.uri), self._target.logs.path()
                cause = without_password(str(error))[-_CAUSE_CHARACTERS:]  # urllib3 puts it last
                if self.reason is None:
                    cause = f"{where} is away: {cause}"
                logger.warning("tracking: records wait in %s: %s", logs, self.reason or cause)
            self._artifacts_away = bool(names) and names[0].endswith(ARTIFACTS)
            self.away = not self._artifacts_away
        return len(names) or int(self.away)

    def _send_log(self, log: Storage) -> None:
        try:
            for run, events, offset in read_unsent(log):
                self._record(run, events)
                advance(log, events, offset)
        except ArtifactError as error:
            logger.warning("tracking: a log is left where it is: %s", error)

    def _record(self, run: RunRef, events: Sequence[Event]) -> None:
        """Record events; those that MLflow will never accept are kept under `refused/`."""
        try:
            self._runs.record(run, events)
        except remote_errors() as error:
            if getattr(error, "error_code", "") != _REFUSAL:
                raise
            if half := len(events) // 2:  # find the refused event, record the others
                self._record(run, events[:half])
                self._record(run, events[half:])
                return
            reason, folder = without_password(str(error)), self._target.logs.child(_REFUSED)
            content = {"reason": reason, "run": asdict(run), "event": asdict(events[0])}
            folder.write_json(f"{fingerprint(content)}.json", content)
            logger.warning(
                "tracking: MLflow refused a record, kept in %s: %s", folder.path(), reason
            )


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is not sent."""

    logs: int
    """Number of logs."""
    reason: str | None
    """Why sending them again does not help before somebody does something; None where it may."""


def send_waiting(target: TrackingTarget | None) -> Waiting | None:
    """Send all logs of all runs of the target, until MLflow is unreachable; returns what is left.

    None where nothing is left.
    """
    if target is None:
        return None
    convert_spool(target)
    sender, left = Sender(target), 0
    for folder in _run_folders(target):
        left += len(log_names(folder)) if sender.away else sender.send(folder)
    return Waiting(left, sender.reason) if left else None


def end_open_runs(target: TrackingTarget | None) -> None:
    """End runs that dead processes left open as KILLED, and remove their logs that are sent.

    The driver calls this while it holds the run's lock and has no open tracker, so that no run of
    the target is alive. A process that continues a run opens it again. Where MLflow is unreachable,
    runs stay open until the next call.
    """
    if target is None:
        return
    try:
        MlflowRuns(target).end_open_runs()
        for folder in _run_folders(target):
            for log in map(folder.child, log_names(folder)):
                with suppress(ArtifactError):  # a damaged log stays
                    if next(read_unsent(log), None) is None:
                        log.delete()
    except remote_errors() as error:
        reason = without_password(str(error))
        logger.warning("tracking: runs that were left open stay so for now: %s", reason)


def _run_folders(target: TrackingTarget) -> list[Storage]:
    names = [name for name in target.logs.names() if not name.endswith(".json")]
    return [target.logs.child(name) for name in names if name != _REFUSED]
