"""One LLM that is asked as work goes on: kept answers, a token budget, and what it cost.

Endpoints and the fake are asked by this process, models by an actor (`runner.RemoteLLM`).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from paft_ray.config import Endpoint, FakeLLM, GenerationConfig, LLMConfig, TransformersLLM
from paft_ray.config.errors import LLMError
from paft_ray.prompts.generate.completions import Completion
from paft_ray.prompts.generate.kept_answers import Answers
from paft_ray.prompts.generate.llm import LLM, llm_key, open_llm
from paft_ray.prompts.generate.rate_limit import LimitOfOneProcess, RateLimit
from paft_ray.prompts.generate.requests import Request, decoding, longest_answer
from paft_ray.prompts.generate.results import addressed, cost
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.paths import Storage


class BudgetSpentError(LLMError):
    """The next request could exceed the token budget."""


@dataclass(frozen=True)
class Writer:
    """An LLM, and how it decodes."""

    llm: LLMConfig
    temperature: float
    top_p: float

    @classmethod
    def of(cls, llm: LLMConfig, generation: GenerationConfig | None) -> Self:
        """An LLM that decodes as it does for candidates; it uses its first temperature."""
        temperature, top_p = 1.0, 1.0
        if generation is not None:
            temperature, top_p = generation.temperature, generation.top_p
        return cls(llm, (llm.temperatures or (temperature,))[0], top_p)

    def request(self, kind: str, message: str, *position: int | str) -> Request:
        """A request under an id from all that determines its answer.

        Args:
            kind: What is asked for.
            message: The user's message.
            position: The decoding seed is a function of it.
        """
        seed = decoding(kind, *position)
        messages = (("user", message),)
        most = longest_answer(self.llm)
        how = [self.temperature, self.top_p, seed, most]
        id = fingerprint(llm_key(self.llm), kind, messages, how)
        return Request(id, 0, kind, messages, self.temperature, self.top_p, seed, most)

    @property
    def identity(self) -> list[Any]:
        """What of it determines answers."""
        return [llm_key(self.llm), self.temperature, self.top_p, longest_answer(self.llm)]


class Asked:
    """An open LLM, its answers on storage, and the counts of those that were used."""

    def __init__(
        self, writer: Writer, storage: Storage, field: str, budget_tokens: int | None = None
    ) -> None:
        """Open nothing yet: a request whose answer is kept needs no LLM.

        Args:
            writer: The LLM.
            storage: Answers are kept under `generations/`.
            field: Where the configuration names the budget, for messages.
            budget_tokens: Most completion tokens of the answers that are used.
        """
        self.writer, self._storage = writer, storage
        self._field, self._budget = field, budget_tokens
        self._llm: LLM | None = None
        self._close: Callable[[], None] | None = None
        self._counts: Counter[str] = Counter(requests=0, prompt_tokens=0, completion_tokens=0)
        self._known: dict[str, dict[str, Completion]] = {}
        """Kept answers by file and request id."""

    def ask(
        self,
        name: str,
        requests: Sequence[Request],
        arrived: Callable[[int], None] = lambda count: None,
    ) -> dict[str, Completion]:
        """The answers by request id; each is kept as it arrives, and none is sent twice.

        Args:
            name: File of the answers.
            requests: Where a model generates in batches, these are one.
            arrived: Called with the number of answers that are there, as they come.

        Raises:
            BudgetSpentError: The next request could exceed the budget.
            LLMError: The LLM cannot be used, or some requests were not answered.
        """
        store = Answers(self._storage.child("generations", llm_key(self.writer.llm)), name)
        known = self._known.get(name)
        if known is None:  # of what others add meanwhile nothing is needed
            known = self._known[name] = store.read()
        found = {request.id: known[request.id] for request in requests if request.id in known}
        self._count(found.values())
        arrived(len(found))
        missing = [request for request in requests if request.id not in found]
        if missing and isinstance(self.writer.llm, TransformersLLM):
            missing = list(requests)  # in another batch the answers would be others
        failed: Counter[str] = Counter()
        while missing:
            for group in self._opened().complete(self._affordable(missing)):
                store.add(group)
                new = {c.request_id: c for c in group if c.text is not None}
                self._known[name] = known = new | known
                more = {id: c for id, c in new.items() if id not in found}
                self._count(more.values())
                arrived(len(more))
                found = new | found
                failed.update(str(c.error) for c in group if c.text is None)
            left = [request for request in missing if request.id not in found]
            if failed or len(left) == len(missing):
                break
            missing = left
        self._refuse_incomplete(failed, len(requests) - len(found))
        return found

    def spent(self) -> dict[str, Any]:
        """Requests, tokens and cost of the answers that were used, kept ones included."""
        price = self.writer.llm.price
        tokens = self._counts["prompt_tokens"], self._counts["completion_tokens"]
        return {
            "llm": self.writer.llm.label,
            **self._counts,
            "cost": None if price is None else cost(price, *tokens),
        }

    def _opened(self) -> LLM:
        if self._llm is None:
            self._llm, self._close = _open(self.writer.llm, self._storage)
        return self._llm

    def close(self) -> None:
        """Free what the LLM takes."""
        if self._close is not None:
            self._close()
        self._llm = self._close = None

    def _affordable(self, requests: Sequence[Request]) -> Iterator[Request]:
        """Requests up to the first one that could exceed the budget, with those in flight."""
        left = None if self._budget is None else self._budget - self._counts["completion_tokens"]
        for request in requests:
            if left is not None:
                left -= request.max_tokens
                if left < 0:
                    return
            yield request

    def _count(self, answers: Any) -> None:
        for answer in answers:
            self._counts.update(
                requests=1,
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=answer.billed_tokens,
            )

    def _refuse_incomplete(self, failed: Counter[str], missing: int) -> None:
        if failed:
            [(reason, _)] = failed.most_common(1)
            raise LLMError(
                f"{addressed(self.writer.llm)}: {failed.total()} requests were not answered "
                f"(mostly {reason}): finished answers are kept; mend that and run the same command "
                "again"
            )
        if missing:
            spent = self._counts["completion_tokens"]
            raise BudgetSpentError(
                f"{self._field}: {spent} of {self._budget} tokens are spent, and the next request "
                f"could take {longest_answer(self.writer.llm)}: finished answers are kept; raise "
                "it and run the same command again"
            )


def _open(config: LLMConfig, storage: Storage) -> tuple[LLM, Callable[[], None] | None]:
    """An LLM, and what frees it."""
    if isinstance(config, Endpoint):
        own = RateLimit(config.requests_per_minute, config.tokens_per_minute)
        limited = config.requests_per_minute or config.tokens_per_minute
        return open_llm(config, storage, LimitOfOneProcess(own) if limited else None), None
    if isinstance(config, FakeLLM):
        return open_llm(config, storage), None
    from paft_ray.prompts.generate.runner import RemoteLLM

    remote = RemoteLLM(config, storage)
    return remote, remote.close
