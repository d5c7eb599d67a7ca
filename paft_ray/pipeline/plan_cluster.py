"""The plan of a run on a cluster: the nodes, the needs of the stages, and what is missing."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from paft_ray.cluster.resources import Nodes, fit_workers, places, stage_workers
from paft_ray.config import TrainWorkersConfig, WorkersConfig
from paft_ray.config.errors import ConfigError
from paft_ray.pipeline.nodes import Node
from paft_ray.runs.context import RunContext
from paft_ray.tuning.settings import fit_trials, tuning_of
from paft_ray.tuning.space import trial_configs

_ESTIMATE_FACTOR = 1.5
"""Estimates of memory are right within this factor."""


def describe_cluster(
    context: RunContext, nodes: Sequence[Node], sizes: Mapping[str, Any]
) -> dict[str, Any]:
    """Resources of the joined cluster's nodes, needs of the stages, and what is missing.

    `nodes` come from `survey`, `sizes` from `describe_sizes`.
    """
    config = context.config
    missing = [f"{node}: {text}" for node in nodes for text in (*node.missing, *node.notes)]
    stages: dict[str, Any] = {}
    for field, workers in stage_workers(config).items():
        try:
            stages[field] = _stage(workers, fit_workers(workers, field), nodes)
        except ConfigError as error:
            missing.append(str(error))
    for field, llm in config.llms.items():
        actors, cpus, gpus = llm.actor_pool
        if cpus < 1 and not gpus:  # a client, which fits anywhere
            continue
        room = sum(_places(nodes, cpus, gpus))
        stages[field] = {
            "workers": actors, "cpus_each": cpus, "gpus_each": gpus, "places": room,
        }  # fmt: skip
        if room == 0:
            missing.append(
                f"{field}: no node has room for an actor of {cpus:g} CPUs and {gpus:g} GPUs: "
                "give it less, or add a node"
            )
    if "train.workers" in stages and config.tuning is not None:
        each = [{"CPU": node.cpus, "GPU": node.gpus} for node in nodes]
        missing += _search_misplaced(context, each)
    if (stage := stages.get("train.workers")) and (memory := sizes.get("worker_memory_gb")):
        missing += _short_of_memory(config.train.workers, stage["on_one_node"], memory, nodes)
    hidden = ("id", "missing", "notes")
    return {
        "nodes": [{k: v for k, v in asdict(node).items() if k not in hidden} for node in nodes],
        "stages": stages,
        "missing": missing,
    }


def _search_misplaced(context: RunContext, nodes: Nodes) -> list[str]:
    """Why the trials of the search cannot be placed on these nodes, if they cannot."""
    config, tuning = context.config, tuning_of(context.config)
    try:
        fit_trials(config, tuning, trial_configs(config, tuning), nodes)
    except ConfigError as error:
        return [str(error)]
    return []


def _places(nodes: Sequence[Node], cpus: float, gpus: float) -> list[int]:
    """The number of workers that each node holds."""
    return [places({"CPU": node.cpus, "GPU": node.gpus}, cpus, gpus) for node in nodes]


def _stage(
    workers: TrainWorkersConfig | WorkersConfig, cpus: float, nodes: Sequence[Node]
) -> dict[str, Any]:
    """Number and size of a stage's workers, and how many the nodes hold."""
    fit = _places(nodes, cpus, workers.gpus)
    return {
        "workers": workers.most,
        "cpus_each": cpus,
        "gpus_each": workers.gpus,
        "places": sum(fit),
        "on_one_node": min(workers.most, max(fit, default=0)),
    }


def _short_of_memory(
    workers: TrainWorkersConfig, together: int, memory: Mapping[str, float], nodes: Sequence[Node]
) -> list[str]:
    """Nodes whose memory, or that of their GPUs, is too small even if the estimate is too high."""
    surely = memory["all"] / _ESTIMATE_FACTOR
    if workers.gpus:
        return [
            f"{node}: a worker of about {memory['all']:.1f} GB needs more than its GPUs of "
            f"{node.gpu_memory_gb:.1f} GB: see sizes, or set train.workers.gpu_memory_gb"
            for node in nodes
            if node.gpus and node.gpu_memory_gb and node.gpu_memory_gb < surely
        ]
    return [
        f"{node}: {together} workers of about {memory['all']:.1f} GB "
        f"each need more than its {node.memory_gb:.1f} GB: fewer workers on a node (more "
        "train.workers.cpus each), a smaller train.row_tokens, or a larger node"
        for node in nodes
        if node.cpus and node.memory_gb < surely * together
    ]
