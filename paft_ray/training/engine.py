"""From the configuration to a DeepSpeed engine, and the few things the loop asks of it.

Covered: ZeRO 0 to 3 on GPUs (NCCL) and CPUs (gloo), bf16 through DeepSpeed's torch_autocast over
fp32 weights, one optimizer step per call, gathered state. Not covered: offload, pipelines.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from paft_ray.config import TrainConfig
from paft_ray.modeling.model import virtual_tokens
from paft_ray.modeling.scoring import answer_logprobs
from paft_ray.modeling.tokenization import Row

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

MOMENTS = ("exp_avg", "exp_avg_sq")


def deepspeed_config(train: TrainConfig, dtype: str, ranks: int) -> dict[str, Any]:
    """DeepSpeed's configuration from our fields; the one place that speaks its language."""
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
        },
        "communication_data_type": "fp32",
        "wall_clock_breakdown": False,
        "steps_per_print": 10**9,
    }
    if dtype == "bfloat16":
        config["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            # none: gradients travel in fp32 whatever the arithmetic was
            "lower_precision_safe_modules": [],
        }
    return config


class Engine:
    """A DeepSpeed engine around an adapted model, seen from one rank."""

    def __init__(self, model: "PeftModel", train: TrainConfig, dtype: str) -> None:
        """Build the engine; collective over all ranks of the default process group."""
        import deepspeed

        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.stage = train.deepspeed.stage
        self.virtual_tokens = virtual_tokens(model)
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trainable, lr=train.learning_rate, betas=train.betas, weight_decay=train.weight_decay
        )
        self._engine: Any
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,  # pyright: ignore[reportArgumentType]
            config=deepspeed_config(train, dtype, self.ranks),
        )
        self.device = self._engine.device
        self._engine.train()

    @property
    def model(self) -> "PeftModel":
        """The adapted model inside."""
        return self._engine.module  # pyright: ignore[reportReturnType]

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Trainable parameters by name, in the model's order."""
        return {n: p for n, p in self._engine.module.named_parameters() if p.requires_grad}

    def accumulate(self, row: Row, answer_tokens: int) -> torch.Tensor:
        """Forward and backward of one row; an inert row adds nothing to the gradients.

        Args:
            row: The row.
            answer_tokens: Answer tokens of the whole global batch. DeepSpeed averages gradients
                over ranks, hence the factor of `ranks` below.

        Returns:
            The negative log-likelihood of each of the row's sequences: shape [members].
        """
        nll_A = -answer_logprobs(self._engine, row, self.device, self.virtual_tokens)
        weight = self.ranks / answer_tokens if row.members else 0.0
        self._engine.backward(nll_A.sum() * weight)
        members_A = torch.from_numpy(row.members_A).to(self.device)
        sums = torch.zeros(max(1, len(row.members)), dtype=torch.float64, device=self.device)
        return sums.index_add_(0, members_A, nll_A.detach().double())[: len(row.members)]

    def all_reduce(self, values: torch.Tensor) -> list[float]:
        """Sum a vector over ranks and read it: the one read by the host in a step."""
        dist.all_reduce(values)
        return values.tolist()

    def step(self, learning_rate: float) -> float | None:
        """One optimizer step with what was accumulated; the norm before clipping, if known."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def gather(self) -> dict[str, torch.Tensor]:
        """Weights and optimizer moments in rank-free form, on the CPU; collective.

        Keys are `weight/<name>`, `exp_avg/<name>` and `exp_avg_sq/<name>`.
        """
        state: dict[str, torch.Tensor] = {}
        for name, parameter in self.trainable().items():
            state[f"weight/{name}"] = self._full_weight(parameter)
            for moment in MOMENTS:
                state[f"{moment}/{name}"] = self._full_moment(parameter, moment)
        return state

    def gather_weights(self) -> dict[str, torch.Tensor]:
        """Trainable weights by name, on the CPU; collective."""
        return {name: self._full_weight(p) for name, p in self.trainable().items()}

    @contextmanager
    def whole_adapter(self) -> Iterator[None]:
        """Trainable parameters are whole on every rank inside; collective under stage 3."""
        import deepspeed

        if self.stage < 3:
            yield
            return
        with deepspeed.zero.GatheredParameters(list(self.trainable().values())):
            yield

    def mean_loss(self, rows: Sequence[Row]) -> float:
        """Mean negative log-likelihood of the answer tokens of some rows, in nats.

        Without dropout and gradients. Collective under stage 3: every rank reads the same rows.
        """
        self._engine.eval()
        with torch.no_grad():
            logprobs = [
                answer_logprobs(self._engine, row, self.device, self.virtual_tokens).double()
                for row in rows
            ]
        self._engine.train()
        return -float(torch.cat(logprobs).mean())

    def restore(self, state: Mapping[str, torch.Tensor], step: int) -> None:
        """Put gathered state back, on any number of ranks.

        Args:
            state: What `gather` returned.
            step: Optimizer steps that it has behind it, which AdamW's bias correction needs.
        """
        self._create_moments(step)
        for name, parameter in self.trainable().items():
            self._set_weight(parameter, state[f"weight/{name}"].to(self.device))
            for moment in MOMENTS:
                self._set_moment(parameter, moment, state[f"{moment}/{name}"].to(self.device))

    @property
    def _inner(self) -> torch.optim.Optimizer:
        optimizer = self._engine.optimizer
        return getattr(optimizer, "optimizer", optimizer)

    def _create_moments(self, step: int) -> None:
        """AdamW makes its moments at the first step; state can be set only where they exist."""
        inner, wrapper = self._inner, self._engine.optimizer
        if self.stage == 3:
            flat = wrapper.fp32_partitioned_groups_flat
        else:
            flat = [parameter for group in inner.param_groups for parameter in group["params"]]
        for parameter in flat:
            inner.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        if self.stage in (1, 2):
            wrapper._lazy_init_hp_params_optimizer_state()

    def _set_weight(self, parameter: torch.nn.Parameter, weight: torch.Tensor) -> None:
        import deepspeed
        import deepspeed.utils

        if self.stage < 3:
            parameter.data.copy_(weight)
            if self.stage > 0:
                deepspeed.utils.safe_set_full_fp32_param(parameter, weight)
            return
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(weight)
        deepspeed.utils.safe_set_local_fp32_param(parameter, self._shard(parameter, weight))

    def _set_moment(self, parameter: torch.nn.Parameter, moment: str, value: torch.Tensor) -> None:
        import deepspeed.utils

        if self.stage == 0:
            self._inner.state[parameter][moment].copy_(value)
        elif self.stage < 3:
            deepspeed.utils.safe_set_full_optimizer_state(parameter, value, moment)
        else:
            shard = self._shard(parameter, value)
            deepspeed.utils.safe_set_local_optimizer_state(parameter, shard, moment)

    def _shard(self, parameter: torch.nn.Parameter, value: torch.Tensor) -> torch.Tensor:
        """This rank's part of a full tensor under ZeRO 3, the last one padded with zeros."""
        size = parameter.ds_tensor.numel()  # pyright: ignore[reportAttributeAccessIssue]
        padded = torch.zeros(size * self.ranks, dtype=torch.float32, device=self.device)
        padded[: value.numel()] = value.flatten()
        return padded[size * self.rank : size * (self.rank + 1)]

    def _full_weight(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        import deepspeed.utils

        if self.stage == 0:
            return parameter.detach().float().cpu().clone()
        full = deepspeed.utils.safe_get_full_fp32_param(parameter)
        assert full is not None
        return full.detach().float().cpu().clone().view(_full_shape(parameter))

    def _full_moment(self, parameter: torch.nn.Parameter, moment: str) -> torch.Tensor:
        import deepspeed.utils

        if self.stage == 0:
            return self._inner.state[parameter][moment].detach().cpu().clone()
        full = deepspeed.utils.safe_get_full_optimizer_state(parameter, moment)
        assert full is not None
        return full.detach().float().cpu().clone().view(_full_shape(parameter))


def _full_shape(parameter: torch.nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def prepare_process(device: str) -> None:
    """Settings that must precede DeepSpeed's first use in a process.

    On CPUs the shared-memory collectives would be compiled for minutes; gloo serves without.
    """
    import os

    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    if device == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "gloo" if device == "cpu" else "nccl"
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
