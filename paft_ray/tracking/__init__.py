"""The record of a run in MLflow, with event logs on storage for times when MLflow is unreachable.

tracker.py      the `Tracker` that callers record with; names of metrics
event_log.py    a process's unsent events, append-only on storage
sender.py       sends logs from the offset of the events that MLflow has
records.py      a run's name, and figures that come at once
machine.py      what the machine does meanwhile
mlflow_runs.py  events into MLflow, safe to repeat
shown.py        the page of a run, for links
place.py        the configuration's store, MLflow's own variables, URIs of sqlite files
earlier.py      files that versions before the event log left on storage

Covered: parameters, metrics, tags, artifacts and the final state of runs; nesting; a resumed run
that continues its MLflow run without logging a step twice. Importing this imports no mlflow.
"""

from paft_ray.tracking.event_log import TrackingTarget
from paft_ray.tracking.mlflow_runs import reach_server
from paft_ray.tracking.place import (
    check_tracking,
    named_uri,
    tracking_place,
    tracking_server,
)
from paft_ray.tracking.records import DESCRIPTION, TrackedRun, record_figures
from paft_ray.tracking.sender import Waiting, end_open_runs, send_waiting
from paft_ray.tracking.shown import RunPage, page_of
from paft_ray.tracking.tracker import (
    FinalStatus,
    Metric,
    NullTracker,
    Tracker,
    import_early,
    open_tracker,
    pool_version,
    prepare_tracking,
)

__all__ = [
    "DESCRIPTION",
    "FinalStatus",
    "Metric",
    "NullTracker",
    "RunPage",
    "TrackedRun",
    "Tracker",
    "TrackingTarget",
    "Waiting",
    "check_tracking",
    "end_open_runs",
    "import_early",
    "named_uri",
    "open_tracker",
    "page_of",
    "pool_version",
    "prepare_tracking",
    "reach_server",
    "record_figures",
    "send_waiting",
    "tracking_place",
    "tracking_server",
]
