"""Environment variables by which launchers (MPI, Slurm, torchrun, accelerate) number processes.

Libraries in workers read them (DeepSpeed compares Open MPI's local rank with its own), but here Ray
starts and numbers processes. So they are cleared for every process that this package starts.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_NAMES = frozenset(
    [
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "NODE_RANK",
        "GROUP_RANK",
        "GROUP_WORLD_SIZE",
        "ROLE_NAME",
        "ROLE_RANK",
        "ROLE_WORLD_SIZE",
        "CROSS_RANK",
        "CROSS_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "NNODES",
        "AZUREML_EXPERIMENT_ID",
        "SM_TRAINING_ENV",
        "DLTS_JOB_ID",
    ]
)
_PREFIXES = (
    "OMPI_", "PMI_", "PMI2_", "PMIX_", "PRTE_", "PALS_", "HYDRA_", "HYDI_", "I_MPI_", "MPI_",
    "MPIR_", "MV2_", "FLUX_", "JSM_", "SLURM_", "SLURMD_", "TORCHELASTIC_", "ACCELERATE_",
    "FSDP_", "AZ_BATCH_", "AZ_BATCHAI_",
)  # fmt: skip


def is_launchers(name: str) -> bool:
    """Return whether a variable is one that a launcher sets for its own processes."""
    return name in _NAMES or name.startswith(_PREFIXES)


def clear_launchers() -> None:
    """Remove launchers' variables from this process."""
    for name in [name for name in os.environ if is_launchers(name)]:
        del os.environ[name]


@contextmanager
def without_launchers() -> Iterator[None]:
    """Hide launchers' variables from processes that are started in the block."""
    hidden = {name: value for name, value in os.environ.items() if is_launchers(name)}
    clear_launchers()
    try:
        yield
    finally:
        os.environ.update(hidden)
