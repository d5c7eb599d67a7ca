"""Ray Data: requests to LLMs in parallel actors, and answers on storage as they arrive.

All LLMs work at once, each in actors of its own. Work is a list of units, small records from which
an actor makes the requests itself, so that the driver holds neither requests nor answers.
Generation stops early at the token budget, when candidates repeat and when too many requests fail.
"""

import logging
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from paft_ray.cluster.control import Count, follow
from paft_ray.cluster.remote import actor_beside, own_errors
from paft_ray.config import Endpoint, LLMConfig, TransformersLLM
from paft_ray.config.errors import LLMError
from paft_ray.config.launchers import clear_launchers
from paft_ray.prompts.generate.completions import Completion, candidate_in
from paft_ray.prompts.generate.kept_answers import Answers
from paft_ray.prompts.generate.llm import open_llm
from paft_ray.prompts.generate.novelty import Novelty
from paft_ray.prompts.generate.rate_limit import RateLimitHandle
from paft_ray.prompts.generate.requests import Request, RequestBook, Unit
from paft_ray.prompts.generate.results import (
    Generated,
    Tally,
    addressed,
    failure_message,
    refuse_many_failures,
    tally,
)
from paft_ray.prompts.generate.units import (
    affordable_units,
    answers_of,
    is_answered,
    remaining_units,
    rounds,
    unit_size,
)
from paft_ray.runs.progress import Stage
from paft_ray.storage.paths import Storage

logger = logging.getLogger(__name__)

_GPU_S = 60
"""How long actors that have ended may take to give GPUs back, in seconds."""
_ENOUGH_TO_JUDGE = 50
"""Finished requests of an actor before their error rate can stop the stage."""


def generate(book: RequestBook, storage: Storage, stage: Stage) -> Generated:
    """Generate the answers that are not on storage yet.

    Args:
        book: All requests.
        storage: Answers go to `generations/<author>/` below it.
        stage: Shows how many requests are done.

    Raises:
        LLMError: Too large a share of the requests failed; answers are kept.
    """
    config = book.config
    by_llm = [book.units(llm, unit_size(c)) for llm, c in enumerate(config.llms)]
    stage.expect(sum(len(unit) for units in by_llm for unit in units))
    known = actor_beside(_KnownTexts) if config.stop else None
    tallies: dict[Unit, Tally] = {}
    stopped = ""
    done = Count()
    with follow(done.total, stage.reach):
        for units in rounds(by_llm, config):
            left = units
            while left and not stopped:
                spent = sum(t.completion_tokens for t in tallies.values())
                affordable = affordable_units(book, storage, left, config.budget_tokens, spent)
                _generate_all(book, storage, affordable, done)
                tallies |= {unit: tally(book, unit, storage) for unit in affordable}
                left = remaining_units(left, affordable)
                stopped = "" if affordable else "budget"
            if known is not None and not stopped and not _enough_new(known, book, storage, units):
                stopped = "nothing new"
            if stopped:
                break
    generated = Generated(book, storage, tallies, stopped)
    refuse_many_failures(generated)
    return generated


def _generate_all(book: RequestBook, storage: Storage, units: Sequence[Unit], done: Count) -> None:
    """Generate the answers of units, by all LLMs at once."""
    by_llm: dict[int, list[Unit]] = {}
    for unit in units:
        by_llm.setdefault(unit.llm, []).append(unit)
    if len(by_llm) == 1:
        [(llm, own)] = by_llm.items()
        _generate_by(book, storage, llm, own, done)
        return
    ended: queue.Queue[BaseException | None] = queue.Queue()

    def work(llm: int, own: list[Unit]) -> None:
        try:
            _generate_by(book, storage, llm, own, done)
        except BaseException as error:  # noqa: BLE001 - raised again by the main thread
            ended.put(error)
        else:
            ended.put(None)

    for llm, own in by_llm.items():
        # daemons, so that an interrupted command does not wait for them
        threading.Thread(target=work, args=(llm, own), name=f"generate-{llm}", daemon=True).start()
    errors = [error for _ in by_llm if (error := ended.get()) is not None]
    if errors:
        raise errors[0]


