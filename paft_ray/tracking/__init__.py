"""The record of a run: MLflow, and a spool on storage that outlives MLflow's absence.

tracker.py    the `Tracker` protocol, its two implementations, names of metrics
spool.py      batches of records, and their JSON files while MLflow is away
delivery.py   batches to MLflow, safe to repeat; the one place that speaks to it

Covered: parameters, metrics, tags, artifacts and the final state of runs; nesting; a resumed run
that continues its MLflow run without logging a step twice. Not covered: what is logged, which is
the callers' choice, and log files. Importing this imports no mlflow.
"""

from paft_ray.tracking.delivery import reach_server
from paft_ray.tracking.spool import TrackingTarget
from paft_ray.tracking.tracker import (
    FinalStatus,
    Metric,
    MlflowTracker,
    NullTracker,
    Tracker,
    end_open_runs,
    import_early,
    open_tracker,
    pool_version,
    prepare_tracking,
    replay,
    top_metric,
    tracking_server,
)

__all__ = [
    "FinalStatus",
    "Metric",
    "MlflowTracker",
    "NullTracker",
    "Tracker",
    "TrackingTarget",
    "end_open_runs",
    "import_early",
    "open_tracker",
    "pool_version",
    "prepare_tracking",
    "reach_server",
    "replay",
    "top_metric",
    "tracking_server",
]
