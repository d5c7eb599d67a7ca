"""`paft run` on one GPU: does it train, go on after kills, score; and was its memory foreseen.

Runs the real command on a Llama with random weights: two variants, once undisturbed and once while
the training worker and then all processes are killed; adapters, ledgers and tables are compared.
Then a training by reinforcement. Each training's measured peak stands beside what `paft plan` says.
Needs what `gpu_kit/pack.py` packs; `--rehearse` runs it on a CPU with a tiny model.

python jobs/benchmarks/gpu_run.py [--out gpu-run] [--only undisturbed killed grpo] [--rehearse]
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import yaml
from comparing import compare
from tiny import training_settings, write_model

PARTS = ("undisturbed", "killed", "grpo")
STEPS, EVERY_STEPS = 40, 5
_PATIENCE_S = 240.0
_REWARD = """
def score(fields, answer, text):
    return sum(character in "aeiou" for character in text) / max(1, len(text))
"""


def write_base(folder: Path, rehearsal: bool) -> Path:
    """Write the base model: 1.1 billion weights in bf16, or the tiny one."""
    write_model(folder)
    if rehearsal:
        return folder
    import torch
    from gpu_models import ONE_B
    from transformers import AutoModelForCausalLM

    config = ONE_B.config()
    config.eos_token_id = config.pad_token_id = config.bos_token_id = 0  # as the tokenizer's
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def settings(folder: Path, rehearsal: bool) -> dict[str, Any]:
    """The configuration, that lacks only `storage`."""
    base = write_base(folder / "model", rehearsal)
    found = training_settings(folder / "inputs", "gpu", 0, STEPS, EVERY_STEPS, str(base))
    workers = {"num": 1, "cpus": 1 if rehearsal else 8, "gpus": 0 if rehearsal else 1}
    found["model"]["dtype"] = "auto"
    found["train"] |= {
        "deterministic": True,
        "workers": workers,
        "row_tokens": 512 if rehearsal else 4096,
        "batch_size": 8 if rehearsal else 64,
        "max_failures": 3,
    }
    found["variants"] = [{"type": "paft"}, {"type": "single_prompt"}]
    found["evaluation"] = {"examples": 40, "selection_prompts": 4, "selection_examples": 8}
    return found


class Command:
    """`paft` on a configuration, in a process group of its own."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.storage, self._folder = folder / "storage", folder
        text = yaml.safe_dump({**config, "storage": str(self.storage)})
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    def training(self, label: str) -> Path:
        """The folder of a training."""
        return self.storage / "runs/gpu/training" / label

    def start(self, verb: str = "run") -> None:
        """Run it, the first time or again."""
        line = [sys.executable, "-m", "paft_ray.cli", verb, str(self._folder / "config.yaml")]
        with (self._folder / f"{verb}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*line, "--json"], stdout=log, stderr=log, start_new_session=True
            )

    def wait(self, until: Callable[[], bool], what: str) -> None:
        """Return when something is so; end with the log's last lines where it never is."""
        assert self._process is not None
        deadline = time.monotonic() + _PATIENCE_S
        while not until():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                sys.exit(f"{what}: never\n{self.said('run')[-3000:]}")
            time.sleep(0.05)

    def finish(self, verb: str = "run") -> dict[str, Any]:
        """Wait for the end, and return its JSON."""
        assert self._process is not None
        try:
            code = self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            sys.exit(f"{verb}: not within {_PATIENCE_S:.0f} s\n{self.said(verb)[-3000:]}")
        if code:
            sys.exit(f"{verb} ended with {code}\n{self.said(verb)[-3000:]}")
        lines = [line for line in self.said(verb).splitlines() if line.startswith("{")]
        return json.loads(lines[-1])

    def said(self, verb: str) -> str:
        """All that it printed."""
        return (self._folder / f"{verb}.log").read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """SIGKILL for it and all that it started."""
        assert self._process is not None
        for process in [*self._descendants(), psutil.Process(self._process.pid)]:
            _end(process)
        self._process.wait()

    def kill_worker(self) -> None:
        """SIGKILL for the process that trains."""
        for process in self._descendants():
            if "RayTrainWorker" in " ".join(_line(process)):
                _end(process)

    def _descendants(self) -> list[psutil.Process]:
        assert self._process is not None
        return psutil.Process(self._process.pid).children(recursive=True)

    def newest(self, label: str) -> int:
        """The step of a training's newest complete checkpoint, 0 for none."""
        found = (self.training(label) / "checkpoints").glob("step-*/manifest.json")
        return max((int(path.parent.name.removeprefix("step-")) for path in found), default=0)


