"""Chat templates: one rendering for training, scoring, serving, exports and authors of candidates.

A template is looked at when its tokenizer is loaded, by rendering a text with it: it must show the
text once, a date that it prints is pinned, and thinking is switched off where it can be. Templates
come from models, so that nothing they do is trusted; transformers runs them in jinja's sandbox.
"""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from paft_ray.config import ModelConfig
from paft_ray.config.errors import ConfigError, DataError, one_line
from paft_ray.models.check_process import limited
from paft_ray.models.gguf_header import is_gguf
from paft_ray.models.thinking import SYSTEM_WORDS, left_open, without_thinking

CHAT_RULE = 2
"""Version of how templates are rendered: the first let models think, and printed today's date."""
_MOVED = re.compile(r"think|reason|effort|strftime|date", re.IGNORECASE)
"""What a template mentions that is rendered differently by this rule than by the first."""
_DATE = datetime(2025, 1, 1)
_OTHER_DATE = datetime(2031, 10, 23)
_TEXT = "Which word is missing here?\nThe cat sat on the {0} <mat>; 7 \u00b7 8 = 56"
_SYSTEM = "Zwei Saetze, one answer."


def renders_anew(template: str | None) -> bool:
    """Return whether `CHAT_RULE` may render a template otherwise than its first version did.

    A pure function of the template's text, None where it is not known.
    """
    return template is None or _MOVED.search(template) is not None


@dataclass(frozen=True)
class Chat:
    """A tokenizer's chat template, with all that its rendering depends on."""

    tokenizer: Any
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the template."""
    system: str | None = None
    """Text of the system message that begins every conversation."""
    folds_system: bool = False
    """Put system messages before the user's text, for templates that take none."""
    in_parts: bool = False
    """Give contents as lists of parts, for templates that read nothing else."""
    notes: tuple[str, ...] = ()
    """What a reader of results must know, one sentence each."""

    def ask(self, text: str) -> str:
        """Return what the model reads where a user asks `text`.

        Raises:
            DataError: The template does not render it.
        """
        system = [] if self.system is None else [("system", self.system)]
        return self.render([*system, ("user", text)])

    def render(self, messages: Sequence[tuple[str, str]]) -> str:
        """Return what the model reads after a conversation of roles and texts.

        Raises:
            DataError: The template does not render it.
        """
        try:
            return self._apply(messages, _DATE)
        except Exception as error:  # whatever a template does
            raise DataError(
                f"model.chat_template: it does not render {messages[-1][1][:60]!r} "
                f"({one_line(error)}); change the text, or use chat_template: none"
            ) from error

    def after_answer(self) -> str:
        """Return what the template writes after an answer; empty where it writes questions only."""
        try:
            turns = [("user", "q"), ("assistant", "@answer@")]
            return self._apply(turns, _DATE, asks=False).rpartition("@answer@")[2]
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - whatever a template does
            return ""

    def _apply(self, messages: Sequence[tuple[str, str]], date: datetime, asks: bool = True) -> str:
        messages = _folded(messages) if self.folds_system else messages
        rendered = self.tokenizer.apply_chat_template(
            [
                {
                    "role": role,
                    "content": [{"type": "text", "text": text}] if self.in_parts else text,
                }
                for role, text in messages
            ],
            chat_template=_pinned(self.text, date) if self.reads_date else self.text,
            tokenize=False,
            add_generation_prompt=asks,
            **self.arguments,
        )
        assert isinstance(rendered, str)
        return rendered

    def tried(self, date: datetime = _DATE) -> str | None:
        """Render a text that no template knows; None where it is not shown once."""
        system = [] if self.system is None else [("system", self.system)]
        try:
            rendered = self._apply([*system, ("user", _TEXT)], date)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - whatever a template does
            return None
        return rendered if rendered.count(_TEXT) == 1 else None

    @cached_property
    def text(self) -> str:
        """The template itself."""
        return self.tokenizer.get_chat_template()

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names that the template reads and does not set itself."""
        from jinja2 import Environment, meta

        # {% generation %} is transformers' own
        plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", self.text)
        environment = Environment(extensions=["jinja2.ext.loopcontrols"])
        return frozenset(meta.find_undeclared_variables(environment.parse(plain)))

    @property
    def reads_date(self) -> bool:
        """Whether the template can print the date."""
        return "strftime_now" in self.variables

    @cached_property
    def thinks(self) -> str | None:
        """The tag of a reasoning that the rendering opens and leaves open."""
        return left_open((self.tried() or "").rpartition(_TEXT)[2])


def open_chat(
    tokenizer: Any, system: str | None = None, arguments: Mapping[str, Any] | None = None
) -> Chat:
    """Look at a tokenizer's chat template and decide how it is rendered.

    Args:
        tokenizer: A tokenizer with a chat template.
        system: `model.system`.
        arguments: `model.chat_template_kwargs`. Where these name no switch of its reasoning, the
            template's own switch is set to off.

    Raises:
        ConfigError: The template fails, does not show the user's text once, or reads no such
            variable.
    """
    chat = Chat(tokenizer, dict(arguments or {}))
    _check_arguments(chat)
    chat = _showing_the_text(chat)
    chat = _with_system(chat, system)
    chat = without_thinking(chat)
    chat = replace(chat, notes=(*chat.notes, *_dated(chat)))
    _refuse_two_beginnings(chat)
    return chat


def describe_chat(path: str, revision: str | None, model: ModelConfig) -> tuple[str, ...]:
    """Look at a model's chat template as training and scoring will, see `Chat.notes`.

    `path` is a local path or a hub name. Runs in `check_process`, whose limits hold for what the
    template computes.

    Raises:
        ConfigError: See `open_chat`; or there is no template for a setting of it.
    """
    from paft_ray.models.pretrained import read_tokenizer

    file = Path(path)
    try:
        tokenizer = (
            read_tokenizer(str(file.parent), gguf_file=file.name)
            if is_gguf(file)
            else read_tokenizer(path, revision, model.trust_remote_code)
        )
    except Exception as error:  # whatever transformers finds
        remedy = "" if isinstance(error, ConfigError) else "; fetch or save it again"
        raise ConfigError(
            f"model.path: the tokenizer of {path} cannot be read ({one_line(error)}){remedy}"
        ) from error
    if tokenizer.chat_template is None:
        refuse_without_template(model.system, model.chat_template_kwargs)
        return ("it has no chat template, so that prompts are used as they are",)
    with limited():
        chat = open_chat(tokenizer, model.system, model.chat_template_kwargs)
        chat.after_answer()
    return chat.notes


def refuse_without_template(system: str | None, arguments: Mapping[str, Any]) -> None:
    """Refuse settings of a chat template for a model that has none.

    Raises:
        ConfigError: There is one.
    """
    if system is not None or arguments:
        name = "chat_template_kwargs" if arguments else "system"
        raise ConfigError(
            f"model.{name}: the model has no chat template, which alone would read it: leave it out"
        )


def _check_arguments(chat: Chat) -> None:
    try:
        variables = chat.variables
    except Exception as error:
        raise ConfigError(
            f"model.chat_template: it cannot be read ({one_line(error)}); mend the template, or "
            "use chat_template: none"
        ) from error
    ours = {*inspect.signature(chat.tokenizer.apply_chat_template).parameters, "messages"}
    for name in chat.arguments:
        if name in ours or name == "strftime_now":
            raise ConfigError(f"model.chat_template_kwargs: {name} is set by paft: leave it out")
        if name not in variables:
            read = sorted(variables - ours - {"strftime_now", "raise_exception", "namespace"})
            raise ConfigError(
                f"model.chat_template_kwargs: the template reads no {name}; it reads "
                f"{', '.join(read) or 'nothing of the kind'}"
            )


def _showing_the_text(chat: Chat) -> Chat:
    for candidate in (chat, replace(chat, in_parts=True)):
        if candidate.tried() is not None:
            return candidate
    try:
        shown = chat.ask(_TEXT).count(_TEXT)
    except DataError as error:
        raise ConfigError(
            f"model.chat_template: it fails ({one_line(error.__cause__ or error)}); mend the "
            "template, or use chat_template: none"
        ) from error
    raise ConfigError(
        f"model.chat_template: it shows a user's message {shown} times, not once, so that the "
        "model would not read the prompt as it stands; mend the template, or use "
        "chat_template: none"
    )


def _pinned(template: str, date: datetime) -> str:
    """The template after a macro that prints `date`, in place of transformers' own function."""
    directives = [
        f"%{sign}{letter}"
        for letter in "aAbBcdefFDGHIjklmMnpPrRsStTuUVwWxXyYzZ"
        for sign in ("-", "")
    ]
    replaced = "".join(f" | replace({d!r}, {date.strftime(d)!r})" for d in directives)
    macro = "{% macro strftime_now(format) %}{{ format" + replaced + " }}{% endmacro %}"
    return f"{macro}\n{template}"  # jinja drops the newline


