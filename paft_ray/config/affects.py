"""The parts of a configuration that identities are made from.

Covered: reading what fields declare (`config.base.affects`), and versions of rules that no field
sets. Not covered: the content of paths, and the order of fields in an identity; the code that makes
the identity knows both.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from paft_ray.config.base import Affects, Section, Target

RULES: Mapping[Target, int] = {
    "pool": 1,
    "answers": 1,
    "examples": 2,
    "weights": 1,
    "scores": 2,
    "search": 1,
}
"""What a rule affects, to the rule's version. Raise it when a rule changes that no field sets, such
as how an answer is scored: results of the older rule are then made again, or refused.

Examples: 2, splits keep the same text together and are exact in every answer; before, every row was
placed by a hash of its text and answer to the letter. Scores: 2, only what a model keeps apart is
read together, and a free text is compared as a whole, not by its first line."""
PROMPT_RULES: Mapping[str, int] = {
    "lint": 2,
    "parse": 3,
    "escapes": 2,
    "demonstrations": 2,
    "demonstrations_apart": 2,
}
"""Rules of the pool that move only some pools, to the rule's version; `prompts.build` knows which.

lint 2: braces that are no slots are text, and brackets too in what a user wrote. parse 2: answers
of LLMs without reasoning, and none that was cut off, filtered or refused. parse 3: none that begins
with thoughts about the request. escapes 2: a backslash in a table of prompts is a backslash,
unless its text was put on one line. demonstrations 2: a user's template may have that slot.
demonstrations_apart 2: a blank line sets them apart from what stands right beside the slot.
"""
OF_A_RUN: tuple[Target, ...] = ("pool", "answers", "examples", "weights", "scores", "run")


def affecting(section: Section, *targets: Target) -> dict[str, Any]:
    """The fields of a section that affect any of `targets`, as a JSON-ready tree.

    A field that a later version added is left out while its value means what earlier versions did.
    Rules of another version than the first are under `rules`.
    """
    wanted = frozenset(targets)
    return _with_rules(_kept(section, lambda note: bool(note.targets & wanted)), targets)


def result_fields(config: Section) -> dict[str, Any]:
    """The fields that change a run's results: all but names, places, and how work is spread."""
    return affecting(config, *OF_A_RUN)


def older_rules(results_from: Mapping[str, Any]) -> list[Target]:
    """What a run, from its recorded `result_fields`, was made by another rule of than today's."""
    made_by = results_from.get("rules", {})
    return [target for target in OF_A_RUN if made_by.get(target, 1) != RULES.get(target, 1)]


def recorded_fields(config: Section) -> dict[str, Any]:
    """The fields of the first version, and later ones that affect anything."""
    kept = _kept(config, lambda note: note.neutral is ... or bool(note.targets))
    return _with_rules(kept, RULES)


def take(tree: Mapping[str, Any], *paths: str) -> tuple[list[Any], dict[str, Any]]:
    """Take the values at dotted paths; returns them, and the rest without empty sections.

    An identity lists the fields of its first version in their order; the rest came later.

    Raises:
        KeyError: The tree has nothing at a path.
    """
    values, rest = [], dict(tree)
    for path in paths:
        key, _, below = path.partition(".")
        if below:
            [value], child = take(rest[key], below)
            rest = {k: v for k, v in rest.items() if k != key} | ({key: child} if child else {})
        else:
            value = rest.pop(key)
        values.append(value)
    return values, rest


def _with_rules(tree: dict[str, Any], targets: Iterable[Target]) -> dict[str, Any]:
    newer = {target: RULES[target] for target in targets if RULES.get(target, 1) > 1}
    return {**tree, "rules": newer} if newer else tree


def _kept(section: Section, keep: Callable[[Affects], bool]) -> dict[str, Any]:
    return _kept_below(section, json.loads(section.model_dump_json()), keep, None)


def _kept_below(
    value: Any, tree: Any, keep: Callable[[Affects], bool], outer: Affects | None
) -> Any:
    """The part of `tree`, the JSON of `value`, whose fields are kept.

    `outer` is declared on a field that holds `value` and stands for all in it that affects
    anything.
    """
    if isinstance(value, tuple):
        entries = [_kept_below(v, t, keep, outer) for v, t in zip(value, tree, strict=True)]
        return entries if any(entries) else []
    if isinstance(value, Mapping):
        return {k: kept for k, v in value.items() if (kept := _kept_below(v, tree[k], keep, outer))}
    found = {}
    for name, note in type(value).declared.items():
        own = getattr(value, name)
        if note.is_neutral(value, own):
            continue
        if _holds_sections(own):
            whole = outer or (note if note.whole else None)
            if kept := _kept_below(own, tree[name], keep, whole):
                found[name] = kept
        elif keep(outer or note) and (note.targets or not (outer and outer.targets)):
            found[name] = tree[name]
    return found


def _holds_sections(value: Any) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value
    return isinstance(value, Section) or (
        isinstance(value, tuple | Mapping) and any(isinstance(entry, Section) for entry in inner)
    )
