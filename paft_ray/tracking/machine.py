"""What a run's machine does while the run is tracked: processors, memory, disk, network, GPUs.

MLflow's own monitors measure it, under the names that MLflow shows on a page of their own. Its
logger is not used: it sends by itself, and an event log is written to storage first. Measured is
the node of the tracking process alone; the steps are seconds, so that a resumed run goes on.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from paft_ray.tracking.mlflow_runs import import_client

SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
"""MLflow's variable; `false` switches this off."""
_SECONDS = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"
_DEFAULT_SECONDS = 10.0


def is_measured() -> bool:
    """Return whether machines are to be measured."""
    return os.environ.get(SWITCH, "").strip().lower() not in ("false", "0")


def measure(add: Callable[[str, Mapping[str, Any]], None], ended: threading.Event) -> None:
    """Add an event of metrics every ten seconds until `ended`."""
    import_client()
    monitors = _monitors()
    _sample(monitors)  # what is a rate begins here
    while not ended.wait(_interval()):
        values = _sample(monitors)
        add("metrics", {"step": int(time.time()), "values": values})


def _interval() -> float:
    """Seconds between two samples, from MLflow's variable."""
    try:
        return max(1.0, float(os.environ.get(_SECONDS, "")))
    except ValueError:
        return _DEFAULT_SECONDS


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with suppress(ImportError, RuntimeError):  # no NVIDIA GPU, or no package to ask it
        monitors.append(GPUMonitor())
    return monitors


def _sample(monitors: list[Any]) -> dict[str, float]:
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        found = monitor.aggregate_metrics()
        values |= {f"system/{name}": float(value) for name, value in found.items()}
        monitor.clear_metrics()
    return values
