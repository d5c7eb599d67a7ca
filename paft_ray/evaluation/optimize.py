"""The search for one good prompt by GEPA (arXiv 2507.19457), whatever scores and whatever writes.

Half of the validation examples at most are `tracked`: every prompt that may be the best is scored
on all of them. The others are `shown` to the LLM, three at a time. The budget is kept here: what
GEPA asks for beyond it is not scored, and ends the search.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paft_ray.config.errors import OverlongError, PaftError, package_missing
from paft_ray.prompts.generate.asking import BudgetSpentError
from paft_ray.tasks import Example

if TYPE_CHECKING:
    from gepa import EvaluationBatch

logger = logging.getLogger(__name__)

_PROMPT = "prompt"
"""Name of the only text that GEPA improves here."""
TOGETHER = 3
"""Examples that one reflection is about."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What a model said to an example under some prompt, and what it is worth."""

    example: Example
    said: str
    grade: float


Score = Callable[[str, Sequence[Example]], Sequence[Answered]]
"""Scores examples under a prompt's text."""
Improve = Callable[[str, Sequence[Answered], int], tuple[str | None, str]]
"""Writes a better prompt from answers under one; the number counts these calls. Returns its text,
or None and the reason why it cannot be used."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where a search begins, and how long it may take."""

    prompt: str
    """The text of the prompt to begin with."""
    examples: tuple[Example, ...]
    """Validation examples."""
    budget: int
    """Most pairs of prompt and example that are scored."""
    seed: int
    """Seed of which prompt is improved by which examples."""


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search."""

    text: str
    """The best prompt on the tracked examples, the earliest of equal ones."""
    accuracy: float
    """Its mean grade there, by which it was chosen: too high for other examples."""
    first_accuracy: float
    """That of the prompt that the search began with."""
    tracked: int
    """How many examples these are."""
    pairs: int
    """Pairs of prompt and example that were scored."""
    prompts: int
    """Prompts that were scored on all tracked examples."""
    reflections: int
    """Times that a better prompt was asked for."""
    refused: Mapping[str, int]
    """Why some of those that were written could not be used."""


def divide(
    examples: tuple[Example, ...], budget: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The tracked examples, and those to be shown."""
    count = max(1, min(budget // 10, len(examples) // 2))
    return examples[:count], examples[count:] or examples


def most_reflections(budget: int) -> int:
    """How often a better prompt is asked for at most."""
    return budget // TOGETHER


def find_prompt(start: Start, score: Score, improve: Improve) -> Found:
    """Search for the prompt with the best mean grade.

    Args:
        start: Where to begin.
        score: Called for no pair twice.
        improve: See `Improve`.

    Raises:
        PaftError: From `score` or `improve`.
    """
    try:
        import gepa
    except ImportError as error:
        raise package_missing("gepa", "optimize") from error

    tracked, shown = divide(start.examples, start.budget)
    search = _Search(tracked, start.budget, score, improve)
    adapter: Any = search  # GEPA declares its methods as attributes
    with suppress(_OverError):
        gepa.optimize(
            {_PROMPT: start.prompt},
            trainset=list(shown),
            valset=list(tracked),
            adapter=adapter,
            reflection_minibatch_size=TOGETHER,
            stop_callbacks=search.is_over,
            logger=_Log(),
            seed=start.seed,
            raise_on_exception=True,
        )
    if search.failed is not None:
        raise search.failed
    return search.found(start.prompt)


class _OverError(Exception):
    """The budget does not suffice for what GEPA asks for."""


class _NotUsableError(Exception):
    """No better prompt was written; GEPA goes on with other examples."""


class _Log:
    def log(self, message: str) -> None:
        logger.debug("%s", message)


class _Search:
    """GEPA's adapter: scores each pair once, within the budget, and keeps the books."""

    def __init__(
        self, tracked: Sequence[Example], budget: int, score: Score, improve: Improve
    ) -> None:
        self._tracked, self._budget = tracked, budget
        self._score, self._improve = score, improve
        self._known: dict[str, dict[str, Answered]] = {}
        """By a prompt's text and an example's id."""
        self._spent = self._reflections = self._turns = 0
        self._refused: Counter[str] = Counter()
        self._ended = False
        self.failed: PaftError | None = None

    def evaluate(
        self, batch: list[Example], candidate: dict[str, str], capture_traces: bool = False
    ) -> "EvaluationBatch[Answered, Answered]":
        from gepa import EvaluationBatch

        known = self._known.setdefault(candidate[_PROMPT], {})
        new = list({each.id: each for each in batch if each.id not in known}.values())
        if self._spent + len(new) > self._budget:
            raise _OverError
        if new:
            self._spent += len(new)
            known.update(self._scored(candidate[_PROMPT], new))
        answered = [known[example.id] for example in batch]
        traces = answered if capture_traces else None
        return EvaluationBatch(answered, [each.grade for each in answered], traces)

    def _scored(self, text: str, examples: Sequence[Example]) -> dict[str, Answered]:
        try:
            answered = self._score(text, examples)
        except OverlongError:
            if len(self._known) == 1:  # that of the user's pool
                raise
            self._refused["too long"] += 1
            answered = [Answered(example, "", 0.0) for example in examples]
        return {each.example.id: each for each in answered}

    def make_reflective_dataset(
        self,
        candidate: dict[str, str],
        eval_batch: "EvaluationBatch[Answered, Answered]",
        components_to_update: list[str],
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        return {_PROMPT: [{"answered": each} for each in eval_batch.outputs]}

    def propose_new_texts(
        self,
        candidate: dict[str, str],
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: list[str],
    ) -> dict[str, str]:
        answered = [each["answered"] for each in reflective_dataset[_PROMPT]]
        self._reflections += 1
        try:
            text, reason = self._improve(candidate[_PROMPT], answered, self._reflections)
        except BudgetSpentError:
            self._reflections -= 1
            self._ended = True
            raise
        except PaftError as error:  # GEPA would go on
            self.failed = error
            raise
        if text is None or text in self._known:
            self._refused[reason or "written before"] += 1
            raise _NotUsableError
        return {_PROMPT: text}

    def is_over(self, gepa_state: Any) -> bool:
        """Whether another turn could bring nothing."""
        self._turns += 1  # one without a fault to show costs nothing
        left = self._budget - self._spent
        return (
            self.failed is not None
            or self._ended
            or left < TOGETHER
            or self._reflections >= most_reflections(self._budget)
            or self._turns > self._budget
        )

    def found(self, first: str) -> Found:
        ids = [example.id for example in self._tracked]
        means = {
            text: sum(known[id].grade for id in ids) / len(ids)
            for text, known in self._known.items()
            if all(id in known for id in ids)
        }
        best = max(means, key=lambda text: means[text])
        return Found(
            best, means[best], means[first], len(ids), self._spent, len(means),
            self._reflections, dict(self._refused),
        )  # fmt: skip
