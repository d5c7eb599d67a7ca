"""How quickly a training runs: tokens, FLOPs, memory, and where the seconds of a step go.

Nothing here waits for a GPU: events of CUDA are read where the loop waits anyway. A figure that
cannot be measured on this device or for this model is left out.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal

import torch

from paft_ray.models.flops import matrix_rate, model_flops
from paft_ray.models.packing import Row
from paft_ray.serving.record import Speed
from paft_ray.tracking import Metric

Part = Literal["plan", "sampling", "forward_backward", "communication", "optimizer"]
"""Waiting for the step's plan; drawing and grading texts that it learns from; forward and backward
passes, with what ZeRO 2 and 3 send meanwhile; the sum of losses and gradients over ranks, with
waiting for the slowest; the optimizer."""
_SECONDS: Mapping[Part, Metric] = {
    "plan": Metric.TRAIN_SECONDS_PLAN,
    "sampling": Metric.TRAIN_SECONDS_SAMPLING,
    "forward_backward": Metric.TRAIN_SECONDS_FORWARD_BACKWARD,
    "communication": Metric.TRAIN_SECONDS_COMMUNICATION,
    "optimizer": Metric.TRAIN_SECONDS_OPTIMIZER,
}
_PEAKS: Mapping[str, float] = {
    r"B200\b": 2250,
    r"(H100|H800) PCIe": 756,
    r"(H100|H200|H800) NVL": 835,
    r"(H100|H200|H800|GH200)\b": 989,
    r"(A100|A800)\b": 312,
    r"A30\b": 165,
    r"A40\b": 150,
    r"A10\b": 125,
    r"L40S\b": 362,
    r"L4\b": 121,
}
"""GPUs by name, to NVIDIA's TFLOP/s in bf16 without sparsity, from its data sheets."""
_ON_GPU = (8192, 8192, 8192)
"""Product that GPUs are measured with."""
_ROWS = 512
"""Rows of the product that CPUs are measured with."""


def device_peak(name: str, dtype: str) -> float | None:
    """FLOPs a second in bf16 that the maker of a GPU states; None for other ones and for slices."""
    if dtype != "bfloat16" or re.search(r"\bMIG\b|Laptop", name):
        return None
    found = (peak for pattern, peak in _PEAKS.items() if re.search(rf"\b{pattern}", name))
    return 1e12 * peak if (peak := next(found, None)) else None


class StepClock:
    """Divides the time of a step into parts: host time on CPUs, the GPU's own on GPUs."""

    def __init__(self, device: torch.device) -> None:
        """Prepare for steps on `device`."""
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[Part | None, Any]] = []

    def enter(self, part: Part | None) -> None:
        """Begin a part of the step, which ends the one before; None ends the step."""
        if part is None and self._current is None:
            return
        if self._on_gpu:
            mark: Any = torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.perf_counter()
        self._marks.append((part, mark))

    @contextmanager
    def within(self, part: Part) -> Iterator[None]:
        """Count the block as another part of the step, if there is one."""
        before = self._current
        if before is not None:
            self.enter(part)
        yield
        self.enter(before)

    @property
    def _current(self) -> Part | None:
        return self._marks[-1][0] if self._marks else None

    def take(self) -> dict[Part, float]:
        """Seconds by part since the last call, without parts that a GPU still computes."""
        marks, self._marks = self._marks, []
        seconds: dict[Part, float] = {}
        unfinished: set[Part] = set()
        for (part, begin), (_, end) in pairwise(marks):
            if part is None:
                continue
            if self._on_gpu and not end.query():
                unfinished.add(part)
                continue
            took = begin.elapsed_time(end) / 1000 if self._on_gpu else end - begin
            seconds[part] = seconds.get(part, 0.0) + took
        return {part: s for part, s in seconds.items() if part not in unfinished}


