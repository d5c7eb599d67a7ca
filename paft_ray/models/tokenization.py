"""Encodes rendered texts and answers, as lm-evaluation-harness does where the text allows it.

Trailing spaces of the context move to the answer, both are encoded together, and the answer is what
follows the tokens of the context alone. Where a token joins characters of both, it belongs to the
answer, and the context of all answers ends before it; lm-evaluation-harness counts, and loses it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

from paft_ray.config import Config
from paft_ray.config.errors import ConfigError, DataError, OverlongError
from paft_ray.config.task import CHOICES_SLOT, shows_choices
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
    ended: bool = False
    """Whether the last of `answer_ids` is the end token."""

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
    """Fields of the example; the longest is cut where `overlong` is `trim`, but for those in
    `TextEncoder.whole`."""
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
    end_id: int | None = None
    """Token that is appended to every answer; None for none."""
    whole: frozenset[str] = frozenset()
    """Fields that are never cut, as long as there are others."""

    @classmethod
    def from_config(cls, tokenizer: "PreTrainedTokenizerBase", config: Config) -> Self:
        """Return the encoder of a run's task and model.

        Raises:
            ConfigError: The tokenizer has no end token, and answers end with one.
        """
        task, model = config.task, config.model
        encoder = cls(
            tokenizer,
            model.chat_template,
            task.max_length,
            task.overlong,
            model.system,
            model.chat_template_kwargs,
            whole=frozenset([CHOICES_SLOT] if shows_choices(task) else []),
        )
        return encoder.ending(task.answer_end, task.has_choices)

    def ending(self, answer_end: str, choices: bool) -> Self:
        """Return this encoder with the end token of `task.answer_end`.

        A choice under a chat template ends as the template ends the assistant's turn. Free text
        ends with the tokenizer's end token, at which every generation stops.

        Raises:
            ConfigError: The tokenizer has no end token.
        """
        if answer_end == "ignored":
            return replace(self, end_id=None)
        turn_end = self._turn_end() if choices and self.uses_chat_template else None
        end_id: Any = self.tokenizer.eos_token_id if turn_end is None else turn_end
        if end_id is None:
            remedy = "set task.answer_end: ignored" if choices else "save it with one"
            raise ConfigError(
                f"model.path: the tokenizer has no end token (eos_token), with which answers end: "
                f"{remedy}"
            )
        return replace(self, end_id=end_id)

    def _turn_end(self) -> int | None:
        """Return the token with which the chat template ends an answer, or None for none."""
        after = self.chat.after_answer().lstrip()
        ids: Any = self.tokenizer(after, add_special_tokens=False)["input_ids"]
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        return ids[0] if ids and ids[0] in special else None

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Return the tokens that are appended to every answer: one, or none."""
        return () if self.end_id is None else (self.end_id,)

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
        stripped, delimiter = plain_context(text)
        if self.uses_chat_template:
            rendered = self.chat.ask(stripped)
            context = rendered.rstrip(" ")
            return context, rendered[len(context) :]
        return stripped, delimiter

    def encode(
        self,
        render: Callable[[Mapping[str, str]], str],
        fields: Mapping[str, str],
        answers: Sequence[str],
        what: str = "example",
    ) -> tuple[Encoded, ...]:
        """Encode one example; see `encode_all`, and `Question` for the arguments."""
        return self.encode_all([Question(render, fields, answers, what)])[0]

    def encode_all(self, questions: Sequence[Question]) -> list[tuple[Encoded, ...]]:
        """Encode rendered examples with each of their answers, in one call of the tokenizer.

        Returns:
            For each question its context, the same for all, with every answer.

        Raises:
            OverlongError: Context and answer are longer than `max_length`, and may not or cannot be
                trimmed; an answer has no tokens, or the same as another one.
        """
        texts = [question.render(question.fields) for question in questions]
        encoded = self._encode_texts(texts, [question.answers for question in questions])
        return [
            self._fit(question, pair) for question, pair in zip(questions, encoded, strict=True)
        ]

    def _fit(self, question: Question, encoded: tuple[Encoded, ...]) -> tuple[Encoded, ...]:
        excess = max(e.length for e in encoded) - self.max_length
        if excess <= 0:
            return encoded
        if self.overlong == "refuse":
            raise OverlongError(
                f"{question.what} has {self.max_length + excess} tokens with its prompt, more than "
                f"task.max_length ({self.max_length}): raise it, or set task.overlong: trim"
            )
        return self._trim(question)[0]

    def trimmed_fields(self, question: Question) -> Mapping[str, str]:
        """Return the fields of an overlong question, cut to fit."""
        return self._trim(question)[1]

    def _trim(self, question: Question) -> tuple[tuple[Encoded, ...], Mapping[str, str]]:
        fields = dict(question.fields)
        for _ in range(16):
            [encoded] = self._encode_texts([question.render(fields)], [question.answers])
            excess = max(e.length for e in encoded) - self.max_length
            if excess <= 0:
                return tuple(replace(e, trimmed=True) for e in encoded), fields
            cut = fields.keys() - self.whole or fields.keys()
            longest = max(cut, key=lambda name: (len(fields[name]), name))
            ids = self.tokenizer(fields[longest], add_special_tokens=False)["input_ids"]
            text = str(self.tokenizer.decode(ids[: max(0, len(ids) - excess)]))
            text = text.rstrip("\ufffd").rstrip()  # a character of several tokens was cut in two
            if text == fields[longest]:
                break
            fields = {**fields, longest: text}
        raise OverlongError(
            f"{question.what} does not fit task.max_length ({self.max_length}) even with its "
            "longest field cut: the prompt itself is too long, with its demonstrations where it "
            "has some, which are never cut; raise task.max_length"
        )

    def _encode_texts(
        self, texts: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> list[tuple[Encoded, ...]]:
        contexts = [self.context(text) for text in texts]
        whole = [
            [context, *(context + delimiter + answer for answer in own)]
            for (context, delimiter), own in zip(contexts, answers, strict=True)
        ]
        flat = [text for group in whole for text in group]
        special = not self.uses_chat_template
        ids: Any = self.tokenizer(flat, add_special_tokens=special)["input_ids"]
        appended = self._appended if special else 0
        stripped = iter([tuple(own[: len(own) - appended]) for own in ids])
        return [
            self._split(text, own, [next(stripped) for _ in text])
            for text, own in zip(whole, answers, strict=True)
        ]

    @cached_property
    def _appended(self) -> int:
        """Number of tokens that the tokenizer appends to every text, such as its end token."""
        bare: Any = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        found: Any = self.tokenizer("a")["input_ids"]
        after = [
            len(found) - len(bare) - place
            for place in range(len(found) - len(bare) + 1)
            if found[place : place + len(bare)] == bare
        ]
        return min(after, default=0)

    def _split(
        self, texts: Sequence[str], answers: Sequence[str], ids: Sequence[tuple[int, ...]]
    ) -> tuple[Encoded, ...]:
        """Split the ids of a context with each of its answers at the end of the context.

        Args:
            texts: The context, and the context with each answer.
            answers: The answers.
            ids: Token ids of `texts`.
        """
        context, (context_ids, *whole) = texts[0], ids
        cut = len(context_ids)
        if any(with_answer[:cut] != context_ids for with_answer in whole):
            cut = max(
                _common_beginning(ids),
                min(_common_beginning(whole), self._tokens_within(context, texts[1:])),
            )
        first: dict[tuple[int, ...], str] = {}
        for with_answer, answer in zip(whole, answers, strict=True):
            if len(with_answer) <= cut or with_answer == context_ids:
                raise DataError(
                    f"answer {answer!r} adds no token after {context[-40:]!r}: reword the answer"
                )
            if with_answer in first:
                raise DataError(
                    f"answers {first[with_answer]!r} and {answer!r} are the same tokens to this "
                    "model's tokenizer, so that none could be told from the other: reword them"
                )
            first[with_answer] = answer
        # as in lm-evaluation-harness, an empty context is the end token
        shared: Any = context_ids[:cut] or (self.tokenizer.eos_token_id,)
        tail = self.end_ids
        return tuple(Encoded(shared, i[cut:] + tail, ended=bool(tail)) for i in whole)

    def _tokens_within(self, context: str, texts: Sequence[str]) -> int:
        """Return how many tokens at the beginning of all texts end within the context."""
        if not self.tokenizer.is_fast:
            return 0
        special = not self.uses_chat_template
        encoded: Any = self.tokenizer(
            list(texts), add_special_tokens=special, return_offsets_mapping=True
        )["offset_mapping"]
        beyond = [[end > len(context) for _, end in offsets] for offsets in encoded]
        return min(own.index(True) if True in own else len(own) for own in beyond)


def plain_context(text: str) -> tuple[str, str]:
    """Return a rendered text as a model reads it, and the delimiter before the answer."""
    stripped = text.rstrip(" ")
    return stripped, "" if stripped.endswith("\n") else " "


def _common_beginning(ids: Sequence[tuple[int, ...]]) -> int:
    """Return the number of tokens with which all begin."""
    first, last = min(ids), max(ids)  # what these two share, all share
    equal = [a == b for a, b in zip(first, last, strict=False)]
    return equal.index(False) if False in equal else len(equal)


def choice_sequences(
    encoded: Sequence[Encoded], ends_apart: bool = False
) -> tuple[TokenSequence, ...]:
    """Return the sequences that score several answers to one context.

    Where every answer is a single token, one sequence, which holds only the context, scores all;
    otherwise each answer has its own.

    Args:
        encoded: The answers.
        ends_apart: The end token of answer `n` has the owner `len(encoded) + n`.
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
    sequences = []
    for owner, e in enumerate(encoded):
        owners = [owner] * len(e.answer_ids)
        if ends_apart and e.ended:
            owners[-1] += len(encoded)
        sequences.append(replace(e.sequence(), owners=tuple(owners)))
    return tuple(sequences)
