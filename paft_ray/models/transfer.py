"""Arrays of the host copied to a device, all of them at once.

A copy from memory that is not pinned waits for all work of the GPU; a row needs ten small ones.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
import torch

_T = TypeVar("_T")
_ALIGNED = 8  # bytes, the widest element


def copy_to(device: torch.device, tree: _T) -> _T:
    """Replace the arrays of a tree by tensors on a device; on CPUs these share their memory.

    Args:
        device: Where to.
        tree: An array, or a tuple, a dict or a dataclass of trees; all else stays as it is.
    """
    if device.type == "cpu":
        return _replaced(tree, torch.from_numpy)
    return copy_at_once(device, tree)


def copy_at_once(device: torch.device, tree: _T) -> _T:
    """Do what `copy_to` does for GPUs: one copy from pinned memory, which nobody waits for."""
    arrays: list[np.ndarray] = []
    _replaced(tree, arrays.append)
    padded = [-(-array.nbytes // _ALIGNED) * _ALIGNED for array in arrays]
    buffer = torch.empty(sum(padded), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for array, part in zip(arrays, buffer.split(padded), strict=True):
        part.numpy()[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    moved = iter(buffer.to(device, non_blocking=True).split(padded))

    def take(array: np.ndarray) -> torch.Tensor:
        dtype = torch.from_numpy(array[:0]).dtype
        return next(moved)[: array.nbytes].view(dtype).view(array.shape)

    return _replaced(tree, take)


def _replaced(tree: Any, change: Callable[[np.ndarray], Any]) -> Any:
    if isinstance(tree, np.ndarray):
        return change(tree)
    if isinstance(tree, tuple):
        return tuple(_replaced(value, change) for value in tree)
    if isinstance(tree, dict):
        return {key: _replaced(value, change) for key, value in tree.items()}
    if is_dataclass(tree) and not isinstance(tree, type):
        own = {f.name: _replaced(getattr(tree, f.name), change) for f in fields(tree)}
        return type(tree)(**own)
    return tree
