"""The page on which MLflow shows a run, for reports to link to."""

import logging
from dataclasses import dataclass

from paft_ray.config.uris import without_password
from paft_ray.config.visible import shell_words
from paft_ray.tracking.event_log import TrackingTarget
from paft_ray.tracking.mlflow_runs import KEY_TAG, import_client, remote_errors

logger = logging.getLogger(__name__)

_LOCAL = "http://127.0.0.1:5000"
"""Where `mlflow ui` listens unless it is told otherwise."""


@dataclass(frozen=True, slots=True)
class RunPage:
    """Where MLflow shows a run."""

    page: str
    """Address of the page."""
    command: str
    """What serves the page where no server does; empty where one does."""


def page_of(target: TrackingTarget | None, key: str) -> RunPage | None:
    """The page of a run; None where it is not recorded there yet, or MLflow cannot be reached.

    Args:
        target: Where the run is recorded; None for nowhere.
        key: The run's key in the target, see `TrackedRun`.
    """
    if target is None or not target.uri.startswith(("http", "sqlite:")):
        return None
    if target.database is not None and not target.database.exists():
        return None
    try:
        client = import_client()(tracking_uri=target.uri)
        experiment = client.get_experiment_by_name(target.experiment)
        wanted = f"tags.`{KEY_TAG}` = '{target.identity}/{key}'"
        runs = client.search_runs([experiment.experiment_id], wanted) if experiment else []
    except remote_errors() as error:
        logger.warning("tracking: no link to the run: %s", without_password(str(error)))
        return None
    if not runs:
        return None
    local = target.database is not None
    home = _LOCAL if local else without_password(target.uri).rstrip("/")
    command = shell_words(["mlflow", "ui", "--backend-store-uri", target.uri]) if local else ""
    info = runs[0].info
    return RunPage(f"{home}/#/experiments/{info.experiment_id}/runs/{info.run_id}", command)
