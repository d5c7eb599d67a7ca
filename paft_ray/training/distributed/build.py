"""What a rank builds before its first step: the model, what makes its batches."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from peft import PeftModel

from paft_ray.models.kept import KeptBase
from paft_ray.models.load import (
    adapter_files,
    load_base,
    load_tokenizer,
    make_trainable,
    reads_positions,
    store_frozen_in_bf16,
)
from paft_ray.models.narrow import Stored
from paft_ray.models.pretrained import files_in_bf16
from paft_ray.models.warm_start import begin_with
from paft_ray.training.batch_plan import Planner
from paft_ray.training.deepspeed_engine import deepspeed_config
from paft_ray.training.job import Job
from paft_ray.training.planning import TrainingData, planner_of
from paft_ray.training.zero import divide

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_model(job: Job, device: torch.device, kept: KeptBase) -> "PeftModel | PreTrainedModel":
    """The model to train, before its first step, on its device or divided among ranks."""
    config = job.config
    settings = {
        "location": job.base,
        "revision": config.model.revision,
        "attention": config.model.attention,
        "stored": _stored(job, str(device)),
        "trust": config.model.trust_remote_code,
    }
    key = tuple(settings.items())
    base = kept.take(key, partial(load_base, **settings), job.shares_workers)
    model = make_trainable(base, config.model.peft, config.seed)
    if job.dtype == "bfloat16":
        store_frozen_in_bf16(model)  # what the adapter froze besides
    if job.warm_start is not None and isinstance(model, PeftModel):
        begin_with(model, job.warm_start)
    if config.train.deepspeed.stage == 3:
        divide(model, deepspeed_config(config.train, job.dtype, dist.get_world_size()), device)
    else:
        model.to(device)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return model


def _stored(job: Job, device: str) -> Stored:
    """All weights are trained as their files have them; DeepSpeed trains a copy in fp32."""
    model = job.config.model
    stored = Stored.of(model, job.dtype, device)
    if model.peft is not None:
        return stored
    narrow = stored.narrow and files_in_bf16(job.base, model.revision, model.trust_remote_code)
    return replace(stored, trained=not narrow, everything=narrow)


def build_planner(job: Job, model: "PeftModel | PreTrainedModel") -> Planner:
    """Return what makes the batches of the training."""
    config = job.config
    other = None if job.paraphrases is None else job.paraphrases.open()
    data = TrainingData(job.task, job.examples.open(), job.prompts, other)
    tokenizer = load_tokenizer(job.base, config.model.revision, config.model.trust_remote_code)
    planner = planner_of(config, data, tokenizer)
    return replace(planner, packing=planner.packing and reads_positions(model))


def require_files(job: Job, model: "PeftModel | PreTrainedModel") -> None:
    """Check that an adapter can be saved, while it is whole."""
    if isinstance(model, PeftModel):
        weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        adapter_files(model, weights, job.config.model.path)  # refuse now what cannot be saved
