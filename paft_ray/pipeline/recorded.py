"""What is recorded under a run's name, compared with the configuration that is to run."""

from collections.abc import Sequence
from typing import Any

from paft_ray.config import Config
from paft_ray.config.affects import OF_A_RUN, affecting, recorded_fields, result_fields
from paft_ray.config.base import Target
from paft_ray.config.errors import ArtifactError, ConfigError
from paft_ray.config.loading import changed_fields, dump_config, load_recorded
from paft_ray.runs.context import EVALUATIONS
from paft_ray.storage.paths import Storage

RUN_RECORD = "config.json"
"""File of a run's folder that holds its configuration, under the key `config`."""
_OF_TRAINING: tuple[Target, ...] = ("pool", "answers", "examples", "weights")
"""What a further evaluation has to share with its run."""
_SHOWN_CHANGES = 3


def check_recorded(config: Config, storage: Storage) -> None:
    """Refuse a name that belongs to a run with another configuration.

    Raises:
        ConfigError: It does, or the run of a further evaluation is not there.
        ArtifactError: What is recorded cannot be read.
    """
    run, named = storage.child("runs", config.name), config.evaluation.name
    if named is None:
        _compare(config, storage, run, OF_A_RUN)
        return
    if not run.exists(RUN_RECORD):
        raise ConfigError(
            f"evaluation.name: there is no run {config.name!r} in {storage.root}, of which "
            f"{named!r} would be a further evaluation: leave the name out, or name the run"
        )
    _compare(config, storage, run, _OF_TRAINING)
    _compare(config, storage, run.child(EVALUATIONS, named), OF_A_RUN)


def _same_variants(earlier: Config, config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variants that both have, by label, as each says that they are trained."""
    before, after = (
        {variant.label: recorded_fields(variant) for variant in each.variants}
        for each in (earlier, config)
    )
    both = before.keys() & after.keys()
    return {k: before[k] for k in before if k in both}, {k: after[k] for k in after if k in both}


def _compare(config: Config, storage: Storage, run: Storage, targets: Sequence[Target]) -> None:
    """Compare a configuration with the record in a folder, in what affects `targets`."""
    try:
        if not run.exists(RUN_RECORD):
            return
        record = run.read_json(RUN_RECORD)
        recorded = record["config"]
        assert isinstance(recorded, dict)
    except OSError as error:
        raise ConfigError(
            f"storage: {storage.root} cannot be read ({' '.join(str(error).split())}); check the "
            "URI and the credentials"
        ) from error
    except (ArtifactError, KeyError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"name: {run.path(RUN_RECORD)} is no record of a run; choose another name, or pass "
            "--overwrite"
        ) from error
    try:
        earlier = load_recorded(recorded)
        before, after = affecting(earlier, *targets), affecting(config, *targets)
        if targets == _OF_TRAINING:  # the models that it measures are found by their labels
            before["variants"], after["variants"] = _same_variants(earlier, config)
        if earlier.task.answer_end != config.task.answer_end:  # one of them is left out
            before["task"]["answer_end"] = earlier.task.answer_end
            after["task"]["answer_end"] = config.task.answer_end
    except ConfigError:  # it has a field that was removed
        before, after = recorded, dump_config(config)
        if "results_from" in record:
            before, after = record["results_from"], result_fields(config)
    changes = changed_fields(before, after)
    if changes:
        what = f"run {config.name!r}"
        remedy = (
            "give the values again that it was made with, or choose another name; `paft run` "
            "replaces it with --overwrite"
        )
        if targets == _OF_TRAINING:
            remedy = "give a further evaluation what the run was trained with"
        elif config.evaluation.name is not None:
            what = f"evaluation {config.name}/{config.evaluation.name}"
            remedy = "choose another evaluation.name"
        elif all(change.startswith("evaluation.") for change in changes):
            remedy = (
                "keep both by evaluation.name=NAME with `paft evaluate`, or choose another name"
            )
        more = len(changes) - _SHOWN_CHANGES
        text = ", ".join(changes[:_SHOWN_CHANGES]) + (f" and {more} more" if more > 0 else "")
        raise ConfigError(
            f"name: {what} in {storage.root} has another configuration: {text}; {remedy}"
        )
