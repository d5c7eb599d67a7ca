"""Tracks the results of an evaluation: a run below the command's own for each model.

Their metrics have the same names, so that MLflow's own comparison of runs shows them side by side.
"""

from collections.abc import Mapping
from typing import Any

from paft_ray.config import BASE
from paft_ray.evaluation.figures import eval_metrics
from paft_ray.report.tables import Table, display_name, results, trained_labels
from paft_ray.report.text import differences
from paft_ray.runs.context import RunContext
from paft_ray.tracking import DESCRIPTION, TrackedRun, Tracker, record_figures

_FILES = (".parquet", ".html", ".png")
_PAID = ("requests", "prompt_tokens", "completion_tokens", "cost")


def track_results(context: RunContext, summary: Mapping[str, Any], tracker: Tracker) -> None:
    """Track figures, a description that people read, and files.

    Args:
        context: The run.
        summary: Content of `summary.json`.
        tracker: Of the run.
    """
    table = results(summary, wide=())
    asked = f"{summary['prompts']} prompts x {summary['examples']} examples"
    parent = context.tracked_run
    for row in table.rows:
        run = TrackedRun(
            f"{parent.key}/evaluated/{row.label}",
            f"{row.label} evaluated in {context.called}",
            parent.key,
        )
        about = f"{row.name}, evaluated under {asked} of {context.task.name}\n\n"
        text = about + _markdown(Table(table.columns, (row,)))
        tags = {**_tags(context, summary, row.label), DESCRIPTION: text}
        params = {"model": row.label, **context.about}
        record_figures(
            context.tracking,
            run,
            {"params": params, "tags": tags},
            tracked_figures(summary, row.label),
        )
    heading = f"{len(table.rows)} models under {asked} of {context.task.name}, 95% intervals in "
    said = [*differences(summary), f"{heading}brackets.", _markdown(table)]
    tracker.describe("\n\n".join([*said, "The whole report is the artifact `report.html`."]))
    for label, model in summary["models"].items():
        for search in model.get("optimized_prompts", ()):
            name = f"optimized/{label}-s{search['seed']}.txt"
            tracker.log_artifact(name, search["prompt"].encode())
    folder = context.results_folder
    for name in folder.names():
        if name.endswith(_FILES) or name == "summary.json":
            tracker.log_artifact(name, folder.path(name))


def _tags(context: RunContext, summary: Mapping[str, Any], label: str) -> dict[str, Any]:
    """What an evaluated model is found by."""
    model = summary["models"][label]
    kind = "trained" if label in trained_labels(summary) else "subject"
    seeds = {"paft.seeds": model["seeds"], "paft.steps": model.get("steps")}
    return {
        "paft.kind": "evaluation",
        **context.tags,
        "paft.model": display_name(label),
        "paft.of": "base" if label == BASE else kind,
        "paft.prompts": summary["prompts"],
        "paft.examples": summary["examples"],
        **(seeds if kind == "trained" else {}),
    }


def tracked_figures(summary: Mapping[str, Any], label: str) -> dict[str, float]:
    """A model's figures, and what an endpoint was asked for by it, by their names in MLflow."""
    about = summary["models"][label].get("endpoint", {})
    paid = {f"eval/endpoint/{name}": about.get(name) for name in _PAID}
    known = {name: float(value) for name, value in paid.items() if value is not None}
    return eval_metrics(summary, label) | known


def _markdown(table: Table) -> str:
    """A table in Markdown, with intervals."""
    lines = [("model", *table.columns), ("---",) * (len(table.columns) + 1)]
    lines += [
        (row.name, *(f"{c.text} ({c.below})" if c.below else c.text for c in row.cells))
        for row in table.rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
