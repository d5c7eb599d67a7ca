"""The reference of the configuration, from its schema: every section, every field, every rule."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from paft_ray.config.base import Section
from paft_ray.config.overrides import schema_of_config

_HEAD = """\
# Configuration

{note}

A configuration is one YAML file. Any value can also be given on the command line, as
`section.field=value`; a number selects an entry of a list, as in
`prompts.generation.llms.0.max_tokens=64`. An unknown key is refused with the nearest known one.
`paft plan CONFIG` checks a configuration, and `--print-config` shows it with every default filled
in.

Where a field may be one of several sections, its `type` says which. A field in **bold** has no
default and has to be given, if its section is. *Affects* says what is made again, or refused under
the same `name`, when a value changes: the `pool` of prompts, the `answers` of LLMs, the `examples`
of the task and their splits, the `weights` of trainings, the `scores` of models, what a `run`
compares and reports, or what a `search` tries. Where a section may be at several places, this is
said for the first one. A field without that word changes no result, or names a place whose content
counts, whatever its path.

"""
_WORDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "mapping",
    "null": "null",
}
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
}


def page(note: str) -> str:
    """The whole page."""
    schema = schema_of_config()
    lines = [_HEAD.format(note=note), "## The whole", *_fields(schema, "Config")]
    chapter = ""
    for name, paths in _places(schema).items():
        definition = schema["$defs"][name]
        if (first := re.split(r"[.[]", paths[0])[0]) != chapter:
            chapter = first
            lines += ["", f"## {chapter}"]
        kind = _type(name)
        title = f"{paths[0]}, type: {kind}" if kind else paths[0]
        lines += ["", f"### `{title}` {{#{name.lower()}}}", ""]
        if len(paths) > 1:
            lines += [f"Also at {', '.join(f'`{path}`' for path in paths[1:])}.", ""]
        parts = definition.get("description", "").split("\n\n")
        text = "\n\n".join(" ".join(part.split()) for part in parts)
        lines += [re.sub(r"^See `(\w+)`\.$", lambda found: f"As {_link(found[1])}.", text)]
        lines += _fields(definition, name)
    return "\n".join(lines) + "\n"


def _type(name: str) -> str | None:
    """The `type` that tells a section from others at the same place."""
    return schema_of_config()["$defs"][name].get("properties", {}).get("type", {}).get("const")


def _places(schema: Mapping[str, Any]) -> dict[str, list[str]]:
    """Every section by its name, in the order of the file, and the paths that it may stand at."""
    places: dict[str, list[str]] = {}

    def visit(node: Mapping[str, Any], path: str) -> None:
        for field, below in node.get("properties", {}).items():
            inner = f"{path}.{field}" if path else field
            for name, deeper in _references(below, inner):
                known = places.setdefault(name, [])
                if deeper not in known:
                    known.append(deeper)
                    visit(schema["$defs"][name], deeper)

    visit(schema, "")
    return places


def _references(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """The sections that a field may hold; `[]` stands for an entry of a list."""
    if isinstance(node, list):
        for each in node:
            yield from _references(each, path)
    elif isinstance(node, dict):
        if "$ref" in node and _name(node) != "JsonValue":
            yield _name(node), path
        for key in ("anyOf", "oneOf"):
            yield from _references(node.get(key), path)
        yield from _references(node.get("items"), f"{path}[]")
        more = node.get("additionalProperties")
        yield from _references(more if isinstance(more, dict) else None, f"{path}.NAME")


def _name(node: Mapping[str, Any]) -> str:
    return node["$ref"].rsplit("/", 1)[1]


def _fields(definition: Mapping[str, Any], section: str) -> Iterator[str]:
    """One entry of a list for every field."""
    required = set(definition.get("required", ()))
    effects = {cls.__name__: cls for cls in _sections(Section)}[section].declared
    properties = definition.get("properties", {})
    if named := [field for field in properties if field != "type" or "enum" in properties[field]]:
        yield ""
    for field in named:
        node = properties[field]
        name = f"**`{field}`**" if field in required else f"`{field}`"
        effect = effects[field]
        own = effect.whole or not any(True for _ in _references(node, ""))
        targets = sorted(effect.targets) if own else ()
        entry = [
            f"- {name}: {_kind(node)}{'' if field in required else _default(node)}.",
            " ".join(node.get("description", "").split()),
            f"*Affects {', '.join(targets)}.*" if targets else "",
        ]
        yield " ".join(filter(None, entry))


def _sections(cls: type[Section]) -> Iterator[type[Section]]:
    yield cls
    for below in cls.__subclasses__():
        yield from _sections(below)


def _default(node: Mapping[str, Any]) -> str:
    value = node.get("default", ...)
    if value is ... or isinstance(value, dict | list):
        return ""
    shown = ".inf" if value == math.inf else json.dumps(value, ensure_ascii=False)
    return f"; default `{shown}`"


def _kind(node: Mapping[str, Any]) -> str:
    """What a field may hold, in words."""
    if "$ref" in node:
        return "any value" if _name(node) == "JsonValue" else _link(_name(node))
    for key in ("anyOf", "oneOf"):
        if key in node:
            unset = {"type": "null"} if node.get("default", ...) is None else None
            kinds = [_kind(option) for option in node[key] if option != unset]
            return " or ".join(dict.fromkeys(kind for kind in kinds if kind))
    if "enum" in node:
        return " or ".join(f"`{value}`" for value in node["enum"])
    if "const" in node:
        return f"`{node['const']}`"
    if node.get("type") == "array":
        items = node.get("items") or {}
        few = node.get("minItems", 0)
        entries = f" ({few} or more entries)" if few else ""
        return f"list of {_kind(items)}{entries}" if items else "list"
    if isinstance(values := node.get("additionalProperties"), dict):
        return f"mapping to {_kind(values)}"
    return _WORDS.get(node.get("type", ""), "any value") + _bounds(node)


def _link(name: str) -> str:
    said = f"`{_type(name)}`" if _type(name) else "a section"
    return f"[{said}](#{name.lower()})"


def _bounds(node: Mapping[str, Any]) -> str:
    said = [words.format(f"{node[key]:g}") for key, words in _BOUNDS.items() if _small(node, key)]
    return "".join(f", {each}" for each in said)


def _small(node: Mapping[str, Any], key: str) -> bool:
    return key in node and abs(node[key]) < 2**62
