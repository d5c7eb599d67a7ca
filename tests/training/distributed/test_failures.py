"""Which errors of a rank end a training at once, and which are worth another attempt."""

import errno

import pytest
import torch
import torch.distributed as dist
from ray.exceptions import ActorDiedError

from paft_ray.config.errors import TrainingError, last_line
from paft_ray.training.distributed.failures import comes_again, program_error

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"


@pytest.mark.parametrize(
    "error",
    [
        IndexError("index out of range in self"),
        TypeError("unsupported operand"),
        ImportError("no optimum"),
        OSError("model has no file named pytorch_model.bin"),
        AssertionError("LOCAL_RANK (0) != OMPI_COMM_WORLD_LOCAL_RANK (3)"),
        NotImplementedError("not for this model"),
        RuntimeError("shapes cannot be multiplied"),
        TrainingError("the loss is not finite"),
    ],
)
def test_error_of_the_program_ends_a_training_with_its_own_text(error):
    assert comes_again(error, ranks=2)
    found = program_error(error, rank=1)
    assert str(error) in str(found)
    assert isinstance(error, TrainingError) or type(error).__name__ in str(found)


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        MemoryError(),
        OSError(errno.EIO, "Input/output error"),
        ConnectionResetError("by peer"),
        dist.DistNetworkError("timed out"),
        RuntimeError(GLOO),
    ],
)
def test_loss_of_a_peer_or_a_fault_of_the_machine_is_worth_another_attempt(error):
    assert not comes_again(error, ranks=2)


@pytest.mark.parametrize("ranks", [1, 8])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        dist.DistBackendError("NCCL error, Last error: Cuda failure 2 'out of memory'"),
    ],
)
def test_gpu_without_memory_ends_a_training_at_once_and_names_the_remedies(error, ranks):
    """Also inside a collective, whose other errors are worth another attempt."""
    with pytest.raises(TypeError) as caught:
        dist.all_reduce(None)
    assert comes_again(error.with_traceback(caught.value.__traceback__), ranks)
    said = str(program_error(error, rank=3))
    assert "GPU of rank 3" in said
    assert str(error)[:40] in said
    for field in ("row_tokens", "activation_checkpointing: true", "deepspeed.stage"):
        assert f"train.{field}" in said


def test_runtime_error_out_of_a_collective_is_worth_another_attempt_only_with_peers():
    with pytest.raises(TypeError) as caught:
        dist.all_reduce(None)
    error = RuntimeError("lost").with_traceback(caught.value.__traceback__)
    assert not comes_again(error, ranks=2)
    assert comes_again(error, ranks=1)


def test_last_line_of_a_traceback_is_the_exception():
    text = 'Training failed:\n  File "a.py", line 1, in f\n    g()\n  File "b.py", line 2, in g\n'
    shown = last_line(RuntimeError(text + "    x[9]\n    ~^^^\nIndexError: out of range\n"))
    assert shown == "IndexError: out of range"
    assert last_line(RuntimeError("two\nlines")) == "two lines"
    assert last_line(KeyError()) == "KeyError"
