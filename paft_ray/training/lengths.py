"""Refusal of what is too long or unknown to the model, before a training or an evaluation begins.

Every example is put as it will be: under its prompt, with demonstrations and slips. What training
draws at each step follows from the step, so that the longest of it is known before.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace

from paft_ray.config import Config, SinglePromptVariant, total_steps
from paft_ray.config.subjects import OF_SEVERAL, BestPromptSubject, OptimizedPromptSubject
from paft_ray.models.base_model import BaseSource, is_prepared, locate_base
from paft_ray.models.check_process import ModelCheckProcess
from paft_ray.models.meta import LONGEST, check_texts, longest, refuse_overlong, token_lengths
from paft_ray.models.tokenization import Question, TextEncoder
from paft_ray.prompts.build import pool_without_work
from paft_ray.prompts.given import given_prompt
from paft_ray.prompts.pool import Prompt, PromptPool
from paft_ray.prompts.template import parse
from paft_ray.prompts.tested import tested_prompts
from paft_ray.prompts.variation import NOISE, PLAIN, Condition, Put, Varying, conditions, put
from paft_ray.runs.context import RunContext
from paft_ray.runs.subjects import models_of
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.tasks import Example, Task
from paft_ray.tasks.demonstrations import demonstration_pool
from paft_ray.training.sampler import Places, example_index
from paft_ray.training.validation import held_out

_LONGEST_NOISY = 64
"""The longest examples that are looked at where slips add tokens at random."""
_MOST_DRAWS = 100_000
"""Positions of a training that are looked at; of a longer one the longest that could be drawn."""


@dataclass(frozen=True, slots=True)
class _Texts:
    """Examples, the prompts that they are put through, and how."""

    prompts: Sequence[tuple[str, str]]
    """Names and texts."""
    examples: Sequence[Example]
    conditions: Sequence[Condition] = (PLAIN,)
    seed: int = 0
    """Of what conditions draw."""
    drawn: "_Drawn | None" = None
    """What training varies at each step, instead of conditions."""

    def identity(self, *limits: object) -> str:
        """A fingerprint of all that decides whether they fit."""
        return fingerprint(
            "lengths",
            [[*self.prompts], [example.id for example in self.examples]],
            *limits,
            [self.seed, *(condition.identity for condition in self.conditions)],
            None if self.drawn is None else self.drawn.identity,
        )


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What a training draws, and where."""

    varying: Varying
    places: Places
    """Of no steps where these are not known yet."""
    texts: str = ""
    """Fingerprint of the paraphrases that are drawn from."""

    @property
    def identity(self) -> list[object]:
        """All that decides what is drawn of known examples."""
        varying = self.varying
        return [varying.variation.model_dump(), varying.seed, astuple(self.places), self.texts]


def check_lengths(
    context: RunContext,
    pool: PromptPool,
    checks: ModelCheckProcess,
    validation: tuple[Sequence[Prompt], Sequence[Example]] | None = None,
) -> None:
    """Refuse examples that do not fit `task.max_length` under training or held-out prompts.

    Prompts that LLMs wrote may also hold tokens for which the base model has no row.

    Args:
        context: The run.
        pool: Its prompts.
        checks: Process that tokenises texts; closed afterwards, which frees its memory.
        validation: Prompts and examples of scores on the way; by default `train.validation`'s.

    Raises:
        ConfigError: A prompt has a token that the base model does not know.
        DataError: An example is too long, and `task.overlong` is `refuse` or it cannot be cut.
    """
    config, task = context.config, context.task
    validation = validation or held_out(config, pool, task)
    if checks.unknown_tokens:
        texts = [prompt.text for prompt in (*pool.train, *pool.test, *validation[0])]
        checks.begin(check_texts, config, checks.unknown_tokens, texts)
        checks.finish()
    texts = [
        *_trained(context, [*_named(pool.train), *_given(context, pool)]),
        *_evaluated(context, pool),
        _Texts(_named(validation[0]), validation[1]),
    ]
    if _chooses(config):
        texts.append(_among(context, pool, config.evaluation.selection_prompts))
    _check(context, checks, texts)


def check_evaluated_lengths(
    context: RunContext, pool: PromptPool, checks: ModelCheckProcess, prepared_only: bool = False
) -> None:
    """Refuse test examples that are too long, also for the tokenizers of `evaluation.subjects`.

    Args:
        context: The run.
        pool: Its prompts.
        checks: Process that tokenises texts; closed afterwards.
        prepared_only: Leave out GGUF files that have to be converted first.

    Raises:
        DataError: See `check_lengths`.
    """
    for model in (None, *models_of(context.config).values()):
        own = context if model is None else context.of_model(model)
        if not prepared_only or is_prepared(own.config.model.path, context.storage):
            _check(own, checks, _evaluated(context, pool))


