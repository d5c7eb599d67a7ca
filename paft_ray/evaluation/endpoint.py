"""What an endpoint is asked about examples under prompts, and the scores of its answers; pure.

Choices are ranked by the log-likelihoods of prompts, a request for each; a text is one request. An
answer that was refused or filtered, or in which nothing is said, is graded 0 and counted.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

from paft_ray.config import EndpointSubject, OpenAILLM
from paft_ray.config.errors import LLMError
from paft_ray.evaluation.scores import Asked, Score, graded
from paft_ray.models.said import Continuation, Likelihoods
from paft_ray.models.tokenization import plain_context
from paft_ray.prompts.generate.chat_protocol import Api, read_any_answer, request_body
from paft_ray.prompts.generate.completions import CUT_OFF, FILTERED, REFUSED, Completion
from paft_ray.prompts.generate.reasoning import without_reasoning
from paft_ray.prompts.generate.requests import Request
from paft_ray.prompts.generate.text_protocol import (
    ANSWER,
    LOGPROBS,
    PromptLogprobs,
    common_cut,
    continuing,
)
from paft_ray.prompts.variation import Condition, Put
from paft_ray.runs.context import RunContext
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.tasks import Example, Task
from paft_ray.tasks.grading import EqualGrader, RankedGrader

UNANSWERED = ("refused", "filtered", "only_reasoning", "empty")
"""Kinds of answers that say nothing, which are graded 0, among the counts of a subject."""
_RANKS, _WRITES = "logprobs", "text"
"""Kinds of requests."""
_CHAT = Api("/chat/completions", request_body, read_any_answer)


@dataclass(frozen=True)
class Questions:
    """The requests to an endpoint about one task, and how answers become scores."""

    subject: EndpointSubject
    client: OpenAILLM
    task: Task
    """With the graders of this subject."""
    stop: tuple[str, ...]
    """`task.stop`."""
    end: str
    """The end token that is scored after choices, as text; empty for none."""
    seed: int
    """Of what conditions draw."""

    @classmethod
    def of(cls, context: RunContext, subject: EndpointSubject) -> Self:
        """What the subject is asked in a run."""
        config, task = context.config, context.task
        if subject.choices_by == "text":
            task = replace(task, graders=tuple(map(_by_text, task.graders)))
        ends = config.task.answer_end == "scored" and subject.end_token
        client = subject.client(config.evaluation.max_new_tokens)
        return cls(subject, client, task, config.task.stop, ends or "", config.seed)

    def asked(self, prompt: tuple[str, str], examples: Sequence[Example], how: Condition) -> Asked:
        """What is asked under a prompt's id and text, under a condition."""
        return Asked(*prompt, examples, how, self.seed)

    def _put(self, asked: Asked, example: Example) -> Put:
        """One of the examples as the model is asked."""
        [one] = replace(asked, examples=(example,)).puts(self.task)
        return one

    def api_of(self, request: Request) -> Api:
        """The way in which a request is sent."""
        if request.strategy == _RANKS:
            return LOGPROBS
        return _CHAT if self.subject.api == "chat" else self._continuing

    @cached_property
    def _continuing(self) -> Api:
        return continuing(self.stop)

    def requests(self, asked: Asked, example: Example) -> list[Request]:
        """The requests about an example under a prompt: one for each choice, one for a text."""
        one = self._put(asked, example)
        context, delimiter = plain_context(one.render(one.example.fields))
        found = []
        if self.task.ranks:
            for choice in one.choices or ():
                answer = (ANSWER, delimiter + choice + self.end)
                found.append(self._request(_RANKS, (("user", context), answer), 1))
        if self.task.generates:
            system = (("system", self.subject.system),) if self.subject.system else ()
            messages = (*system, ("user", context))
            found.append(self._request(_WRITES, messages, self.client.longest_answer))
        return found

    def _request(self, kind: str, messages: tuple[tuple[str, str], ...], longest: int) -> Request:
        """A request under an id from all that is sent."""
        request = Request("", 0, kind, messages, 0.0, 1.0, 0, longest)
        api = self.api_of(request)
        body = api.body(self.client, request, ())
        return replace(request, id=fingerprint(self.client.base_url, api.path, body))

    def score(
        self, asked: Asked, example: Example, answers: Mapping[str, Completion]
    ) -> tuple[Score, Counter[str]]:
        """The score of an example under a prompt, and counts of its answers.

        Args:
            asked: The prompt.
            example: The example.
            answers: By request id; each has a text.

        Raises:
            GradeError: A grader of the user's own failed.
            LLMError: Log-likelihoods of choices cannot be compared.
        """
        requests = self.requests(asked, example)
        found = [answers[request.id] for request in requests]
        counts = _counts(found)
        written = None
        if self.task.generates:
            written, kind = self._written(found[-1])
        else:
            kind = next(filter(None, map(_withheld, found)), "")
        if kind:
            counts[kind] += 1
            return self._nothing(asked, example, written), counts
        ranked = None
        if self.task.ranks:
            ranked = iter([self._likelihoods(asked, example, found)])
        only = replace(asked, examples=(example,))
        put = [self._put(asked, example)]
        [[score]] = graded(self.task, [(only, put)], ranked, written and iter([written]))
        return score, counts

    def _written(self, answer: Completion) -> tuple[Continuation, str]:
        """What was written, without reasoning, and the kind of `UNANSWERED` that it is."""
        text = answer.text or ""
        said = without_reasoning(text) or ""
        stops = [place for stop in self.stop if (place := said.find(stop)) >= 0]
        ended = bool(stops) or answer.finish_reason != CUT_OFF
        said = said[: min(stops)] if stops else said
        kind = _withheld(answer)
        if not kind and not said.strip():
            kind = "only_reasoning" if text.strip() or answer.reasoned else "empty"
            kind = "empty" if stops else kind
        return Continuation(said, answer.billed_tokens, ended), kind

    def _likelihoods(
        self, asked: Asked, example: Example, answers: Sequence[Completion]
    ) -> Likelihoods:
        count = len(self._put(asked, example).choices or ())
        read = [PromptLogprobs.read(answer.text or "") for answer in answers[:count]]
        try:
            cut = common_cut(read)
            values = [each.since(cut) for each in read]
            if self.end and any(each.tokens[-1] != self.end for each in read):
                raise LLMError(
                    f"end_token: {self.end!r} is no token of its own there, where the last one is "
                    f"{read[0].tokens[-1]!r}: correct it, or leave it out"
                )
        except LLMError as error:
            where = f"{self.client.label} at {self.client.base_url}"
            raise LLMError(f"{where}: {asked.where(example)}: {error}") from error
        behind = -1 if self.end else None
        return Likelihoods(tuple(map(sum, values)), tuple(sum(own[:behind]) for own in values))

    def _nothing(self, asked: Asked, example: Example, written: Continuation | None) -> Score:
        """The score of an example to which nothing was answered."""
        graders, how = self.task.graders, self._put(asked, example).condition
        return Score(
            asked.prompt_id,
            example.id,
            prediction="",
            correct=False,
            generated_text=written and written.text,
            generated_tokens=written and written.tokens,
            unended=None if written is None else not written.ended,
            begins_right=False if isinstance(graders[0], EqualGrader) else None,
            further_grades=(0.0,) * (len(graders) - 1) or None,
            axis=how.axis or None,
            level=how.level or None,
            draw=how.draw if how.demonstrations else None,
        )

    def describe(self) -> dict[str, object]:
        """What a reader of figures must know of how this subject was asked."""
        ranks, api = self.task.ranks, self.subject.api
        written = [g.label for g in self.task.graders if not isinstance(g, RankedGrader)]
        return {
            "base_url": self.client.base_url,
            "model": self.client.model,
            "api": api,
            **({"choices_by": self.subject.choices_by} if self.task.has_choices else {}),
            **({"end_token": self.end} if ranks else {}),
            **({"written": written} if written else {}),
        }


def _by_text(grader: object) -> EqualGrader | object:
    """The grader of a written choice in the place of one of likelihoods."""
    return EqualGrader(grader.label, "case") if isinstance(grader, RankedGrader) else grader


def _withheld(answer: Completion) -> str:
    return {REFUSED: "refused", FILTERED: "filtered"}.get(answer.finish_reason, "")


def _counts(answers: Sequence[Completion]) -> Counter[str]:
    """Requests, attempts and tokens of answers, and what they were sent without."""
    counts: Counter[str] = Counter(
        requests=len(answers),
        attempts=sum(answer.attempts for answer in answers),
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        completion_tokens=sum(answer.billed_tokens for answer in answers),
        cut_off=sum(answer.finish_reason == CUT_OFF for answer in answers),
        reasoned=sum(_reasoned(answer) for answer in answers),
        **dict.fromkeys(UNANSWERED, 0),
    )
    for name in _left_out(answers):
        counts[f"without {name}"] += 1
    return counts


def _reasoned(answer: Completion) -> bool:
    return answer.reasoned or without_reasoning(answer.text or "") != answer.text


def _left_out(answers: Sequence[Completion]) -> Iterator[str]:
    for answer in answers:
        yield from (name for name in answer.left_out.split(", ") if name)