def _line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _end(process: psutil.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)


def undisturbed(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Run it; seconds, and each training's speed and memory."""
    command = Command(folder / "undisturbed", config)
    started = time.monotonic()
    command.start()
    result = command.finish()
    took = round(time.monotonic() - started, 1)
    found = {"seconds": took, "means": _means(result), "trainings": _speeds(command)}
    return {**found, **_planned(command)}


def killed(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Run it with kills: the worker in the first training, everything in the second."""
    if not (folder / "undisturbed").exists():
        sys.exit("killed: compared with an undisturbed run: name that part too")
    command = Command(folder / "killed", config)
    command.start()
    command.wait(lambda: command.newest("paft-s0") >= 2 * EVERY_STEPS, "steps of the first")
    command.kill_worker()
    command.wait(lambda: command.newest("single_prompt-s0") >= 3 * EVERY_STEPS, "the second")
    command.kill()
    command.start()
    result = command.finish()
    calm = Command(folder / "undisturbed", config)
    found: dict[str, Any] = {"means": _means(result)}
    for label in ("paft-s0", "single_prompt-s0"):
        found[label] = asdict(compare(command.training(label), calm.training(label)))
    return found


def grpo(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Train by reinforcement on the same model and prompts, for the share of vowels."""
    file = folder / "inputs/rewards.py"
    file.write_text(_REWARD, encoding="utf-8")
    objective = {
        "type": "grpo",
        "rollouts": 8,
        "max_new_tokens": 16,
        "truncated": "keep",
        "rewards": [{"type": "python", "path": f"{file}:score", "timeout_s": 5}],
    }
    train = {**config["train"], "steps": 8, "objective": objective}
    changed = {**config, "train": train, "variants": [{"type": "paft"}]}
    return undisturbed(folder / "by-reinforcement", changed)


def _means(result: dict[str, Any]) -> dict[str, float]:
    return {name: model["mean"] for name, model in result["models"].items()}


def _speeds(command: Command) -> dict[str, Any]:
    found = {}
    for manifest in sorted((command.storage / "runs/gpu/training").glob("*/manifest.json")):
        record = json.loads(manifest.read_text(encoding="utf-8"))
        found[manifest.parent.name] = _find(record, "speed")
    return found


def _find(record: Any, name: str) -> Any:
    if isinstance(record, dict):
        if name in record:
            return record[name]
        record = list(record.values())
    if isinstance(record, list):
        return next((f for each in record if (f := _find(each, name)) is not None), None)
    return None


def _planned(command: Command) -> dict[str, Any]:
    command.start("plan")
    return {"planned": _find(command.finish("plan"), "sizes")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for, write and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-run"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args(arguments)
    folder = options.out.resolve()
    config = settings(folder, options.rehearse)
    measured = {}
    for part in options.only:
        measured[part] = {"undisturbed": undisturbed, "killed": killed, "grpo": grpo}[part](
            folder, config
        )
        (folder / "results.json").write_text(json.dumps(measured, indent=1), encoding="utf-8")
        print(part, json.dumps(measured[part], indent=1), flush=True)
    return 0 if _same(measured.get("killed", {})) else 1


def _same(found: dict[str, Any]) -> bool:
    differing = ("other_draws", "other_losses", "other_tensors")
    compared = [each for each in found.values() if isinstance(each, dict) and "relative" in each]
    return all(each[name] == 0 for each in compared for name in differing)


if __name__ == "__main__":
    sys.exit(main())
