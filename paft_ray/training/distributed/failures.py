"""Which errors of a rank come again each time, so that starting its workers again is no remedy.

Lost workers and nodes, a peer that is gone, memory that ran out and faults of storage are worth
another attempt. Everything else is an error of the program or of its input.
"""

import traceback

from paft_ray.config.errors import PaftError, TrainingError, one_line

_COLLECTIVES = ("/torch/distributed/", "/deepspeed/comm/")
"""Folders whose functions wait for other ranks."""


def comes_again(error: Exception, ranks: int) -> bool:
    """Return whether an error of a rank would end every other attempt the same way."""
    import torch.distributed as dist
    from ray.exceptions import RayError

    if isinstance(error, PaftError):
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


def program_error(error: Exception, rank: int) -> PaftError:
    """Return the error that a training ends with: one of ours as it is, another by its own text."""
    if isinstance(error, PaftError):
        return error
    return TrainingError(
        f"training failed on rank {rank} with {type(error).__name__}: {one_line(error, 300)}; its "
        "traceback is in the log, and another attempt would end the same way"
    )
