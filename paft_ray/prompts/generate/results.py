"""The results of generation: candidates, failures, tokens and costs."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from paft_ray.config import Endpoint, LLMConfig, TokenPrice
from paft_ray.config.errors import LLMError
from paft_ray.prompts.generate.completions import candidate_in
from paft_ray.prompts.generate.kept_answers import Answers
from paft_ray.prompts.generate.requests import RequestBook, Unit
from paft_ray.prompts.generate.units import answers_found, answers_of
from paft_ray.prompts.pool import Candidate, Origin, Rejected
from paft_ray.storage.paths import Storage


@dataclass(frozen=True, slots=True)
class Tally:
    """The numbers of one unit's requests, answers and tokens."""

    llm: int
    requests: int
    answered: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    left_out: str = ""
    """Parameters that the endpoint refused, with commas."""


def tally(book: RequestBook, unit: Unit, storage: Storage) -> Tally:
    """Count what storage holds of a unit."""
    found = list(answers_found(book, unit, storage).values())
    return Tally(
        unit.llm,
        len(unit),
        len(found),
        len(unit) - len(found),
        sum(c.prompt_tokens for c in found),
        sum(c.billed_tokens for c in found),
        _all_of(c.left_out for c in found),
    )


def _all_of(lists: Iterable[str]) -> str:
    return ", ".join(sorted({name for names in lists for name in names.split(", ") if name}))


@dataclass(frozen=True)
class Generated:
    """The requests that were sent, unit by unit, and where their answers are."""

    book: RequestBook
    storage: Storage
    tallies: Mapping[Unit, Tally]
    """By unit, in the order of sending."""
    stopped: str = ""
    """Why generation stopped early: `budget` or `nothing new`; empty where it did not."""

    def answers(self, unit: Unit) -> Answers:
        """The answers of a unit on storage."""
        return answers_of(self.book, unit, self.storage)


def parse_unit(generated: Generated, unit: Unit) -> Iterator[Candidate | Rejected]:
    """The candidate of every request of a unit, or why there is none."""
    store, config = generated.answers(unit), generated.book.config
    answers, failures = store.read(), store.failed()
    label = config.llms[unit.llm].label
    for request in generated.book.requests(unit):
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
        answer = answers[request.id]
        if "temperature" in answer.left_out.split(", "):
            origin = replace(origin, decoding_temperature=None)
        parsed, reason = candidate_in(answer, config.form, request.max_tokens)
        if parsed is None:
            yield Rejected(answer.text or "", "parse", reason, origin)
        else:
            yield Candidate(text=parsed, kind=config.form, origin=origin)


def refuse_many_failures(generated: Generated) -> None:
    """Check the share of failed requests.

    Raises:
        LLMError: It is more than the configuration allows.
    """
    rate, tallies = generated.book.config.max_error_rate, generated.tallies
    requests = sum(t.requests for t in tallies.values())
    failed = sum(t.failed for t in tallies.values())
    if failed > rate * requests:
        failures = (f for unit in tallies for f in generated.answers(unit).failed().values())
        worst = max(tallies.values(), key=lambda t: t.failed).llm
        who = addressed(generated.book.config.llms[worst])
        raise LLMError(failure_message(who, failed, requests, (f.error for f in failures), rate))


def addressed(llm: LLMConfig) -> str:
    """An LLM's name, of an endpoint also its address."""
    return f"{llm.label} at {llm.base_url}" if isinstance(llm, Endpoint) else llm.label


def failure_message(
    who: str, failed: int, requests: int, errors: Iterable[str | None], max_error_rate: float
) -> str:
    """The message of an error about too many failed requests, with the commonest reason."""
    [(reason, _)] = Counter(str(error) for error in errors if error).most_common(1)
    return (
        f"{who}: {failed} of {requests} requests failed (mostly {reason}), more than "
        f"prompts.generation.max_error_rate ({max_error_rate:g}): finished answers are kept; mend "
        "that and run the same command again"
    )


def costs(generated: Generated) -> list[dict[str, Any]]:
    """The requests, answers, tokens of each LLM, and their cost in the currency of its prices."""
    rows = []
    for llm, config in enumerate(generated.book.config.llms):
        own = [t for t in generated.tallies.values() if t.llm == llm]
        row: dict[str, Any] = {"llm": config.label}
        for name in ("requests", "answered", "failed", "prompt_tokens", "completion_tokens"):
            row[name] = sum(getattr(t, name) for t in own)
        row["left_out"] = _all_of(t.left_out for t in own)
        row["cost"] = config.price and cost(
            config.price, row["prompt_tokens"], row["completion_tokens"]
        )
        rows.append(row)
    return rows


def refused_line(row: Mapping[str, Any]) -> str:
    """A line about the parameters that an LLM of `costs` refused."""
    renamed = " (max_completion_tokens is sent)" if "max_tokens" in row["left_out"] else ""
    return (
        f"{row['llm']} refuses {row['left_out']}: left out of its requests{renamed}; "
        f"omit: [{row['left_out']}] leaves it out from the first one"
    )


def cost(price: TokenPrice, prompt_tokens: float, completion_tokens: float) -> float:
    """The cost of so many tokens."""
    return (prompt_tokens * price.prompt + completion_tokens * price.completion) / 1e6
