"""Keep what a study found as a committed record, and print it as a table of docs/results.

python jobs/benchmarks/study.py keep storage/runs/study          # to results/study_sst2.json
python jobs/benchmarks/study.py keep storage/runs/grpo           # to results/study_grpo.json
python jobs/benchmarks/study.py keep storage/runs/NAME/evaluations/axes
python jobs/benchmarks/study.py show jobs/benchmarks/results/study*.json
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from names import IN_TABLES, author_of, name_of
from numpy.typing import NDArray
from records import commit, named
from scipy.special import ndtri

from paft_ray.evaluation.figures import LOW_QUANTILE, MEAN, STD, STD_BY_CHANCE, WORST
from paft_ray.evaluation.scores import further_grades
from paft_ray.evaluation.summary import PAFT, scores_by_author, summarise
from paft_ray.prompts.pool import PromptPool
from paft_ray.report.axis_tables import AXIS_NAMES
from paft_ray.storage.fingerprint import fingerprint

RESULTS = Path(__file__).with_name("results")
_CONTENT = ("task", "model", "evaluation.prompt_files")
"""What a run is made from, of which a record keeps fingerprints."""


def keep(run: Path) -> Path:
    """Summarise a run's scores, and write that with what made it to the results; returns where.

    The figures on held-out prompts are those of the code that keeps them, which may know more than
    the run's own.
    """
    config, summary, manifest = (
        json.loads((run / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("config", "summary", "manifest")
    )
    scores = pq.read_table(run / "scores.parquet")
    pool = PromptPool.from_table(pq.read_table(run / "prompts.parquet"))
    grades = [grade["label"] for grade in summary.get("grades", [])]
    figures = _figures(scores, summary)
    for label, model in figures["models"].items():
        model |= {k: v for k, v in summary["models"][label].items() if k not in model}
    name, task = config["config"]["name"], config["config"]["task"]["name"]
    if further := config["config"]["evaluation"].get("name"):
        name = f"{name}-{further}"
    record = {
        "benchmark": "study",
        "name": task if name == "study" else name,
        "task": task,
        "kept_at_commit": commit(),
        "fingerprints": {
            "config": fingerprint(config["results_from"]),
            **{part: config["content"][part] for part in _CONTENT if part in config["content"]},
            "pool": manifest["about"]["pool"],
        },
        "sources": _sources(config["config"]),
        "config": config["results_from"],
        "summary": figures,
        "by_author": {
            author: _figures(part, summary)
            for author, part in scores_by_author(
                scores, pool.test, list(summary.get("by_author", {}))
            ).items()
        },
        "on_trained_prompts": summary.get("on_trained_prompts", {}),
        "axes": summary.get("axes", {}),
        **({"prompt_files": own} if (own := summary.get("prompt_files")) else {}),
        "further": {
            label: _figures(_graded_by(scores, grade_N), summary)
            for label, grade_N in zip(grades[1:], further_grades(scores), strict=True)
        },
    }
    path = RESULTS / f"study_{record['name']}.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def _figures(scores: pa.Table, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of scores, by today's code."""
    models = summary["models"]
    return summarise(
        scores,
        list(models),
        [float(t) for t in next(iter(models.values()))["top"]],
        summary["seeds"],
        summary["seconds"],
    )


def _graded_by(scores: pa.Table, grade_N: NDArray[np.float64]) -> pa.Table:
    """Scores as they are where another grade decides, without what belongs to the first one."""
    rest = ("choice_logprobs", "normalised_correct", "begins_right", "further_grades")
    scores = scores.drop(
        [name for name in (*rest, "correct", "grade") if name in scores.column_names]
    )
    return scores.append_column("correct", pa.array(grade_N == 1)).append_column(
        "grade", pa.array(grade_N)
    )


