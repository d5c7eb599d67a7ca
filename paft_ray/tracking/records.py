"""What is recorded of a run in MLflow besides what its process adds: its name, who records it, and
figures that come at once.
"""

import getpass
import json
import logging
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paft_ray.config.uris import without_password
from paft_ray.tracking.event_log import ARTIFACTS, EventLog, RunRef, TrackingTarget, now_ms

logger = logging.getLogger(__name__)

DESCRIPTION = "mlflow.note.content"
"""The tag that MLflow shows above a run, in Markdown."""
_TEXT_CHARACTERS = 5000


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run in MLflow."""

    key: str
    """Its key in a target ("run", "training/paft-s0"): letters, digits, /._-"""
    name: str
    """The name that MLflow shows."""
    parent_key: str | None = None
    """Key of the run that this one is nested under."""


def record_figures(
    target: TrackingTarget | None,
    run: TrackedRun,
    about: Mapping[str, Mapping[str, Any]],
    figures: Mapping[str, float],
) -> None:
    """Record a run that consists of figures, and is over at once; repeating it replaces them.

    It is written to storage only: `send_waiting` sends it.

    Args:
        target: From `prepare_tracking`.
        run: The run.
        about: Its `params`, which stay as they are, and its `tags`.
        figures: Name to value.
    """
    if target is None:
        return
    log, _ = new_logs(target, run_ref(target, run, about["tags"]))
    for kind in ("params", "tags"):
        log.add(kind, texts(about[kind]))
    log.add("figures", dict(figures))
    log.add("status", {"status": "FINISHED"})
    log.close()
    try:
        log.flush()
    except OSError as error:
        logger.warning("tracking: the figures of %s are lost: %s", run.name, error)


def run_ref(target: TrackingTarget, run: TrackedRun, tags: Mapping[str, Any]) -> RunRef:
    """All that is needed to create a run in MLflow: the tags, and who records it."""
    parent = None if run.parent_key is None else f"{target.identity}/{run.parent_key}"
    try:
        known = {"mlflow.user": getpass.getuser()}
    except (KeyError, OSError):  # a container's user may have no name
        known = {}
    about = {"mlflow.source.name": "paft", **known, **tags}
    return RunRef(f"{target.identity}/{run.key}", run.name, parent, texts(about), now_ms())


def new_logs(target: TrackingTarget, run: RunRef) -> tuple[EventLog, EventLog]:
    """The logs of this process for a run: of records, and of artifacts."""
    name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"  # sorts by start
    folder = target.run_logs(run.key)
    records, artifacts = (
        EventLog(target.storage, folder.child(name + kind), run) for kind in ("", ARTIFACTS)
    )
    return records, artifacts


def texts(tree: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """Dotted names to texts, with characters and lengths that MLflow accepts, without passwords."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        name = re.sub(r"[^\w\-./ :]", "_", f"{path}{key}")
        if isinstance(value, Mapping):
            flat |= texts(value, f"{path}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[name] = without_password(text)[:_TEXT_CHARACTERS]
    return flat
