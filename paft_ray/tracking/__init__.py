"""The record of a run: MLflow, and event logs on storage that outlive MLflow's absence.

tracker.py      what callers record with, and where; names of metrics
event_log.py    what a process has to send, append-only on storage
sender.py       ships logs from the offset behind what MLflow has
mlflow_runs.py  events into MLflow, safe to repeat; the one place that speaks to it
earlier.py      what versions before the event log left on storage

Covered: parameters, metrics, tags, artifacts and the final state of runs; nesting; a resumed run
that continues its MLflow run without logging a step twice. Not covered: what is logged, which is
the callers' choice, and log files. Importing this imports no mlflow.
"""

from paft_ray.tracking.event_log import TrackingTarget
from paft_ray.tracking.mlflow_runs import reach_server
from paft_ray.tracking.sender import end_open_runs, send_waiting
from paft_ray.tracking.tracker import (
    FinalStatus,
    Metric,
    NullTracker,
    Tracker,
    import_early,
    open_tracker,
    pool_version,
    prepare_tracking,
    tracking_server,
    tracking_uri,
)

__all__ = [
    "FinalStatus",
    "Metric",
    "NullTracker",
    "Tracker",
    "TrackingTarget",
    "end_open_runs",
    "import_early",
    "open_tracker",
    "pool_version",
    "prepare_tracking",
    "reach_server",
    "send_waiting",
    "tracking_server",
    "tracking_uri",
]
