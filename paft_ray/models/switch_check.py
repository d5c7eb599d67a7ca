"""Checks that attention, quantization, checkpointing, compilation and offload work together here.

They use the configuration and this machine's packages. Not covered: GPUs of other nodes.
"""

import importlib.util
import os
import shutil
from collections.abc import Iterator

from paft_ray.config import Config, TrainConfig
from paft_ray.config.errors import ConfigError
from paft_ray.models.peft_check import puts_tokens_before


def check_switches(config: Config, dtype: str, cluster: bool) -> Iterator[str]:
    """Check the switches that make training faster or smaller; yields warnings.

    `dtype` is the arithmetic of training; with `cluster` it runs on other machines.

    Raises:
        ConfigError: A switch cannot work.
    """
    _check_attention(config, dtype)
    _check_quantization(config)
    _check_method(config)
    if config.train.compile:
        yield from _check_compile(config.train, cluster)
    if config.train.deterministic and config.train.workers.gpus == 0:
        yield (
            "train.deterministic: true changes nothing without GPUs: on CPUs results are "
            "bit-identical anyway"
        )
    if config.train.deepspeed.offload != "none" and config.train.workers.gpus == 0:
        yield (
            f"train.deepspeed.offload: {config.train.deepspeed.offload} frees no memory, as "
            "training without GPUs has it all in the CPUs' already"
        )


def _check_attention(config: Config, dtype: str) -> None:
    kind = config.model.attention
    if kind not in ("varlen", "flash_attention_2", "flex_attention"):
        return
    where = f"model.attention: {kind}"
    if config.train.workers.gpus == 0:
        reason = (
            "has no backward pass on CPUs" if kind == "flex_attention" else "runs on GPUs alone"
        )
        raise ConfigError(f"{where} {reason}, and train.workers.gpus is 0; use auto")
    if kind == "flash_attention_2":
        _require_package("flash_attn", "flash-attn", where)
    if kind != "flex_attention" and dtype != "bfloat16":
        raise ConfigError(
            f"{where} computes in bfloat16, and model.dtype is {dtype}; use auto, or bfloat16"
        )


def _check_quantization(config: Config) -> None:
    if config.model.quantization == "none":
        return
    where = f"model.quantization: {config.model.quantization}"
    _require_package("bitsandbytes", "'paft_ray[quantized]'", where)
    if config.train.deepspeed.stage == 3:
        raise ConfigError(
            f"{where} with train.deepspeed.stage: 3, which divides floating-point weights among "
            "ranks and no 4-bit ones; use stage 2"
        )


def _check_method(config: Config) -> None:
    method = (config.model.peft or {}).get("peft_type")
    if config.train.activation_checkpointing and method in ("PREFIX_TUNING", "CARTRIDGE"):
        raise ConfigError(
            f"train.activation_checkpointing: true loses the cache that {method} puts its prefix "
            "into; set it to false"
        )
    for objective in (train.objective for train in config.train_sections):
        if objective.compares and puts_tokens_before(str(method)):
            raise ConfigError(
                f"train.objective: {objective.type} compares {objective.compares} in one row, and "
                f"{method} takes one sequence in a row; use another method, or another objective"
            )


def _check_compile(train: TrainConfig, cluster: bool) -> Iterator[str]:
    if train.deepspeed.stage == 3:
        raise ConfigError(
            "train.compile: true with train.deepspeed.stage: 3, whose hooks fetch weights inside "
            "the layers that would be fused; use stage 2"
        )
    if train.workers.gpus == 0 and not cluster:
        compiler = os.environ.get("CXX") or "g++"
        if shutil.which(compiler) is None:
            raise ConfigError(
                f"train.compile: true needs a C++ compiler on CPUs, and {compiler} is not "
                "installed: apt-get install g++, or set CXX"
            )
        yield "train.compile: true compiles for a minute or more before the first step"


def _require_package(module: str, name: str, where: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"{where} needs the package {module}, which is not installed: pip install {name}"
        )
