"""Starting or joining Ray with token authentication, and the environment of its processes."""

import json
import logging
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from paft_ray.cluster.access import check_access, named_cluster
from paft_ray.cluster.own_node import own_node
from paft_ray.cluster.surroundings import job_config, own_paths_last, ray_folder
from paft_ray.config.launchers import without_launchers

logger = logging.getLogger(__name__)

# set before the first import of ray in the process: ray reads them at import or start
_ENVIRONMENT = {
    "RAY_worker_niceness": "0",  # 15 by default, which starves workers on a busy machine
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints everything twice
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray Train counts a lost node for 20 s more, and would wait 60 s for its resources
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    # OpenMP threads spin at barriers (300,000 times by default): beside any other load a step of
    # 0.6 s took up to 20 s; with this bound it took 0.7 s, and no longer on a quiet machine
    "GOMP_SPINCOUNT": "50000",
    # torch and oneDNN each keep kernels for 1,024 shapes, and rows differ in length at every step:
    # 360 of a tiny model's 951 MiB after 1,000 steps; what one step uses again is far fewer
    "LRU_CACHE_CAPACITY": "128",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}

DASHBOARD_VARIABLE = "RAY_API_SERVER_ADDRESS"
"""Variable with the dashboard's address of this process's cluster, for Ray; unset without one."""


def prepare_environment() -> None:
    """Set what Ray, OpenMP and the Hugging Face libraries read when they are first imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def import_ray() -> None:
    """Import Ray with the environment that it has to read; takes seconds."""
    prepare_environment()
    if named_cluster() is None:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # a process of Ray Train's that watches for nodes that will end; there are none here
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    import ray.data  # noqa: F401


@contextmanager
def ray_session(insist: bool = False) -> Iterator[None]:
    """Ray for one command: the cluster that this process has joined already, else the cluster that
    RAY_ADDRESS names, else one that is started on this machine.

    A cluster that is started here requires a token, which only this process and its children know.
    A cluster that is joined receives the settings that its processes read, and no secret.

    Args:
        insist: Join a cluster that requires no token.

    Raises:
        ConfigError: See `check_access`.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield
        return
    address = check_access(insist)
    import_ray()
    import ray
    import ray.data

    os.environ.pop(DASHBOARD_VARIABLE, None)
    where: dict[str, Any] = {"address": "local", "include_dashboard": False}
    if address is not None:
        if (dashboard := _find_dashboard(address)) is not None:
            os.environ[DASHBOARD_VARIABLE] = dashboard
        where = {"address": address, "runtime_env": _for_processes(_environment_of_job())}
    with ExitStack() as stack:
        if address is None:
            where["_temp_dir"] = stack.enter_context(ray_folder())
        with without_launchers():
            ray.init(
                logging_level=logging.WARNING,
                configure_logging=False,
                job_config=job_config(),
                **where,
            )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.raise_original_map_exception = True  # else a `PaftError` arrives as text only
        try:
            with own_node():
                yield
        finally:
            ray.shutdown()


def _for_processes(job: Mapping[str, Any]) -> dict[str, Any]:
    """What the processes of a joined cluster get, less what a job's own environment has: Ray takes
    nothing from two sides.
    """
    names = {*_ENVIRONMENT, DASHBOARD_VARIABLE} - {*(job.get("env_vars") or ())}
    known = {name: os.environ[name] for name in sorted(names) if name in os.environ}
    found: dict[str, Any] = {"env_vars": known}
    if job.get("working_dir") and "worker_process_setup_hook" not in job:
        found["worker_process_setup_hook"] = own_paths_last()
    return found


def _environment_of_job() -> dict[str, Any]:
    """The runtime environment that this process's job was sent with; empty outside of jobs."""
    try:
        job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        return dict(job["runtime_env"])
    except (ValueError, KeyError, TypeError):
        return {}


def _find_dashboard(address: str) -> str | None:
    """URL of a cluster's dashboard, which parts of Ray need; None where it has none."""
    from ray._private import ray_constants
    from ray._raylet import GcsClient

    found = GcsClient(address=address).internal_kv_get(
        ray_constants.DASHBOARD_ADDRESS.encode(), ray_constants.KV_NAMESPACE_DASHBOARD, timeout=10
    )
    return f"http://{found.decode()}" if found else None