def _sources(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the paths of a configuration name, less where that lay."""
    generation = config["prompts"]["generation"] or {"llms": []}
    return {
        "task": named(config["task"].get("path")),
        "model": named(config["model"]["path"]),
        "prompt_files": named(config["prompts"]["files"]),
        "llms": [named(llm.get("path") or llm.get("model")) for llm in generation["llms"]],
    }


def table(record: Mapping[str, Any]) -> Iterator[str]:
    """One study as lines of Markdown, a table for each grade."""
    summary, name = record["summary"], record.get("name", record["task"])
    seeds = "1 seed" if len(summary["seeds"]) == 1 else f"{len(summary['seeds'])} seeds"
    kind = "prompts of our own" if "prompt_files" in record else "held-out prompts"
    yield (
        f"{name}: {summary['prompts']} {kind} x {summary['examples']} examples, {seeds}, "
        f"{hours(summary):.1f} h"
    )
    yield ""
    yield from _rows(record, summary, "trained with")
    for author, part in record.get("by_author", {}).items():
        yield ""
        yield from _rows(
            record, part, f"trained with ({part['prompts']} prompts by {author_of(author)})"
        )
    for label, graded in record.get("further", {}).items():
        yield ""
        yield from _rows(record, graded, f"trained with (graded by {label})")
    if record.get("axes"):
        yield ""
        yield from axis_rows(record)


def hours(summary: Mapping[str, Any]) -> float:
    """Hours of all stages; trainings that the run found finished count by what their loops took."""
    seconds = dict(summary["seconds"])
    for label, model in summary["models"].items():
        stage, looped = f"train_{label}", model.get("trained_seconds", 0) * len(model["seeds"])
        seconds[stage] = max(seconds.get(stage, 0), looped)
    return sum(seconds.values()) / 3600


def _rows(record: Mapping[str, Any], summary: Mapping[str, Any], first: str) -> Iterator[str]:
    """A line for each model, with what the last one leads by."""
    figures = (MEAN, STD, STD_BY_CHANCE, WORST, LOW_QUANTILE)
    lead = PAFT if PAFT in summary["models"] else list(summary["models"])[-1]
    leads = "PAFT" if lead == PAFT else name_of(lead, IN_TABLES).strip("*")
    heads = *(f.heading for f in figures), f"{leads} - this, mean", "p (Holm)", "would show"
    yield f"| {first} | {' | '.join(heads)} |"
    yield f"|{'---|' * (len(heads) + 1)}"
    against = {
        label: summary["differences"].get(f"{lead} - {label}") for label in summary["models"]
    }
    adjusted = holm({label: d["p"] for label, d in against.items() if d})
    for label, model in summary["models"].items():
        cells = []
        for figure in figures:
            interval = figure.read(model["intervals"])
            bounds = f" ({_span(interval)})" if interval else ""
            cells.append(f"{figure.show(figure.read(model))}{bounds}")
        if (found := against[label]) is None:
            cells += [""] * 3
        else:
            bounds = found["low"], found["high"]
            cells.append(f"{100 * found['value']:+.1f} ({_span(bounds)})")
            cells += [
                f"{adjusted[label]:.3f}",
                f"{100 * smallest_shown(*bounds, len(adjusted)):.1f}",
            ]
        yield f"| {_title(record, label)} | {' | '.join(cells)} |"


def axis_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """A line for each model: in percent, the grades that differ along each axis of variation."""
    axes = record["axes"]
    yield f"| grades that change with the | {' | '.join(AXIS_NAMES[axis] for axis in axes)} |"
    yield f"|{'---|' * (len(axes) + 1)}"
    for label in record["summary"]["models"]:
        moved = [of_labels[label] for of_labels in axes.values()]
        cells = [
            f"{100 * each['moved']:.1f} ({_span(each['intervals']['moved'])})" for each in moved
        ]
        yield f"| {_title(record, label)} | {' | '.join(cells)} |"


def _title(record: Mapping[str, Any], label: str) -> str:
    """A model's name in a table of this record."""
    return name_of(label, IN_TABLES).format(**record["config"]["evaluation"])


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values by comparison, adjusted for their number (Holm 1979)."""
    adjusted, highest = {}, 0.0
    for rank, label in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[label]))
        adjusted[label] = highest
    return adjusted


def smallest_shown(low: float, high: float, among: int) -> float:
    """The difference that a design shows in 80 of 100 repetitions.

    Args:
        low: Lower end of its 95% interval.
        high: Upper end.
        among: Comparisons that p-values are adjusted for, of which it may be the first (Holm).
    """
    standard_error = (high - low) / (2 * ndtri(0.975))
    return float(standard_error * (ndtri(1 - 0.025 / among) + ndtri(0.8)))


def _span(bounds: Sequence[float]) -> str:
    return f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"


def main() -> None:
    """Keep a run, or show what is kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["keep", "show"])
    parser.add_argument("paths", nargs="+", type=Path)
    options = parser.parse_args()
    for path in options.paths:
        if options.what == "keep":
            print(keep(path))
        else:
            print("\n".join(table(json.loads(path.read_text(encoding="utf-8")))), end="\n\n")


if __name__ == "__main__":
    main()
