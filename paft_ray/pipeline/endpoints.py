"""Endpoints: checks before anything is sent, and what `paft plan` says of those to be measured."""

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from paft_ray.cluster.access import named_cluster
from paft_ray.config import (
    BestPromptSubject,
    Config,
    Endpoint,
    EnsembleSubject,
    InferencePromptSubject,
    OptimizedPromptSubject,
)
from paft_ray.config.errors import ConfigError
from paft_ray.config.subjects import COMPARATORS, OF_CHOICES
from paft_ray.evaluation.endpoint import Questions
from paft_ray.evaluation.endpoint_runner import kept_requests
from paft_ray.evaluation.optimized import FOUND, RECORD, search_folder
from paft_ray.evaluation.units import SERVED, Grid, Subject
from paft_ray.prompts.build import pool_without_work
from paft_ray.prompts.generate.results import cost
from paft_ray.prompts.pool import Prompt, PromptPool, training_prompt
from paft_ray.prompts.tested import tested_count, tested_prompts
from paft_ray.prompts.variation import Condition, conditions
from paft_ray.runs.context import RunContext
from paft_ray.runs.subjects import endpoint_identity, endpoints_of
from paft_ray.tasks import Task
from paft_ray.training.identity import find_trained, own_prompts

_CHARACTERS_PER_TOKEN = 4
_SECONDS_PER_REQUEST = 2.0
"""Of an endpoint, as a guess."""
_INSTRUCTION = "x" * 150
"""As long as the words of a prompt that is not known yet."""
_SAMPLE = 64
_OfSeveral = EnsembleSubject | InferencePromptSubject | BestPromptSubject


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


@dataclass(frozen=True, slots=True)
class _Amount:
    """What is asked of an endpoint, kept answers among it."""

    requests: int = 0
    kept: int = 0
    """Requests with a kept answer."""
    characters: float = 0.0
    """Of the messages."""
    tokens: float = 0.0
    """Most that can be written."""

    def __add__(self, other: "_Amount") -> "_Amount":
        """Both together."""
        return _Amount(
            self.requests + other.requests,
            self.kept + other.kept,
            self.characters + other.characters,
            self.tokens + other.tokens,
        )


def plan_served(context: RunContext) -> list[dict[str, Any]]:
    """Requests, tokens, cost and time of the endpoints to be measured, and of what is made of them.

    Kept answers are not sent again. Of a search that is not over none is taken to be kept.
    """
    rows = []
    for subject in endpoints_of(context.config).values():
        questions = Questions.of(context, subject)
        rows.append(_row(questions, subject.label, _held_out(context, questions)))
        for made in context.config.evaluation.subjects:
            if not isinstance(made, COMPARATORS) or made.of != subject.label:
                continue
            if isinstance(made, OptimizedPromptSubject):
                amount = _of_optimized(context, questions, made)
            else:
                amount = _of_several(context, questions, made)
            rows.append(_row(questions, made.label, amount))
    return rows


def _held_out(context: RunContext, questions: Questions) -> _Amount:
    """What is asked under the held-out prompts, and under those that were trained on."""
    evaluation = context.config.evaluation
    examples, ways = context.task.test[: evaluation.examples], _ways(context)
    pool = pool_without_work(context) or PromptPool((), (), ())
    prompts = tested_prompts(context, pool)
    count = len(prompts) or tested_count(context)
    share = 1.0 if evaluation.estimate is None else evaluation.estimate.share
    rewritten = evaluation.variation.paraphrases  # about as long as the texts themselves
    times = len(ways) + (0 if rewritten is None else rewritten.per_example)
    pairs = max(count, round(count * len(examples) * share)) * times
    held_out = _amount(context, questions, Grid((), prompts, examples, conditions=ways), pairs)
    if not evaluation.trained_prompts:
        return held_out
    plain = [way for way in ways if not way.axis]
    own = Grid((), _trained_prompts(context), examples, conditions=plain)
    count = len(context.config.of_one_prompt) * len(plain)
    return held_out + _amount(context, questions, own, count * len(examples))


def _trained_prompts(context: RunContext) -> list[Prompt]:
    """The prompts of variants that were trained on one, as far as they are trained."""
    config = context.config
    found = [find_trained(context.run_folder, training) for training in config.trainings]
    own = own_prompts(config, [each for each in found if each is not None])
    return [training_prompt(text, context.task.slots, FOUND) for text in own.values()]