def _with_system(chat: Chat, system: str | None) -> Chat:
    """Find out whether the template takes a system message; else fold it into the user's text."""
    takes = _SYSTEM in (replace(chat, system=_SYSTEM).tried() or "")
    chat = replace(chat, folds_system=not takes)
    if system is None:
        return chat
    note = "its chat template takes no system message: model.system stands before the user's text"
    chat = replace(chat, system=system, notes=chat.notes if takes else (*chat.notes, note))
    shown = system  # a template takes out the words that it looks for
    for word in (*SYSTEM_WORDS, "/think"):
        shown = shown.replace(word, "")
    if shown.strip() not in (chat.tried() or ""):
        raise ConfigError(
            "model.system: the chat template does not show it as it stands; reword it, or leave "
            "it out"
        )
    return chat


def _folded(messages: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    system = [text for role, text in messages if role == "system"]
    others = [(role, text) for role, text in messages if role != "system"]
    if not system or not others:
        return list(messages)
    (role, text), *later = others
    return [(role, "\n\n".join([*system, text])), *later]


def _dated(chat: Chat) -> Iterator[str]:
    if chat.tried(_DATE) != chat.tried(_OTHER_DATE):
        names = sorted(name for name in chat.variables if "date" in name)
        other = f", or set {names[0]} under model.chat_template_kwargs" if names else ""
        yield f"its chat template prints the date: it is always {_DATE:%Y-%m-%d}{other}"


def _refuse_two_beginnings(chat: Chat) -> None:
    """Refuse a rendering whose first token stands twice, as the model never saw it."""
    bos = chat.tokenizer.bos_token_id
    ids = chat.tokenizer(chat.ask(_TEXT), add_special_tokens=False)["input_ids"]
    if bos is not None and list(ids[:2]) == [bos, bos]:
        raise ConfigError(
            f"model.chat_template: what it renders begins with {chat.tokenizer.bos_token!r} twice; "
            "write it once in the template, or use chat_template: none"
        )
