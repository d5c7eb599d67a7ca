"""Checks of a search before Ray starts, and the number of trials that fit into the cluster."""

import importlib.util
from collections.abc import Sequence

from paft_ray.cluster.resources import (
    Nodes,
    equal_share,
    fit_workers,
    node_resources,
    places,
)
from paft_ray.config import Config, OptunaSearch, TrainWorkersConfig, TuningConfig, total_steps
from paft_ray.config.errors import ConfigError, PaftError
from paft_ray.runs.context import RunContext
from paft_ray.runs.settings import check_settings, refuse_spread_generation
from paft_ray.tasks import Example, Task
from paft_ray.training.paraphrased import drawn
from paft_ray.tuning.space import apply, describe, edge_configs, samples, trial_configs

_CHECKED = 64
"""Random samples that are checked for Optuna, whose own samples are not known yet."""


def tuning_of(config: Config) -> TuningConfig:
    """The search that a configuration describes.

    Raises:
        ConfigError: It describes none.
    """
    if config.tuning is None:
        raise ConfigError("tuning: missing; name at least tuning.space, what is to be searched")
    return config.tuning


def check_search(context: RunContext) -> list[Config]:
    """Check a search before Ray starts and without torch.

    Every edge of every dimension is checked as the configuration of a run is, and so is every
    sample of a random search or a grid; Optuna's depend on figures, so random ones are checked.

    Returns:
        The configurations that were checked.

    Raises:
        ConfigError: The space has an unknown field, or a value or combination that cannot be; or
            Optuna is missing.
    """
    config = context.config
    tuning = tuning_of(config)
    by_optuna = isinstance(tuning.search, OptunaSearch)
    if by_optuna and importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "tuning.search: optuna is not installed: pip install 'paft_ray[optuna]', or use random"
        )
    if config.evaluation.estimate is not None:
        raise ConfigError(
            "evaluation.estimate: a search evaluates its few finalists in full: leave it out"
        )
    if config.evaluation.trained_prompts:
        raise ConfigError(
            "evaluation.trained_prompts: the finalists of a search are trained on pools, and none "
            "on one prompt: leave it out"
        )
    if config.train.validation is not None:
        raise ConfigError(
            "train.validation: a search scores trials by itself (tuning.reports, tuning.goal), and "
            "trains its finalists to the end: leave it out"
        )
    drawn = tuning.model_copy(update={"trials": _CHECKED}) if by_optuna else tuning
    found = [(f"{path} at an edge", trial) for path, trial in edge_configs(config, tuning)]
    found += [(describe(s), apply(config, s)) for s in samples(drawn, config.seed)]
    for what, trial in found:
        try:
            check_settings(trial, context.task)
            _check_trial(trial, config, context.task)
        except PaftError as error:
            raise ConfigError(f"tuning.space ({what}): {error}") from error
    if not any(trial.prompts.split.validation for _, trial in found):
        raise ConfigError(
            "prompts.split.validation: 0, but a search compares by validation prompts: raise it"
        )
    return [trial for _, trial in found]


def _check_trial(trial: Config, config: Config, task: Task) -> None:
    if (trial.model.peft is None) != (config.model.peft is None):
        raise ConfigError(
            "model.peft: training all weights and training an adapter cannot be searched together"
        )
    asked = trial.train.variation.paraphrases
    if asked not in (None, config.train.variation.paraphrases):
        raise ConfigError(
            "train.variation.paraphrases: all trials draw from the same ones, which are written "
            "before: search with them or without (null), and set how outside of tuning.space"
        )
    refuse_spread_generation(trial, task)


def read_by_trials(config: Config, tuning: TuningConfig, task: Task) -> list[Example]:
    """Examples of which no trial and no finalist reads others, whatever is drawn of the space."""
    configs = [config, *trial_configs(config, tuning)]
    objectives = {trial.train.objective.reads_unlabelled: trial.train for trial in configs}
    learned = [task.learned_by(train.objective) for train in objectives.values()]
    steps = max(total_steps(c.train, len(own)) for c in configs for own in learned)
    most = (steps + 1) * max(trial.train.batch_size for trial in configs)  # edges are met together
    seeds = (config.seed, *tuning.final_seeds(config.seed))
    ids = {each.id for own in learned for seed in seeds for each in drawn(own, seed, most)}
    return [example for example in (*task.train, *task.unlabelled) if example.id in ids]


def fit_trials(
    config: Config, tuning: TuningConfig, configs: Sequence[Config], nodes: Nodes | None = None
) -> tuple[float, int]:
    """CPUs of each worker of a trial where none are configured, and how many trials run at a time.

    Counts all resources of the cluster: those in use now will be free soon.

    Args:
        config: Configuration of the search.
        tuning: Its section `tuning`.
        configs: Configurations that its trials may have.
        nodes: By default those of the joined cluster.

    Raises:
        ConfigError: The cluster cannot hold one trial, or not `tuning.concurrency` of them.
    """
    for each in (config, *configs):
        fit_workers(each.train.workers, "train.workers", nodes)  # one trial fits at least
    nodes = node_resources() if nodes is None else nodes
    largest = max(
        (each.train.workers for each in (config, *configs)),
        key=lambda workers: (workers.fewest * (workers.cpus or 1.0), workers.fewest),
    )
    concurrency = tuning.concurrency
    if largest.cpus is not None:
        cpus = largest.cpus
    elif concurrency is None:
        cpus = fit_workers(largest, "train.workers", nodes)
    else:
        cpus = equal_share(concurrency * largest.fewest, largest.gpus, nodes)
    room = _places(cpus, largest, nodes)
    fit = room // largest.fewest
    wanted = concurrency or max(1, fit)
    if wanted > fit:
        gpus = f" and {largest.gpus:g} GPUs" if largest.gpus else ""
        workers = f"{largest.fewest} worker{'s' if largest.fewest > 1 else ''}"
        raise ConfigError(
            f"tuning.concurrency: {wanted} trials with {workers} of {cpus:g} CPUs{gpus} each need "
            f"{wanted * largest.fewest} places, and the cluster has {room}: lower "
            "tuning.concurrency, train.workers.num or train.workers.cpus"
        )
    return cpus, wanted


def _places(cpus: float, workers: TrainWorkersConfig, nodes: Nodes) -> int:
    """The number of workers that the nodes hold together."""
    return sum(places(node, cpus, workers.gpus) for node in nodes)
