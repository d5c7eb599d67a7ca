"""What a benchmark measured, as one line for machines: the same shape for all of them."""

import argparse
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

_NOT_RECORDED = {"json", "serve", "storage", "cache", "folder"}


def print_record(
    benchmark: str,
    options: argparse.Namespace,
    packages: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    ratios: Mapping[str, float | None],
    **more: Any,
) -> None:
    """Print rows, ratios and what they were made with.

    Args:
        benchmark: Its name.
        options: Of its command line; of files only the names are kept.
        packages: Distributions that figures depend on.
        rows: What was measured, a competitor or setting each.
        ratios: Name to the paired ratio of one run.
        more: Further parts of the record.
    """
    settings = {k: named(v) for k, v in vars(options).items() if k not in _NOT_RECORDED}
    made_with = {
        "commit": commit(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        **settings,
    }
    record = {"benchmark": benchmark, "rows": rows, "ratios": ratios, "made_with": made_with}
    print(json.dumps(record | more))


def commit() -> str:
    """The commit that is checked out, with a plus where files differ from it."""

    def git(*words: str) -> str:
        command = ["git", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD") + ("+" if changed else "")


def named(value: Any) -> Any:
    """A setting without the folders of this machine: `piqa=/a/b.jsonl` is `piqa=b.jsonl`."""
    if isinstance(value, list | tuple):
        return [named(entry) for entry in value]
    if isinstance(value, str) and "/" in value and not value.startswith("pkg:"):
        key, equals, path = value.rpartition("=")
        return f"{key}{equals}{Path(path).name}"
    return value
