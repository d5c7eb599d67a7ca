"""Evaluation of the base model, trained models and other subjects on test prompts and examples."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from paft_ray.config import BASE, EndpointSubject, ModelConfig, VLLMBackend
from paft_ray.config.subjects import COMPARATORS
from paft_ray.evaluation.comparators import add_comparators
from paft_ray.evaluation.grid import GridScores, check_parity, score_grid, score_part
from paft_ray.evaluation.one_prompt import add_under_one
from paft_ray.evaluation.paraphrased import write_paraphrases
from paft_ray.evaluation.units import SERVED, Grid, Subject
from paft_ray.models.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from paft_ray.models.narrow import kept_modules
from paft_ray.models.warm_start import StoredAdapter
from paft_ray.prompts.pool import Origin, PromptPool, training_prompt
from paft_ray.prompts.tested import tested_prompts
from paft_ray.prompts.variation import conditions
from paft_ray.runs.context import RunContext
from paft_ray.runs.subjects import (
    adapter_identity,
    adapters_of,
    endpoint_identity,
    models_of,
)
from paft_ray.storage.paths import Storage, to_json

_TOKENS = "trainable_token_indices"


def evaluate_subjects(
    context: RunContext,
    pool: PromptPool,
    trained: Sequence[Subject],
    own: Mapping[str, str] | None = None,
) -> GridScores:
    """Score the base model where there is one, trained models and `evaluation.subjects`.

    Args:
        context: The run.
        pool: Its prompts.
        trained: The models of its variants.
        own: Label to the prompt of a variant, under which all models are scored besides.

    Raises:
        ConfigError: A subject's adapter is not there any more.
        LLMError: Examples could not be put in other words, or a prompt not be optimised.
    """
    evaluation, seed = context.config.evaluation, context.config.seed
    more, others = subjects_of(context)
    base = [Subject(BASE, seed, "")] * context.config.has_base
    tested = context.task.test[: evaluation.examples]
    ways = conditions(context.task, evaluation.variation, seed, context.task.train)
    rewritten, about = write_paraphrases(context, tested, ways[0])
    grid = Grid(
        [*base, *trained, *more],
        tested_prompts(context, pool),
        tested,
        others,
        [*ways, *rewritten],
    )
    subjects, (prompts, examples) = len(grid.subjects), grid.shape
    parity = None
    if isinstance(evaluation.backend, VLLMBackend):
        with context.screen.stage("compare backends") as stage:
            loaded = [subject for subject in grid.subjects if subject.endpoint is None]
            parity = check_parity(context, replace(grid, subjects=loaded), stage)
    named = "prompts of files" if evaluation.prompt_files else "held-out prompts"
    with context.screen.stage("evaluate") as stage:
        done = f"{subjects} models x {prompts} {named} x {examples} examples"
        if (count := len(grid.conditions)) > 1:
            done = f"{done} x {count} ways to put them"
        if evaluation.estimate is None:
            scores = score_grid(context, grid, stage)
        else:
            scores = score_part(context, grid, evaluation.estimate.share, stage)
            share = scores.table.num_rows / (subjects * prompts * examples)
            done = f"{done}, {share:.0%} of them scored"
        stage.finish(done)
    if own:
        scores = _add_own(context, grid, scores, own)
    scores = add_comparators(context, pool, grid, scores)
    scores = add_under_one(context, pool, grid, scores)
    return replace(scores, parity=parity, paraphrases=about)


def _add_own(
    context: RunContext, grid: Grid, scores: GridScores, own: Mapping[str, str]
) -> GridScores:
    """Score a grid's models under the prompts of some variants too."""
    slots, origin = context.task.slots, Origin(file="trained prompts")
    prompts = {label: training_prompt(text, slots, origin) for label, text in own.items()}
    once = list({prompt.id: prompt for prompt in prompts.values()}.values())
    with context.screen.stage("evaluate trained prompts") as stage:
        plain = [condition for condition in grid.conditions if not condition.axis]
        found = score_grid(context, replace(grid, prompts=once, conditions=plain), stage)
        stage.finish(
            f"{len(grid.subjects)} models x {len(once)} prompts x {len(grid.examples)} examples"
        )
    counts = {label: Counter(asked) for label, asked in scores.endpoints.items()}
    for label, more in found.endpoints.items():
        counts[label].update(more)  # + would drop what is 0
    return replace(
        scores,
        endpoints=counts,
        trained_prompts=prompts,
        under_trained=found.table,
    )


def subjects_of(context: RunContext) -> tuple[list[Subject], list[RunContext]]:
    """`evaluation.subjects`, and contexts of those with another base model than the run's."""
    config, seed = context.config, context.config.seed
    adapters, models = adapters_of(config), models_of(config)
    subjects: list[Subject] = []
    others: list[RunContext] = []
    for subject in config.evaluation.subjects:
        if isinstance(subject, COMPARATORS):
            continue
        if isinstance(subject, EndpointSubject):
            identity = endpoint_identity(subject)
            subjects.append(Subject(subject.label, seed, identity, None, SERVED, subject))
            continue
        adapter = adapters.get(subject.label)
        model = _base_for(adapter, config.model) if adapter else models[subject.label]
        if model is not None:
            others.append(context.of_model(model))
        base = 0 if model is None else len(others)
        weights = adapter and _copy(adapter, context.run_folder)
        identity = adapter_identity(adapter) if adapter else ""
        subjects.append(Subject(subject.label, seed, identity, weights, base))
    return subjects, others


def _base_for(adapter: StoredAdapter, model: ModelConfig) -> ModelConfig | None:
    """A base model of its own for an adapter that cannot lie beside those of the run's variants."""
    peft, own = model.peft or {}, adapter.config
    alike = peft.get("peft_type") == own["peft_type"] and kept_modules(peft) == kept_modules(own)
    # after one with trained tokens peft loads none without
    alike &= not peft.get(_TOKENS) and not own.get(_TOKENS)
    return None if alike else model.model_copy(update={"peft": dict(own)})


def _copy(adapter: StoredAdapter, run: Storage) -> Storage:
    """The adapter's files on storage, where every node reads them, and later runs find them."""
    folder = run.child("subjects", adapter_identity(adapter)[:16])
    folder.write_bytes(ADAPTER_CONFIG, to_json(dict(adapter.config)))
    folder.write_bytes(ADAPTER_WEIGHTS, adapter.weights)
    return folder
