"""Models and rows of `gpu.py`: of real shapes, with random weights, made on the device."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from paft_ray.config import TrainConfig
from paft_ray.models.attention import BLOCK_ATTENTION, VARLEN_ATTENTION
from paft_ray.models.load import add_adapter, prepare_loaded
from paft_ray.models.logprobs import answer_logprobs, inference
from paft_ray.models.narrow import Stored, matrices
from paft_ray.models.packing import Row, TokenSequence, build_row
from paft_ray.models.varlen import reason_against_varlen
from paft_ray.training.engine import Engine

LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
_NOISE = 0.02
"""Standard deviation of the adapter's weights, half of which begin at 0 otherwise."""


@dataclass(frozen=True)
class Shape:
    """A Llama, and the lengths of its sequences."""

    hidden: int
    inner: int
    layers: int
    heads: int
    keys: int
    vocabulary: int
    shortest: int = 64
    longest: int = 512

    def config(self) -> LlamaConfig:
        """The configuration."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.keys,
            max_position_embeddings=8192,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )


ONE_B = Shape(2048, 8192, 16, 32, 8, 128_256)
EIGHT_B = Shape(4096, 14_336, 32, 32, 8, 128_256)
TINY = Shape(64, 128, 2, 4, 2, 512, 4, 9)
"""In place of both in a rehearsal."""


@dataclass(frozen=True)
class Bench:
    """What all measurements have in common: the device, and whether this is a rehearsal."""

    device: torch.device
    rehearsal: bool

    @property
    def on_gpu(self) -> bool:
        """Whether figures are those of a GPU."""
        return self.device.type == "cuda"

    def shape(self, real: Shape) -> Shape:
        """That shape, or the tiny one."""
        return TINY if self.rehearsal else real

    def tokens(self, real: int) -> int:
        """A row's length, or a fraction of it."""
        return real // 64 if self.rehearsal else real

    @cached_property
    def small(self) -> "Subject":
        """The model that is used for correctness."""
        return Subject(self, self.shape(ONE_B), "bfloat16")

    @cached_property
    def large(self) -> "Subject":
        """The model that is used for speed."""
        return Subject(self, self.shape(EIGHT_B), "bfloat16")

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def free(self) -> None:
        """Give memory back that nothing uses."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


class Subject:
    """A base model with an adapter, as `paft train` prepares them, and the adapter's beginning."""

    def __init__(self, bench: Bench, shape: Shape, arithmetic: str, dropout: float = 0.0) -> None:
        """Build it on the device: the same weights, rounded to bf16, in either arithmetic."""
        self.bench, self.shape, self.arithmetic = bench, shape, arithmetic
        stored = Stored(arithmetic, device=str(bench.device))
        base = prepare_loaded(widen(plain_base(bench, shape), arithmetic), "auto", stored)
        self.model: Any = add_adapter(base, {**LORA, "lora_dropout": dropout}, seed=0)
        self.model.to(bench.device)
        generator = torch.Generator().manual_seed(1)
        for parameter in self._adapter():
            noise = torch.randn(parameter.shape, generator=generator) * _NOISE
            parameter.data.copy_(noise)
        self._beginning = [parameter.detach().clone() for parameter in self._adapter()]
        self._auto = self.base.config._attn_implementation

    @property
    def base(self) -> Any:
        """The model below the adapter."""
        return self.model.get_base_model()

    def _adapter(self) -> Iterator[torch.nn.Parameter]:
        return (parameter for parameter in self.model.parameters() if parameter.requires_grad)

    @contextmanager
    def engine(
        self, attention: str = "auto", deepspeed: Mapping[str, Any] | None = None, **train: Any
    ) -> Iterator[Engine]:
        """An engine of the model, whose adapter begins as it always does.

        Args:
            attention: `model.attention`.
            deepspeed: `train.deepspeed`; None for the engine in plain torch.
            train: Other fields of `train`.
        """
        for parameter, beginning in zip(self._adapter(), self._beginning, strict=True):
            parameter.data.copy_(beginning)
            parameter.grad = None
        self.base.set_attn_implementation(self.name_of(attention))
        settings = {"steps": 1, "batch_size": 2, "learning_rate": 1e-4, **train}
        settings["deepspeed"] = deepspeed or {"stage": 0}
        config = TrainConfig.model_validate(settings)
        engine = Engine(self.model, config, self.arithmetic, deepspeed=deepspeed is not None)
        try:
            yield engine
        finally:
            self.base.set_attn_implementation(self._auto)
            self.bench.free()

    def name_of(self, attention: str) -> str:
        """The name under which transformers knows one of `model.attention`."""
        if attention == "flex_attention" and not self.bench.on_gpu:
            raise NotHereError("it has no backward pass on CPUs")
        if attention == "varlen":
            device = str(self.bench.device)
            if why := reason_against_varlen(self.base, self.arithmetic, device):
                raise NotHereError(why)
        ours = {"blocks": BLOCK_ATTENTION, "varlen": VARLEN_ATTENTION, "auto": self._auto}
        return ours.get(attention, attention)

    def sequences(self, tokens: int, share: float, seed: int = 0) -> list[TokenSequence]:
        """Sequences of `tokens` tokens in all, of which each predicts a share at its end."""
        random, shape, found = np.random.default_rng(seed), self.shape, []
        while tokens:
            length = min(int(random.integers(shape.shortest, shape.longest + 1)), tokens)
            if 0 < tokens - length < 4:
                length = tokens
            tokens -= length
            ids = random.integers(4, shape.vocabulary, length + 1)
            answers = max(1, round(share * length))
            found.append(
                TokenSequence(
                    input_ids=tuple(ids[:-1].tolist()),
                    positions=tuple(range(length - answers, length)),
                    targets=tuple(ids[length - answers + 1 :].tolist()),
                    owners=(0,) * answers,
                )
            )
        return found

    def row(self, tokens: int, share: float, seed: int = 0) -> Row:
        """Such sequences in one row."""
        found = self.sequences(tokens, share, seed)
        return build_row(found, range(len(found)))


