"""Opening a run: its lock, its recorded configuration, its tracking, the seconds of its stages."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace

from paft_ray.config.affects import older_rules, result_fields
from paft_ray.config.base import Target
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import dump_config, without_unread
from paft_ray.config.uris import without_password
from paft_ray.runs.context import RunContext
from paft_ray.runs.progress_record import RecordingScreen
from paft_ray.runs.subjects import content_of
from paft_ray.storage.lock import LOCK_FILE, lock
from paft_ray.storage.paths import Storage
from paft_ray.tracking import (
    Tracker,
    end_open_runs,
    open_tracker,
    send_waiting,
    tracking_place,
)

_REMEDY = (
    "choose another name, or evaluation.name for a further evaluation; --overwrite of run, train, "
    "tune and robustness discards what is there"
)


class StageClock:
    """Seconds per stage, summed over the attempts of an interrupted run.

    The stage in which a process was killed by SIGKILL is not counted.
    """

    _file = "seconds.json"

    def __init__(self, folder: Storage) -> None:
        self._folder = folder
        self.seconds: dict[str, float] = (
            folder.read_json(self._file) if folder.exists(self._file) else {}
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        except BaseException:
            with suppress(Exception):  # the user has to see the stage's own error
                self._keep(name, started)
            raise
        self._keep(name, started)

    def _keep(self, name: str, started: float) -> None:
        spent = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self.seconds[name] = round(spent, 3)
        self._folder.write_json(self._file, self.seconds)


@contextmanager
def open_run(
    context: RunContext, overwrite: bool = False, made_from: Mapping[str, str] | None = None
) -> Iterator[tuple[RunContext, Tracker]]:
    """Lock the run's name, record its configuration, and track it until the block ends.

    The block gets the context with its tracking prepared and a screen that keeps how far the run
    is, and the run's tracker.

    Args:
        context: The run.
        overwrite: Delete what another configuration left under this name.
        made_from: Further fingerprints that must stay the same under this name; `work` is the kind
            of the work.

    Raises:
        ConfigError: Another live process holds the lock, or the folder's content was made from
            other data or weights.
    """
    folder = context.results_folder
    content = {"work": "run", **_content(context), **(made_from or {})}
    if not overwrite:
        _refuse_other_content(folder, content)
    with _locked(context):
        if folder.exists("config.json"):
            context = context.tracked()
            if not send_waiting(context.tracking):  # of a process that may have died
                end_open_runs(context.tracking)
        if overwrite:
            for name in set(folder.names()) - {LOCK_FILE, "log.txt"}:
                folder.delete(name)
            context = replace(context, tracking=None)  # it is another run in MLflow
        if context.tracking is None:
            context = context.tracked()
        context = replace(context, screen=RecordingScreen(context.screen, folder))
        _show_place(context)
        tree = dump_config(context.config)
        results_from = result_fields(context.config)
        record = {"config": tree, "results_from": results_from, "content": content}
        folder.write_json("config.json", record)
        tags = {"paft.kind": content["work"], **context.tags}
        tracker = open_tracker(context.tracking, context.tracked_run, tags, measured=True)
        tracker.log_params(without_unread(tree))
        tracker.log_artifact("config.json", folder.path("config.json"))
        status = "FAILED"
        try:
            yield context, tracker
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            tracker.finish(status)
            if waiting := send_waiting(context.tracking):
                context.screen.line(
                    f"tracking: {waiting.logs} event logs wait in {folder.path('events')}; they "
                    "are sent when the same command runs again"
                    + (f", once this is mended: {waiting.reason}" if waiting.reason else "")
                )
            else:
                end_open_runs(context.tracking)


@contextmanager
def _locked(context: RunContext) -> Iterator[None]:
    """Lock a run, and its further evaluation, whose scores and record in MLflow are the run's."""
    show = context.screen.line
    with lock(context.run_folder, f"run {context.config.name!r}", show=show):
        if context.config.evaluation.name is None:
            yield
            return
        with lock(context.results_folder, f"run {context.called!r}", show=show):
            yield


def refuse_other_content(context: RunContext, work: str = "run") -> None:
    """Refuse a run that was made from other data or weights, or by other rules, before Ray starts.

    Args:
        context: The run.
        work: The kind of the work, see `open_run`.

    Raises:
        ConfigError: It was, or the folder holds work of another kind.
    """
    _refuse_other_content(context.results_folder, {"work": work, **_content(context)})


def older_rules_of(folder: Storage) -> list[Target]:
    """What the run in a folder was made by another rule of than today's."""
    if not folder.exists("config.json"):
        return []
    return older_rules(folder.read_json("config.json").get("results_from", {}))


def _content(context: RunContext) -> dict[str, str]:
    subjects = {f"subject {label}": found for label, found in content_of(context).items()}
    own = {"task": context.task_identity, "model": context.model_identity}
    return {**own, **context.content, **subjects}


def _refuse_other_content(folder: Storage, content: Mapping[str, str]) -> None:
    """Compare the content of paths, which a configuration's identity does not hold."""
    if not folder.exists("config.json"):
        return
    recorded = {"work": "run", **folder.read_json("config.json").get("content", content)}
    if recorded["work"] != content.get("work", recorded["work"]):
        raise ConfigError(
            f"name: {folder.path()} holds a {recorded['work']}, this is a {content['work']}: "
            f"{_REMEDY}"
        )
    if "examples" in older_rules_of(folder) and recorded.get("task") != content["task"]:
        raise ConfigError(
            f"name: {folder.path()} was made by an earlier version, which split rows into train, "
            f"validation and test by another rule; {_REMEDY}"
        )
    if changed := [part for part in content if recorded.get(part) != content[part]]:
        raise ConfigError(
            f"name: {folder.path()} was made from another {' and another '.join(changed)}: files "
            f"behind the same or another path differ; {_REMEDY}"
        )


def _show_place(context: RunContext) -> None:
    """Say where records go, where the environment decides it."""
    place = tracking_place(context.config.tracking, context.storage)
    if place is not None and place.variables:
        context.screen.line(
            f"tracking: {without_password(place.uri)}, experiment {place.experiment} (from "
            f"{' and '.join(place.variables)})"
        )
