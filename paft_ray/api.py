"""The public functions: each takes a whole configuration, checks it, and does one thing.

They need a Ray to run on: one that `ray.init` joined before, or `paft_ray.cluster.ray_session`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from paft_ray import running
from paft_ray.artifacts import Storage
from paft_ray.comparators import variant_prompts
from paft_ray.config import Config, Training, VariantConfig, total_steps
from paft_ray.modeling.peft_check import complete_peft
from paft_ray.modeling.trial import try_adapters, warm_up
from paft_ray.modeling.warm_start import read_adapter
from paft_ray.preflight import RUN_RECORD, preflight
from paft_ray.prompts import build
from paft_ray.prompts.pool import PromptPool
from paft_ray.screen import Screen, SilentScreen
from paft_ray.session import Session
from paft_ray.training import trainer
from paft_ray.training.trainer import TrainedAdapter


def open_session(
    config: Config,
    overwrite: bool = False,
    screen: Screen | None = None,
    planning: bool = False,
    test: bool = True,
) -> Session:
    """Check everything that can be checked before work, and open the session.

    Args:
        config: What is to be done.
        overwrite: The run's name may belong to another configuration.
        screen: Where a person follows the work; silent by default.
        planning: No worker will run here.
        test: Read test examples; a search opens its session without.

    Raises:
        PaftError: See `preflight`; nothing was written.
    """
    checked = preflight(config, overwrite, planning, test)
    storage = Storage.open(config.storage)
    return Session(config, checked.task, storage, screen or SilentScreen(), checked.warnings)


def begin_trial(session: Session, overwrite: bool = False, others: Sequence[Config] = ()) -> None:
    """Begin to check what only transformers and peft can, in a process of its own.

    That is whether the model and its adapter can be built; passed over where the run has begun,
    and so was accepted before. `finish_trial` waits for it.

    Args:
        session: The run.
        overwrite: The run begins anew.
        others: Configurations whose adapters are tried as well.
    """
    if session.run_folder.exists(RUN_RECORD) and not overwrite:
        session.trial.begin(warm_up)
        return
    config, warm_start = session.config, session.config.train.warm_start
    pefts: list[Mapping[str, Any] | None] = []
    for each in (config, *others):
        steps = total_steps(each.train, len(session.task.train))
        if (peft := complete_peft(each.model.peft, steps)) not in pefts:
            pefts.append(peft)
    session.trial.begin(
        try_adapters,
        config.model.path,
        config.model.revision,
        pefts,
        config.seed,
        None if warm_start is None else read_adapter(warm_start),
    )


def finish_trial(session: Session) -> None:
    """Wait for what `begin_trial` began.

    Raises:
        ConfigError: Model or adapter cannot be built; nothing was written.
    """
    session.trial.finish()


def try_model(session: Session, overwrite: bool = False, others: Sequence[Config] = ()) -> None:
    """Check that the model and its adapter can be built, see `begin_trial`.

    Raises:
        ConfigError: They cannot; nothing was started or written.
    """
    try:
        begin_trial(session, overwrite, others)
        finish_trial(session)
    finally:
        session.trial.close()


def build_prompt_pool(config: Config) -> PromptPool:
    """Build the prompt pool that the configuration describes, or find it built."""
    return build.build_prompt_pool(open_session(config))


def train(
    config: Config, pool: PromptPool, variant: VariantConfig, seed: int | None = None
) -> TrainedAdapter:
    """Train one variant on a pool, or find it trained; `seed` is the configuration's first."""
    session = open_session(config)
    try_model(session)
    with running.claimed(session):
        training = Training(variant, config.training_seeds[0] if seed is None else seed)
        return trainer.train(session, variant_prompts(session, pool, variant), training, pool)


def evaluate(config: Config) -> dict[str, Any]:
    """Evaluate the base model and all trained variants; returns the content of `summary.json`."""
    return running.evaluate(open_session(config))


def run(config: Config) -> dict[str, Any]:
    """Pool, variants, evaluation, report; returns the content of `summary.json`."""
    session = open_session(config)
    try_model(session)
    return running.run(session)


def tune(config: Config) -> dict[str, Any]:
    """Search the space of `tuning`; returns the content of `search.json`, and `summary`."""
    from paft_ray.tuning.check import check_search
    from paft_ray.tuning.search import search

    session = open_session(config, test=False)
    try_model(session, others=check_search(session))
    return search(session)
