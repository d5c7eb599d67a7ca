"""What verbs refuse before anything is written, each by its own check; see `verbs.VERBS`."""

from collections.abc import Sequence

from paft_ray.cluster.access import named_cluster
from paft_ray.config import Config
from paft_ray.config.errors import ConfigError
from paft_ray.pipeline.perform import Options
from paft_ray.pipeline.preflight import fits_this_machine, this_machine
from paft_ray.runs.context import RunContext
from paft_ray.runs.opening import refuse_other_content
from paft_ray.tasks.example import SplitName


def require_graded(context: RunContext, split: SplitName, instead: str) -> None:
    """Refuse to grade examples of a split that has none; `instead` says what works without.

    Raises:
        ConfigError: There are only rows without an answer.
    """
    task = context.task
    if not task.examples(split):
        raise ConfigError(
            f"task.answer: {task.name} has {len(task.unlabelled)} rows without an answer and no "
            f"{split} rows to grade: {instead}, or add rows with answers (task.test_path holds "
            "test rows)"
        )


def check_run(context: RunContext, options: Options) -> Sequence[Config]:
    """Refuse to train under the name of a further evaluation, or to grade nothing."""
    _refuse_further(context)
    require_graded(context, "test", "use `paft train`")
    return ()


def _refuse_further(context: RunContext) -> None:
    if context.config.evaluation.name is not None:
        raise ConfigError(
            f"evaluation.name: {context.config.evaluation.name} is a further evaluation of a run "
            "that is trained: use `paft evaluate`, or leave the name out"
        )


def check_train(context: RunContext, options: Options) -> Sequence[Config]:
    """Refuse to train nothing."""
    _refuse_further(context)
    if not context.config.variants:
        raise ConfigError("variants: [] trains nothing: name a variant, or run `paft evaluate`")
    return ()


def check_evaluate(context: RunContext, options: Options) -> None:
    """Refuse to evaluate what is not trained, or was made from other data."""
    from paft_ray.pipeline.run import find_all_trained

    require_graded(context, "test", "nothing can be measured")
    find_all_trained(context)
    refuse_other_content(context)


def check_search(context: RunContext, options: Options) -> Sequence[Config]:
    """Check a search's trials, also against this machine; returns their configurations."""
    from paft_ray.tuning import settings
    from paft_ray.tuning.space import trial_configs

    _refuse_further(context)
    require_graded(context, "validation", "use `paft train`")
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
