"""Endpoints: checks before anything is sent, and what `paft plan` says of those to be measured."""

import importlib.util
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

from paft_ray.cluster.access import named_cluster
from paft_ray.config import Config, Endpoint
from paft_ray.config.errors import ConfigError
from paft_ray.config.subjects import OF_CHOICES
from paft_ray.evaluation.endpoint import Questions
from paft_ray.evaluation.endpoint_runner import kept_requests
from paft_ray.evaluation.units import Grid
from paft_ray.prompts.build import pool_without_work
from paft_ray.prompts.generate.results import cost
from paft_ray.prompts.variation import conditions
from paft_ray.runs.context import RunContext
from paft_ray.runs.subjects import endpoints_of
from paft_ray.tasks import Task

_CHARACTERS_PER_TOKEN = 4
_SECONDS_PER_REQUEST = 2.0
"""Of an endpoint, as a guess."""
_INSTRUCTION = "x" * 150
"""As long as the words of a prompt that is not known yet."""
_SAMPLE = 64


def check_endpoint(field: str, endpoint: Endpoint, driver: bool = False) -> Iterator[str]:
    """Check that an endpoint's client can begin; yields warnings.

    Args:
        field: Its field in the configuration.
        endpoint: Its settings.
        driver: Requests are sent from this process, not from the nodes of a cluster.

    Raises:
        ConfigError: A package or the key is missing.
    """
    if endpoint.type == "openai" and importlib.util.find_spec("openai") is None:
        raise ConfigError(
            f"{field}: endpoints need the package openai, which is not installed: "
            "pip install 'paft_ray[openai]'"
        )
    if endpoint.api_key_env is None:
        return
    if key := os.environ.get(endpoint.api_key_env, "").strip():
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(
                f"{field}.api_key_env: {endpoint.api_key_env} holds characters that an HTTP header "
                "cannot carry; set it to the key alone"
            )
        return
    text = (
        f"{field}.api_key_env: the environment variable {endpoint.api_key_env} is not set; set it "
        f"to the key for {endpoint.base_url}"
    )
    if driver or named_cluster() is None:
        raise ConfigError(text)
    yield f"{text} on every node"


def check_served(config: Config, task: Task) -> Iterator[str]:
    """Check the endpoints of `evaluation.subjects`; yields warnings.

    Raises:
        ConfigError: One cannot be asked, or not about this task.
    """
    for field, subject in endpoints_of(config).items():
        yield from check_endpoint(field, subject.client(1), driver=True)
        made_of = [s.of for s in config.evaluation.subjects if isinstance(s, OF_CHOICES)]
        if subject.choices_by == "text" and subject.label in made_of:
            raise ConfigError(
                f"{field}.choices_by: text, but another subject is made of this one's "
                "log-likelihoods: set choices_by: logprobs, or name another model there"
            )
        if not task.ranks or subject.choices_by == "text":
            continue
        if subject.api == "chat":
            raise ConfigError(
                f"{field}.choices_by: logprobs, but api: chat gives no log-probabilities of "
                "prompts, by which choices are ranked: set choices_by: text, which grades what it "
                "writes, or api: completions where the server gives them (vLLM)"
            )
        if config.task.answer_end == "scored" and subject.end_token is None:
            others = " and those of other models with it" if config.has_base else ""
            yield (
                f"{field}.end_token: none is given, so that its choices are scored without their "
                f"end{others} (task.answer_end: scored)"
            )


def plan_served(context: RunContext) -> list[dict[str, Any]]:
    """Requests, tokens, cost and time of the endpoints to be measured, but for kept answers."""
    config, task = context.config, context.task
    served = endpoints_of(config)
    if not served:
        return []
    evaluation = config.evaluation
    pool = pool_without_work(context)
    examples = task.test[: evaluation.examples]
    ways = conditions(task, evaluation.variation, config.seed, task.train)
    if pool is None:
        unknown = "\n".join((_INSTRUCTION, *(f"{{{slot}}}" for slot in task.slots)))
        count = min(config.prompts.split.test, evaluation.prompts or config.prompts.split.test)
        known, texts = [], [unknown]
    else:
        known = pool.test[: evaluation.prompts]
        count, texts = len(known), [prompt.text for prompt in known]
    share = 1.0 if evaluation.estimate is None else evaluation.estimate.share
    rewritten = evaluation.variation.paraphrases  # about as long as the texts themselves
    times = len(ways) + (0 if rewritten is None else rewritten.per_example)
    pairs = max(count, round(count * len(examples) * share)) * times
    grid = Grid((), known, examples, conditions=ways)
    rows = []
    for subject in served.values():
        questions = Questions.of(context, subject)
        sample = [
            questions.requests(
                questions.asked(("", texts[place % len(texts)]), (), ways[place % len(ways)]),
                example,
            )
            for place, example in enumerate(islice(examples, _SAMPLE))
        ]
        flat = [request for requests in sample for request in requests]
        each = pairs / max(1, len(sample))
        requests = round(each * len(flat))
        kept = sum(1 for _ in kept_requests(questions, grid, context.storage))
        left = max(0, requests - kept) / max(1, requests)
        characters = each * sum(len(text) for request in flat for _, text in request.messages)
        prompt = left * characters / _CHARACTERS_PER_TOKEN
        at_most = round(left * each * sum(request.max_tokens for request in flat))
        completion = min(at_most, subject.budget_tokens or at_most)
        rows.append(
            {
                "subject": subject.label,
                "requests": requests,
                "to_send": max(0, requests - kept),
                "prompt_tokens_about": round(prompt),
                "completion_tokens_at_most": completion,
                "cost_at_most": subject.price and round(cost(subject.price, prompt, completion), 4),
                "minutes_about": round(
                    minutes_about(questions.client, left * requests, prompt + completion), 1
                ),
            }
        )
    return rows


def minutes_about(endpoint: Endpoint, requests: float, tokens: float) -> float:
    """Minutes that requests take, by configured limits, or else by a rule of thumb."""
    by_requests = requests / (endpoint.requests_per_minute or float("inf"))
    by_tokens = tokens / (endpoint.tokens_per_minute or float("inf"))
    by_flight = requests * _SECONDS_PER_REQUEST / endpoint.concurrency / 60
    return max(by_requests, by_tokens, by_flight)
