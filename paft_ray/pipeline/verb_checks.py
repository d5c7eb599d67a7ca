"""What verbs refuse before anything is written, each by its own check; see `verbs.VERBS`."""

from collections.abc import Sequence

from paft_ray.cluster.access import named_cluster
from paft_ray.config import Config
from paft_ray.config.errors import ConfigError
from paft_ray.pipeline.perform import Options
from paft_ray.pipeline.preflight import fits_this_machine, this_machine
from paft_ray.runs.context import RunContext
from paft_ray.runs.opening import refuse_other_content


def check_run(context: RunContext, options: Options) -> Sequence[Config]:
    """Refuse to train under the name of a further evaluation."""
    if context.config.evaluation.name is not None:
        raise ConfigError(
            f"evaluation.name: {context.config.evaluation.name} is a further evaluation of a run "
            "that is trained: use `paft evaluate`, or leave the name out"
        )
    return ()


def check_train(context: RunContext, options: Options) -> Sequence[Config]:
    """Refuse to train nothing."""
    check_run(context, options)
    if not context.config.variants:
        raise ConfigError("variants: [] trains nothing: name a variant, or run `paft evaluate`")
    return ()


def check_evaluate(context: RunContext, options: Options) -> None:
    """Refuse to evaluate what is not trained, or was made from other data."""
    from paft_ray.pipeline.run import find_all_trained

    find_all_trained(context)
    refuse_other_content(context)


def check_search(context: RunContext, options: Options) -> Sequence[Config]:
    """Check a search's trials, also against this machine; returns their configurations."""
    from paft_ray.tuning import settings
    from paft_ray.tuning.space import trial_configs

    check_run(context, options)
    config, checked = context.config, settings.check_search(context)
    if named_cluster() is None:
        tuning = settings.tuning_of(config)
        settings.fit_trials(config, tuning, trial_configs(config, tuning), [this_machine()])
    return checked


def check_plan(context: RunContext, options: Options) -> Sequence[Config]:
    """What the other verbs would refuse; a plan for larger machines than this one may be made."""
    from paft_ray.tuning import settings

    if context.config.tuning is None:
        return ()
    if fits_this_machine(context.config):
        return check_search(context, options)
    return settings.check_search(context)
