"""ZeRO: dividing a model among ranks, and its tensors as whole ones.

Weights and moments that are trained are in fp32; all is collective from stage 2 on.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from paft_ray.models.kept import return_freed_memory
from paft_ray.models.narrow import full_shape, outer_layers

_BETWEEN = 16
"""Parameters that are divided before freed memory is given back."""


def divide(model: torch.nn.Module, config: Mapping[str, Any], device: torch.device) -> None:
    """Divide a model's parameters among ranks as ZeRO 3 does, one at a time; collective.

    So no rank ever holds a whole model on its device, nor in its memory where files are mapped: an
    engine would move the model to the device first. An adapter stays whole, for an engine to
    divide, because checks and files of it need it whole. What is divided already is left alone.

    Args:
        model: On the CPU, or divided.
        config: Of DeepSpeed, for stage 3.
        device: Where the parts go, if they are not offloaded.
    """
    import deepspeed

    adapted = hasattr(model, "peft_config")
    undivided = [
        parameter
        for parameter in model.parameters()
        if not hasattr(parameter, "ds_id") and not (adapted and parameter.requires_grad)
    ]

    def copies(parameters: list[torch.nn.Parameter]) -> Iterator[torch.nn.Parameter]:
        for number, parameter in enumerate(parameters):
            if number % _BETWEEN == 0:
                return_freed_memory()
            # rank 0's is written into it, and a file's page that is written to stays in memory
            parameter.data = parameter.data.to(device, copy=True)
            yield parameter

    if undivided:
        first = torch.nn.ParameterList(copies(undivided[:1]))
        deepspeed.zero.Init(module=first, config_dict_or_path=dict(config))
        convert: Any = undivided[0].convert_to_zero_parameters  # pyright: ignore
        convert(param_list=copies(undivided[1:]))
    model.to(device)


@contextmanager
def whole(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Make those parameters whole in the block that ZeRO 3 divided; collective if there are any."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters)):
        yield


@contextmanager
def gathering(model: torch.nn.Module) -> Iterator[None]:
    """Make a divided model usable without an engine in the block; collective.

    A layer is whole while it runs, and what lies outside of layers all along. All ranks must read
    the same.
    """
    import deepspeed

    divided = {id(p) for p in model.parameters() if hasattr(p, "ds_id")}
    inside = outer_layers(model) if divided else []
    within = {id(p) for layer in inside for p in layer.parameters()}
    outside = [p for p in model.parameters() if id(p) in divided - within]
    open_now: dict[int, Any] = {}
    handles: list[Any] = []

    def gather(layer: torch.nn.Module, *_: Any) -> None:
        open_now[id(layer)] = deepspeed.zero.GatheredParameters(list(layer.parameters()))
        with torch.inference_mode(False):
            open_now[id(layer)].__enter__()

    def release(layer: torch.nn.Module, *_: Any) -> None:
        with torch.inference_mode(False):
            open_now.pop(id(layer)).__exit__(None, None, None)
        return_freed_memory()

    try:
        for layer in inside:
            handles.append(layer.register_forward_pre_hook(gather))
            handles.append(layer.register_forward_hook(release, always_call=True))
        with whole(outside):
            yield
    finally:
        for handle in handles:
            handle.remove()


class WholeTensors:
    """The tensors behind the trainable parameters of a DeepSpeed engine, at any stage."""

    def __init__(self, engine: Any, stage: int, rank: int, ranks: int) -> None:
        """Use an engine, DeepSpeed's or at stage 0 a plain one, on `rank` of `ranks`."""
        self._engine, self._stage, self._rank, self._ranks = engine, stage, rank, ranks

    def full(self, parameter: torch.nn.Parameter, kind: str) -> torch.Tensor:
        """A whole weight or moment, on the device; at stage 0 no copy."""
        if self._stage == 0:
            return parameter if kind == "weight" else self._inner.state[parameter][kind]
        import deepspeed.utils

        if kind == "weight":
            full = deepspeed.utils.safe_get_full_fp32_param(parameter)
        else:
            full = deepspeed.utils.safe_get_full_optimizer_state(parameter, kind)
        assert full is not None
        return full.view(full_shape(parameter))

    def create_moments(self, step: int) -> None:
        """Create AdamW's moments, which it would create at the first step, so they can be set."""
        inner, wrapper = self._inner, self._engine.optimizer
        if self._stage == 3:
            flat = wrapper.fp32_partitioned_groups_flat
        else:
            flat = [parameter for group in inner.param_groups for parameter in group["params"]]
        for parameter in flat:
            inner.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        if self._stage in (1, 2):
            wrapper._lazy_init_hp_params_optimizer_state()

    def set_weight(self, parameter: torch.nn.Parameter, weight: torch.Tensor) -> None:
        """Set a whole weight, in the model and in the fp32 copy that is trained."""
        if self._stage == 0:
            parameter.data.copy_(weight)
            return
        import deepspeed
        import deepspeed.utils

        if self._stage < 3:
            parameter.data.copy_(weight)
            deepspeed.utils.safe_set_full_fp32_param(parameter, weight)
            return
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(weight)
        deepspeed.utils.safe_set_local_fp32_param(parameter, self._shard(parameter, weight))

    def set_moment(self, parameter: torch.nn.Parameter, moment: str, value: torch.Tensor) -> None:
        """Set a whole moment (`exp_avg`, `exp_avg_sq`) in the optimizer."""
        if self._stage == 0:
            self._inner.state[parameter][moment].copy_(value)
            return
        import deepspeed.utils

        if self._stage < 3:
            deepspeed.utils.safe_set_full_optimizer_state(parameter, value, moment)
        else:
            shard = self._shard(parameter, value)
            deepspeed.utils.safe_set_local_optimizer_state(parameter, shard, moment)

    @property
    def _inner(self) -> torch.optim.Optimizer:
        optimizer = self._engine.optimizer
        return getattr(optimizer, "optimizer", optimizer)

    def _shard(self, parameter: torch.nn.Parameter, value: torch.Tensor) -> torch.Tensor:
        """This rank's part of a full tensor under ZeRO 3, the last one padded with zeros."""
        size = parameter.ds_tensor.numel()  # pyright: ignore[reportAttributeAccessIssue]
        padded = torch.zeros(size * self._ranks, dtype=torch.float32, device=self._engine.device)
        padded[: value.numel()] = value.flatten()
        return padded[size * self._rank : size * (self._rank + 1)]
