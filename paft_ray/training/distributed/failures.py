"""Which errors of a rank come again each time, so that starting its workers again is no remedy.

Lost workers and nodes, a peer that is gone, a node's memory that ran out and faults of storage are
worth another attempt. Everything else is an error of the program or of its input, or a GPU's memory
that is too small, which it will be again.
"""

import traceback
from contextlib import suppress

from paft_ray.config.errors import PaftError, TrainingError, one_line

_COLLECTIVES = ("/torch/distributed/", "/deepspeed/comm/")
"""Folders whose functions wait for other ranks."""


def comes_again(error: Exception, ranks: int) -> bool:
    """Return whether an error of a rank would end every other attempt the same way."""
    import torch.distributed as dist
    from ray.exceptions import RayError

    if isinstance(error, PaftError) or gpu_is_full(error):
        return True
    if isinstance(error, RayError | MemoryError | dist.DistError | ConnectionError | TimeoutError):
        return False
    if isinstance(error, OSError):
        return error.errno is None  # transformers': a file is missing in the model
    if ranks == 1 or not isinstance(error, RuntimeError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    from_peers = any(part in frame.filename for frame in frames for part in _COLLECTIVES)
    return not from_peers and "gloo" not in str(error)  # gloo raises a plain RuntimeError


def gpu_is_full(error: BaseException) -> bool:
    """Return whether an error says that a GPU has no memory left."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    # CUDA's own, and those of cuBLAS and NCCL, which have no type for it
    texts = ("CUDA error: out of memory", "ALLOC_FAILED", "Cuda failure 2 'out of memory'")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def _gpu_peak() -> str:
    """The most memory that this process's tensors took of its GPU; empty without one."""
    import torch

    with suppress(RuntimeError, AssertionError):  # after some errors CUDA answers no more
        if torch.cuda.is_available():
            peak, (_, whole) = torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()
            return f" at a peak of {peak / 1e9:.1f} of {whole / 1e9:.1f} GB"
    return ""


def program_error(error: Exception, rank: int) -> PaftError:
    """Return the error that a training ends with: one of ours as it is, another by its own text."""
    if isinstance(error, PaftError):
        return error
    if gpu_is_full(error):
        return TrainingError(
            f"the GPU of rank {rank} has too little memory{_gpu_peak()} "
            f"({one_line(error, 120)}): lower train.row_tokens, set "
            "train.activation_checkpointing: true, or raise train.deepspeed.stage; another attempt "
            "would end the same way"
        )
    return TrainingError(
        f"training failed on rank {rank} with {type(error).__name__}: {one_line(error, 300)}; its "
        "traceback is in the log, and another attempt would end the same way"
    )
