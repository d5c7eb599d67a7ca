"""`train`: the training loop."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, field_serializer, field_validator, model_validator

from paft_ray.config.base import NOTHING, OneGpu, Section, WorkerShare, affects
from paft_ray.config.objectives import GRPO, CrossEntropy, ObjectiveConfig
from paft_ray.config.validation import ValidationConfig
from paft_ray.config.variation import OFF, VariationConfig


class ScheduleConfig(Section, affects="weights"):
    """Learning rate over steps, as a share of `learning_rate`."""

    type: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up."""
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps in which the rate rises linearly from 0."""
    final_share: float = Field(default=0.0, ge=0, le=1)
    """Where the decay ends."""


class SamplingConfig(Section, affects="weights"):
    """The choice of the prompt that an example is rendered through."""

    unit: Literal["example", "step", "bound"] = "example"
    """One draw per example of the batch, one for the whole step, or one per training example that
    it keeps for the whole training."""
    steps_per_prompt: int = Field(default=1, ge=1)
    """How many steps a draw is kept: the paper's K."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=True)] = math.inf
    """Temperature of the softmax over losses that draws prompts: small ones favour prompts that the
    model does badly under; `.inf` is uniform, as in the paper."""
    uniform_floor: float = Field(default=0.1, ge=0, le=1)
    """Share of the draws that stays uniform under a finite temperature."""
    smoothing: float = Field(default=0.9, ge=0, lt=1)
    """Share of the old value in a prompt's exponential mean of losses."""

    @model_validator(mode="after")
    def _bound_is_uniform(self) -> Self:
        if self.unit == "bound" and not math.isinf(self.temperature):
            raise ValueError(
                f"temperature {self.temperature:g} draws by past losses, which unit: bound cannot: "
                "leave it out, or draw per example"
            )
        return self

    @property
    def bound(self) -> Self:
        """The same, but every training example keeps its draw."""
        return self.model_copy(update={"unit": "bound", "temperature": math.inf})

    @field_serializer("temperature", when_used="json")
    def _infinity_as_text(self, temperature: float) -> float | str:
        return "inf" if math.isinf(temperature) else temperature  # JSON has no infinity


class DeepSpeedConfig(Section, affects="weights"):
    """The part of DeepSpeed's configuration that users choose."""

    stage: Literal[0, 1, 2, 3] = 1
    """ZeRO stage."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What is kept in the CPUs' memory: the optimizer's state (stages 1 to 3), or the parameters as
    well (stage 3)."""

    @model_validator(mode="after")
    def _stage_can_offload(self) -> Self:
        needed = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.stage < needed:
            raise ValueError(
                f"offload: {self.offload} needs stage {needed} or higher, not {self.stage}"
            )
        return self


class CheckpointConfig(Section, affects="nothing"):
    """The saving of training state."""

    every_steps: int = Field(default=50, ge=1)
    """Optimizer steps between two checkpoints."""
    keep: int = Field(default=2, ge=1)
    """How many of the newest are kept."""


