"""Switches a model's reasoning off in its chat template, and finds out what became of it.

An answer is scored right after the context: a model that expects to think there is understated.
"""

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paft_ray.models.chat import Chat

_SWITCH = re.compile(r"think|reason|effort", re.IGNORECASE)
_NO_SWITCH = re.compile(r"keep|preserve|clear|history|past|content|token|start|end$")
"""In names that say what becomes of earlier turns, or how reasoning is marked."""
_NEGATIVE = re.compile(r"^(no|not|non|without|disable|skip|hide|omit)_?")
_LEVELS = re.compile(r"effort|level|mode|type|style")
_OFF_WORDS = ("none", "off", "disabled", "disable", "no_think", "nothink", "chat", "minimal")
SYSTEM_WORDS = ("/no_think", "detailed thinking off")
"""Words that some templates look for in the system message."""
_NAMES = r"think|thinking|thought|reasoning|reason|seed:think|scratchpad"
_MENTIONED = re.compile(rf"</?({_NAMES})>", re.IGNORECASE)
_OPENS = re.compile(
    rf"<({_NAMES})>|\[(THINK)\]|<\|(START_THINKING|begin_of_thought|think|thinking)\|>"
    r"|<\|channel\|?>(?:analysis|thought)",
    re.IGNORECASE,
)
_CLOSES = re.compile(
    rf"</({_NAMES})>|\[/THINK\]|<\|(END_THINKING|end_of_thought|/think|/thinking)\|>|<channel\|>"
    r"|<\|end\|>",
    re.IGNORECASE,
)


def left_open(tail: str) -> str | None:
    """Return the tag of a reasoning that `tail`, the text before an answer, leaves open."""
    opened = [*_OPENS.finditer(tail)]
    if not opened or _CLOSES.search(tail, opened[-1].end()):
        return None
    return opened[-1].group()


def without_thinking(chat: "Chat") -> "Chat":
    """Switch reasoning off where the template can, and note what became of it."""
    switches = sorted(
        name
        for name in chat.variables
        if _SWITCH.search(name) and not _NO_SWITCH.search(name.lower())
    )
    if given := [name for name in switches if name in chat.arguments]:
        chosen = ", ".join(f"{name}: {chat.arguments[name]}" for name in given)
        return replace(chat, notes=(*chat.notes, *_open_reasoning(chat, f" with {chosen}")))
    turned: dict[str, Any] = {}
    for name in switches:
        before = replace(chat, arguments={**chat.arguments, **turned})
        if (value := _off_value(before, name)) is not None:
            turned[name] = value
    found = replace(chat, arguments={**chat.arguments, **turned})
    notes = []
    if turned:
        lowest = any(value in ("low", "minimal") for value in turned.values())
        what = "is set to its lowest, it cannot be switched off" if lowest else "is switched off"
        names = ", ".join(f"{name}: {str(v).lower()}" for name, v in turned.items())
        notes.append(f"thinking {what} in its chat template ({names})")
    if found.thinks and (quiet := _quiet_by_words(found)):
        found = quiet
        notes.append(f"thinking is switched off by the system message {found.system!r}")
    notes += _open_reasoning(found, "")
    if not notes and not switches and _MENTIONED.search(found.text):
        notes.append(
            "its chat template knows reasoning and has no switch for it: a model that thinks first "
            "is scored without its thoughts"
        )
    return replace(found, notes=(*found.notes, *notes))


def _off_value(chat: "Chat", name: str) -> Any:
    """Return the value that switches reasoning off, None where the variable changes nothing."""
    lower = name.lower()
    if "budget" in lower:
        values: list[Any] = [0]
    elif _LEVELS.search(lower):
        values = [word for word in _OFF_WORDS if _compared(chat.text, word)] or (
            ["low"] if "effort" in lower or "level" in lower else []
        )
    else:
        off = bool(_NEGATIVE.search(lower))
        values = [off, not off]
    plain = chat.tried()
    tried = [(v, replace(chat, arguments={**chat.arguments, name: v})) for v in values]
    differing = [(value, other) for value, other in tried if other.tried() not in (None, plain)]
    if isinstance(values[0] if values else None, bool):
        # what its name says, unless the rendering shows that it is the other way round
        by_name = [pair for pair in differing if pair[0] == values[0]]
        turned = [p for p in differing if chat.thinks and not p[1].thinks]
        differing = turned or [p for p in by_name if chat.thinks or not p[1].thinks]
    return differing[0][0] if differing else None


def _compared(template: str, word: str) -> bool:
    """Return whether a template compares something with a word, or looks for it in a list."""
    others = r"""(?:["'][\w -]+["']\s*,\s*)*"""
    compared = rf"""(?:==|!=|\bin)\s*[\[(]?\s*{others}["']{word}["']"""
    return re.search(compared, template) is not None


def _quiet_by_words(chat: "Chat") -> "Chat | None":
    for words in SYSTEM_WORDS:
        if words in chat.text and not chat.folds_system:
            system = f"{chat.system}\n{words}" if chat.system else words
            other = replace(chat, system=system)
            if other.tried() is not None and other.thinks is None:
                return other
    return None


def _open_reasoning(chat: "Chat", how: str) -> list[str]:
    if chat.thinks is None:
        return []
    return [
        f"its chat template opens {chat.thinks} before every answer{how or ', without a switch'}: "
        "answers are scored where the model would think"
    ]
