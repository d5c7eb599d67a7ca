"""What a run would do, from its configuration and the files alone: nothing is sent or written."""

from typing import Any

from paft_ray.config import (
    Config,
    FakeLLM,
    LLMConfig,
    OpenAILLM,
    SinglePromptVariant,
    TuningConfig,
    total_steps,
)
from paft_ray.prompts.asking import cost, is_answered, unit_size
from paft_ray.prompts.build import request_book
from paft_ray.prompts.generation import RequestBook
from paft_ray.prompts.llm import llm_label
from paft_ray.session import Session
from paft_ray.training.trainer import find_trained
from paft_ray.tuning.pools import generation_samples
from paft_ray.tuning.tuner import count_trials


def describe_plan(session: Session) -> dict[str, Any]:
    """Counts of everything that a run would do, in the order of its stages."""
    config, task = session.config, session.task
    prompts, evaluation, train = config.prompts, config.evaluation, config.train
    steps = total_steps(train, len(task.train))
    plan: dict[str, Any] = {
        "run": config.name,
        "storage": session.storage.path(),
        "task": task.name,
        "examples": {name: len(task.examples(name)) for name in ("train", "validation", "test")},
        "model": config.model.path,
        "arithmetic": {"train": session.training_dtype, "evaluate": session.scoring_dtype},
    }
    if (book := request_book(session)) is not None:
        plan["generation"] = _plan_generation(session, book)
    selecting = any(
        isinstance(variant, SinglePromptVariant) and variant.prompt is None
        for variant in config.variants
    )
    if selecting:
        plan["choose_single_prompt"] = {
            "prompts_at_most": evaluation.selection_prompts,
            "examples": min(evaluation.selection_examples, len(task.validation)),
        }
    trainings = config.trainings
    plan["training"] = {
        config.called(t): "complete" if find_trained(session, t) else f"{steps} steps"
        for t in trainings
    }
    plan["sequences_per_training"] = steps * train.batch_size
    plan["workers"] = {"train": train.workers.num, "evaluate": evaluation.workers.num}
    test_prompts = min(prompts.split.test, evaluation.prompts or prompts.split.test)
    test_examples = min(len(task.test), evaluation.examples or len(task.test))
    models = 1 + len(trainings)
    share = 1.0 if evaluation.estimate is None else evaluation.estimate.share
    plan["evaluation"] = {
        "models": models,
        "prompts": test_prompts,
        "examples": test_examples,
        "answers": round(models * test_prompts * test_examples * share),
    }
    if config.tuning is not None:
        plan["search"] = _plan_search(config.tuning, config, steps, len(task.validation))
    return plan


def _plan_search(
    tuning: TuningConfig, config: Config, steps: int, validation: int
) -> dict[str, Any]:
    """What `paft tune` would do at most: schedulers stop trials early."""
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
_TOKENS_PER_SECOND = {"transformers": 70.0, "vllm": 2000.0}
"""What one CPU makes of a 135M model in batches, or one GPU of a model of some billions."""
_SECONDS_PER_REQUEST = 2.0
"""Of an endpoint, where nothing else is known."""


def _plan_generation(session: Session, book: RequestBook) -> dict[str, Any]:
    """What is not on storage yet: requests, tokens, cost and time, by LLM and in all."""
    rows = [_plan_llm(session, book, llm) for llm in range(len(book.config.llms))]
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


def _plan_llm(session: Session, book: RequestBook, llm: int) -> dict[str, Any]:
    config = book.config.llms[llm]
    units = book.units(llm, unit_size(config))
    missing = [u for u in units if not is_answered(book, u, session.storage)]
    count = sum(map(len, missing))
    sample = [request for unit in missing[:2] for request in book.requests(unit)][:64]
    characters = sum(len(text) for request in sample for _, text in request.messages)
    prompt = count * characters / max(1, len(sample)) / _CHARACTERS_PER_TOKEN
    completion = count * (sample[0].max_tokens if sample else 0)
    return {
        "llm": llm_label(config),
        "requests": sum(map(len, units)),
        "to_send": count,
        "prompt_tokens_about": round(prompt),
        "completion_tokens_at_most": completion,
        "cost_at_most": config.price and round(cost(config.price, prompt, completion), 4),
        "minutes_about": round(_minutes(config, count, prompt + completion), 1),
    }


def _minutes(config: LLMConfig, requests: int, tokens: float) -> float:
    """By the limits that are given; else by a rule of thumb, which says no more than the order."""
    if isinstance(config, OpenAILLM):
        by_requests = requests / (config.requests_per_minute or float("inf"))
        by_tokens = tokens / (config.tokens_per_minute or float("inf"))
        by_flight = requests * _SECONDS_PER_REQUEST / config.concurrency / 60
        return max(by_requests, by_tokens, by_flight)
    if isinstance(config, FakeLLM):
        return requests * config.seconds / 60
    return tokens / _TOKENS_PER_SECOND[config.type] / config.actors / 60
