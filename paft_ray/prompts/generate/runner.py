"""Ray Data: requests to LLMs in parallel actors, and answers on storage as they arrive.

All LLMs are asked at once, each by actors of its own. Work is a list of units, small records from
which an actor makes the requests itself, so that the driver holds neither requests nor answers.
Covered: rounds, the token budget, stopping when nothing new is said, stopping when too much fails.
"""

import logging
import queue
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

from paft_ray.cluster.control import Count, follow
from paft_ray.cluster.remote import actor_beside, own_errors
from paft_ray.config import LLMConfig, OpenAILLM, TokenPrice, TransformersLLM, VLLMEngine
from paft_ray.config.errors import LLMError
from paft_ray.prompts.generate.completions import Completion, parse_completion
from paft_ray.prompts.generate.kept_answers import Answers
from paft_ray.prompts.generate.llm import llm_label, open_llm
from paft_ray.prompts.generate.novelty import Novelty
from paft_ray.prompts.generate.rate_limit import RateLimitHandle
from paft_ray.prompts.generate.requests import Request, RequestBook, Unit
from paft_ray.prompts.pool import Candidate, Origin, Rejected
from paft_ray.runs.progress import Stage
from paft_ray.storage.paths import Storage

if TYPE_CHECKING:
    from paft_ray.config import GenerationConfig

logger = logging.getLogger(__name__)

_UNIT = 256
"""Requests in one unit, and in one file of answers, where they are not generated together."""
_ENOUGH_TO_JUDGE = 50
"""Finished requests of an actor before their error rate can stop the stage."""


@dataclass(frozen=True)
class Asked:
    """What was asked in the end, unit by unit."""

    book: RequestBook
    storage: Storage
    tallies: Mapping[Unit, "Tally"]
    """What came of every unit, in the order of asking."""
    stopped: str = ""
    """Why not everything was asked: `budget` or `nothing new`; empty where everything was."""

    def answers(self, unit: Unit) -> Answers:
        """Where the answers of a unit are kept."""
        return answers_of(self.book, unit, self.storage)


def answers_of(book: RequestBook, unit: Unit, storage: Storage) -> Answers:
    """Where the answers of a unit are kept."""
    llm = book.config.llms[unit.llm]
    if _together(llm):  # with other neighbours the answers would be others
        name = f"{book.request(unit, unit.start).id}-{len(unit)}"
    else:
        name = book.request(unit, unit.start - unit.start % unit_size(llm)).id
    return Answers(storage.child("generations", book.keys[unit.llm]), name)


def ask(book: RequestBook, storage: Storage, stage: Stage) -> Asked:
    """Ask for whatever is not on storage yet.

    Args:
        book: All requests.
        storage: Answers go to `generations/<author>/` below it.
        stage: Told how many requests are done.

    Raises:
        LLMError: Too large a share of the requests failed; answers are kept.
    """
    config = book.config
    by_llm = [book.units(llm, unit_size(c)) for llm, c in enumerate(config.llms)]
    stage.expect(sum(len(unit) for units in by_llm for unit in units))
    known = _NoveltyActor.start(config) if config.stop else None
    tallies: dict[Unit, Tally] = {}
    stopped = ""
    done = Count()
    with follow(done.total, stage.reach):
        for units in _rounds(by_llm, config):
            left = units
            while left and not stopped:
                spent = sum(t.completion_tokens for t in tallies.values())
                affordable = _affordable(book, storage, left, config.budget_tokens, spent)
                _ask_all(book, storage, affordable, done)
                tallies |= {unit: _tally(book, unit, storage) for unit in affordable}
                left = _rest(left, affordable)
                stopped = "" if affordable else "budget"
            if known is not None and not stopped and not known.enough_new(book, storage, units):
                stopped = "nothing new"
            if stopped:
                break
    asked = Asked(book, storage, tallies, stopped)
    _refuse_many_failures(asked)
    return asked


