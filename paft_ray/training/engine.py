"""An engine made from the configuration, with the operations that training needs.

Covered: DeepSpeed's ZeRO 0 to 3 on GPUs (NCCL) and CPUs (gloo), bf16 through its torch_autocast
over fp32 weights, one optimizer step per call, gathered state; the same in plain torch (`plain`),
which imports no DeepSpeed and needs no process group. Not covered: pipelines.
"""

import gc
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from paft_ray.config import TrainConfig
from paft_ray.config.errors import ArtifactError, PaftError
from paft_ray.models.attention import BLOCK_ATTENTION, inner_attention
from paft_ray.models.load import virtual_tokens
from paft_ray.models.logprobs import answer_logprobs
from paft_ray.models.narrow import full_shape
from paft_ray.models.packing import IntArray, Row
from paft_ray.models.switches import checkpoint_activations, compile_layers, turn_off_dropout
from paft_ray.training.batch_plan import ALONE, Ranks
from paft_ray.training.deepspeed_engine import deepspeed_config, start_deepspeed
from paft_ray.training.plain import PlainEngine
from paft_ray.training.speed import Meter, StepClock
from paft_ray.training.state.checkpoint import KINDS, RankGroup
from paft_ray.training.state.shards import SMALL_STATE, deal_owners
from paft_ray.training.zero import WholeTensors, whole

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Engine:
    """One rank's engine around the model that is trained: DeepSpeed's, or a plain one."""

    def __init__(
        self,
        model: "PeftModel | PreTrainedModel",
        train: TrainConfig,
        dtype: str,
        small_state: int = SMALL_STATE,
        work: Callable[[], None] = lambda: None,
        deepspeed: bool = True,
    ) -> None:
        """Build the engine; collective over all ranks of the default process group.

        Args:
            model: An adapted model, or one whose own weights are trained; for a plain engine on its
                device.
            train: The section `train`.
            dtype: Arithmetic: `float32` or `bfloat16`.
            small_state: Bytes of state below which rank 0 gathers all of it.
            work: Called after each tensor that is gathered or restored, and each row that is read.
            deepspeed: False for plain torch, which divides and offloads nothing, whatever `train`
                says; there may then be no process group, which is one rank.
        """
        self._groups: list[Any] = []
        grouped, self.work = dist.is_initialized(), work
        self.rank = dist.get_rank() if grouped else 0
        self.ranks = dist.get_world_size() if grouped else 1
        self.stage = train.deepspeed.stage if deepspeed else 0
        self.virtual_tokens, self.dtype = virtual_tokens(model), dtype
        objective = train.objective
        self._temperature = objective.decoding_temperature if objective.type == "grpo" else 1.0
        self.adapted = hasattr(model, "peft_config")
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trainable, lr=train.learning_rate, betas=train.betas, weight_decay=train.weight_decay
        )
        if train.activation_checkpointing:
            checkpoint_activations(model)
        self._compiled = train.compile
        if train.compile:
            compile_layers(model)
        self._engine: Any
        if deepspeed:
            count = sum(full_shape(p).numel() for p in trainable)
            config = deepspeed_config(train, dtype, self.ranks, count)
            self._engine = start_deepspeed(model, optimizer, config)
        else:
            self._engine = PlainEngine(model, optimizer, train.gradient_clipping, dtype)
        self.device = self._engine.device
        self.clock = StepClock(self.device)
        self.meter = Meter(model, self.device, dtype, self.ranks)
        self._time_reduction()
        self._tensors = WholeTensors(self._engine, self.stage, self.rank, self.ranks)
        if objective.type == "grpo":
            turn_off_dropout(model)  # what is learned from was written without
        self._engine.train()
        self._sizes = {name: 4 * full_shape(p).numel() for name, p in self.trainable().items()}
        sizes = {f"{kind}/{name}": size for name, size in self._sizes.items() for kind in KINDS}
        self._owners = deal_owners(sizes, self.ranks, small_state)

    def _time_reduction(self) -> None:
        """Let the clock know when the engine sums gradients, in `step` or after a row."""
        reduce = self._engine.allreduce_gradients

        def timed(*args: Any, **options: Any) -> None:
            with self.clock.within("communication"):
                reduce(*args, **options)

        self._engine.allreduce_gradients = timed

    @property
    def model(self) -> "PeftModel | PreTrainedModel":
        """The model inside."""
        return self._engine.module  # pyright: ignore[reportReturnType]

    @property
    def shares_beginnings(self) -> bool:
        """Whether sequences of a row may share tokens: with blocks, which have a backward pass."""
        return not self._compiled and inner_attention(self._engine) == BLOCK_ATTENTION

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Trainable parameters by name, in the model's order."""
        return {n: p for n, p in self._engine.module.named_parameters() if p.requires_grad}

    def accumulate(self, row: Row, loss_of: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Forward and backward of one row; an inert row adds nothing to the gradients.

        Args:
            row: The row.
            loss_of: Maps the log-probabilities of the row's answer tokens, shape [A], to its part
                of the global batch's loss; not called for an inert row.
        """
        logprobs_A = self._logprobs(row)
        # gradients are averaged over ranks, hence the factor
        loss = loss_of(logprobs_A) * self.ranks if row.members else logprobs_A.sum() * 0.0
        self._engine.backward(loss)

    def _logprobs(self, row: Row) -> torch.Tensor:
        """Log-probabilities of the row's answer tokens, [A], at the decoding temperature."""
        return self._logprobs_after(row, self.virtual_tokens)

    def _logprobs_after(self, row: Row, virtual_tokens: int) -> torch.Tensor:
        return answer_logprobs(self._engine, row, self.device, virtual_tokens, self._temperature)

    def reference_logprobs(self, row: Row) -> torch.Tensor:
        """What the model without its adapter makes of the row's answer tokens: shape [A]."""
        model: Any = self.model
        with torch.no_grad(), model.disable_adapter():
            return self._logprobs_after(row, virtual_tokens=0)  # they go with the adapter

    def all_reduce(self, values: torch.Tensor) -> list[float]:
        """Sum a vector over ranks and read it; the host reads nothing else in a step."""
        if self.ranks > 1:
            dist.all_reduce(values)
        return values.tolist()

    def step(self, learning_rate: float) -> float | None:
        """Take one optimizer step; returns the gradient norm before clipping, if known."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        self.clock.enter(None)  # before the norm is read, which waits for a GPU
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the trainable weights in fp32, over all ranks; moments are twice as much."""
        return sum(self._sizes.values())

    def rank_group(self) -> RankGroup:
        """All ranks, for `Checkpoints`; collective."""
        attempt = self.exchange(secrets.token_hex(4))[0]
        return RankGroup(self.rank, self.ranks, attempt, self.exchange, self.work)

    def exchange(self, mine: Any) -> list[Any]:
        """Return every rank's value, by rank; values are small and picklable; collective."""
        if self.ranks == 1:
            return [mine]
        values: list[Any] = [None] * self.ranks
        dist.all_gather_object(values, mine)
        return values

    def share(self, work: Callable[[], T]) -> list[T]:
        """Do this rank's own work, and return what every rank's returned, by rank; collective.

        Raises:
            PaftError: The work of a rank raised it; all ranks raise that of the first such rank, so
                that none waits for it.
        """
        try:
            mine: T | PaftError = work()
        except PaftError as error:
            mine = error
        found = self.exchange(mine)
        for each in found:
            if isinstance(each, PaftError):
                raise each
        return found

    def plan_ranks(self) -> Ranks:
        """All ranks, for making plans in a thread; collective."""
        if self.ranks == 1:
            return ALONE
        group = dist.new_group(backend="gloo")  # of its own, so that it may be used in a thread
        self._groups.append(group)

        def exchange(mine: IntArray) -> list[IntArray]:
            found = [torch.empty(mine.shape, dtype=torch.int64) for _ in range(self.ranks)]
            dist.all_gather(found, torch.from_numpy(mine), group=group)
            return [each.numpy() for each in found]

        return Ranks(self.rank, self.ranks, exchange)

    def gather(self) -> dict[str, torch.Tensor]:
        """This rank's part of the state in rank-free form, whole tensors on the CPU; collective.

        Parameters are gathered one by one, and each tensor stays with one rank: with rank 0 where
        the state is small, else spread evenly. Keys are `weight/<name>`, `exp_avg/<name>` and
        `exp_avg_sq/<name>`.
        """
        state: dict[str, torch.Tensor] = {}
        for name, parameter in self.trainable().items():
            for kind in KINDS:
                full = self._tensors.full(parameter, kind)
                self.work()
                if self._owners[f"{kind}/{name}"] == self.rank:
                    state[f"{kind}/{name}"] = _own_copy(full)
        return state

    def gather_weights(self) -> dict[str, torch.Tensor]:
        """Trainable weights by name, in fp32 on rank 0's CPU, none on other ranks; collective."""
        weights: dict[str, torch.Tensor] = {}
        for name, parameter in self.trainable().items():
            full = self._tensors.full(parameter, "weight")
            self.work()
            if self.rank == 0:
                weights[name] = _own_copy(full)
        return weights

    def whole_adapter(self) -> AbstractContextManager[None]:
        """Make trainable parameters whole on every rank in the block; collective at stage 3."""
        return whole(list(self.trainable().values()))

    @contextmanager
    def evaluating(self) -> Iterator["PeftModel | PreTrainedModel"]:
        """The model without dropout, for every rank to use on its own.

        At stage 3 all ranks must call it at the same time with the same input.
        """
        self._engine.eval()
        try:
            yield self.model
        finally:
            self._engine.train()

    def mean_loss(self, rows: Sequence[Row]) -> float:
        """Mean negative log-likelihood of the answer tokens of some rows, in nats.

        Without dropout and gradients. Collective at stage 3: every rank reads the same rows.
        """
        logprobs = []
        with self.evaluating(), torch.no_grad():
            for row in rows:
                logprobs_A = answer_logprobs(self._engine, row, self.device, self.virtual_tokens)
                logprobs.append(logprobs_A.double())
                self.work()
        return -float(torch.cat(logprobs).mean())

    def release(self) -> None:
        """Free the memory of model and optimizer; the engine cannot be used any more."""
        if not hasattr(self, "_engine"):
            return
        module, optimizer = self._engine.module, self._engine.optimizer
        self._engine.destroy()
        for tensor in (*module.parameters(), *module.buffers()):
            shard = getattr(tensor, "ds_tensor", None)  # at stage 3
            for held in (tensor, *([] if shard is None else [shard])):
                held.data = torch.empty(0, dtype=held.dtype, device=held.device)
        getattr(optimizer, "optimizer", optimizer).state.clear()
        del self._engine, self._tensors, module, optimizer
        for group in self._groups:
            dist.destroy_process_group(group)
        gc.collect()
        torch.cuda.empty_cache()

    def restore(self, state: Iterable[tuple[str, torch.Tensor]], step: int | None) -> None:
        """Restore gathered state, on any number of ranks; collective.

        Args:
            state: The tensors that all ranks' `gather` returned, by key, the same on every rank.
            step: Optimizer steps done, for AdamW's bias correction; None restores weights only, in
                an engine that trains no further.

        Raises:
            ArtifactError: A tensor is missing, or belongs to no parameter.
        """
        if step is not None:
            self._tensors.create_moments(step)
        parameters, missing = self.trainable(), set(self._owners)
        for key, value in state:
            self.work()
            kind, _, name = key.partition("/")
            if key not in self._owners or value.shape != full_shape(parameters[name]):
                raise ArtifactError(
                    f"the checkpoint's {key} {tuple(value.shape)} belongs to no parameter that is "
                    "trained: choose another name for this run"
                )
            missing.discard(key)
            if kind == "weight":
                self._tensors.set_weight(parameters[name], value.to(self.device))
            elif step is not None:
                self._tensors.set_moment(parameters[name], kind, value.to(self.device))
        if missing:
            raise ArtifactError(
                f"the checkpoint lacks {len(missing)} tensors, among them {min(missing)}: choose "
                "another name for this run"
            )


def _own_copy(full: torch.Tensor) -> torch.Tensor:
    """A copy in fp32 on the CPU."""
    return full.detach().to("cpu", torch.float32, copy=True).contiguous()
