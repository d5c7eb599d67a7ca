"""The plan of a run: its work and its needs, from the configuration and files alone.

Nothing is sent or written. Not covered: the nodes of a cluster (`plan_cluster`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from paft_ray.config import (
    GRPO,
    BestPromptSubject,
    Config,
    Endpoint,
    FakeLLM,
    LLMConfig,
    Prefix,
    SinglePromptVariant,
    TrainConfig,
    TuningConfig,
    total_steps,
)
from paft_ray.config.errors import ConfigError, PaftError
from paft_ray.config.subjects import COMPARATORS
from paft_ray.models.check_process import ModelCheckProcess
from paft_ray.models.meta import count_weights
from paft_ray.models.peft_check import puts_tokens_before
from paft_ray.pipeline.endpoints import minutes_about, plan_served
from paft_ray.pipeline.gpus import describe_gpu
from paft_ray.pipeline.needs import (
    least_sampling_hours,
    rollouts_of,
    storage_needs,
    worker_needs,
)
from paft_ray.pipeline.trust import trusted_models
from paft_ray.pipeline.written import plan_optimized, plan_paraphrases
from paft_ray.prompts.build import request_book
from paft_ray.prompts.generate.requests import RequestBook
from paft_ray.prompts.generate.results import cost
from paft_ray.prompts.generate.units import is_answered, unit_size
from paft_ray.prompts.tested import tested_count
from paft_ray.prompts.variation import conditions
from paft_ray.runs.context import RunContext
from paft_ray.storage.paths import Storage
from paft_ray.tasks import Example
from paft_ray.training.estimates import ModelSizes
from paft_ray.training.identity import find_trained
from paft_ray.training.paraphrased import read_by_any
from paft_ray.tuning.pools import generation_samples
from paft_ray.tuning.settings import read_by_trials
from paft_ray.tuning.space import count_trials


def describe_plan(context: RunContext) -> dict[str, Any]:
    """Counts of all the work of a run, stage by stage."""
    config, task, trains = context.config, context.task, bool(context.config.trainings)
    steps = total_steps(config.train, len(task.learned_by(config.train.objective)))
    arithmetic = {"train": context.training_dtype} if trains else {}
    plan: dict[str, Any] = {
        "run": config.name,
        "storage": context.storage.path(),
        "task": task.name,
        "examples": {name: len(task.examples(name)) for name in ("train", "validation", "test")},
        "shares": task.rows.shares(),
        "rows": {k: v for k, v in asdict(task.rows).items() if v and k != "sizes"},
        **({"model": config.model.path} if config.has_base else {}),
        **({"python_files_run": trusted} if (trusted := _trusted(config)) else {}),
        **({"adapter": _adapter(config.model.peft)} if trains else {}),
    }
    if config.has_base:
        plan["arithmetic"] = {**arithmetic, "evaluate": context.scoring_dtype}
    if (book := request_book(context)) is not None:
        plan["generation"] = _plan_generation(context.storage, book)
    if trains:
        plan |= _plan_training(context)
    plan |= _plan_workers(config)
    plan["evaluation"] = _plan_evaluation(context)
    if served := plan_served(context):
        plan["endpoints"] = served
    if rewritten := plan_paraphrases(context, "train", _read(context)):
        plan["training_paraphrases"] = rewritten
    tested = task.test[: config.evaluation.examples]
    if rewritten := plan_paraphrases(context, "evaluation", tested):
        plan["paraphrases"] = rewritten
    for subject in config.evaluation.subjects:
        if isinstance(subject, BestPromptSubject):
            plan[f"choose_{subject.label}"] = _plan_selection(context, subject.prompts)
    if optimized := plan_optimized(context):
        plan["optimized_prompts"] = optimized
    if config.tuning is not None:
        plan["search"] = _plan_search(config.tuning, config, steps, len(task.validation))
    return plan


def _read(context: RunContext) -> Sequence[Example]:
    """The training examples that would be put in other words."""
    config, task = context.config, context.task
    if config.train.variation.paraphrases is None:
        return ()
    if config.tuning is not None:
        return read_by_trials(config, config.tuning, task)
    return read_by_any(config, task)


def _plan_training(context: RunContext) -> dict[str, Any]:
    """The choice of a single prompt, the trainings, and their scores on the way."""
    config, task = context.config, context.task
    plan: dict[str, Any] = {}
    if any(isinstance(v, SinglePromptVariant) and v.prompt is None for v in config.variants):
        plan["choose_single_prompt"] = _plan_selection(context, config.evaluation.selection_prompts)
    trainings = config.trainings
    own = {t: config.of_training(t).train for t in trainings}
    steps = {
        t: total_steps(train, len(task.learned_by(train.objective))) for t, train in own.items()
    }
    plan["training"] = {
        config.called(t): "complete"
        if find_trained(context.run_folder, t)
        else f"{steps[t]} steps{_of_objective(own[t], config.train, steps[t])}"
        for t in trainings
    }
    if written := {t.label: w for t in trainings if (w := rollouts_of(context, t))}:
        plan["sampling"] = {
            name: {"tokens_at_most": w.tokens, "passes_of_a_worker_at_most": w.passes}
            for name, w in written.items()
        }
    sequences = {steps[t] * train.batch_size for t, train in own.items()}
    plan["sequences_per_training"] = sequences.pop() if len(sequences) == 1 else sorted(sequences)
    if (scored := config.train.validation) is not None:
        scores = [len(scored.steps(each)) for each in steps.values()]
        count = scored.prompts or config.prompts.split.validation
        examples = min(scored.examples, len(task.validation))
        plan["validation"] = {
            "scores_per_training_at_most": max(scores),
            "prompts": count,
            "examples": examples,
            "answers_at_most": sum(scores) * count * examples,
        }
    return plan


def _of_objective(train: TrainConfig, usual: TrainConfig, steps: int) -> str:
    """How a training learns, where that is its own or it writes texts."""
    objective = train.objective
    if isinstance(objective, GRPO):
        texts = -(-steps // objective.updates) * train.batch_size
        return (
            f" on up to {texts:,} texts of at most {objective.max_new_tokens} tokens that the "
            "model writes itself"
        )
    if isinstance(objective, Prefix):
        texts = steps * train.batch_size
        return f" on the first {objective.tokens} tokens of {texts:,} texts that the model writes"
    return f" by {objective.type}" if objective != usual.objective else ""


def _plan_workers(config: Config) -> dict[str, Any]:
    """How many workers each stage has, and the GPUs of each."""
    workers: dict[str, Any] = {"evaluate": config.evaluation.workers.num}
    gpus = {"evaluate": config.evaluation.workers.gpus}
    if config.trainings:
        own = config.train.workers
        together = own.most if own.fewest == own.most else f"{own.fewest} to {own.most}"
        workers, gpus = {"train": together, **workers}, {"train": own.gpus, **gpus}
    if config.prompts.probe is not None:
        gpus["probe"] = config.prompts.probe.gpus
    shown = {stage: f"{each:g}" for stage, each in gpus.items()}
    return {"workers": workers, **({"gpus_each": shown} if any(gpus.values()) else {})}


def _plan_selection(context: RunContext, prompts: int | None) -> dict[str, Any]:
    """The choice of the best of so many training prompts for a model."""
    examples = context.task.validation[: context.config.evaluation.selection_examples]
    return {"prompts_at_most": prompts or "all", "examples": len(examples)}


def _plan_evaluation(context: RunContext) -> dict[str, Any]:
    config, evaluation = context.config, context.config.evaluation
    prompts = tested_count(context)
    examples = min(len(context.task.test), evaluation.examples or len(context.task.test))
    models = config.has_base + len(config.trainings) + len(evaluation.subjects)
    ways = len(conditions(context.task, evaluation.variation, config.seed, context.task.train))
    if (rewritten := evaluation.variation.paraphrases) is not None:
        ways += rewritten.per_example
    share = 1.0 if evaluation.estimate is None else evaluation.estimate.share
    most = models * ways * max(prompts, round(prompts * examples * share))
    if evaluation.trained_prompts:
        made = sum(isinstance(subject, COMPARATORS) for subject in evaluation.subjects)
        most += (models - made) * len(config.of_one_prompt) * examples
    return {
        "models": models,
        "prompts": prompts,
        "examples": examples,
        "answers": most if examples else 0,
    }


def _adapter(peft: Mapping[str, Any] | None) -> str:
    """The method, and the modules that it adapts."""
    if peft is None:
        return "none, all weights are trained"
    targets = peft.get("target_modules") or "chosen by peft"
    if puts_tokens_before(peft["peft_type"]):
        return peft["peft_type"]
    return f"{peft['peft_type']} on {targets if isinstance(targets, str) else ', '.join(targets)}"


def _trusted(config: Config) -> list[str]:
    """Models whose own Python files run, each with its setting."""
    named = ((f"{path} {commit or ''}".rstrip(), f) for f, path, commit in trusted_models(config))
    return [f"{name} ({field}.trust_remote_code)" for name, field in named]


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """A plan as lines of text, without what is missing on a cluster."""
    lines = []
    for key, value in plan.items():
        if key == "missing":
            continue
        entries = value.items() if isinstance(value, dict) else [("", value)]
        shown = [
            f"{name} {_in_words(row)}".strip()
            for name, entry in entries
            for row in (entry if isinstance(entry, list | tuple) else [entry])
        ]
        lines += [f"{key if place == 0 else '':<22} {text}" for place, text in enumerate(shown)]
    return lines


def _in_words(value: Any) -> str:
    """A value as text: mappings as `name value` pairs without empty values."""
    if isinstance(value, Mapping):
        full = {k: v for k, v in value.items() if v is not None and v != () and v != []}
        return ", ".join(f"{k} {_in_words(v)}" for k, v in full.items())
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value)


def describe_sizes(
    context: RunContext,
    checks: ModelCheckProcess,
    gpu_gb: float | None = None,
    gpu: str | None = None,
) -> dict[str, Any]:
    """Estimates of a worker's memory and of all trainings' storage, in 1e9 bytes.

    The model is built without its weights, which takes some seconds. Where the adapter's size
    depends on weights, `unknown` says so. Where nothing is trained, parameters are counted; it is
    empty without a base model.

    Args:
        context: The run.
        checks: Builds the model.
        gpu_gb: Memory of the smallest GPU that a worker may get, if known; the configuration's
            comes first.
        gpu: Name of the GPUs, if known and all the same.
    """
    config, model = context.config, context.config.model
    if not config.has_base:
        return {}
    try:
        trust = model.trust_remote_code
        checks.begin(count_weights, model.path, model.revision, model.peft, config.seed, trust)
        sizes = ModelSizes(**checks.finish())
    except ConfigError:
        raise
    except PaftError as error:
        return {"unknown": str(error)}
    if not config.trainings:
        return {"parameters": sizes.parameters}
    memory = worker_needs(context, sizes, config.train, model.quantization)
    hours = least_sampling_hours(context, sizes, memory["weights"], gpu)
    return {
        "parameters": sizes.parameters,
        "trainable": sizes.trainable,
        "worker_memory_gb": {
            **{name: round(value / 1e9, 3) for name, value in memory.items()},
            "all": round(memory["all"] / 1e9, 2),
        },
        "storage_gb": round(storage_needs(context, sizes) / 1e9, 3),
        **describe_gpu(context, sizes, config.train.workers.gpu_memory_gb or gpu_gb),
        **({"sampling_hours_of_longest_texts_at_least": hours} if hours else {}),
    }


def _plan_search(
    tuning: TuningConfig, config: Config, steps: int, validation: int
) -> dict[str, Any]:
    """The most work that `paft tune` would do; schedulers stop trials early."""
    prompts = min(config.prompts.split.validation, tuning.prompts or 10**9)
    trials = count_trials(tuning, config.seed)
    return {
        "pools": len(generation_samples(tuning)),
        "trials": trials,
        "steps_at_most": trials * steps,
        "answers_at_most": trials * tuning.reports * prompts * min(tuning.examples, validation),
        "finalist_trainings": min(tuning.finalists, trials) * len(tuning.final_seeds(config.seed)),
    }


_CHARACTERS_PER_TOKEN = 4


def _plan_generation(storage: Storage, book: RequestBook) -> dict[str, Any]:
    """Requests whose answers are not on storage: tokens, cost and time, by LLM and in all."""
    rows = [_plan_llm(storage, book, llm) for llm in range(len(book.config.llms))]
    costs = [row["cost_at_most"] for row in rows if row["cost_at_most"] is not None]
    at_most = sum(row["completion_tokens_at_most"] for row in rows)
    budget = book.config.budget_tokens
    return {
        "requests": sum(row["requests"] for row in rows),
        "to_send": sum(row["to_send"] for row in rows),
        "prompt_tokens_about": sum(row["prompt_tokens_about"] for row in rows),
        "completion_tokens_at_most": at_most if budget is None else min(budget, at_most),
        "cost_at_most": round(sum(costs), 4) if costs else None,
        "minutes_about": max((row["minutes_about"] for row in rows), default=0.0),
        "llms": rows,
    }


def _plan_llm(storage: Storage, book: RequestBook, llm: int) -> dict[str, Any]:
    config = book.config.llms[llm]
    units = book.units(llm, unit_size(config))
    missing = [u for u in units if not is_answered(book, u, storage)]
    count = sum(map(len, missing))
    sample = [request for unit in missing[:2] for request in book.requests(unit)][:64]
    characters = sum(len(text) for request in sample for _, text in request.messages)
    prompt = count * characters / max(1, len(sample)) / _CHARACTERS_PER_TOKEN
    completion = count * (sample[0].max_tokens if sample else 0)
    return {
        "llm": config.label,
        "requests": sum(map(len, units)),
        "to_send": count,
        "prompt_tokens_about": round(prompt),
        "completion_tokens_at_most": completion,
        "cost_at_most": config.price and round(cost(config.price, prompt, completion), 4),
        "minutes_about": round(_minutes(config, count, prompt + completion), 1),
    }


def _minutes(config: LLMConfig, requests: int, tokens: float) -> float:
    """Estimated minutes, by configured limits, or else by a rule of thumb."""
    if isinstance(config, Endpoint):
        return minutes_about(config, requests, tokens)
    if isinstance(config, FakeLLM):
        return requests * config.seconds / 60
    return tokens / config.tokens_per_second / config.actors / 60