@dataclass(frozen=True, slots=True)
class Tally:
    """What came of one unit."""

    llm: int
    requests: int
    answered: int
    failed: int
    prompt_tokens: int
    completion_tokens: int


def _tally(book: RequestBook, unit: Unit, storage: Storage) -> Tally:
    found = list(_found(book, unit, storage).values())
    return Tally(
        unit.llm,
        len(unit),
        len(found),
        len(unit) - len(found),
        sum(c.prompt_tokens for c in found),
        sum(c.completion_tokens for c in found),
    )


def _found(book: RequestBook, unit: Unit, storage: Storage) -> dict[str, Completion]:
    """The answers of a unit; the file of one that is not full may hold those of more requests."""
    answers = answers_of(book, unit, storage).read()
    if len(unit) == unit_size(book.config.llms[unit.llm]):
        return answers
    ids = (request.id for request in book.requests(unit))
    return {id: answers[id] for id in ids if id in answers}


def unit_size(llm: LLMConfig) -> int:
    """Requests in one unit of an LLM: its batch, where what is in it moves the answers."""
    return llm.batch_size if isinstance(llm, TransformersLLM) else _UNIT


def _together(llm: LLMConfig) -> bool:
    return isinstance(llm, TransformersLLM)


def _rounds(by_llm: Sequence[Sequence[Unit]], config: "GenerationConfig") -> Iterator[list[Unit]]:
    """All units at once; in rounds, LLMs in turn, where it may be that not all are asked."""
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


def _affordable(
    book: RequestBook, storage: Storage, units: list[Unit], budget: int | None, spent: int
) -> list[Unit]:
    """The units that cannot cost more than what is left, the last one cut short.

    What is answered costs what it cost, what is not may cost `max_tokens`.
    """
    if budget is None:
        return units
    left, allowed = budget - spent, []
    for unit in units:
        answers = answers_of(book, unit, storage).read()
        stop = unit.start
        for request in book.requests(unit):
            answer = answers.get(request.id)
            left -= request.max_tokens if answer is None else answer.completion_tokens
            if left < 0:
                break
            stop += 1
        if stop > unit.start:
            allowed.append(replace(unit, stop=stop))
        if stop < unit.stop:
            break
    return allowed


def _rest(units: Sequence[Unit], asked: Sequence[Unit]) -> list[Unit]:
    """What is left of the units, of which the first ones were asked, the last one in part."""
    rest = list(units[len(asked) :])
    if asked and (cut := asked[-1]) != (whole := units[len(asked) - 1]):
        rest.insert(0, replace(whole, start=cut.stop))
    return rest


def _ask_all(book: RequestBook, storage: Storage, units: Sequence[Unit], done: Count) -> None:
    """Ask every LLM for its units, all LLMs at once."""
    by_llm: dict[int, list[Unit]] = {}
    for unit in units:
        by_llm.setdefault(unit.llm, []).append(unit)
    if len(by_llm) == 1:
        [(llm, own)] = by_llm.items()
        _ask_one(book, storage, llm, own, done)
        return
    ended: queue.Queue[BaseException | None] = queue.Queue()

    def work(llm: int, own: list[Unit]) -> None:
        try:
            _ask_one(book, storage, llm, own, done)
        except BaseException as error:  # noqa: BLE001 - raised again by the main thread
            ended.put(error)
        else:
            ended.put(None)

    for llm, own in by_llm.items():
        # daemons, so that an interrupted command does not wait for them
        threading.Thread(target=work, args=(llm, own), name=f"ask-{llm}", daemon=True).start()
    errors = [error for _ in by_llm if (error := ended.get()) is not None]
    if errors:
        raise errors[0]


