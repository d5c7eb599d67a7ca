"""Keep what a study found as a committed record, and print it as the README's table.

python jobs/benchmarks/study.py keep storage/runs/study          # to results/study.json
python jobs/benchmarks/study.py show jobs/benchmarks/results/study*.json
"""

import argparse
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from paft_ray.artifacts import fingerprint

RESULTS = Path(__file__).with_name("results")
NAMES = {
    "base": "base model",
    "human_prompt": "one prompt, written by hand",
    "single_prompt": "one prompt, the best for the base model",
    "bound_prompts": "a dozen, each example bound to one (the official code)",
    "paft_t1": "PAFT, drawn by losses (T = 1)",
    "paft": "**PAFT, drawn uniformly (the paper)**",
}


def keep(run: Path) -> Path:
    """Copy a run's summary, with what made it, to the results; returns where."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=RESULTS
    ).stdout.strip()
    record = {
        "benchmark": "study",
        "task": config["config"]["task"]["name"],
        "made_with": {"commit": commit, "config": fingerprint(config["results_from"])},
        "config": config["results_from"],
        "summary": summary,
    }
    path = RESULTS / f"{run.name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def table(record: Mapping[str, Any]) -> Iterator[str]:
    """One study as lines of Markdown."""
    summary = record["summary"]
    yield (
        f"{record['task']}: {summary['prompts']} held-out prompts x {summary['examples']} "
        f"examples, {len(summary['seeds'])} seeds, {sum(summary['seconds'].values()) / 3600:.1f} h"
    )
    yield ""
    yield "| trained with | mean | std over prompts | worst | 5% quantile | PAFT - this, mean |"
    yield "|---|---|---|---|---|---|"
    for label, model in summary["models"].items():
        cells = [
            f"{100 * model[name]:.1f} ({_span(model['intervals'][name])})"
            for name in ("mean", "std", "min", "p05")
        ]
        difference = summary["differences"].get(f"paft - {label}")
        last = (
            f"{100 * difference['value']:+.1f} ({_span((difference['low'], difference['high']))})"
            if difference
            else ""
        )
        yield f"| {NAMES.get(label, label)} | {' | '.join(cells)} | {last} |"


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
