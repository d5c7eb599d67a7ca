"""Measures how much memory a process takes while it builds a model; started by test_memory.

The first argument is JSON: the model's folder, and for ranks of a group their number, the group's
size and a folder where it meets. What grew is the last line of the output, as JSON.
"""

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from paft_ray.config import TrainConfig
from paft_ray.models.load import add_adapter, load_base
from paft_ray.models.narrow import Stored
from paft_ray.models.row_check import check_rows
from paft_ray.training.deepspeed_engine import deepspeed_config, prepare_process
from paft_ray.training.engine import Engine
from paft_ray.training.zero import divide, gathering

LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]}
SMALL = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 8, "num_attention_heads": 1}
"""A model that is built first, so that what is imported for one is not counted."""
CPU = torch.device("cpu")


def resident(kind: str) -> int:
    """Bytes of this process in memory: `VmRSS`, its peak `VmHWM`, or `RssAnon` without files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


@contextmanager
def watching(found: dict[str, int]) -> Iterator[None]:
    """Note by how much the memory that is no page of a file grew at most."""
    before, over = resident("RssAnon"), threading.Event()
    found["grown"] = 0

    def watch() -> None:
        while not over.wait(0.002):
            found["grown"] = max(found["grown"], resident("RssAnon") - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def load_whole(settings: dict[str, Any]) -> dict[str, int]:
    """Load a model as scoring does."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins here
    model = load_base(settings["model"], stored=Stored("bfloat16"))
    weights = sum(int(p.sum().isnan()) + p.numel() for p in model.parameters())  # reads all
    return {"grown": resident("VmHWM") - before, "weights": weights}


def build_divided(settings: dict[str, Any]) -> dict[str, int]:
    """Build a model for ZeRO 3 on this rank, and its engine, as training does."""
    rank, ranks = settings["rank"], settings["ranks"]
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(ranks))
    meeting = f"file://{settings['folder']}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    prepare_process("cpu")
    add_adapter(LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **SMALL)), LORA, seed=0)
    train = TrainConfig.model_validate({"steps": 1, "batch_size": 2, "deepspeed": {"stage": 3}})
    found: dict[str, int] = {}
    with watching(found):
        base = load_base(settings["model"], stored=Stored("bfloat16"))
        model = add_adapter(base, LORA, seed=0)
        divide(model, deepspeed_config(train, "bfloat16", ranks), CPU)
        with gathering(model):
            assert check_rows(model, 400, 100) == ""
        Engine(model, train, "bfloat16")
    dist.barrier()
    return found


def main() -> None:
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    found = build_divided(settings) if "rank" in settings else load_whole(settings)
    sys.stdout.write("\n" + json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)  # threads of gloo that outlive their group have aborted the interpreter's end


if __name__ == "__main__":
    main()
