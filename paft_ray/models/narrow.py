"""Frozen weights in 16 bits: which ones, reading them so, and making them fp32 for a while.

Under bf16 arithmetic a frozen matrix that is only multiplied is stored in bf16. For linear layers
that changes no result: autocast would make the same of it at every use. The experts of a mixture
are parameters of their own, whose grouped product autocast leaves alone: stored so, they are
multiplied in bf16. On CPUs embeddings, norms, the output head and routers that are parameters stay
in fp32. On GPUs they are in bf16 too: what layers hand to each other then is, and takes half the
memory traffic. What is trained is fp32, but where all weights are trained and files are in bf16:
there DeepSpeed trains a copy in fp32.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from paft_ray.config import ModelConfig


_LIKE_LINEAR = ("Conv1D", "FalconLinear")
"""Classes of transformers that do what a linear layer does, in an operation that autocast knows."""


@dataclass(frozen=True, slots=True)
class Stored:
    """How a base model's frozen weights lie in memory."""

    arithmetic: str = "float32"
    """`float32`, or `bfloat16`, in which frozen matrices then are."""
    quantization: str = "none"
    """`model.quantization`: `nf4` stores those of linear layers in 4 bits."""
    device: str | None = None
    """Where the model is going to be. Weights in 4 bits are made there, by default on the current
    GPU; others are read to the CPU."""
    kept: tuple[str, ...] = ()
    """Names of modules that are fp32 whatever the arithmetic is, such as trained copies."""
    trained: bool = False
    """Whether all weights are going to be trained, and are fp32 whatever the arithmetic is."""
    everything: bool = False
    """Whether not only matrices are in 16 bits, but all weights; on GPUs they are anyway."""

    @classmethod
    def of(cls, model: "ModelConfig", arithmetic: str, device: str | None = None) -> Self:
        """As the configuration says, for an arithmetic, which is `model.dtype` resolved."""
        kept = kept_modules(model.peft or {})
        return cls(arithmetic, model.quantization, device, kept)

    @property
    def narrow(self) -> bool:
        """Whether matrices are in 16 bits."""
        return self.arithmetic == "bfloat16" and not self.trained

    @property
    def whole(self) -> bool:
        """Whether all weights are in 16 bits, not only matrices."""
        return self.narrow and (self.everything or (self.device or "").startswith("cuda"))


WIDE = Stored()
"""All weights in fp32."""


def kept_modules(peft: Any) -> tuple[str, ...]:
    """Return the modules of which an adapter's settings want a copy that is trained as a whole."""
    return tuple(sorted(peft.get("modules_to_save") or ()))


def matrices(
    model: "torch.nn.Module", kept: Collection[str] = ()
) -> "Iterator[torch.nn.Parameter]":
    """Yield the matrices of a model that are only multiplied.

    Args:
        model: A model, an adapted one, or a part of one.
        kept: See `Stored`; the last parts of a name are enough.
    """
    import torch

    head = getattr(model, "get_output_embeddings", lambda: None)()
    for path, module in model.named_modules():
        if module is head or _is_kept(path, kept):
            continue
        # by exact type, since subclasses may compute in their own way
        if type(module) is torch.nn.Linear or type(module).__name__ in _LIKE_LINEAR:
            yield module.weight  # pyright: ignore[reportReturnType]
        elif "Expert" in type(module).__name__:
            for name, parameter in module.named_parameters(recurse=False):
                if len(full_shape(parameter)) > 1 and "bias" not in name:
                    yield parameter


def weights_of(
    model: "torch.nn.Module", kept: Collection[str] = ()
) -> "Iterator[torch.nn.Parameter]":
    """Yield all weights, but for what transformers keeps in fp32; see `matrices`."""
    kept = [*kept, *(getattr(model, "_keep_in_fp32_modules_strict", None) or ())]
    for path, parameter in model.named_parameters():
        if parameter.is_floating_point() and not _is_kept(path, kept):
            yield parameter


def _is_kept(path: str, kept: Collection[str]) -> bool:
    return any(f".{name}." in f".{path}." for name in kept)


def full_shape(parameter: "torch.nn.Parameter") -> "torch.Size":
    """A parameter's shape, also where ZeRO 3 divided it, whose own is empty."""
    return getattr(parameter, "ds_shape", parameter.shape)


