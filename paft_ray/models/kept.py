"""A base model that stays in memory between trainings, which share its weights.

Each training gets modules of its own over the same frozen weights, so that adapters, hooks,
checkpointed layers and what an engine does to parameters go with it and nothing has to be undone.
Weights that a training changed all the same are noticed before the next one, and read again.
"""

import copy
import ctypes
import gc
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class KeptBase:
    """The base model of the last training, if it can serve another one."""

    def __init__(self) -> None:
        """Create it without a model."""
        self._key: Hashable = None
        self._model: PreTrainedModel | None = None
        self._bits: list[int] = []
        self._found: dict[Hashable, tuple[str, ...]] = {}

    def take(
        self, key: Hashable, load: "Callable[[], PreTrainedModel]", keep: bool
    ) -> "PreTrainedModel":
        """Return a base model for one training: frozen, on the CPU, as `load` returns it.

        Args:
            key: All that determines what `load` returns.
            load: Reads the model.
            keep: Keep it for the next training.
        """
        if self._model is None or key != self._key or _bits(self._model) != self._bits:
            self._model = None  # before another is read
            self._found.clear()
            model = load()
            if not keep or _has_hooks(model):
                return model
            self._key, self._model, self._bits = key, model, _bits(model)
        return _over_same_weights(self._model)

    def once(self, question: Hashable, find: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
        """Return what `find` says of the model under some adapter, found once while it is kept.

        Args:
            question: What is asked, and the settings of the adapter.
            find: Gives the same answer for all trainings with this question.
        """
        if self._model is None:
            return find()
        if question not in self._found:
            self._found[question] = find()
        return self._found[question]


def drop_unused_models() -> None:
    """Free models that nothing holds but themselves: layers whose `forward` is bound to them."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    return_freed_memory()


def return_freed_memory() -> None:
    """Return to the system what was freed; glibc keeps it between what is in use."""
    with suppress(AttributeError):  # of other libraries
        ctypes.CDLL(None).malloc_trim(0)


def _over_same_weights(model: "PreTrainedModel") -> "PreTrainedModel":
    """A copy of a model with parameters of its own over the same memory."""
    import torch

    own: dict[int, Any] = {}
    for parameter in model.parameters():
        shared = torch.nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
        vars(shared).update(vars(parameter))
        own[id(parameter)] = shared
    return copy.deepcopy(model, own)


def _bits(model: "torch.nn.Module") -> list[int]:
    """Sums of all tensors' bits, by which a change in place is noticed, however it was made."""
    return [_sum_of_bits(tensor) for tensor in (*model.parameters(), *model.buffers())]


def _sum_of_bits(tensor: "torch.Tensor") -> int:
    import torch

    octets = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    words = octets[: len(octets) // 8 * 8].view(np.uint64)
    return int(np.add.reduce(words)) + int(octets[8 * len(words) :].sum())


def _has_hooks(model: "torch.nn.Module") -> bool:
    """Whether functions hang on a model's modules, which might know these and not their copies."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for module in model.modules() for kind in kinds)
