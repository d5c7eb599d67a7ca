"""What the machine or cluster offers, and how we join it.

Covered: which arithmetic `auto` stands for, starting or joining Ray with token authentication, how
many CPUs a worker gets, how far remote work has come, one rate limit for all actors that ask the
same endpoint.
"""

import asyncio
import json
import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paft_ray.admission import admit, named_cluster
from paft_ray.config import Config, TrainWorkersConfig, WorkersConfig
from paft_ray.errors import ConfigError, PaftError

logger = logging.getLogger(__name__)

# set before the first import of ray anywhere in the process: ray reads them at import or start
_ENVIRONMENT = {
    "RAY_worker_niceness": "0",  # 15 by default, which loses every race on a busy machine
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints everything twice
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray Train counts a lost node for 20 s more, and would wait for its place for 60 s
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
"""Names the dashboard of the cluster that this process belongs to, for Ray; unset without one."""


def resolve_dtype(dtype: str, gpus: float) -> str:
    """The arithmetic that `auto` stands for on this machine; any other value is returned as given.

    Args:
        dtype: `auto`, `float32` or `bfloat16`.
        gpus: GPUs per worker; with any, auto is bf16, without, it is where the CPU has bf16.
    """
    if dtype != "auto":
        return dtype
    return "bfloat16" if gpus > 0 or cpu_has_bfloat16() else "float32"


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine's processor multiplies bf16 in hardware; False where nothing tells."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)


def prepare_environment() -> None:
    """Set what Ray, OpenMP and the Hugging Face libraries read when they are first imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def import_ray() -> None:
    """Import Ray with the environment that it is to read; seconds, in which others may work."""
    prepare_environment()
    if named_cluster() is None:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # a process of Ray Train's that looks for nodes to go, of which there are none here
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    import ray.data  # noqa: F401


@contextmanager
def ray_session(insist: bool = False) -> Iterator[None]:
    """Ray for one command: joined where RAY_ADDRESS names a cluster, else started on this machine.

    A cluster that we start asks for a token, made here and known to this process and its children
    only. To one that we join go the settings that its processes read, and no secret.

    Args:
        insist: Join a cluster that asks for no token.

    Raises:
        ConfigError: See `admit`.
    """
    address = admit(insist)
    import_ray()
    import ray
    import ray.data

    os.environ.pop(DASHBOARD_VARIABLE, None)
    where: dict[str, Any] = {"address": "local", "include_dashboard": False}
    if address is not None:
        if (dashboard := _find_dashboard(address)) is not None:
            os.environ[DASHBOARD_VARIABLE] = dashboard
        names = {*_ENVIRONMENT, DASHBOARD_VARIABLE} - _variables_of_job()
        known = {name: os.environ[name] for name in sorted(names) if name in os.environ}
        where = {"address": address, "runtime_env": {"env_vars": known}}
    ray.init(logging_level=logging.WARNING, configure_logging=False, **where)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # else errors of ours arrive as text only
    try:
        yield
    finally:
        ray.shutdown()


def _variables_of_job() -> set[str]:
    """What the job that this process is has in its environment by its user's wish: Ray takes no
    variable from two sides."""
    try:
        job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        return set(job["runtime_env"]["env_vars"])
    except (ValueError, KeyError, TypeError):
        return set()


def _find_dashboard(address: str) -> str | None:
    """URL of a cluster's dashboard, which parts of Ray ask; None where it has none."""
    from ray._private import ray_constants
    from ray._raylet import GcsClient

    found = GcsClient(address=address).internal_kv_get(
        ray_constants.DASHBOARD_ADDRESS.encode(), ray_constants.KV_NAMESPACE_DASHBOARD, timeout=10
    )
    return f"http://{found.decode()}" if found else None


@contextmanager
def own_errors() -> Iterator[None]:
    """Turn what Ray makes of an error of ours in a remote process back into that error."""
    try:
        yield
    except Exception as error:
        ours = _find_own(error)
        if ours is None or ours is error:
            raise
        raise ours from error


def _find_own(error: BaseException | None) -> PaftError | None:
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        current = waiting.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        cause = getattr(current, "cause", None)
        if isinstance(current, PaftError) and not isinstance(cause, PaftError):
            return current
        waiting += [cause if isinstance(cause, BaseException) else None, current.__cause__]
        waiting.append(getattr(current, "controller_failure", None))
    return None


def cpus_per_worker(workers: WorkersConfig | TrainWorkersConfig, section: str) -> float:
    """CPUs of each worker: as configured, else an equal share of the largest node, at least one.

    Args:
        workers: The stage's workers.
        section: Their place in the configuration, for the error.

    Raises:
        ConfigError: The cluster that we joined has no room for the fewest workers.
    """
    nodes, fewest = node_resources(), workers.fewest
    largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    share = workers.cpus or max(1.0, math.floor(largest / workers.most))
    room = sum(places(node, share, workers.gpus) for node in nodes)
    if room < fewest and not _may_grow_to(fewest * share, fewest * workers.gpus):
        gpus = f" and {workers.gpus:g} GPUs" if workers.gpus else ""
        raise ConfigError(
            f"{section}: {fewest} workers with {share:g} CPUs{gpus} each need more than this "
            f"cluster has: its nodes have room for {room}; lower {section}.num, {section}.cpus"
            + (f" or {section}.gpus" if workers.gpus else "")
        )
    return share


def _may_grow_to(cpus: float, gpus: float) -> bool:
    """Whether something scales the cluster, and so far."""
    from ray._private.state import state

    most: Mapping[str, float] = state.get_max_resources_from_cluster_config() or {}
    return bool(most) and most.get("CPU", 0) >= cpus and most.get("GPU", 0) >= gpus


def spare_workers(cpus: float, gpus: float) -> tuple[frozenset[str], int]:
    """The nodes that are alive, and how many more workers fit into what is free on them."""
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    alive = frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])
    return alive, sum(places(free.get(node, {}), cpus, gpus) for node in alive)


