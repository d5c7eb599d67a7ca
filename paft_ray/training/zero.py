"""Reading and setting whole weights and moments, which DeepSpeed's ZeRO keeps in parts.

All are in fp32; every method is collective from stage 2 on.
"""

from typing import Any

import torch


class WholeTensors:
    """The tensors behind the trainable parameters of a DeepSpeed engine, at any stage."""

    def __init__(self, engine: Any, stage: int, rank: int, ranks: int) -> None:
        """Use an engine that DeepSpeed built, on `rank` of `ranks`."""
        self._engine, self._stage, self._rank, self._ranks = engine, stage, rank, ranks

    def full(self, parameter: torch.nn.Parameter, kind: str) -> torch.Tensor:
        """A whole weight or moment, on the device; at stage 0 no copy."""
        import deepspeed.utils

        if self._stage == 0:
            return parameter if kind == "weight" else self._inner.state[parameter][kind]
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
        import deepspeed
        import deepspeed.utils

        if self._stage < 3:
            parameter.data.copy_(weight)
            if self._stage > 0:
                deepspeed.utils.safe_set_full_fp32_param(parameter, weight)
            return
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(weight)
        deepspeed.utils.safe_set_local_fp32_param(parameter, self._shard(parameter, weight))

    def set_moment(self, parameter: torch.nn.Parameter, moment: str, value: torch.Tensor) -> None:
        """Set a whole moment (`exp_avg`, `exp_avg_sq`) in the optimizer."""
        import deepspeed.utils

        if self._stage == 0:
            self._inner.state[parameter][moment].copy_(value)
        elif self._stage < 3:
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


def full_shape(parameter: torch.nn.Parameter) -> torch.Size:
    """A parameter's shape, also at stage 3, where its own is empty."""
    return getattr(parameter, "ds_shape", parameter.shape)
