"""The public functions: each takes a whole configuration, checks it, and does one thing.

They need a Ray to run on: one that `ray.init` joined before, or `paft_ray.cluster.session.ray_session`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from paft_ray.config import Config, Training, VariantConfig, total_steps
from paft_ray.models.meta import check_adapters, warm_up
from paft_ray.models.peft_check import complete_peft
from paft_ray.models.warm_start import read_adapter
from paft_ray.pipeline import run as running
from paft_ray.pipeline.preflight import RUN_RECORD, preflight
from paft_ray.pipeline.variants import variant_prompts
from paft_ray.prompts import build
from paft_ray.prompts.pool import PromptPool
from paft_ray.runs.context import RunContext
from paft_ray.runs.progress import Screen, SilentScreen
from paft_ray.storage.paths import Storage
from paft_ray.training.distributed import trainer
from paft_ray.training.distributed.trainer import TrainedAdapter


def open_context(
    config: Config,
    overwrite: bool = False,
    screen: Screen | None = None,
    planning: bool = False,
    test: bool = True,
) -> RunContext:
    """Check everything that can be checked before work, and open the context.

    Args:
        config: What is to be done.
        overwrite: The run's name may belong to another configuration.
        screen: Where a person follows the work; silent by default.
        planning: No worker will run here.
        test: Read test examples; a search opens its context without.

    Raises:
        PaftError: See `preflight`; nothing was written.
    """
    checked = preflight(config, overwrite, planning, test)
    storage = Storage.open(config.storage)
    return RunContext(config, checked.task, storage, screen or SilentScreen(), checked.warnings)


def begin_model_check(
    context: RunContext, overwrite: bool = False, others: Sequence[Config] = ()
) -> None:
    """Begin to check what only transformers and peft can, in a process of its own.

    That is whether the model and its adapter can be built; passed over where the run has begun,
    and so was accepted before. `finish_model_check` waits for it.

    Args:
        context: The run.
        overwrite: The run begins anew.
        others: Configurations whose adapters are tried as well.
    """
    if context.run_folder.exists(RUN_RECORD) and not overwrite:
        context.model_check.begin(warm_up)
        return
    config, warm_start = context.config, context.config.train.warm_start
    pefts: list[Mapping[str, Any] | None] = []
    for each in (config, *others):
        steps = total_steps(each.train, len(context.task.train))
        if (peft := complete_peft(each.model.peft, steps)) not in pefts:
            pefts.append(peft)
    context.model_check.begin(
        check_adapters,
        config.model.path,
        config.model.revision,
        pefts,
        config.seed,
        None if warm_start is None else read_adapter(warm_start),
    )


def finish_model_check(context: RunContext) -> None:
    """Wait for what `begin_model_check` began.

    Raises:
        ConfigError: Model or adapter cannot be built; nothing was written.
    """
    context.model_check.finish()


def check_model(
    context: RunContext, overwrite: bool = False, others: Sequence[Config] = ()
) -> None:
    """Check that the model and its adapter can be built, see `begin_model_check`.

    Raises:
        ConfigError: They cannot; nothing was started or written.
    """
    try:
        begin_model_check(context, overwrite, others)
        finish_model_check(context)
    finally:
        context.model_check.close()


def build_prompt_pool(config: Config) -> PromptPool:
    """Build the prompt pool that the configuration describes, or find it built."""
    return build.build_prompt_pool(open_context(config))


def train(
    config: Config, pool: PromptPool, variant: VariantConfig, seed: int | None = None
) -> TrainedAdapter:
    """Train one variant on a pool, or find it trained; `seed` is the configuration's first."""
    context = open_context(config)
    check_model(context)
    with running.open_run(context):
        training = Training(variant, config.training_seeds[0] if seed is None else seed)
        return trainer.train(context, variant_prompts(context, pool, variant), training, pool)


def evaluate(config: Config) -> dict[str, Any]:
    """Evaluate the base model and all trained variants; returns the content of `summary.json`."""
    return running.evaluate(open_context(config))


def run(config: Config) -> dict[str, Any]:
    """Pool, variants, evaluation, report; returns the content of `summary.json`."""
    context = open_context(config)
    check_model(context)
    return running.run(context)


def tune(config: Config) -> dict[str, Any]:
    """Search the space of `tuning`; returns the content of `search.json`, and `summary`."""
    from paft_ray.tuning.check import check_search
    from paft_ray.tuning.search import search

    context = open_context(config, test=False)
    check_model(context, others=check_search(context))
    return search(context)