@contextmanager
def reading_in_bf16(kept: Collection[str] = (), whole: bool = False) -> Iterator[None]:
    """Let `from_pretrained` read each matrix in bf16 (all weights: `whole`), with no copy in fp32.

    transformers reads a parameter in the dtype that it has in the model on the meta device, and
    asks that model for its `_get_dtype_plan` last. A version that did not ask would read fp32,
    which `store_frozen_in_bf16` makes right, in more memory.
    """
    import torch
    from transformers import PreTrainedModel

    original: Any = PreTrainedModel._get_dtype_plan

    def plan(self: "PreTrainedModel", dtype: torch.dtype) -> dict[str, Any]:
        for parameter in weights_of(self, kept) if whole else matrices(self, kept):
            if parameter.is_meta and parameter.dtype == torch.float32:
                parameter.data = parameter.data.to(torch.bfloat16)
        return original(self, dtype)

    PreTrainedModel._get_dtype_plan = plan
    try:
        yield
    finally:
        PreTrainedModel._get_dtype_plan = original


@contextmanager
def in_fp32(model: "torch.nn.Module") -> Iterator[None]:
    """Let a model whose frozen weights are stored in bf16 compute in fp32 in the block.

    A layer's weights are fp32 while it runs; few lie outside of layers, and are all along. A model
    that was read in 16 bits as a whole computes in these.
    """
    import torch

    config = getattr(model, "config", None)
    whole = getattr(config, "dtype", torch.float32) not in (torch.float32, None)
    found = {} if whole else {id(p): p for p in model.parameters() if p.dtype == torch.bfloat16}
    quantized = [(m, m.compute_dtype) for m in model.modules() if hasattr(m, "compute_dtype")]
    handles: list[Any] = []
    before: dict[int, list[tuple[torch.nn.Parameter, torch.Tensor]]] = {}
    spare: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)  # a layer's, for the next one

    def widen(module: torch.nn.Module, *_: Any) -> None:
        own = [p for p in module.parameters() if id(p) in found]
        before[id(module)] = [(p, p.data) for p in own]
        with torch.inference_mode(False):
            for parameter, data in before[id(module)]:
                kept = spare[data.shape]
                wide = kept.pop() if kept else torch.empty_like(data, dtype=torch.float32)
                parameter.data = wide.copy_(data)

    def restore(module: torch.nn.Module, *_: Any) -> None:
        for parameter, data in before.pop(id(module), ()):
            spare[data.shape].append(parameter.data)
            parameter.data = data

    inside = outer_layers(model) if found else []
    within = {id(p) for layer in inside for p in layer.parameters()}
    outside = torch.nn.ParameterList(p for key, p in found.items() if key not in within)
    try:
        for module, _ in quantized:
            module.compute_dtype = torch.float32  # pyright: ignore[reportArgumentType]
        for layer in inside:
            handles.append(layer.register_forward_pre_hook(widen))
            handles.append(layer.register_forward_hook(restore, prepend=True, always_call=True))
        widen(outside)
        yield
    finally:
        restore(outside)
        for handle in handles:
            handle.remove()
        for module, dtype in quantized:
            module.compute_dtype = dtype  # pyright: ignore[reportArgumentType]


def outer_layers(model: "torch.nn.Module") -> "list[torch.nn.Module]":
    """A model's outermost layers; all its modules without others inside where it marks none."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found: list[torch.nn.Module] = []
    inside: set[int] = set()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and id(module) not in inside:
            found.append(module)
            inside.update(map(id, module.modules()))
    return found or [m for m in model.modules() if next(m.children(), None) is None]


@contextmanager
def adapting_in_fp32() -> Iterator[None]:
    """Let peft see each frozen weight in fp32 while it adapts its module.

    peft makes an adapter in the dtype of what it adapts and only then gives it fp32, and some
    methods begin with what they compute from a weight or change it.
    """
    from peft import PEFT_TYPE_TO_TUNER_MAPPING

    tuners = {
        owner
        for tuner in PEFT_TYPE_TO_TUNER_MAPPING.values()
        for owner in tuner.__mro__
        if "_create_and_replace" in owner.__dict__
    }
    originals: dict[Any, Any] = {owner: owner.__dict__["_create_and_replace"] for owner in tuners}
    for owner, original in originals.items():
        owner._create_and_replace = _widened(original)
    try:
        yield
    finally:
        for owner, original in originals.items():
            owner._create_and_replace = original


def _widened(create: Any) -> Any:
    import torch

    def create_in_fp32(self: Any, config: Any, adapter: str, target: Any, *more: Any, **named: Any):
        narrow = [(p, p.data) for p in target.parameters() if p.dtype == torch.bfloat16]
        for parameter, data in narrow:
            parameter.data = data.float()
        try:
            create(self, config, adapter, target, *more, **named)
        finally:
            for parameter, data in narrow:
                if not parameter.requires_grad:
                    now = parameter.data.to(torch.bfloat16)
                    # an unchanged weight goes on being a page of its file
                    unchanged = data.is_meta or torch.equal(now, data)
                    parameter.data = data if unchanged else now

    return create_in_fp32
