"""Sends an evaluation's requests to an endpoint, and keeps every answer; no Ray.

One client in this process keeps as many requests in flight as configured. Answers are appended to
storage as they arrive, under ids from what was sent: an evaluation that was killed, or another run,
finds them. A unit whose answers are all there is scored and becomes a part of the grid.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import pyarrow as pa

from paft_ray.config.errors import LLMError
from paft_ray.evaluation.endpoint import Questions
from paft_ray.evaluation.scores import Asked, scores_table
from paft_ray.evaluation.units import Grid, Unit
from paft_ray.prompts.generate.completions import Completion
from paft_ray.prompts.generate.endpoint import EndpointLLM
from paft_ray.prompts.generate.kept_answers import Answers
from paft_ray.prompts.generate.rate_limit import LimitOfOneProcess, RateLimit
from paft_ray.prompts.generate.requests import Request
from paft_ray.runs.progress import Stage
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.parts import Parts
from paft_ray.storage.paths import Storage
from paft_ray.tasks import Example

ANSWERED = b"endpoint"
"""Key in a part's metadata of the counts of its answers, as JSON."""
_WRITE_S = 10.0
_ENOUGH_TO_JUDGE = 50
"""Finished requests before their error rate can stop the evaluation."""
_MOST_FAILED = 0.5


def kept_answers(storage: Storage, questions: Questions, prompt: str) -> Answers:
    """The answers of an endpoint under a prompt's text, of every run of a storage."""
    author = fingerprint("endpoint", questions.client.base_url, questions.client.model)
    return Answers(storage.child("generations", author), fingerprint("prompt", prompt))


def score_by_endpoint(
    questions: Questions,
    units: Sequence[Unit],
    grid: Grid,
    kept: tuple[Storage, Parts],
    stage: Stage,
) -> None:
    """Score units of one subject, each of which becomes a part.

    Args:
        questions: What the subject is asked.
        units: Its units that are not parts yet.
        grid: All prompts and examples.
        kept: Where answers are kept, and the parts.
        stage: Shows how many pairs of prompt and example are done.

    Raises:
        LLMError: The endpoint refuses all requests, some were not answered after all attempts, or
            the budget is spent; answers are kept.
        GradeError: A grader of the user's own failed.
    """
    storage, parts = kept
    finished: dict[str, pa.Table] = {}
    written_s = time.monotonic()
    try:
        for key, table in _Session(questions, units, grid, storage).tables():
            finished[key] = table
            stage.advance(table.num_rows)
            if time.monotonic() - written_s >= _WRITE_S:
                parts.write(finished)
                finished, written_s = {}, time.monotonic()
    finally:
        parts.write(finished)


def kept_requests(questions: Questions, grid: Grid, storage: Storage) -> Iterator[Completion]:
    """The answers that are kept of all requests of a grid, each once."""
    for prompt in grid.prompts:
        if answers := kept_answers(storage, questions, prompt.text).read():
            asked = [
                questions.asked((prompt.id, prompt.text), grid.examples, condition)
                for condition in grid.conditions
            ]
            ids = {
                request.id
                for each in asked
                for example in grid.examples
                if each.condition.covers(example.id)
                for request in questions.requests(each, example)
            }
            yield from (answers[id] for id in ids & answers.keys())


def answer_counts(parts: Iterable[pa.Table]) -> Counter[str]:
    """The counts of the answers of which parts were made; empty where no endpoint was asked."""
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(json.loads((part.schema.metadata or {}).get(ANSWERED, b"{}")))
    return counts


@dataclass(frozen=True)
class _Open:
    """A unit that waits for answers."""

    key: str
    asked: Asked
    store: Answers
    waiting: set[str]
    """Ids of its requests that are not answered."""
    answers: dict[str, Completion]