def _ask_one(book: RequestBook, storage: Storage, llm: int, units: list[Unit], done: Count) -> None:
    import ray.data

    config = book.config.llms[llm]
    limit = None
    cpus, gpus, actors = 0.1, 0.0, 1
    if isinstance(config, OpenAILLM):
        actors = min(config.actors, len(units))
        rows = [units[start::actors] for start in range(actors)]
        if config.requests_per_minute or config.tokens_per_minute:
            limit = RateLimitHandle(config.requests_per_minute, config.tokens_per_minute)
    else:
        # starting a model takes long: not for what is there already
        rows = [[unit] for unit in units if not is_answered(book, unit, storage)]
        done.add(sum(map(len, units)) - sum(len(unit) for row in rows for unit in row))
        if not rows:
            return
        if isinstance(config, TransformersLLM | VLLMEngine):
            actors, gpus = config.actors, config.gpus
        if isinstance(config, TransformersLLM):
            cpus = config.cpus
        actors = min(actors, len(rows))
    dataset = ray.data.from_items(
        [{"units": [asdict(unit) for unit in row]} for row in rows], override_num_blocks=len(rows)
    ).map_batches(
        _WriterActor,
        batch_size=1,
        batch_format="pandas",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=cpus,
        num_gpus=gpus or None,
        fn_constructor_args=(book, llm, storage, limit, actors, done),
    )
    with own_errors():
        for _ in dataset.iter_batches(batch_size=1, batch_format="pandas", prefetch_batches=0):
            pass


def is_answered(book: RequestBook, unit: Unit, storage: Storage) -> bool:
    """Whether all requests of a unit have an answer on storage."""
    return len(_found(book, unit, storage)) == len(unit)


class _WriterActor:
    """Holds one LLM; makes and sends the requests of units, and keeps every answer."""

    def __init__(
        self,
        book: RequestBook,
        llm: int,
        storage: Storage,
        limit: RateLimitHandle | None,
        share: int,
        done: Count,
    ) -> None:
        self._book, self._storage, self._all_done = book, storage, done
        self._config = book.config.llms[llm]
        self._llm = open_llm(self._config, storage, limit, share)
        self._stores: dict[str, Answers] = {}

    def __call__(self, batch: Any) -> Any:
        units = [Unit(**unit) for unit in batch["units"].iloc[0]]
        self._done = self._failed = 0
        if isinstance(self._config, OpenAILLM):
            for group in self._llm.complete(self._missing(units)):
                self._keep(group)
        else:
            for unit in units:
                for group in self._llm.complete(list(self._missing([unit]))):
                    self._keep(group)
        self._all_done.total()  # what was added has arrived
        return batch

    def _missing(self, units: Iterable[Unit]) -> Iterator[Request]:
        """The requests of these units that have no answer; all, where they belong together."""
        for unit in units:
            store = answers_of(self._book, unit, self._storage)
            answers, requests = store.read(), list(self._book.requests(unit))
            missing = [request for request in requests if request.id not in answers]
            if missing and _together(self._config):
                missing = requests
            self._count(len(requests) - len(missing), 0)
            for request in missing:
                self._stores[request.id] = store
                yield request

    def _keep(self, group: Sequence[Completion]) -> None:
        stores: dict[str, tuple[Answers, list[Completion]]] = {}
        for completion in group:
            store = self._stores.pop(completion.request_id)
            stores.setdefault(store.name, (store, []))[1].append(completion)
        for store, completions in stores.values():
            store.add(completions)
        self._count(len(group), sum(completion.text is None for completion in group))
        rate = self._book.config.max_error_rate
        if self._done >= _ENOUGH_TO_JUDGE and self._failed > rate * self._done:
            errors = (completion.error for completion in group)
            raise LLMError(_failure_message(self._failed, self._done, errors, rate))

    def _count(self, done: int, failed: int) -> None:
        self._done += done
        self._failed += failed
        self._all_done.add(done)


