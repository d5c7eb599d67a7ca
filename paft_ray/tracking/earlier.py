"""Unsent records of versions before the event log: JSON files in `spool/`."""

import logging
from dataclasses import replace
from pathlib import PurePosixPath

from paft_ray.config.errors import ArtifactError
from paft_ray.storage.paths import Storage
from paft_ray.tracking.event_log import ARTIFACTS, EventLog, RunRef, TrackingTarget

logger = logging.getLogger(__name__)


def convert_spool(target: TrackingTarget) -> None:
    """Turn the files in `spool/` into event logs; safe to repeat."""
    spool = replace(target.logs, root=str(PurePosixPath(target.logs.root).with_name("spool")))
    for run in set(spool.names()) - {"identity.json", "refused"}:
        folder = spool.child(run)
        for name in folder.names():
            if name.endswith(".json"):
                try:
                    _convert(target, folder, name)
                except (ArtifactError, KeyError, TypeError, ValueError) as error:
                    logger.warning("tracking: %s left where it is: %s", folder.path(name), error)


def _convert(target: TrackingTarget, folder: Storage, name: str) -> None:
    batch = folder.read_json(name)
    run = RunRef(**batch["run"])
    log_name = name.replace(".artifacts.json", ARTIFACTS).removesuffix(".json")
    log = EventLog(target.storage, target.run_logs(run.key).child(log_name), run)
    log.add("params", batch["params"])
    log.add("tags", batch["tags"])
    for number, (metric, value, at_ms, step) in enumerate(batch["metrics"], start=1):
        log.add("metrics", {"step": step, "values": {metric: value}}, at_ms)
        if number % 5_000 == 0:
            log.flush()
    for artifact, path in batch["artifacts"].items():
        if target.storage.holds(path):
            log.add("artifact", {"name": artifact, "path": path})
    for model, (alias, artifact) in batch["versions"].items():
        log.add("version", {"name": model, "alias": alias, "artifact": artifact})
    if batch["status"] is not None:
        log.add("status", {"status": batch["status"]}, batch["ended_ms"])
    log.close()
    log.flush()
    folder.delete(name)