class _Session:
    """One pass over the units of a subject."""

    def __init__(
        self, questions: Questions, units: Sequence[Unit], grid: Grid, storage: Storage
    ) -> None:
        self._questions, self._units, self._storage = questions, units, storage
        self._examples: Mapping[str, Example] = {e.id: e for e in grid.examples}
        self._open: dict[str, list[_Open]] = {}
        """By request id; several units may wait for the same answer."""
        self._budget = questions.subject.budget_tokens
        self._spent = 0
        if self._budget is not None:
            kept = kept_requests(questions, grid, storage)
            self._spent = sum(answer.billed_tokens for answer in kept)
        self._conditions = grid.conditions
        self._reserved: dict[str, int] = {}
        """Most completion tokens of each request in flight."""
        self._held: Request | None = None
        """The next request, where it could exceed the budget."""
        self._done = 0
        self._failed: Counter[str] = Counter()
        """Requests that were not answered, by reason."""

    def tables(self) -> Iterator[tuple[str, pa.Table]]:
        """Send what has no answer yet; keys and parts of the units whose answers are all there.

        Raises:
            LLMError: See `score_by_endpoint`.
        """
        client = self._questions.client
        limit = None
        if client.requests_per_minute or client.tokens_per_minute:
            own = RateLimit(client.requests_per_minute, client.tokens_per_minute)
            limit = LimitOfOneProcess(own)
        llm = EndpointLLM(client, limit, api_of=self._questions.api_of)
        self._complete: list[_Open] = []
        source = self._requests()
        while True:
            before = self._done
            for group in llm.complete(self._affordable(source)):
                self._keep(group)
                yield from self._scored()
            yield from self._scored()
            if self._held is None or self._done == before:
                break  # all were sent, or none of the rest fits the budget
        self._refuse_incomplete()

    def _affordable(self, source: Iterator[Request]) -> Iterator[Request]:
        """Requests up to the first one that could exceed the budget, with those in flight."""
        while (request := self._held or next(source, None)) is not None:
            self._held = request
            most = self._spent + sum(self._reserved.values()) + request.max_tokens
            if self._budget is not None and most > self._budget:
                return
            self._held = None
            self._reserved[request.id] = request.max_tokens
            yield request

    def _requests(self) -> Iterator[Request]:
        """The requests that have no answer, unit by unit."""
        for text, of_prompt in groupby(self._units, key=itemgetter("text")):
            store = kept_answers(self._storage, self._questions, text)
            known = store.read()
            for unit in of_prompt:
                yield from self._begin(unit, store, known)

    def _begin(
        self, unit: Unit, store: Answers, known: Mapping[str, Completion]
    ) -> Iterator[Request]:
        """Open a unit; those of its requests that nobody has sent."""
        examples = [self._examples[id] for id in unit["examples"]]
        how = self._conditions[unit["condition"]]
        asked = self._questions.asked((unit["prompt_id"], unit["text"]), examples, how)
        wanted = {r.id: r for e in examples for r in self._questions.requests(asked, e)}
        answers = {id: known[id] for id in wanted if id in known}
        missing = [request for id, request in wanted.items() if id not in known]
        opened = _Open(unit["key"], asked, store, {r.id for r in missing}, answers)
        if not missing:
            self._complete.append(opened)
        for request in missing:
            sent = request.id in self._open
            self._open.setdefault(request.id, []).append(opened)
            if not sent:
                yield request

    def _keep(self, group: Sequence[Completion]) -> None:
        """Write answers, and note which units have all of theirs."""
        stores: dict[str, tuple[Answers, list[Completion]]] = {}
        for completion in group:
            store = self._open[completion.request_id][0].store
            stores.setdefault(store.name, (store, []))[1].append(completion)
        for store, completions in stores.values():
            store.add(completions)
        for completion in group:
            id = completion.request_id
            self._done += 1
            self._spent += completion.billed_tokens
            del self._reserved[id]
            if completion.text is None:
                self._failed[str(completion.error)] += 1
                continue
            for opened in self._open.pop(id):
                opened.answers[id] = completion
                opened.waiting.discard(id)
                if not opened.waiting:
                    self._complete.append(opened)
        if self._done >= _ENOUGH_TO_JUDGE and self._failed.total() > _MOST_FAILED * self._done:
            self._refuse_incomplete()

    def _scored(self) -> Iterator[tuple[str, pa.Table]]:
        """The parts of units that are complete."""
        while self._complete:
            opened = self._complete.pop()
            counts: Counter[str] = Counter()
            scores = []
            for example in opened.asked.examples:
                score, own = self._questions.score(opened.asked, example, opened.answers)
                scores.append(score)
                counts.update(own)  # keeps zeros
            about = {ANSWERED: json.dumps(counts)}
            yield opened.key, scores_table(scores).replace_schema_metadata(about)

    def _refuse_incomplete(self) -> None:
        """Refuse to go on without all answers.

        Raises:
            LLMError: Some are missing.
        """
        client, field = self._questions.client, f"subject {self._questions.subject.label}"
        who = f"{field}: {client.label} at {client.base_url}"
        kept = "finished answers are kept"
        if failed := self._failed.total():
            [(reason, _)] = self._failed.most_common(1)
            raise LLMError(
                f"{who}: {failed} of {self._done} requests were not answered (mostly {reason}): "
                f"{kept}; mend that and run the same command again"
            )
        if self._held is not None:
            raise LLMError(
                f"{who}: {self._spent} of budget_tokens ({self._budget}) are spent, and the next "
                f"request could take {self._held.max_tokens}: {kept}; raise budget_tokens and run "
                "the same command again"
            )
