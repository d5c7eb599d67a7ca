"""Ray Train's workers as ranks of one process group, without torch in the driver.

Covered: NCCL and gloo over the configured interface, a number for every group of workers, a notice
of SIGTERM for the training loop. Not covered: the work of a rank.
"""

import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from paft_ray.cluster.control import Control
from paft_ray.cluster.session import DASHBOARD_VARIABLE
from paft_ray.config.errors import ConfigError
from paft_ray.config.launchers import clear_launchers
from paft_ray.models.gpu import prepare_gpu
from paft_ray.training.distributed.heartbeat import ATTEMPT, HeartbeatSender

if TYPE_CHECKING:
    from types import FrameType

    from ray.train._internal.base_worker_group import BaseWorkerGroup

_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@dataclass
class RankGroupConfig(BackendConfig):
    """Ray Train's configuration of the process group; ray.train.torch's would import torch here."""

    control: Control
    """Receives a report when a group of workers has ended."""
    backend: str
    """`nccl` or `gloo`."""
    interface: str | None = None
    """Network interface of collectives; gloo and NCCL choose one where None."""
    deterministic: bool = False
    """`train.deterministic`."""
    timeout_s: float = 1800
    """Of a collective; the hang detector acts earlier."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The class that starts the group."""
        return _ProcessGroup


class RankGroupTrainer(DataParallelTrainer):
    """Ray Train's trainer without its process for data sets: our ranks plan their own batches.

    It also leaves out the cleaner of placement groups where the cluster's dashboard is not known:
    in Ray 2.60 the cleaner then queries the dashboard of any cluster on the machine, which does not
    know the training, and removes the training's workers. It runs in a thread, hence `abort`.
    """

    _controller: Any = None

    def _create_default_callbacks(self) -> list[Any]:
        unwanted: tuple[type, ...] = (DatasetsCallback,)
        if DASHBOARD_VARIABLE not in os.environ:
            unwanted += (PlacementGroupCleanerCallback,)
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if not isinstance(each, unwanted)]

    def abort(self) -> None:
        """End the run and its workers, without waiting; Ray does it for main threads only."""
        if (controller := self._controller) is not None:
            controller.abort.remote()

    def _initialize_and_run_controller(self, **controller_init_kwargs: Any) -> Any:
        """Do what Ray's does, and keep the actor that controls the run."""
        import ray
        from ray.train.v2._internal.execution.controller import TrainController

        environment = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", **get_env_vars_to_propagate()}
        kind = ray.remote(TrainController)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._controller = kind.options(
            num_cpus=0, scheduling_strategy=here, runtime_env={"env_vars": environment}
        ).remote(**controller_init_kwargs)
        try:
            ray.get(self._controller.run.remote())
            return ray.get(self._controller.get_result.remote())
        finally:
            self._controller = None  # workers live as long as it does


@dataclass(frozen=True, slots=True)
class _Group:
    """Data with which a rank joins; see `RankGroupConfig`."""

    backend: str
    address: str
    port: int
    ranks: int
    timeout_s: float


class _ProcessGroup(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: "BaseWorkerGroup", backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, RankGroupConfig)
        try:
            self._join(worker_group, backend_config)
        except BaseException:
            # Ray 2.60 forgets workers that fail here; their placement group would keep its CPUs
            cast(Any, worker_group).abort()
            raise

    def _join(self, worker_group: "BaseWorkerGroup", backend_config: "RankGroupConfig") -> None:
        import ray
        from ray.train._internal.utils import get_address_and_port

        if (refusal := backend_config.control.state().refusal) is not None:
            raise refusal  # of the attempt before
        self.attempt = time.time_ns()
        worker_group.execute(_prepare_worker, backend_config, self.attempt)
        address, port = worker_group.execute_single(0, get_address_and_port)
        group = _Group(
            backend_config.backend, address, port, len(worker_group), backend_config.timeout_s
        )
        joining: list[Any] = [
            worker_group.execute_single_async(rank, _join, group, rank)
            for rank in range(len(worker_group))
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: "BaseWorkerGroup", backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, RankGroupConfig)
        backend_config.control.report_ended(self.attempt)


def _prepare_worker(config: RankGroupConfig, attempt: int) -> None:
    """Set the environment before ranks join; imports torch, for the port to be used soon."""
    if config.backend == "nccl":
        prepare_gpu(config.deterministic)
    import ray.train
    import torch.distributed  # noqa: F401

    clear_launchers()  # of the node's, on a cluster that was joined
    os.environ[ATTEMPT] = str(attempt)
    if (interface := config.interface) is not None:
        check_interface(interface)
        os.environ.update(dict.fromkeys(_INTERFACE_VARIABLES, interface))
    context = ray.train.get_context()
    os.environ["LOCAL_RANK"] = str(context.get_local_rank())
    os.environ["LOCAL_WORLD_SIZE"] = str(context.get_local_world_size())
    os.environ["RANK"] = str(context.get_world_rank())
    os.environ["WORLD_SIZE"] = str(context.get_world_size())
    TerminationNotice.install()


def _join(group: _Group, rank: int) -> None:
    import torch
    import torch.distributed as dist

    os.environ.update(MASTER_ADDR=group.address, MASTER_PORT=str(group.port))
    if group.backend == "nccl":
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
    dist.init_process_group(
        group.backend,
        rank=rank,
        world_size=group.ranks,
        timeout=timedelta(seconds=group.timeout_s),
    )


def check_interface(interface: str) -> None:
    """Refuse a network interface that this node does not have.

    Raises:
        ConfigError: It does not exist; the message names those that do.
    """
    there = [name for _, name in socket.if_nameindex()]
    if interface not in there:
        raise ConfigError(
            f"train.workers.interface: node {os.uname().nodename} has no interface {interface!r}, "
            f"only {', '.join(there)}: name one that every node has"
        )


class TerminationNotice:
    """A handler of SIGTERM that notes the first signal and passes later ones to another handler."""

    def __init__(self, before: Any) -> None:
        """Create a handler in front of `before`."""
        self.received = False
        self._before = before

    def __call__(self, number: int, frame: "FrameType | None") -> None:
        """Note the signal; from the second on, the handler before this one is called."""
        if self.received and callable(self._before):
            self._before(number, frame)
        self.received = True

    @classmethod
    def install(cls) -> None:
        """Install the handler, once; must be called in the main thread."""
        before = signal.getsignal(signal.SIGTERM)
        if not isinstance(before, cls):
            signal.signal(signal.SIGTERM, cls(before))


def stop_notice(heartbeat: HeartbeatSender) -> Callable[[], bool]:
    """Return a function that checks whether a rank must stop; a rank calls it once per step.

    It must where its process is terminated, its node is drained, or a stop was requested. Ray
    Train's `get_preemption_info` is a barrier of all ranks; here each rank reads its own notice,
    and the loop sums the answers.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    preemption = get_train_context().preemption_context
    handler = signal.getsignal(signal.SIGTERM)

    def must_stop() -> bool:
        terminated = isinstance(handler, TerminationNotice) and handler.received
        return terminated or preemption.preemption_info is not None or heartbeat.stop_requested

    return must_stop
