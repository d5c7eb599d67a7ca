"""A whole run: pool, variants at equal steps, evaluation of the base model and of every variant.

Each stage finds what is complete and does the rest, so a run that was killed is finished by
calling it again, and a finished one only reads its summary.
"""

import json
import logging
from typing import Any

from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import result_fields
from paft_ray.evaluation.subjects import evaluate_models
from paft_ray.pipeline.variants import prompts_by_variant
from paft_ray.prompts.build import build_prompt_pool, pool_fingerprint
from paft_ray.prompts.pool import POOL_FILE, PromptPool
from paft_ray.report import POOL_PAGE, write_pool_page
from paft_ray.report.results import write_results
from paft_ray.runs.context import RUN_KEY, RunContext
from paft_ray.runs.opening import StageClock, open_run
from paft_ray.storage.artifacts import load_manifest
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.paths import to_json
from paft_ray.tasks.example import SPLITS
from paft_ray.tracking import (
    open_tracker,
    pool_version,
    replay,
)
from paft_ray.training.distributed.trainer import TrainedAdapter, find_trained, provenance, train
from paft_ray.training.lengths import check_lengths

logger = logging.getLogger(__name__)


def run(context: RunContext, overwrite: bool = False) -> dict[str, Any]:
    """Do all stages, or read the summary of a run that is complete.

    Returns:
        The content of `summary.json`.
    """
    if not overwrite and (summary := finished_summary(context)) is not None:
        return summary
    with open_run(context, overwrite) as tracker:
        clock = StageClock(context.run_folder)
        with clock.stage("prompt_pool"):
            pool = prepare_pool(context)
            check_lengths(context, pool)
        with clock.stage("choose_prompts"):
            prompts = prompts_by_variant(context, pool)
        trained = []
        for training in context.config.trainings:
            with clock.stage(f"train_{training.label}"):
                trained.append(train(context, prompts[training.label], training, pool))
        with clock.stage("evaluation"):
            scores = evaluate_models(context, pool, trained)
        return write_results(context, pool, trained, scores, clock.seconds, tracker)


def finished_summary(context: RunContext) -> dict[str, Any] | None:
    """The summary of a run that is complete under this configuration; needs no Ray."""
    manifest = load_manifest(context.run_folder)
    if manifest is None or manifest.fingerprint != _identity(context):
        return None
    context.screen.line(f"run {context.config.name} is complete, nothing to do")
    replay(context.tracking)
    return context.run_folder.read_json("summary.json")


def _identity(context: RunContext) -> str:
    """Configuration and content: files behind the same paths may have changed."""
    content = [context.task_identity, context.model_identity, pool_fingerprint(context)]
    return fingerprint("run", result_fields(context.config), content)


def prepare_pool(context: RunContext) -> PromptPool:
    """Build the pool or find it built, write its page, and record both.

    In MLflow the pool is a table of a run of its own, and a version in the registry, which the
    trainings name.
    """
    pool = build_prompt_pool(context)
    folder = context.storage.child("pools", pool_fingerprint(context))
    if not folder.exists(POOL_PAGE):
        write_pool_page(folder)
    name, alias = pool_version(context.task.name, pool.fingerprint)
    tags = {"paft.pool": f"models:/{name}@{alias}"}
    tracker = open_tracker(
        context.tracking, f"pool/{pool.fingerprint}", f"{context.config.name}/pool", RUN_KEY, tags
    )
    rows = [
        [prompt.id, prompt.split, prompt.text, prompt.cluster, prompt.origin.llm or ""]
        for split in SPLITS
        for prompt in pool.prompts(split)
    ]
    table = {"columns": ["prompt_id", "split", "text", "cluster", "llm"], "data": rows}
    tracker.log_artifact("pool/pool.json", to_json(table))
    for file in (POOL_FILE, POOL_PAGE):
        tracker.log_artifact(f"pool/{file}", folder.path(file))
    shown = [{"path": "pool/pool.json", "type": "table"}]
    tracker.set_tags({"mlflow.loggedArtifacts": json.dumps(shown)})
    tracker.register(name, alias, "pool")
    tracker.finish("FINISHED")
    return pool


def train_all(context: RunContext, pool: PromptPool) -> list[TrainedAdapter]:
    """Train every variant with every seed, or find them trained."""
    prompts = prompts_by_variant(context, pool)
    return [train(context, prompts[t.label], t, pool) for t in context.config.trainings]


def find_all_trained(context: RunContext) -> list[TrainedAdapter]:
    """Every training of this run that is complete; needs no Ray.

    Raises:
        ConfigError: None is.
    """
    trained = [
        adapter
        for training in context.config.trainings
        if (adapter := find_trained(context, training)) is not None
    ]
    if not trained:
        raise ConfigError(
            f"name: run {context.config.name!r} has no trained variant in "
            f"{context.storage.path()}: run `paft train` or `paft run` with it first"
        )
    return trained


def evaluate(context: RunContext) -> dict[str, Any]:
    """Evaluate the base model and every variant whose training is complete.

    Raises:
        ConfigError: No variant of this run is trained.
    """
    trained = find_all_trained(context)
    with open_run(context) as tracker:
        clock = StageClock(context.run_folder)
        with clock.stage("prompt_pool"):
            pool = prepare_pool(context)
        for adapter in trained:
            if adapter.about.get("made_from") != provenance(context, pool):
                raise ConfigError(
                    f"{adapter.folder.path()} was trained on other data, prompts or weights than "
                    "the configuration names now: train again under another name"
                )
        with clock.stage("evaluation"):
            scores = evaluate_models(context, pool, trained)
        return write_results(context, pool, trained, scores, clock.seconds, tracker)