def _of_several(context: RunContext, questions: Questions, made: _OfSeveral) -> _Amount:
    """What is asked under several training prompts: the test, or what chooses one for it."""
    evaluation, task = context.config.evaluation, context.task
    examples, ways = task.test[: evaluation.examples], _ways(context)[:1]
    pool = pool_without_work(context)
    prompts = [] if pool is None else pool.train[: made.prompts]
    count = made.prompts if pool is None else len(prompts)
    grid = Grid((), prompts, examples, conditions=ways)
    if not isinstance(made, BestPromptSubject):
        return _amount(context, questions, grid, count * len(examples))
    among = replace(grid, examples=task.validation[: evaluation.selection_examples])
    asked = _amount(context, questions, among, count * len(among.examples))
    # which one is chosen is not known here: that of which most is kept
    each = [replace(grid, prompts=[prompt]) for prompt in prompts] or [grid]
    under_one = [_amount(context, questions, one, len(examples)) for one in each]
    return asked + max(under_one, key=lambda amount: amount.kept)


def _of_optimized(
    context: RunContext, questions: Questions, made: OptimizedPromptSubject
) -> _Amount:
    """What is asked to find a prompt, and under it."""
    examples = context.task.test[: context.config.evaluation.examples]
    subject, pool, ways = questions.subject, pool_without_work(context), _ways(context)[:1]
    searched = Grid((), [], context.task.validation, conditions=ways)
    asked = Grid((), [], examples, conditions=ways)
    record: dict[str, Any] | None = None
    if pool is not None and pool.train:
        one = Subject(subject.label, context.config.seed, endpoint_identity(subject), base=SERVED)
        folder = search_folder(context, pool, searched, one, made)
        record = folder.read_json(RECORD) if folder.exists(RECORD) else None
    if record is None:
        search = _amount(context, questions, searched, made.budget)
    else:
        search = _amount(context, questions, searched, record["pairs"])
        search = replace(search, kept=search.requests)
        asked = replace(
            asked, prompts=[training_prompt(record["prompt"], context.task.slots, FOUND)]
        )
    return search + _amount(context, questions, asked, len(examples))


def _ways(context: RunContext) -> list[Condition]:
    task, config = context.task, context.config
    return conditions(task, config.evaluation.variation, config.seed, task.train)


def _amount(context: RunContext, questions: Questions, grid: Grid, pairs: int) -> _Amount:
    """What is asked for so many pairs of a grid, by a sample; its prompts may be unknown yet."""
    unknown = "\n".join((_INSTRUCTION, *(f"{{{slot}}}" for slot in context.task.slots)))
    texts, ways = [prompt.text for prompt in grid.prompts] or [unknown], grid.conditions
    sample = [
        questions.requests(
            questions.asked(("", texts[place % len(texts)]), (), ways[place % len(ways)]), example
        )
        for place, example in enumerate(islice(grid.examples, _SAMPLE))
    ]
    flat = [request for requests in sample for request in requests]
    each = pairs / max(1, len(sample))
    return _Amount(
        round(each * len(flat)),
        sum(1 for _ in kept_requests(questions, grid, context.storage)),
        each * sum(len(text) for request in flat for _, text in request.messages),
        each * sum(request.max_tokens for request in flat),
    )


def _row(questions: Questions, label: str, amount: _Amount) -> dict[str, Any]:
    subject = questions.subject
    to_send = max(0, amount.requests - amount.kept)
    left = to_send / max(1, amount.requests)
    prompt = left * amount.characters / _CHARACTERS_PER_TOKEN
    at_most = round(left * amount.tokens)
    completion = min(at_most, subject.budget_tokens or at_most)
    minutes = minutes_about(questions.client, left * amount.requests, prompt + completion)
    return {
        "subject": label,
        "requests": amount.requests,
        "to_send": to_send,
        "prompt_tokens_about": round(prompt),
        "completion_tokens_at_most": completion,
        "cost_at_most": subject.price and round(cost(subject.price, prompt, completion), 4),
        "minutes_about": round(minutes, 1),
    }


def minutes_about(endpoint: Endpoint, requests: float, tokens: float) -> float:
    """Minutes that requests take, by configured limits, or else by a rule of thumb."""
    by_requests = requests / (endpoint.requests_per_minute or float("inf"))
    by_tokens = tokens / (endpoint.tokens_per_minute or float("inf"))
    by_flight = requests * _SECONDS_PER_REQUEST / endpoint.concurrency / 60
    return max(by_requests, by_tokens, by_flight)
