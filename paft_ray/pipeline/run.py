"""A whole run: pool, variants at equal steps, evaluation of the base model and of every variant.

Each stage reuses what is complete and does the rest: the same call finishes a run that was killed,
and only reads the summary of a finished one.
"""

import logging
from collections.abc import Sequence
from typing import Any

from paft_ray.config.errors import ArtifactError, ConfigError
from paft_ray.config.subjects import COMPARATORS
from paft_ray.evaluation.grid import GridScores
from paft_ray.evaluation.subjects import evaluate_subjects
from paft_ray.models.check_process import ModelCheckProcess
from paft_ray.pipeline.variants import prompts_by_variant
from paft_ray.prompts.pool import PromptPool
from paft_ray.prompts.rewrite import asked_for
from paft_ray.report.pool import build_published_pool
from paft_ray.report.results import Results, run_identity, write_results
from paft_ray.runs.context import REWRITTEN, RunContext
from paft_ray.runs.opening import StageClock, open_run
from paft_ray.serving.record import TrainedAdapter
from paft_ray.storage.artifacts import load_manifest
from paft_ray.tracking import send_waiting
from paft_ray.training.distributed.launch import Workers
from paft_ray.training.distributed.trainer import train
from paft_ray.training.identity import find_trained, own_prompts, provenance, subjects
from paft_ray.training.lengths import check_evaluated_lengths, check_lengths
from paft_ray.training.paraphrased import with_paraphrases

logger = logging.getLogger(__name__)


def run(context: RunContext, checks: ModelCheckProcess, overwrite: bool = False) -> dict[str, Any]:
    """Do all stages of a run; returns the content of `summary.json`."""
    with open_run(context, overwrite) as (context, tracker):
        clock = StageClock(context.run_folder)
        with clock.stage("prompt_pool"):
            pool = build_published_pool(context)
            check_lengths(context, pool, checks)
            check_evaluated_lengths(context, pool, checks)
        if asked_for(context, "train") is not None:
            with clock.stage("paraphrase_examples"):
                context = with_paraphrases(context, pool, checks)
        with clock.stage("choose_prompts"):
            prompts = prompts_by_variant(context, pool)
        trained = []
        with Workers(shared=True) as workers:
            for training in context.config.trainings:
                with clock.stage(f"train_{training.label}"):
                    of_variant = prompts[training.label]
                    trained.append(train(context, of_variant, training, pool, workers))
        with clock.stage("evaluation"):
            scores = _evaluate(context, pool, trained)
        results = Results(pool, trained, scores, clock.seconds)
        return write_results(context, results, tracker)


def _evaluate(
    context: RunContext, pool: PromptPool, trained: Sequence[TrainedAdapter]
) -> GridScores:
    """Score the models of a run."""
    own = own_prompts(context.config, trained)
    return evaluate_subjects(context, pool, subjects(context.config.model, trained), own)


def finished_summary(context: RunContext) -> dict[str, Any] | None:
    """The summary of a run that is complete under this configuration; needs no Ray."""
    manifest = load_manifest(context.run_folder, rewritten=REWRITTEN)
    if manifest is None or manifest.fingerprint != run_identity(context):
        return None
    context.screen.line(f"run {context.config.name} is complete, nothing to do")
    send_waiting(context.tracked().tracking)
    return context.run_folder.read_json("summary.json")


def train_all(
    context: RunContext, checks: ModelCheckProcess, overwrite: bool = False
) -> list[TrainedAdapter]:
    """Train every variant with every seed, or find them trained."""
    with open_run(context, overwrite) as (context, _):
        pool = build_published_pool(context)
        check_lengths(context, pool, checks)
        context = with_paraphrases(context, pool, checks)
        prompts = prompts_by_variant(context, pool)
        with Workers(shared=True) as workers:
            return [
                train(context, prompts[t.label], t, pool, workers) for t in context.config.trainings
            ]


def find_all_trained(context: RunContext) -> list[TrainedAdapter]:
    """Every training of this run that is complete; needs no Ray.

    Raises:
        ConfigError: None is complete, and there is nothing else to measure than the base model; or
            another subject is made of one that is not.
    """
    found = [find_trained(context.run_folder, training) for training in context.config.trainings]
    trained = [adapter for adapter in found if adapter is not None]
    config = context.config
    if not trained and config.variants and not config.evaluation.subjects:
        raise ConfigError(
            f"name: run {context.config.name!r} has no trained variant in "
            f"{context.storage.path()}: run `paft train` or `paft run` with it first"
        )
    lacking = {v.label for v in config.variants} - {each.training.label for each in trained}
    if config.evaluation.trained_prompts and set(config.of_one_prompt) <= lacking:
        raise ConfigError(
            f"evaluation.trained_prompts: {', '.join(config.of_one_prompt)} is not trained: run "
            "`paft train` or `paft run` first"
        )
    for index, subject in enumerate(config.evaluation.subjects):
        if isinstance(subject, COMPARATORS) and subject.of in lacking:
            raise ConfigError(
                f"evaluation.subjects.{index}.of: {subject.of} is not trained: run `paft train` or "
                "`paft run` first"
            )
    return trained


def evaluate(
    context: RunContext, checks: ModelCheckProcess, overwrite: bool = False
) -> dict[str, Any]:
    """Evaluate the base model, `evaluation.subjects` and every variant whose training is complete.

    Raises:
        ArtifactError: A variant was trained on other data, prompts or weights.
        ConfigError: No variant of this run is trained.
    """
    trained = find_all_trained(context)
    with open_run(context, overwrite) as (context, tracker):
        clock = StageClock(context.results_folder)
        with clock.stage("prompt_pool"):
            pool = build_published_pool(context)
            check_evaluated_lengths(context, pool, checks)
        for adapter in trained:
            if adapter.record.made_from != provenance(context.identities, pool):
                raise ArtifactError(
                    f"{adapter.folder.path()} was trained on other data, prompts or weights than "
                    "the configuration names now: train again under another name"
                )
        with clock.stage("evaluation"):
            scores = _evaluate(context, pool, trained)
        results = Results(pool, trained, scores, clock.seconds)
        return write_results(context, results, tracker)
