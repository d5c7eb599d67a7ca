"""Where runs are recorded: the configuration, else MLflow's own variables, else a local file."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from paft_ray.config import TrackingConfig
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import local_path
from paft_ray.config.uris import without_password
from paft_ray.storage.paths import Storage, require_writable

URI_VARIABLE = "MLFLOW_TRACKING_URI"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
_EXPERIMENT = "paft"
_SQLITE = "sqlite:///"
_HEADER = b"SQLite format 3\0"
_LONGEST_EXPERIMENT = 500
_DATABASES = ("postgresql", "mysql", "mssql")
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


def check_tracking(config: TrackingConfig) -> None:
    """Check that runs can be recorded where the configuration or the environment says.

    Raises:
        ConfigError: The URI is none of MLflow, or names a file that is no database; the name of the
            experiment is too long.
    """
    uri, field = named_uri(config)
    _check_experiment(config)
    if uri is None:
        return
    scheme = re.match(r"([A-Za-z][A-Za-z0-9]*)(\+[A-Za-z0-9_]+)?:", uri)
    name = scheme[1].lower() if scheme else ""
    if name in ("http", "https") and not re.match(r"[^:]+://[^/]", uri):
        raise ConfigError(f"tracking.uri: {uri!r} names no host; write {name}://host:port")
    if uri == "databricks" or name in ("http", "https", "databricks", *_DATABASES):
        return
    if name == "sqlite":
        path = sqlite_path(uri)
        if path is None or path == Path():
            raise ConfigError(f"{field}: {uri!r} names no file; write sqlite:///folder/mlflow.db")
        database = local_path(str(path)).absolute()
        if database.is_dir():
            raise ConfigError(f"{field}: {database} is a folder; name a file in it")
        require_writable(database.parent, field)
        if database.exists() and not _is_database(database):
            raise ConfigError(
                f"{field}: {database} is a file, and no sqlite database; name another one"
            )
        return
    rule = (
        "is a folder, which MLflow 3 no longer writes to"
        if name in ("", "file")
        else f"has the scheme {name!r}, which MLflow does not know"
    )
    other = "" if field == "tracking.uri" else ", or another one as tracking.uri"
    raise ConfigError(
        f"{field}: {without_password(uri)!r} {rule}; use sqlite:///file.db, a database, http(s):// "
        f"or databricks{other}"
    )


def _check_experiment(config: TrackingConfig) -> None:
    name, field = config.experiment, "tracking.experiment"
    if name is None:
        name, field = os.environ.get(EXPERIMENT_VARIABLE, "").strip(), EXPERIMENT_VARIABLE
    if config.type != "none" and len(name) > _LONGEST_EXPERIMENT:
        raise ConfigError(
            f"{field} has {len(name)} characters, and MLflow takes at most {_LONGEST_EXPERIMENT} "
            "in the name of an experiment: shorten it"
        )


def _is_database(path: Path) -> bool:
    """Whether a file is an sqlite database; an empty file becomes one."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(_HEADER)) in (b"", _HEADER)


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