class Meter:
    """Measures the steps of one rank's engine, and what is known before the first."""

    def __init__(self, model: Any, device: torch.device, dtype: str, ranks: int) -> None:
        """Count the model's FLOPs, and measure the device.

        Args:
            model: The model, with its adapter.
            device: Where it computes.
            dtype: Arithmetic: `float32` or `bfloat16`.
            ranks: Number of ranks, on devices of the same kind.
        """
        self._flops, self._ranks, self._device = model_flops(model), ranks, device
        self._gpu = device.type == "cuda"
        self._peak = device_peak(torch.cuda.get_device_name(device), dtype) if self._gpu else None
        self._rate = _measure(model, device, dtype)
        self._first: dict[str, float] = {}
        self._sums: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        if self._gpu:
            torch.cuda.reset_peak_memory_stats(device)

    def flops(self, row: Row) -> float:
        """FLOPs that a row needs; 0 where the model's structure does not say."""
        return 0.0 if self._flops is None else self._flops.of_row(row)

    def step(
        self, tokens: int, flops: float, seconds: float, parts: Mapping[Part, float]
    ) -> dict[str, float]:
        """Record a step.

        Args:
            tokens: That all ranks read.
            flops: That all ranks' rows need.
            seconds: Of the whole step; rates are without those of sampling.
            parts: Seconds by part.

        Returns:
            Its metrics.
        """
        seconds -= parts.get("sampling", 0.0)
        own: dict[str, float] = {_SECONDS[part]: value for part, value in parts.items()}
        measured = {"tokens": tokens, "flops": flops, "seconds": seconds, **own}
        if self._first:
            self._sums.update(measured)  # pyright: ignore[reportCallIssue, reportArgumentType]
            self._counts.update(measured.keys())
        else:
            self._first = measured
        rate = {Metric.TRAIN_TOKENS_PER_SECOND: tokens / seconds}
        return {**rate, **self._shares(flops, seconds), **own, **self._memory()}

    def speed(self) -> Speed | None:
        """Means of the steps since the engine began, without the first if there are more."""
        if not self._first:
            return None
        counts = self._counts or Counter(self._first.keys())
        sums = self._sums if self._counts else self._first
        shares = self._shares(sums["flops"], sums["seconds"])
        return Speed(
            steps=counts["seconds"],
            tokens_per_second=sums["tokens"] / sums["seconds"],
            mfu=shares.get(Metric.TRAIN_MFU),
            share_of_matrix_rate=shares.get(Metric.TRAIN_SHARE_OF_MATRIX_RATE),
            matrix_rate=self._rate,
            peak_gpu_memory_gb=self._memory().get(Metric.TRAIN_PEAK_GPU_MEMORY_GB),
            seconds={p: sums[name] / counts[name] for p, name in _SECONDS.items() if counts[name]},
        )

    def _shares(self, flops: float, seconds: float) -> dict[str, float]:
        names = (Metric.TRAIN_MFU, self._peak), (Metric.TRAIN_SHARE_OF_MATRIX_RATE, self._rate)
        return {
            name: flops / seconds / self._ranks / possible
            for name, possible in names
            if possible and flops
        }

    def _memory(self) -> dict[str, float]:
        if not self._gpu:
            return {}
        peak = torch.cuda.max_memory_allocated(self._device)
        return {Metric.TRAIN_PEAK_GPU_MEMORY_GB: peak / 1e9}


def _measure(model: Any, device: torch.device, dtype: str) -> float | None:
    """The rate of the device, on CPUs at the shape of the model's largest product in a layer."""
    if device.type == "cuda":
        try:
            return matrix_rate(device, dtype, _ON_GPU)
        except torch.OutOfMemoryError:
            return None
        finally:
            torch.cuda.empty_cache()
    config = model.config.get_text_config()
    hidden, inner = (getattr(config, name, None) for name in ("hidden_size", "intermediate_size"))
    if not isinstance(hidden, int):
        return None
    return matrix_rate(device, dtype, (_ROWS, hidden, inner if isinstance(inner, int) else hidden))