def _generate_by(
    book: RequestBook, storage: Storage, llm: int, units: list[Unit], done: Count
) -> None:
    """Generate the answers of one LLM's units."""
    import ray.data

    config = book.config.llms[llm]
    limit = None
    actors, cpus, gpus = config.actor_pool
    if isinstance(config, Endpoint):
        actors = min(actors, len(units))
        rows = [units[start::actors] for start in range(actors)]
        if config.requests_per_minute or config.tokens_per_minute:
            limit = RateLimitHandle(config.requests_per_minute, config.tokens_per_minute)
    else:
        # starting a model takes long: only for units without all answers
        rows = [[unit] for unit in units if not is_answered(book, unit, storage)]
        done.add(sum(map(len, units)) - sum(len(unit) for row in rows for unit in row))
        if not rows:
            return
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
        clear_launchers()
        self._book, self._storage, self._all_done = book, storage, done
        self._config = book.config.llms[llm]
        self._llm = open_llm(self._config, storage, limit, share)
        self._stores: dict[str, Answers] = {}

    def __call__(self, batch: Any) -> Any:
        units = [Unit(**unit) for unit in batch["units"].iloc[0]]
        self._done = self._failed = 0
        if isinstance(self._config, Endpoint):
            for group in self._llm.complete(self._missing(units)):
                self._keep(group)
        else:
            for unit in units:
                for group in self._llm.complete(list(self._missing([unit]))):
                    self._keep(group)
        self._all_done.total()  # returns when all counts have arrived
        return batch

    def _missing(self, units: Iterable[Unit]) -> Iterator[Request]:
        """The requests of these units without an answer; all of a unit that is one batch."""
        for unit in units:
            store = answers_of(self._book, unit, self._storage)
            answers, requests = store.read(), list(self._book.requests(unit))
            missing = [request for request in requests if request.id not in answers]
            if missing and isinstance(self._config, TransformersLLM):
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
            who = addressed(self._config)
            raise LLMError(failure_message(who, self._failed, self._done, errors, rate))

    def _count(self, done: int, failed: int) -> None:
        self._done += done
        self._failed += failed
        self._all_done.add(done)


class RemoteLLM:
    """A model that an actor holds until it is closed.

    It takes no CPU: what it writes is waited for, by a process whose other actors then rest.
    """

    def __init__(self, config: LLMConfig, storage: Storage) -> None:
        """Start the actor; it begins anew where its node is lost.

        Raises:
            LLMError: Other actors hold the GPUs that it needs.
        """
        import ray

        *_, gpus = config.actor_pool
        waited_s = 0
        while gpus and ray.available_resources().get("GPU", 0.0) < gpus:
            if waited_s >= _GPU_S:
                raise LLMError(
                    f"{addressed(config)} needs {gpus:g} GPUs beside the model that is measured, "
                    "and none are free: lower evaluation.workers.gpus or its own, or name an "
                    "endpoint"
                )
            time.sleep(1)
            waited_s += 1
        again: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1}
        remote: Any = ray.remote(num_cpus=0, num_gpus=gpus, **again)(_OpenLLM)
        self._actor: Any = remote.remote(config, storage)

    def close(self) -> None:
        """End the actor, which frees memory and GPUs."""
        import ray

        ray.kill(self._actor)

    def complete(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        """Answer every request once; all of them are one batch."""
        import ray

        with own_errors():
            yield from ray.get(self._actor.complete.remote(list(requests)))


class _OpenLLM:
    def __init__(self, config: LLMConfig, storage: Storage) -> None:
        clear_launchers()
        self._llm = open_llm(config, storage)

    def complete(self, requests: Sequence[Request]) -> list[list[Completion]]:
        return list(self._llm.complete(requests))


def _enough_new(known: Any, book: RequestBook, storage: Storage, units: Sequence[Unit]) -> bool:
    import ray

    assert book.config.stop is not None
    new, seen = ray.get(known.count_new.remote(book, storage, list(units)))
    logger.info("%d of %d candidates of this round are unlike all before", new, seen)
    return seen == 0 or new >= book.config.stop.new_share * seen


class _KnownTexts:
    """Holds a `Novelty` in an actor, so that texts do not come to the driver."""

    def __init__(self) -> None:
        self._novelty = Novelty()

    def count_new(
        self, book: RequestBook, storage: Storage, units: Sequence[Unit]
    ) -> tuple[int, int]:
        """The numbers of new candidates of these units, and of all."""
        new = seen = 0
        for unit in units:
            answers = answers_of(book, unit, storage).read()
            for request in book.requests(unit):
                if (answer := answers.get(request.id)) is None:
                    continue
                text, _ = candidate_in(answer, book.config.form, request.max_tokens)
                if text is not None:
                    seen += 1
                    new += self._novelty.add(text)
        return new, seen
