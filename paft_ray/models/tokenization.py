"""Encodes rendered texts and answers as lm-evaluation-harness does.

Trailing spaces of the context move to the answer, both are encoded together, and the tokens after
those of the context alone are the answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

from paft_ray.config import Config
from paft_ray.config.errors import DataError
from paft_ray.models.chat import Chat, open_chat
from paft_ray.models.packing import TokenSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a context and of one answer to it."""

    context_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    trimmed: bool = False
    """Whether a field had to be cut to fit `max_length`."""

    @property
    def length(self) -> int:
        """Tokens of context and answer."""
        return len(self.context_ids) + len(self.answer_ids)

    def sequence(self) -> TokenSequence:
        """Return the sequence that predicts every answer token."""
        ids = self.context_ids + self.answer_ids
        first = len(self.context_ids) - 1
        return TokenSequence(
            input_ids=ids[:-1],
            positions=tuple(range(first, len(ids) - 1)),
            targets=self.answer_ids,
            owners=(0,) * len(self.answer_ids),
        )


@dataclass(frozen=True, slots=True)
class Question:
    """An example to render, and the answers to encode after it."""

    render: Callable[[Mapping[str, str]], str]
    """Renders fields to the text before the answer."""
    fields: Mapping[str, str]
    """Fields of the example; the longest is cut where `overlong` is `trim`."""
    answers: Sequence[str]
    what: str = "example"
    """Name of the example in errors."""


