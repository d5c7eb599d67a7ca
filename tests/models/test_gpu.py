"""Settings of processes with a GPU; a process of its own starts with each."""

import json
import os
import subprocess
import sys

import pytest

from paft_ray.models.gpu import prepare_gpu

PROGRAM = """
import json, os, torch
from paft_ray.models.gpu import compute_deterministically, prepare_gpu
prepare_gpu(deterministic=True)
compute_deterministically()
print(json.dumps([
    torch.are_deterministic_algorithms_enabled(),
    torch.is_deterministic_algorithms_warn_only_enabled(),
    torch.backends.cuda.cudnn_sdp_enabled(),
    os.environ["CUBLAS_WORKSPACE_CONFIG"],
]))
"""


ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


@pytest.mark.parametrize("chosen", [None, *ALLOCATOR])
def test_allocator_takes_segments_that_grow_unless_the_user_chose(
    chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ALLOCATOR:
        monkeypatch.setenv(name, "max_split_size_mb:64")  # so that it is restored
        if name != chosen:
            monkeypatch.delenv(name)
    prepare_gpu()
    found = {name: os.environ[name] for name in ALLOCATOR if name in os.environ}
    if chosen is None:
        assert found == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    else:
        assert found == {chosen: "max_split_size_mb:64"}


@pytest.mark.slow
def test_deterministic_process_has_what_cublas_and_attention_read_and_no_kernel_that_differs() -> (
    None
):
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=250
    )
    assert json.loads(told.stdout) == [True, False, False, ":4096:8"]
