"""How a process uses its GPU: settings that CUDA and torch read when they start in it.

Covered: memory in segments that grow, since rows differ in length at every step; kernels whose
results do not depend on the order in which threads finish. Not covered: vLLM, which manages memory
in its own way. Nothing here touches a process without a GPU.
"""

import os

_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Variables of torch's allocator, which reads the first of them that is set, when CUDA starts."""
_DETERMINISTIC = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "FLASH_ATTENTION_DETERMINISTIC": "1",  # transformers', for flash_attention_2
}


def prepare_gpu(deterministic: bool = False) -> None:
    """Set what is read when CUDA starts in this process; what the user has set stays.

    Args:
        deterministic: Prepare for `compute_deterministically`.
    """
    if not any(name in os.environ for name in _ALLOCATOR):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    for name, value in _DETERMINISTIC.items() if deterministic else ():
        os.environ.setdefault(name, value)


def compute_deterministically() -> None:
    """Let torch use kernels on GPUs that give the same bits each time, and raise where it has none.

    torch's flash and memory-efficient attention then have a deterministic backward pass; cuDNN's
    has none, and is not used.
    """
    import torch

    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_cudnn_sdp(False)
