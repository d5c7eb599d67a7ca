"""Memory of this node's GPUs, as their driver's own tool says it.

Covered: the smallest GPU of the node, and what a training needs of it. Not covered: parts of GPUs
(MIG), and what others use of them.
"""

import subprocess
from typing import Any

from paft_ray.config import TrainConfig
from paft_ray.pipeline.needs import worker_needs
from paft_ray.runs.context import RunContext
from paft_ray.training.estimates import ModelSizes
from paft_ray.training.gpu_fit import advise

_QUERY = (
    "nvidia-smi",
    "--query-gpu=memory.total,mig.mode.current",
    "--format=csv,noheader,nounits",
)
_NAMES = ("nvidia-smi", "--query-gpu=name,mig.mode.current", "--format=csv,noheader")
_MIB = 2**20


def gpu_memory_gb() -> float | None:
    """Memory of this node's smallest GPU in 1e9 bytes; None where it cannot be known."""
    return smallest_gpu_gb(_tell(_QUERY))


def gpu_name() -> str | None:
    """The name of this node's GPUs; None where it cannot be known, they differ, or one is split."""
    rows = [line.rpartition(",") for line in _tell(_NAMES).splitlines() if line]
    names = {name.strip() for name, comma, mode in rows if comma and mode.strip() != "Enabled"}
    return names.pop() if len(names) == 1 and rows[-1][2].strip() != "Enabled" else None


def _tell(query: tuple[str, ...]) -> str:
    """What nvidia-smi says; empty where it says nothing."""
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def smallest_gpu_gb(told: str) -> float | None:
    """The smallest memory in what nvidia-smi says, a line for each GPU; None where one is split."""
    rows = [[cell.strip() for cell in line.split(",")] for line in told.splitlines() if line]
    if not rows or any(len(row) != 2 or not row[0].isdigit() for row in rows):
        return None
    if any(mode == "Enabled" for _, mode in rows):
        return None
    return min(int(mib) for mib, _ in rows) * _MIB / 1e9


def describe_gpu(context: RunContext, sizes: ModelSizes, gpu_gb: float | None) -> dict[str, Any]:
    """A GPU's memory beside what a worker needs of it, and what to change."""
    config = context.config
    if config.train.workers.gpus == 0:
        return {}
    if gpu_gb is None:
        return {"gpu_memory_gb": "not known here: set train.workers.gpu_memory_gb to compare"}

    def needs_gb(train: TrainConfig, quantization: str) -> float:
        return worker_needs(context, sizes, train, quantization)["all"] / 1e9

    advice = advise(config, needs_gb, gpu_gb)
    return {"gpu_memory_gb": round(gpu_gb, 1), **({"advice": advice} if advice else {})}
