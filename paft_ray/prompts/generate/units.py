"""Units of requests: their answers on storage, the rounds of sending, and the token budget."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, zip_longest

from paft_ray.config import GenerationConfig, LLMConfig, TransformersLLM
from paft_ray.prompts.generate.completions import Completion
from paft_ray.prompts.generate.kept_answers import Answers
from paft_ray.prompts.generate.requests import RequestBook, Unit
from paft_ray.storage.paths import Storage

_UNIT = 256
"""Requests in one unit, and in one file of answers, where they are not generated together."""


def unit_size(llm: LLMConfig) -> int:
    """Requests in one unit of an LLM: its batch, where the batch moves the answers."""
    return llm.batch_size if isinstance(llm, TransformersLLM) else _UNIT


def answers_of(book: RequestBook, unit: Unit, storage: Storage) -> Answers:
    """The answers of a unit on storage."""
    llm = book.config.llms[unit.llm]
    if isinstance(llm, TransformersLLM):  # in another batch the answers would be others
        name = f"{book.request(unit, unit.start).id}-{len(unit)}"
    else:
        name = book.request(unit, unit.start - unit.start % unit_size(llm)).id
    return Answers(storage.child("generations", book.keys[unit.llm]), name)


def answers_found(book: RequestBook, unit: Unit, storage: Storage) -> dict[str, Completion]:
    """The answers of a unit by request id; the file of a smaller unit may hold others too."""
    answers = answers_of(book, unit, storage).read()
    if len(unit) == unit_size(book.config.llms[unit.llm]):
        return answers
    ids = (request.id for request in book.requests(unit))
    return {id: answers[id] for id in ids if id in answers}


def is_answered(book: RequestBook, unit: Unit, storage: Storage) -> bool:
    """Return whether all requests of a unit have an answer on storage."""
    return len(answers_found(book, unit, storage)) == len(unit)


def rounds(by_llm: Sequence[Sequence[Unit]], config: GenerationConfig) -> Iterator[list[Unit]]:
    """All units at once; in rounds, LLMs in turn, where generation may stop early."""
    if config.stop is None and config.budget_tokens is None:
        yield [unit for units in by_llm for unit in units]
        return
    size = config.stop.round if config.stop else _UNIT
    queues = [_per_round(_interleaved(units), size) for units in by_llm]
    for turn in zip_longest(*queues, fillvalue=[]):
        yield [unit for units in turn for unit in units]


def _interleaved(units: Sequence[Unit]) -> Iterator[Unit]:
    """Strategies and temperatures in turn."""
    groups: dict[tuple[str, float], list[Unit]] = {}
    for unit in units:
        groups.setdefault((unit.strategy, unit.temperature), []).append(unit)
    turns = zip_longest(*groups.values())
    return (unit for unit in chain.from_iterable(turns) if unit is not None)


def _per_round(units: Iterable[Unit], size: int) -> Iterator[list[Unit]]:
    current: list[Unit] = []
    for unit in units:
        current.append(unit)
        if sum(map(len, current)) >= size:
            yield current
            current = []
    if current:
        yield current


def affordable_units(
    book: RequestBook, storage: Storage, units: list[Unit], budget: int | None, spent: int
) -> list[Unit]:
    """The units that cannot exceed the budget, the last one cut short.

    An answered request costs its completion's tokens, another one may cost `max_tokens`.
    """
    if budget is None:
        return units
    left, allowed = budget - spent, []
    for unit in units:
        answers = answers_of(book, unit, storage).read()
        stop = unit.start
        for request in book.requests(unit):
            answer = answers.get(request.id)
            left -= request.max_tokens if answer is None else answer.billed_tokens
            if left < 0:
                break
            stop += 1
        if stop > unit.start:
            allowed.append(replace(unit, stop=stop))
        if stop < unit.stop:
            break
    return allowed


def remaining_units(units: Sequence[Unit], done: Sequence[Unit]) -> list[Unit]:
    """The units without those that are done: the first ones, the last of them in part."""
    rest = list(units[len(done) :])
    if done and (cut := done[-1]) != (whole := units[len(done) - 1]):
        rest.insert(0, replace(whole, start=cut.stop))
    return rest