class _NoveltyActor:
    """The driver's end of a `Novelty` that lives in an actor, so that texts do not come here."""

    def __init__(self, actor: Any, new_share: float) -> None:
        self._actor, self._new_share = actor, new_share

    @classmethod
    def start(cls, config: "GenerationConfig") -> "_NoveltyActor":
        assert config.stop is not None
        return cls(actor_beside(_KnownTexts), config.stop.new_share)

    def enough_new(self, book: RequestBook, storage: Storage, units: Sequence[Unit]) -> bool:
        import ray

        new, seen = ray.get(self._actor.count_new.remote(book, storage, list(units)))
        logger.info("%d of %d candidates of this round are unlike all before", new, seen)
        return seen == 0 or new >= self._new_share * seen


class _KnownTexts:
    def __init__(self) -> None:
        self._novelty = Novelty()

    def count_new(
        self, book: RequestBook, storage: Storage, units: Sequence[Unit]
    ) -> tuple[int, int]:
        """How many candidates of these units are new, and how many there are."""
        new = seen = 0
        for unit in units:
            answers = answers_of(book, unit, storage).read()
            for request in book.requests(unit):
                answer = answers.get(request.id)
                text = parse_completion(answer.text or "", book.config.form) if answer else None
                if text is not None:
                    seen += 1
                    new += self._novelty.add(text)
        return new, seen


def parse_unit(asked: Asked, unit: Unit) -> Iterator[Candidate | Rejected]:
    """What became of every request of a unit: a candidate, or why there is none."""
    store, config = asked.answers(unit), asked.book.config
    answers, failures = store.read(), store.failed()
    label = llm_label(config.llms[unit.llm])
    for request in asked.book.requests(unit):
        origin = Origin(
            llm=label,
            strategy=request.strategy,
            decoding_temperature=request.temperature,
            seed=request.seed,
        )
        if request.id not in answers:
            detail = str(failures[request.id].error) if request.id in failures else "no answer"
            yield Rejected("", "generation", "request_failed", origin, detail)
            continue
        text = answers[request.id].text or ""
        if (parsed := parse_completion(text, config.form)) is None:
            yield Rejected(text, "parse", "no_prompt_found", origin)
        else:
            yield Candidate(text=parsed, kind=config.form, origin=origin)


def _refuse_many_failures(asked: Asked) -> None:
    rate = asked.book.config.max_error_rate
    requests = sum(t.requests for t in asked.tallies.values())
    failed = sum(t.failed for t in asked.tallies.values())
    if failed <= rate * requests:
        return
    failures = (f for unit in asked.tallies for f in asked.answers(unit).failed().values())
    raise LLMError(_failure_message(failed, requests, (f.error for f in failures), rate))


def _failure_message(
    failed: int, asked: int, errors: Iterable[str | None], max_error_rate: float
) -> str:
    [(reason, _)] = Counter(str(error) for error in errors if error).most_common(1)
    return (
        f"{failed} of {asked} requests failed (mostly {reason}), more than "
        f"prompts.generation.max_error_rate ({max_error_rate:g}): finished answers are kept; mend "
        "the endpoint and run the same command again"
    )


def costs(asked: Asked, labels: Sequence[str]) -> list[dict[str, Any]]:
    """For each LLM what was asked of it and what that cost, in the currency of its prices."""
    rows = []
    for llm, label in enumerate(labels):
        own = [t for t in asked.tallies.values() if t.llm == llm]
        row: dict[str, Any] = {"llm": label}
        for name in ("requests", "answered", "failed", "prompt_tokens", "completion_tokens"):
            row[name] = sum(getattr(t, name) for t in own)
        price = asked.book.config.llms[llm].price
        row["cost"] = price and cost(price, row["prompt_tokens"], row["completion_tokens"])
        rows.append(row)
    return rows


def cost(price: TokenPrice, prompt_tokens: float, completion_tokens: float) -> float:
    """What so many tokens cost."""
    return (prompt_tokens * price.prompt + completion_tokens * price.completion) / 1e6
