"""Resident memory of a training worker over its steps: does anything grow that should not?

Runs the real command on a small training and reads the worker's resident size (anonymous memory,
which is what leaks) whenever a checkpoint of it appears. The slope is that of a least-squares line.

python jobs/benchmarks/memory.py [--steps 1000] [--model PATH] [--json]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import yaml
from records import print_record
from tiny import training_settings

FIRST_STEP = 200
"""Steps before it fill caches and allocators."""
EVERY_STEPS = 25


def measure(steps: int, model: str | None) -> list[tuple[int, float]]:
    """Train, and return (step, MiB) at every checkpoint."""
    with tempfile.TemporaryDirectory(prefix="paft-memory-") as temporary:
        folder = Path(temporary)
        settings = training_settings(folder / "inputs", "memory", 0, steps, EVERY_STEPS, model)
        settings["storage"] = str(folder / "storage")
        settings["train"]["checkpoint"]["keep"] = 2
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "paft_ray.cli", "train", str(config), "--json"]
        with (folder / "said.txt").open("w") as said:
            process = subprocess.Popen(command, stdout=said, stderr=said)
            seen = _watch(process, folder / "storage/runs/memory/training/paft-s0/checkpoints")
        if process.returncode:
            raise SystemExit((folder / "said.txt").read_text()[-2000:])
        return seen


def _watch(process: subprocess.Popen, checkpoints: Path) -> list[tuple[int, float]]:
    seen: dict[int, float] = {}
    while process.poll() is None:
        done = sorted(checkpoints.glob("step-*/manifest.json"))
        step = int(done[-1].parent.name.removeprefix("step-")) if done else 0
        if step not in seen and (size := _worker_mib(process.pid)) is not None:
            seen[step] = size
        time.sleep(0.1)
    return sorted((step, size) for step, size in seen.items() if step)


def _worker_mib(driver: int) -> float | None:
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if process.name().startswith("ray::RayTrain"):
                memory = process.memory_info()
                return (memory.rss - memory.shared) / 2**20
        except psutil.Error:
            continue
    return None


def main() -> None:
    """Measure, print, and end with one JSON object where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--model", help="a base model in place of the tiny one")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seen = [point for point in measure(options.steps, options.model) if point[0] >= FIRST_STEP]
    steps, sizes = np.array(seen).T
    slope, start = np.polyfit(steps, sizes, 1)
    first, last = start + slope * steps[0], start + slope * steps[-1]
    print(
        f"{sizes[0]:.1f} MiB at step {steps[0]:.0f}, {sizes[-1]:.1f} at step {steps[-1]:.0f}; "
        f"the line grows by {100 * (last / first - 1):.2f}%"
    )
    if options.json:
        rows = [{"step": int(step), "mib": round(float(size), 2)} for step, size in seen]
        ratios = {"last/first": float(last / first)}
        print_record("memory", options, ("ray", "torch", "deepspeed"), rows, ratios)


if __name__ == "__main__":
    main()
