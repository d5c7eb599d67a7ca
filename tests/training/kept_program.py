"""Trainings one after another in one process over a kept base; started by test_kept_base."""

import gc
import json
import os
import sys
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from rank_program import PEFT, make_planner

from paft_ray.config import TrainConfig
from paft_ray.models.kept import KeptBase
from paft_ray.models.load import load_base, make_trainable, store_frozen_in_bf16
from paft_ray.models.narrow import Stored
from paft_ray.training.batch_plan import plans
from paft_ray.training.deepspeed_engine import prepare_process
from paft_ray.training.engine import Engine

STEPS, TRAININGS = 4, 5


def train(folder: str, stage: int, kept: KeptBase, keep: bool, seed: int) -> list[Any]:
    """Train an adapter; returns its weights."""
    dtype = "bfloat16" if stage == 2 else "float32"
    read = partial(load_base, folder, stored=Stored(dtype))
    model = make_trainable(kept.take((folder, dtype), read, keep), dict(PEFT), seed)
    if dtype == "bfloat16":
        store_frozen_in_bf16(model)
    settings = {"steps": STEPS, "row_tokens": 96, "activation_checkpointing": stage == 1}
    config = TrainConfig.model_validate({**settings, "deepspeed": {"stage": stage}})
    engine = Engine(model, config, dtype)
    for plan in plans(make_planner(folder, config, True), 0, STEPS):
        for row in plan.rows:
            engine.accumulate(row, lambda logprobs_A: -logprobs_A.sum() / 10)
        engine.step(0.01)
    weights = [tensor.tolist() for tensor in engine.gather_weights().values()]
    engine.release()
    return weights


def alive() -> int:
    """Count tensors and modules that something still refers to."""
    gc.collect()
    kinds = (torch.nn.Module, torch.Tensor)
    return sum(issubclass(type(each), kinds) for each in gc.get_objects())


def main(folder: str, meeting: str) -> None:
    """Print, for each stage, whether weights are those of a fresh base, and what stays alive."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting}", rank=0, world_size=1)
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    prepare_process("cpu")
    found = {}
    for stage in (0, 1, 2):
        kept, counts, same = KeptBase(), [], []
        for seed in range(TRAININGS):
            weights = train(folder, stage, kept, True, seed)
            counts.append(alive())
            if seed in (0, TRAININGS - 1):
                same.append(weights == train(folder, stage, KeptBase(), False, seed))
        found[stage] = {"same": same, "alive": counts}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
