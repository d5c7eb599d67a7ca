"""How large workers are, and how many of them a cluster has room for."""

import math
from collections.abc import Mapping, Sequence

from paft_ray.config import Config, TrainWorkersConfig, WorkersConfig
from paft_ray.config.errors import ConfigError

Nodes = Sequence[Mapping[str, float]]
"""Total resources of every node."""


def fit_workers(
    workers: WorkersConfig | TrainWorkersConfig, section: str, nodes: Nodes | None = None
) -> float:
    """CPUs of each worker: as configured, else see `equal_share`.

    Args:
        workers: The stage's workers.
        section: Their section of the configuration, for the error.
        nodes: By default those of the joined cluster, which may grow.

    Raises:
        ConfigError: The cluster has no room for the fewest workers.
    """
    may_grow, fewest = nodes is None, workers.fewest
    nodes = node_resources() if nodes is None else nodes
    share = workers.cpus or equal_share(workers.most, workers.gpus, nodes)
    room = sum(places(node, share, workers.gpus) for node in nodes)
    if room < fewest and not (may_grow and _may_grow_to(fewest * share, fewest * workers.gpus)):
        gpus = f" and {workers.gpus:g} GPUs" if workers.gpus else ""
        raise ConfigError(
            f"{section}: {fewest} workers with {share:g} CPUs{gpus} each need more than this "
            f"cluster has: its nodes have room for {room}; lower {section}.num, {section}.cpus"
            + (f" or {section}.gpus" if workers.gpus else "")
        )
    return share


def equal_share(count: int, gpus: float, nodes: Nodes) -> float:
    """The most whole CPUs, one at least, with which so many workers fit, or else most of them.

    Workers with GPUs get a share of the node that they are on, and none for which they would have
    to be spread over more nodes than their GPUs are on.
    """
    shares = {max(1, cpus) for node in nodes for cpus in _whole_shares(node, count, gpus)} or {1}

    def fit(share: int) -> tuple[int, int]:
        return min(count, sum(places(node, share, gpus) for node in nodes)), share

    return float(max(shares, key=fit))


def _whole_shares(node: Mapping[str, float], count: int, gpus: float) -> Sequence[int]:
    """The CPUs that a worker on this node might have."""
    cpus = math.floor(node.get("CPU", 0.0))
    if not gpus:
        return range(1, cpus + 1)
    there = min(count, places(node, 0.0, gpus))
    return [cpus // there] if there else []


def _may_grow_to(cpus: float, gpus: float) -> bool:
    """Return whether an autoscaler may add this much to the cluster."""
    from ray._private.state import state

    most: Mapping[str, float] = state.get_max_resources_from_cluster_config() or {}
    return bool(most) and most.get("CPU", 0) >= cpus and most.get("GPU", 0) >= gpus


def spare_workers(cpus: float, gpus: float) -> tuple[frozenset[str], int]:
    """The nodes that are alive, and how many more workers fit on them."""
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    alive = frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])
    return alive, sum(places(free.get(node, {}), cpus, gpus) for node in alive)


def node_resources() -> list[dict[str, float]]:
    """Total resources of every node that is alive."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def places(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """The number of workers that fit into a node's resources."""
    room = [int(resources.get("CPU", 0.0) // cpus)] if cpus else []
    if gpus:  # what is left of one GPU and of another makes no share
        there = resources.get("GPU", 0.0)
        room += [int(there // gpus) if gpus >= 1 else int(there) * int(1 / gpus + 1e-6)]
    return min(room, default=0)


def check_cluster(config: Config) -> None:
    """Refuse stages that could never be placed on the cluster.

    Raises:
        ConfigError: A stage needs more CPUs or GPUs than there are.
    """
    for section, workers in stage_workers(config).items():
        fit_workers(workers, section)


def stage_workers(config: Config) -> dict[str, WorkersConfig | TrainWorkersConfig]:
    """The workers of the stages that there are, by their section; without variants none train."""
    training = {"train.workers": config.train.workers} if config.variants else {}
    return {**training, "evaluation.workers": config.evaluation.workers}