def check_lengths_early(
    context: RunContext, checks: ModelCheckProcess, whole: bool, trains: bool = True
) -> None:
    """Refuse what is known to be too long before Ray starts.

    Where the pool is known without work, that is all of `check_lengths`; else it is examples that
    fit under no prompt. Nothing is written: a GGUF file that has to be converted first is not read.

    Args:
        context: The run.
        checks: Process that tokenises texts.
        whole: The work is a run with one pool, not a search.
        trains: The work may train, and does not only evaluate.

    Raises:
        DataError: See `check_lengths`.
    """
    config, task = context.config, context.task
    if not is_prepared(config.model.path, context.storage):
        return
    pool = pool_without_work(context) if whole else None
    if pool is not None:
        if trains:
            check_lengths(context, pool, checks)
        else:
            check_evaluated_lengths(context, pool, checks, prepared_only=True)
        return
    shortest = [("that is as short as can be", " ".join(f"{{{slot}}}" for slot in task.slots))]
    asked = _Texts(shortest, task.test[: config.evaluation.examples], _ways(context), config.seed)
    _check(context, checks, [*(_trained(context, shortest) if trains else ()), asked])


def _named(prompts: Sequence[Prompt]) -> list[tuple[str, str]]:
    return [(prompt.id, prompt.text) for prompt in prompts]


def _ways(context: RunContext) -> list[Condition]:
    """The conditions of an evaluation; where levels are drawn, slips after all demonstrations."""
    config, task = context.config, context.task
    found = conditions(task, config.evaluation.variation, config.seed, task.train)
    if config.evaluation.variation.design == "separate":
        return found
    draws = [each for each in found if not each.axis]
    noisy = [each for each in found if each.axis == NOISE]
    return [
        *(each for each in found if not each.crossed),
        *(replace(a, demonstrations=b.demonstrations) for a in noisy for b in draws[1:]),
    ]


def _evaluated(context: RunContext, pool: PromptPool) -> list[_Texts]:
    """What an evaluation asks: test prompts, and training prompts of which comparators are made."""
    evaluation, seed = context.config.evaluation, context.config.seed
    examples, ways = context.task.test[: evaluation.examples], _ways(context)
    found = [_Texts(_named(tested_prompts(context, pool)), examples, ways, seed)]
    if several := [s.prompts for s in evaluation.subjects if isinstance(s, OF_SEVERAL)]:
        found.append(_Texts(_named(pool.train[: max(several)]), examples, ways[:1], seed))
    if any(isinstance(s, OptimizedPromptSubject) for s in evaluation.subjects):
        found.append(_Texts(_named(pool.train[:1]), context.task.validation, ways[:1], seed))
    if evaluation.trained_prompts:
        chosen = pool.train[: evaluation.selection_prompts] if _chooses(context.config) else ()
        plain = [way for way in ways if not way.axis]
        found.append(_Texts([*_named(chosen), *_given(context, pool)], examples, plain, seed))
    for best in (s for s in evaluation.subjects if isinstance(s, BestPromptSubject)):
        found.append(replace(_among(context, pool, best.prompts), conditions=ways[:1], seed=seed))
    return found


def _chooses(config: Config) -> bool:
    return any(isinstance(v, SinglePromptVariant) and v.prompt is None for v in config.variants)


def _given(context: RunContext, pool: PromptPool) -> list[tuple[str, str]]:
    """Labels of variants whose prompt a person gave, and that prompt's text."""
    given = ((v.label, given_prompt(v, context, pool)) for v in context.config.variants)
    return [(label, prompt.text) for label, prompt in given if prompt is not None]


def _among(context: RunContext, pool: PromptPool, prompts: int | None) -> _Texts:
    """What is asked to choose the best of so many training prompts for a model."""
    examples = context.task.validation[: context.config.evaluation.selection_examples]
    return _Texts(_named(pool.train[:prompts]), examples)


def _trained(context: RunContext, prompts: Sequence[tuple[str, str]]) -> list[_Texts]:
    """What trainings read: each draws for itself, by its seed and its steps.

    Paraphrases are looked at once they are written.
    """
    config, task, stored = context.config, context.task, context.paraphrases
    variation = config.train.variation
    if variation.is_off or not config.variants:
        return [_Texts(prompts, (*task.train, *task.unlabelled))]
    shown = variation.demonstrations
    pool = () if shown is None else demonstration_pool(task, shown, task.train)
    other, texts = (None, "") if stored is None else (stored.open(), stored.identity)
    known = config.tuning is None  # trials may have other steps
    found: dict[tuple[int, Places, int], _Texts] = {}
    for training in config.trainings:
        train, seed = config.of_training(training).train, training.seed
        learned = task.learned_by(train.objective)
        places = Places.of(train, total_steps(train, len(learned)) if known else 0)
        varying = Varying(task.without_examples(), variation, seed, pool, other)
        drawn = _Drawn(varying, places, texts)
        found[seed, places, len(learned)] = _Texts(prompts, learned, drawn=drawn)
    return list(found.values())