@dataclass(frozen=True)
class TextEncoder:
    """Encodes examples of a task with a tokenizer, its chat template and a maximum length."""

    tokenizer: "PreTrainedTokenizerBase"
    chat_template: Literal["none", "auto"] = "none"
    max_length: int = 512
    overlong: Literal["refuse", "trim"] = "refuse"
    system: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_config(cls, tokenizer: "PreTrainedTokenizerBase", config: Config) -> Self:
        """Return the encoder of a run's task and model."""
        task, model = config.task, config.model
        return cls(
            tokenizer,
            model.chat_template,
            task.max_length,
            task.overlong,
            model.system,
            model.chat_template_kwargs,
        )

    @property
    def uses_chat_template(self) -> bool:
        """Return whether prompts are wrapped in the model's chat template, if it has one."""
        return self.chat_template == "auto" and self.tokenizer.chat_template is not None

    @cached_property
    def chat(self) -> Chat:
        """The chat template, where it is used.

        Raises:
            ConfigError: It cannot be used, see `open_chat`.
        """
        return open_chat(self.tokenizer, self.system, self.chat_template_kwargs)

    def context(self, text: str) -> tuple[str, str]:
        """Return the context as the model reads it, and the delimiter before the answer."""
        stripped = text.rstrip(" ")
        if self.uses_chat_template:
            rendered = self.chat.ask(stripped)
            context = rendered.rstrip(" ")
            return context, rendered[len(context) :]
        return stripped, "" if stripped.endswith("\n") else " "

    def encode(
        self,
        render: Callable[[Mapping[str, str]], str],
        fields: Mapping[str, str],
        answers: Sequence[str],
        end: bool = False,
        what: str = "example",
    ) -> tuple[Encoded, ...]:
        """Encode one example; see `encode_all`, and `Question` for the arguments."""
        return self.encode_all([Question(render, fields, answers, what)], end)[0]

    def encode_all(
        self, questions: Sequence[Question], end: bool = False
    ) -> list[tuple[Encoded, ...]]:
        """Encode rendered examples with each of their answers, in one call of the tokenizer.

        Args:
            questions: The examples.
            end: Append the end token to each answer, for training on free text.

        Returns:
            For each question its context with every answer.

        Raises:
            DataError: Context and answer are longer than `max_length`, and may not or cannot be
                trimmed.
        """
        texts = [question.render(question.fields) for question in questions]
        encoded = self._encode_texts(texts, [question.answers for question in questions], end)
        return [
            self._fit(question, pair, end)
            for question, pair in zip(questions, encoded, strict=True)
        ]

    def _fit(
        self, question: Question, encoded: tuple[Encoded, ...], end: bool
    ) -> tuple[Encoded, ...]:
        excess = max(e.length for e in encoded) - self.max_length
        if excess <= 0:
            return encoded
        if self.overlong == "refuse":
            raise DataError(
                f"{question.what} has {self.max_length + excess} tokens with its prompt, more than "
                f"task.max_length ({self.max_length}): raise it, or set task.overlong: trim"
            )
        return self._trim(question, end)[0]

    def trimmed_fields(self, question: Question, end: bool = False) -> Mapping[str, str]:
        """Return the fields of an overlong question, cut to fit."""
        return self._trim(question, end)[1]

    def _trim(self, question: Question, end: bool) -> tuple[tuple[Encoded, ...], Mapping[str, str]]:
        fields = dict(question.fields)
        for _ in range(16):
            [encoded] = self._encode_texts([question.render(fields)], [question.answers], end)
            excess = max(e.length for e in encoded) - self.max_length
            if excess <= 0:
                cut = tuple(Encoded(e.context_ids, e.answer_ids, trimmed=True) for e in encoded)
                return cut, fields
            longest = max(fields, key=lambda name: (len(fields[name]), name))
            ids = self.tokenizer(fields[longest], add_special_tokens=False)["input_ids"]
            text = str(self.tokenizer.decode(ids[: max(0, len(ids) - excess)]))
            text = text.rstrip("\ufffd").rstrip()  # a character of several tokens was cut in two
            if text == fields[longest]:
                break
            fields = {**fields, longest: text}
        raise DataError(
            f"{question.what} does not fit task.max_length ({self.max_length}) even with its "
            "longest field cut: the prompt itself is too long; raise task.max_length"
        )

    def _encode_texts(
        self, texts: Sequence[str], answers: Sequence[Sequence[str]], end: bool
    ) -> list[tuple[Encoded, ...]]:
        contexts = [self.context(text) for text in texts]
        whole = [
            [context, *(context + delimiter + answer for answer in own)]
            for (context, delimiter), own in zip(contexts, answers, strict=True)
        ]
        flat = [text for group in whole for text in group]
        special = not self.uses_chat_template
        ids: Any = iter(self.tokenizer(flat, add_special_tokens=special)["input_ids"])
        return [
            self._split(context, own, [next(ids) for _ in range(len(own) + 1)], end)
            for (context, _), own in zip(contexts, answers, strict=True)
        ]

    def _split(
        self, context: str, answers: Sequence[str], ids: Sequence[list[int]], end: bool
    ) -> tuple[Encoded, ...]:
        """Split the ids of the context with each answer where those of the context alone end."""
        context_ids, *whole = ids
        end_id: Any = self.tokenizer.eos_token_id
        tail = (end_id,) if end else ()
        cut = len(context_ids)
        for with_answer, answer in zip(whole, answers, strict=True):
            if len(with_answer) <= cut:
                raise DataError(
                    f"answer {answer!r} adds no token after {context[-40:]!r}: reword the answer"
                )
        # as in lm-evaluation-harness, an empty context is the end token
        context_ids = context_ids or [end_id]
        return tuple(Encoded(tuple(context_ids), tuple(i[cut:]) + tail) for i in whole)


def choice_sequences(encoded: Sequence[Encoded]) -> tuple[TokenSequence, ...]:
    """Return the sequences that score several answers to one context.

    Where every answer is a single token, one sequence, which holds only the context, scores all;
    otherwise each answer has its own.
    """
    if all(len(e.answer_ids) == 1 for e in encoded):
        context = encoded[0].context_ids
        last = len(context) - 1
        return (
            TokenSequence(
                input_ids=context,
                positions=(last,) * len(encoded),
                targets=tuple(e.answer_ids[0] for e in encoded),
                owners=tuple(range(len(encoded))),
            ),
        )
    return tuple(
        TokenSequence(s.input_ids, s.positions, s.targets, (owner,) * len(s.targets))
        for owner, s in enumerate(e.sequence() for e in encoded)
    )
