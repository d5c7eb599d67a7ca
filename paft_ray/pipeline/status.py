"""`paft status RUN`: the results of a run that is over, and how far another one is; no Ray.

All of it is read from the run's folder, so that it can be asked on any machine that sees the
storage, also while the run is at work on a cluster.
"""

from collections.abc import Iterator
from dataclasses import asdict

from paft_ray.pipeline.listing import StoredRun, find_run, read_run
from paft_ray.pipeline.perform import Result
from paft_ray.runs.log import LOG
from paft_ray.runs.progress_record import ProgressRecord, StageRecord, read_progress
from paft_ray.storage.lock import live_holder
from paft_ray.storage.paths import Storage

_STATES = {
    "complete": "complete",
    "measured": "measured, but a part of it is missing; the command that began it does the rest",
    "unfinished": "not finished, and no process is at work; the command that began it continues it",
    "damaged": "a file of its records cannot be read",
}


def run_status(storage: Storage, name: str) -> Result:
    """Say what became of a run, or how far it is.

    Args:
        storage: Holds the run.
        name: `RUN`, or `RUN/EVALUATION` for a further evaluation.

    Raises:
        ConfigError: There is no run of this name.
    """
    from paft_ray.report import SEARCH_FILE, results_table, search_table

    folder = find_run(storage, name)
    holder, run = live_holder(folder), read_run(name, folder)
    progress = read_progress(folder)
    over = run.state == "complete"
    data = {**asdict(run), "holder": holder, "progress": progress and asdict(progress)}
    said = f"running: {holder}" if run.state == "running" else _STATES[run.state]
    lines = [f"{run.kind} {name}: {said}", *(f"damaged: {file}" for file in run.damaged)]
    if not over:
        lines += _progress_lines(progress)
        if folder.is_local and folder.exists(LOG):
            lines.append(f"log: {folder.path(LOG)}")
    if run.figures and not run.damaged:
        summary = folder.read_json("summary.json")
        data["summary"] = summary
        if over and folder.exists(SEARCH_FILE):
            lines += ["", search_table(folder.read_json(SEARCH_FILE))]
        lines += ["", *_results_heading(run), results_table(summary)]
        if folder.exists("report.html"):
            lines += ["", f"report:  {folder.path('report.html')}"]
    return Result(data, "\n".join(lines))


def _results_heading(run: StoredRun) -> Iterator[str]:
    if run.state != "complete":
        yield "what was measured so far:"


def _progress_lines(progress: ProgressRecord | None) -> Iterator[str]:
    if progress is None:
        yield "how far it is was not kept: it has not begun a stage, or an earlier version began it"
        return
    width = max((len(stage.name) for stage in progress.stages), default=0)
    for stage in progress.stages:
        yield f"    {stage.name:<{width}}  {_described(stage)}, {stage.seconds:.0f} s"
    yield f"as of {progress.written} UTC"


def _described(stage: StageRecord) -> str:
    counted = f"{stage.done:,} of {stage.total:,}" if stage.total else ""
    if stage.total and stage.state != "done":
        counted += f" ({stage.done / stage.total:.0%})"
    if stage.state == "done":
        return f"done: {stage.outcome or counted}".removesuffix(": ")
    if stage.state == "stopped" and stage.name.startswith("train "):
        counted += "; it goes on from its last checkpoint"
    return f"{stage.state} at {counted}" if counted else stage.state
