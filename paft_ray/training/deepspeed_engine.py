"""DeepSpeed's engine: what a process needs before it, its configuration, its start."""

import os
from typing import Any

import torch

from paft_ray.config import TrainConfig
from paft_ray.training.zero import divide

_LARGEST_BUCKET = 500_000_000
"""DeepSpeed's own default, in elements."""


def deepspeed_config(
    train: TrainConfig, dtype: str, ranks: int, trainable: int = _LARGEST_BUCKET
) -> dict[str, Any]:
    """DeepSpeed's configuration from our fields.

    Args:
        train: The section `train`.
        dtype: Arithmetic: `float32` or `bfloat16`.
        ranks: Number of workers.
        trainable: Count of trainable weights. Stages 2 and 3 allocate a whole bucket, or two, for
            gradients: by default 2 GB each in fp32, whatever is trained.
    """
    bucket = min(_LARGEST_BUCKET, trainable + trainable % 2)  # DeepSpeed wants an even one
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": ranks,
        "gradient_accumulation_steps": 1,
        # rows are accumulated until we call step(), which is the only boundary
        "managed_gradient_accumulation": False,
        # absent, DeepSpeed clips at 1.0
        "gradient_clipping": train.gradient_clipping,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": train.deepspeed.stage,
            "overlap_comm": train.deepspeed.stage == 2,
            "contiguous_gradients": True,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "communication_data_type": "fp32",
        "wall_clock_breakdown": False,
        "steps_per_print": 10**9,
    }
    if train.deepspeed.offload != "none":
        place = {"device": "cpu", "pin_memory": train.workers.gpus > 0}
        config["zero_force_ds_cpu_optimizer"] = False  # our AdamW, the same as without offload
        config["zero_optimization"]["offload_optimizer"] = place
        if train.deepspeed.offload == "parameters":
            config["zero_optimization"]["offload_param"] = place
    if dtype == "bfloat16":
        config["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            # none: gradients travel in fp32 whatever the arithmetic was
            "lower_precision_safe_modules": [],
        }
    return config


def start_deepspeed(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]
) -> Any:
    """Return DeepSpeed's engine around a model, which is divided at stage 3; collective."""
    import deepspeed

    if config["zero_optimization"]["stage"] == 3:
        divide(model, config, local_device())
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,  # pyright: ignore[reportArgumentType]
        config=config,
    )
    return engine


def local_device() -> torch.device:
    """The device that DeepSpeed uses in this process."""
    from deepspeed.accelerator import get_accelerator

    accelerator: Any = get_accelerator()
    return torch.device(accelerator.current_device_name())


def prepare_process(device: str) -> None:
    """Settings that must precede DeepSpeed's first use in a process.

    On CPUs the shared-memory collectives would be compiled for minutes; gloo needs none.
    """
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    if device == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "gloo" if device == "cpu" else "nccl"
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