def node_resources() -> list[dict[str, float]]:
    """What every node that is alive has in all."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def places(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many workers a node holds."""
    needs = {name: need for name, need in (("CPU", cpus), ("GPU", gpus)) if need}
    return min((int(resources.get(name, 0.0) // need) for name, need in needs.items()), default=0)


def check_cluster(config: Config) -> None:
    """Refuse stages that could never be placed on the cluster that we joined.

    Raises:
        ConfigError: A stage asks for more CPUs or GPUs than there are.
    """
    cpus_per_worker(config.train.workers, "train.workers")
    cpus_per_worker(config.evaluation.workers, "evaluation.workers")


def actor_beside(kind: type, *arguments: Any) -> Any:
    """An actor without a CPU on this process's own node: it is lost only where this process is."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(num_cpus=0)(kind)
    return remote.options(scheduling_strategy=here).remote(*arguments)


class Board:
    """Where remote work says how far it is; a Ray actor without a CPU of its own."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._held: dict[str, Any] = {}

    def hold(self, key: str, value: Any) -> None:
        """Keep something that is asked for by its name, such as an actor's handle."""
        self._held[key] = value

    def held(self, key: str) -> Any:
        """What was given to hold, or None."""
        return self._held.get(key)

    def post(self, key: str, value: Any) -> None:
        """Say something."""
        self._values[key] = value

    def exchange(self, key: str, value: Any, asked: str) -> Any:
        """Say something, and hear what was given to hold under another name, or None."""
        self.post(key, value)
        return self.held(asked)

    def read(self) -> dict[str, Any]:
        """All that was said."""
        return dict(self._values)


class BoardHandle:
    """The driver's and the workers' end of a `Board`; pickles."""

    def __init__(self) -> None:
        """Start the actor, on this process's own node: it is lost only where the driver is too."""
        self._actor = actor_beside(Board)

    def post(self, key: str, value: Any) -> None:
        """Say something, without waiting for it to arrive."""
        self._actor.post.remote(key, value)

    def post_now(self, key: str, value: Any) -> None:
        """Say something, and return when it has arrived."""
        import ray

        ray.get(self._actor.post.remote(key, value))

    def read(self) -> dict[str, Any]:
        """All that was said."""
        import ray

        return ray.get(self._actor.read.remote())

    def hold(self, key: str, value: Any) -> None:
        """Keep something that is asked for by its name, without waiting for it to arrive."""
        self._actor.hold.remote(key, value)

    def held(self, key: str) -> Any:
        """What was given to hold, or None."""
        import ray

        return ray.get(self._actor.held.remote(key))

    def exchange(self, key: str, value: Any, asked: str) -> Any:
        """Say something, without waiting; a reference to what is held under another name."""
        return self._actor.exchange.remote(key, value, asked)


class RateLimit:
    """Says when each request may start; a Ray actor without a CPU of its own.

    Starts are spaced evenly, so that no minute holds more than the limit, wherever it begins, and
    nothing is saved up for a burst.
    """

    _margin = 1.02
    """By how much spaces are wider than the limit asks: a window that begins and ends with a
    request would else hold one too many, and starts come a little late or early."""

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._request_s = 60 * self._margin / requests_per_minute if requests_per_minute else 0.0
        self._token_s = 60 * self._margin / tokens_per_minute if tokens_per_minute else 0.0
        self._next_request = self._next_token = clock()

    def reserve(self, tokens: float) -> float:
        """Take the next start, for a request of so many tokens: seconds from now."""
        now = self._clock()
        start = max(now, self._next_request, self._next_token)
        self._next_request = start + self._request_s
        self._next_token = start + tokens * self._token_s
        return start - now

    def correct(self, tokens: float) -> None:
        """A request took so many tokens more than was reserved; less, where negative."""
        self._next_token += tokens * self._token_s


class RateLimitHandle:
    """The clients' end of a `RateLimit`; pickles."""

    def __init__(
        self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None
    ) -> None:
        """Start the actor, which begins anew where its node is lost.

        Args:
            requests_per_minute: Most requests over all who hold this handle; None for no limit.
            tokens_per_minute: Most tokens; None for no limit.
        """
        import ray

        remote = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(RateLimit)
        self._actor: Any = remote.remote(requests_per_minute, tokens_per_minute)
        self._counts_tokens = tokens_per_minute is not None

    async def wait(self, tokens: float) -> None:
        """Return when a request of so many tokens may start."""
        await asyncio.sleep(await self._actor.reserve.remote(tokens))

    async def correct(self, tokens: float) -> None:
        """Say how many more tokens a request took than was reserved, without waiting."""
        if self._counts_tokens:
            self._actor.correct.remote(tokens)


@contextmanager
def follow(board: BoardHandle, show: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
    """Show what remote work says on the board, twice a second and once at the end."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            show(board.read())

    thread = threading.Thread(target=watch, name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    show(board.read())