def _check(context: RunContext, checks: ModelCheckProcess, texts: Sequence[_Texts]) -> None:
    config = context.config
    model = config.model.model_dump(exclude={"peft"})
    limits = (config.task.max_length, config.task.overlong, config.task.answer_end, model)
    try:
        wanted = {each.identity(*limits): each for each in texts if each.prompts and each.examples}
        missing = {key: each for key, each in wanted.items() if key not in checks.passed}
        if not missing or not config.has_base:
            return
        base = locate_base(config.model.path, config.model.revision, context.storage)
        task = context.task.without_examples()
        checks.begin(_read_longest, config, base, task, list(missing.values()))
        checks.finish()
        checks.passed.update(missing)
    finally:
        checks.close()


def _read_longest(config: Config, base: BaseSource, task: Task, texts: Sequence[_Texts]) -> None:
    """Check lengths, in the process of model checks."""
    from paft_ray.models.load import load_tokenizer

    tokenizer = load_tokenizer(base.local(), config.model.revision, config.model.trust_remote_code)
    encoder = TextEncoder.from_config(tokenizer, config)
    for each in texts:
        if each.drawn is not None:
            _read_drawn(encoder, task, each, each.drawn)
            continue
        for condition in each.conditions:
            _read_condition(encoder, task, each, condition)


def _read_condition(encoder: TextEncoder, task: Task, texts: _Texts, condition: Condition) -> None:
    def ask(prompt: tuple[str, str], example: Example) -> Question:
        id, text = prompt
        one = put(task, parse(text, task.slots), example, condition, texts.seed, id, example.id)
        return _question(one, example, id, condition)

    most = _LONGEST_NOISY if condition.noise_rate else LONGEST
    refuse_overlong(encoder, texts.prompts, texts.examples, ask, most)


def _question(one: Put, example: Example, prompt: str, condition: Condition) -> Question:
    shown = len(condition.demonstrations)
    after = f" after {shown} demonstrations" if shown else ""
    after += " in other words (a paraphrase)" if condition.paraphrases else ""
    answers = one.choices or [one.example.some_answer]
    return Question(one.render, one.example.fields, answers, example.under(prompt) + after)


def _read_drawn(encoder: TextEncoder, task: Task, texts: _Texts, drawn: _Drawn) -> None:
    """Read what is longest of all that a training draws, under the longest prompts."""
    seed, draws = drawn.varying.seed, list(_longest_draws(encoder, texts.examples, drawn))
    for place in longest(encoder, [text for _, text in texts.prompts]):
        id, text = texts.prompts[place]
        template = parse(text, task.slots)
        encoder.encode_all(
            [
                _question(put(task, template, example, way, seed, *at), example, id, way)
                for example, way, at in draws
            ]
        )


def _longest_draws(
    encoder: TextEncoder, examples: Sequence[Example], drawn: _Drawn
) -> Iterator[tuple[Example, Condition, tuple[int, ...]]]:
    """The longest examples with demonstrations, and their positions (step, slot)."""
    varying, count = drawn.varying, drawn.places.count
    length = _lengths(encoder, examples, varying)
    kept = varying.paraphrases or {}

    def at(position: int) -> tuple[Example, Condition, tuple[int, ...]]:
        example = examples[example_index(varying.seed, position, len(examples))]
        place = drawn.places.at(position)
        return example, varying.condition(example, *place), place

    def tokens(found: tuple[Example, Condition, tuple[int, ...]]) -> int:
        example, condition, place = found
        own = length[example.id, varying.wording(example, *place)]
        return own + sum(length[each.id, 0] for each in condition.demonstrations)

    yield from heapq.nlargest(_LONGEST_NOISY, map(at, range(min(count, _MOST_DRAWS))), key=tokens)
    shown = varying.variation.demonstrations
    if count and count <= _MOST_DRAWS:
        return
    id, wording = max(length, key=length.__getitem__)
    [example] = [each for each in examples if each.id == id]
    condition, place = varying.condition(example, 0, 0), (0, 0)
    other = {id: kept[id][wording]} if wording else None
    condition = replace(condition, paraphrases=other)
    if shown is not None:
        pool = sorted(varying.pool, key=lambda each: -length[each.id, 0])
        others = [each for each in pool if each.id != example.id]
        condition = replace(condition, demonstrations=tuple(others[: shown.shots]))
    yield example, condition, place


def _lengths(
    encoder: TextEncoder, examples: Sequence[Example], varying: Varying
) -> dict[tuple[str, int], int]:
    """Tokens of each example by its id, in each of its wordings by number; 0 is its own text."""
    texts: dict[tuple[str, int], str] = {}
    for each in examples:
        wordings = {0: {}, **((varying.paraphrases or {}).get(each.id) or {})}
        for number, other in wordings.items():
            texts[each.id, number] = " ".join([*{**each.fields, **other}.values(), each.answer])
    counts = token_lengths(encoder, list(texts.values()), every=True)
    return dict(zip(texts, counts, strict=True))