class NotHereError(Exception):
    """What a measurement needs is not on this machine; the text says what."""


def plain_base(bench: Bench, shape: Shape) -> Any:
    """Build a base model from its configuration, in bf16: random weights, always the same."""
    torch.manual_seed(0)
    with bench.device:
        model = AutoModelForCausalLM.from_config(shape.config(), dtype=torch.bfloat16)
    return model.eval().requires_grad_(False)


def rival(bench: Bench, subject: Subject) -> Any:
    """The weights and adapter of a subject in a model of transformers and peft alone."""
    from peft import get_peft_config, get_peft_model

    base = plain_base(bench, subject.shape)
    model: Any = get_peft_model(base, get_peft_config({"task_type": "CAUSAL_LM", **LORA}))
    own = dict(subject.model.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = own[name].detach().to(bench.device).clone()
    return model.train()


def widen(model: Any, arithmetic: str) -> Any:
    """Give a model in bf16 those weights in fp32 that `load_base` reads as that."""
    narrow = {id(p) for p in matrices(model)} if arithmetic == "bfloat16" else set()
    for parameter in model.parameters():
        if id(parameter) not in narrow:
            parameter.data = parameter.data.float()
    return model


def mean_loss(logprobs_A: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of a row's answer tokens."""
    return -logprobs_A.mean()


def gradients(engine: Engine, rows: list[Row]) -> torch.Tensor:
    """The adapter's gradient of the mean loss over the answer tokens of some rows, as a vector."""
    answers = sum(len(row.targets_A) for row in rows)
    for row in rows:
        engine.accumulate(row, lambda logprobs_A: -logprobs_A.sum() / answers)
    found = [parameter.grad for parameter in engine.trainable().values()]
    flat = torch.cat([gradient.flatten().float() for gradient in found if gradient is not None])
    for parameter in engine.trainable().values():
        parameter.grad = None
    return flat


def logprobs_of(model: Any, arithmetic: str, row: Row) -> torch.Tensor:
    """Log-probabilities of a row's answer tokens, without dropout."""
    with inference(model, arithmetic):
        return answer_logprobs(model, row, next(model.parameters()).device)
