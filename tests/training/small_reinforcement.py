"""A training of seconds on Ray whose model writes what it learns from, and what is left of it."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from small_training import TellingScreen, small_config

from factories import make_prompt
from paft_ray.config import Config
from paft_ray.config.loading import dump_config, load_config
from paft_ray.pipeline.perform import open_context
from paft_ray.prompts.pool import PromptPool
from paft_ray.serving.record import TrainedAdapter
from paft_ray.training.distributed.trainer import train

STEPS, UPDATES, ROLLOUTS, BATCH = 24, 2, 8, 32
TEMPLATES = tuple(f"{words}: {{review}}\nIt is" for words in (
    "Review", "Film", "Text", "Read this", "Say", "Opinion", "Somebody wrote", "Note", "Line",
    "Judge",
))  # fmt: skip

REWARD = '''
import json, os, pathlib, threading

PLAN = pathlib.Path(__file__).with_name("plan.json")
calls = 0


def score(fields, answer, text):
    """The share of vowels; sends its worker a signal where the plan says so, once an entry."""
    global calls
    calls += 1
    for number, (call, delay_s, signal) in enumerate(json.loads(PLAN.read_text())):
        mark = PLAN.with_name(f"sent-{number}")
        if mark.exists():
            continue
        if calls == call:
            mark.touch()
            timer = threading.Timer(delay_s, os.kill, (os.getppid(), signal))
            timer.daemon = True
            timer.start() if delay_s else os.kill(os.getppid(), signal)
        break
    return sum(c in "aeiou" for c in text) / max(1, len(text))
'''


def place(folder: Path, plan: list[list[Any]]) -> Path:
    """Put `rewards.py` into a folder, with what it does to its worker: call, delay in s, signal."""
    folder.mkdir()
    (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    return folder


def reinforced(home: Path, model: Path, data: Path, num: int, **objective: Any) -> Config:
    """Trains the tiny model on what it writes about short reviews, rewarded by `rewards.py`."""
    tree = dump_config(small_config(str(model), str(data), str(home / "storage"), STEPS, num=num))
    tree["train"] |= {
        "batch_size": BATCH,
        "objective": {
            "type": "grpo",
            "rollouts": ROLLOUTS,
            "max_new_tokens": 6,
            "truncated": "keep",
            "updates": UPDATES,
            "rewards": [{"type": "python", "path": f"{home / 'rewards.py'}:score", "timeout_s": 5}],
            **objective,
        },
        "checkpoint": {"every_steps": UPDATES, "keep": 100},
        "max_failures": 20,
    }
    return load_config(tree)


def run(config: Config, screen: TellingScreen | None = None) -> TrainedAdapter:
    context = open_context(config, screen=screen or TellingScreen())
    prompts = tuple(map(make_prompt, TEMPLATES))
    return train(context, prompts, config.trainings[0], PromptPool(prompts, (), ()))


def left(folder: Path) -> dict[str, Any]:
    """What is left of a training: its result, what was drawn and written, and its last state."""
    [state] = folder.glob(f"checkpoints/step-{STEPS:09d}/state-*")  # named after its attempt
    return {
        "adapter": (folder / "adapter/adapter_model.safetensors").read_bytes(),
        "state": state.read_bytes(),
        "ledger": rows(folder, "ledger"),
        "rollouts": rows(folder, "rollouts"),
    }


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = pq.read_table(folder / kind).to_pylist()
    return sorted(found, key=lambda row: (row["step"], row["slot"]))
