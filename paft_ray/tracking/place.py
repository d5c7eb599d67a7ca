"""Where runs are recorded: the configuration, else MLflow's own variables, else a local file."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from paft_ray.config import TrackingConfig
from paft_ray.storage.paths import Storage

URI_VARIABLE = "MLFLOW_TRACKING_URI"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
_EXPERIMENT = "paft"
_SQLITE = "sqlite:///"
_PLAIN = "".join(chr(code) for code in range(32, 127) if chr(code) not in "%?")


@dataclass(frozen=True, slots=True)
class Place:
    """An MLflow store and an experiment in it."""

    uri: str = field(repr=False)
    """MLflow tracking URI, which may carry a password."""
    experiment: str
    variables: tuple[str, ...]
    """Environment variables that decided."""


def named_uri(config: TrackingConfig) -> tuple[str | None, str]:
    """The URI that the configuration or else the environment names, and what names it."""
    if config.type == "none" or config.uri is not None:
        return (None if config.type == "none" else config.uri), "tracking.uri"
    return os.environ.get(URI_VARIABLE, "").strip() or None, URI_VARIABLE


def tracking_place(config: TrackingConfig, storage: Storage) -> Place | None:
    """Where `config` records runs; None where it records none."""
    if config.type == "none":
        return None
    variables = []
    uri, source = named_uri(config)
    if uri is not None and source == URI_VARIABLE:
        variables.append(source)
    experiment = config.experiment
    if experiment is None and (experiment := os.environ.get(EXPERIMENT_VARIABLE, "").strip()):
        variables.append(EXPERIMENT_VARIABLE)
    home = Path(storage.root) if storage.is_local else Path.cwd()
    uri = sqlite_uri(home / "mlflow.db") if uri is None else _absolute(uri)
    return Place(uri, experiment or _EXPERIMENT, tuple(variables))


def tracking_server(config: TrackingConfig) -> str | None:
    """URI of the named server; None for a sqlite file, which only the driver's node can use, and
    for no tracking."""
    uri, _ = named_uri(config)
    return None if uri is None or uri.startswith("sqlite:") else uri


def sqlite_uri(path: Path) -> str:
    """The URI of a database file, whatever its name; the inverse of `sqlite_path`."""
    return _SQLITE + quote(str(path), safe=_PLAIN)


def sqlite_path(uri: str) -> Path | None:
    """The file behind a sqlite URI, None for any other."""
    if not uri.startswith(_SQLITE):
        return None
    return Path(unquote(uri.removeprefix(_SQLITE).partition("?")[0]))


def _absolute(uri: str) -> str:
    """A sqlite URI with an absolute path; other URIs unchanged."""
    if (path := sqlite_path(uri)) is None:
        return uri
    _, mark, query = uri.partition("?")
    return sqlite_uri(path.expanduser().absolute()) + mark + query
