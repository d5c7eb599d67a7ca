"""A small search on a tiny real model, as a user writes it, and the command as a user types it."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from factories import run_config, write_prompts

SPACE = {
    "prompts.pool_size": {"type": "randint", "low": 1, "high": 4},
    "train.sampling.temperature": {"type": "choice", "values": [0.5, float("inf")]},
}
INSTRUCTIONS = [
    "Decide if this is positive or negative", "Say how the writer feels", "Judge the mood here",
    "Is the opinion good or bad", "Classify the tone of it", "Tell what the author thinks of it",
    "Name the sentiment", "Find out whether somebody praises something", "Which attitude is shown",
    "Pick a label that fits", "Look closely and choose one answer", "Would you call it favorable",
]  # fmt: skip
LAYOUTS = [
    "{0}.\n{{review}}\nAnswer:", "{{review}}\n\n{0} ->", "Text: {{review}}\nTask: {0}\nLabel:",
    "{0}: {{review}} =", "Q: {0}?\n{{review}}\nA:", "Review: {{review}}. {0}:",
    "### {0}\n{{review}}\n###", "{{review}} || {0} ||", "{0} - {{review}} -", "[{{review}}] {0}:",
    "<{0}> {{review}} <end>", "'{{review}}'\n{0}\nResult:",
]  # fmt: skip


def write_search(
    folder: Path, tiny_model: Path, review_file: Path, **tuning: Any
) -> tuple[Path, dict[str, Any]]:
    """Write the configuration and its files; test rows have a file of their own."""
    lines = review_file.read_text(encoding="utf-8").splitlines()
    (folder / "rows.jsonl").write_text("\n".join(lines[:90]), encoding="utf-8")
    (folder / "test.jsonl").write_text("\n".join(lines[90:]), encoding="utf-8")
    texts = [layout.format(text) for text, layout in zip(INSTRUCTIONS, LAYOUTS, strict=True)]
    (folder / "tiny").symlink_to(tiny_model)
    write_prompts(folder / "prompts.jsonl", texts)

    config = run_config(
        "./tiny",
        "rows.jsonl",
        "storage",  # relative paths: trials run in a folder of their own
        name="searched",
        task={"test_path": "test.jsonl", "validation_share": 0.3, "max_length": 200},
        prompts={"files": ["prompts.jsonl"], "split": {"validation": 3, "test": 3}},
        train={
            "steps": 40,
            "row_tokens": 512,
            "learning_rate": 1e-2,
            "checkpoint": {"every_steps": 5},
        },
        evaluation={"examples": 20},
        tuning={
            "space": SPACE,
            "trials": 3,
            "reports": 4,
            "examples": 12,
            "finalists": 1,
            "seeds": [1],
            **tuning,
        },
    )
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path, config


def paft(mark: str, folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    """Start the command, with a mark that all its processes inherit."""
    return subprocess.Popen(
        [sys.executable, "-m", "paft_ray.cli", *words],
        env={
            **os.environ,
            "PAFT_TEST_MARK": mark,
            "RAY_ADDRESS": "local",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **environment,
        },
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def left_of(mark: str, patience_s: float = 60) -> list[str]:
    """Command lines of the processes that a command started and that do not go."""
    deadline = time.monotonic() + patience_s
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def marked(mark: str) -> list[str]:
    """Command lines of the processes that a command started and that are there."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"PAFT_TEST_MARK={mark}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " ")[:100])
        except OSError:
            continue
    return found