class ProfileConfig(Section, affects="nothing"):
    """The recording of some steps by torch's profiler."""

    steps: tuple[int, int]
    """First and last step to record, counted from 1; rank 0 writes a trace that Perfetto
    (ui.perfetto.dev) opens into `profile/` of the training's folder."""

    @field_validator("steps")
    @classmethod
    def _in_sequence(cls, steps: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= steps[0] <= steps[1]:
            raise ValueError(f"the first is 1 or more, the last no less than the first: {steps}")
        return steps


class TrainWorkersConfig(WorkerShare, affects="nothing"):
    """Ranks of a training: a fixed number, or as many as there are between two bounds."""

    gpus: OneGpu = 0
    """GPUs per worker: 0 or 1."""
    num: int | None = Field(default=None, ge=1)
    """How many, 1 by default; give this, or `min` and `max`."""
    min: int | None = Field(default=None, ge=1)
    """Fewest to go on with when nodes are lost."""
    max: int | None = Field(default=None, ge=1)
    """Most to use when nodes are there."""
    gpu_memory_gb: Annotated[float | None, affects("nothing", neutral=None)] = Field(
        default=None, gt=0
    )
    """Memory of a GPU in 1e9 bytes, which `paft plan` compares with what training needs; by default
    that of the GPUs that it sees."""
    interface: str | None = None
    """Network interface that gloo and NCCL talk over, for nodes that have several."""
    heartbeat_timeout_s: float = Field(default=60, gt=0)
    """A rank that others wait for this long is named, ended and replaced; ten times the longest
    step so far where that is more."""

    @field_validator("gpus")
    @classmethod
    def _whole_gpu(cls, gpus: float) -> float:
        if gpus not in (0, 1):
            raise ValueError(
                "a rank of a training computes on a GPU of its own, which no other shares: give "
                "0 or 1, and num for how many"
            )
        return gpus

    @model_validator(mode="after")
    def _number_or_range(self) -> Self:
        if (self.min is None) != (self.max is None):
            raise ValueError("min and max belong together: give both, or num")
        if self.min is not None and self.max is not None:
            if self.num is not None:
                raise ValueError("num is a fixed number, min and max a range: give one of them")
            if self.min > self.max:
                raise ValueError(f"min ({self.min}) is more than max ({self.max}): swap them")
        return self

    @property
    def fewest(self) -> int:
        """Ranks without which nothing starts."""
        return self.min or self.num or 1

    @property
    def most(self) -> int:
        """Ranks where the cluster has room for all."""
        return self.max or self.num or 1


class TrainConfig(Section, affects="weights"):
    """The training loop."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; give this or `epochs`."""
    epochs: float | None = Field(default=None, gt=0, le=1_000_000)
    """Passes over the training examples; give this or `steps`."""
    batch_size: int = Field(default=8, ge=1)
    """Global batch, in sequences per optimizer step."""
    row_tokens: int = Field(default=2048, ge=16)
    """Most tokens in one packed row, which is one forward pass."""
    packing: Annotated[bool, affects("pool", "weights", "scores")] = True
    """Several sequences in one row, here and in scoring; prompt-learning methods always run
    without."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak of AdamW's learning rate."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 leaves gradients as they are."""
    schedule: ScheduleConfig = ScheduleConfig()
    sampling: SamplingConfig = SamplingConfig()
    objective: ObjectiveConfig = CrossEntropy()
    variation: Annotated[VariationConfig, affects("weights", neutral=OFF, whole=True)] = OFF
    """Axes besides instruction and layout along which every example varies, drawn at each step; the
    same shape as `evaluation.variation`."""

    @field_validator("variation")
    @classmethod
    def _drawn_together(cls, variation: VariationConfig) -> VariationConfig:
        if variation.design != "separate":
            raise ValueError(
                f"design: {variation.design} is for evaluation.variation; training draws all axes "
                "together at each step: leave it out"
            )
        return variation

    response_prefix_tokens: int | None = Field(default=None, ge=1)
    """Train on the first so many tokens of every answer only, as unsupervised prefix fine-tuning
    does (arXiv 2503.02875); all by default."""
    warm_start: Annotated[str | None, NOTHING] = None
    """Folder (path, URI or `pkg:`) of an adapter of the same kind that training begins with."""
    activation_checkpointing: Annotated[bool, NOTHING] = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a
    third more time."""
    compile: bool = False
    """Let torch.compile fuse the model's layers; pays on GPUs after minutes of compilation."""
    deterministic: Annotated[bool, affects("weights", neutral=False)] = False
    """On GPUs compute with kernels that give the same bits each time; slower, by how much was not
    measured here. On CPUs results are bit-identical anyway."""
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: Annotated[ValidationConfig | None, affects("weights", neutral=None, whole=True)] = (
        None
    )
    """Score the model on the way, keep its best checkpoint, end early; `paft tune` scores trials
    by itself."""
    profile: Annotated[ProfileConfig | None, affects("nothing", neutral=None, whole=True)] = None
    """Record some steps; a training that is resumed after them records them no more."""
    workers: TrainWorkersConfig = TrainWorkersConfig()
    max_failures: Annotated[int, NOTHING] = Field(default=2, ge=0)
    """How often a lost worker is replaced before training gives up."""

    @property
    def batch_examples(self) -> int:
        """Examples of one batch; where the model writes texts, one for all texts of a question."""
        together = self.objective.rollouts if isinstance(self.objective, GRPO) else 1
        return self.batch_size // together

    @property
    def extra_checkpoints(self) -> int:
        """Checkpoints that may stay besides the newest `checkpoint.keep`."""
        return int(self.validation is not None and self.validation.keep_best)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            given = "both are given" if self.steps else "neither is given"
            raise ValueError(f"{given}: set one of steps and epochs, and the other one to null")
        return self

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each beta lies in [0, 1)")
        return betas


def total_steps(train: TrainConfig, train_examples: int) -> int:
    """Optimizer steps of a training, from `steps` or from `epochs` over `train_examples`."""
    if train.steps is not None:
        return train.steps
    assert train.epochs is not None
    updates = train.objective.updates if isinstance(train.objective, GRPO) else 1
    return max(1, math.ceil(train.epochs * train_examples / train.batch_examples) * updates)
