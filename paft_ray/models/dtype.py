"""The arithmetic that `dtype: auto` means on this machine."""

from pathlib import Path


def resolve_dtype(dtype: str, gpus: float) -> str:
    """Return `dtype`, or for `auto` bfloat16 where this machine computes it in hardware.

    Args:
        dtype: `auto`, `float32` or `bfloat16`.
        gpus: GPUs per worker; without any, the CPU decides.
    """
    if dtype != "auto":
        return dtype
    return "bfloat16" if gpus > 0 or cpu_has_bfloat16() else "float32"


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this CPU multiplies bf16 in hardware; False where that is unknown."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)
