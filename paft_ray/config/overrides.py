"""Values of a configuration given as `section.field=value`, read by the types of their fields."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from paft_ray.config import Config
from paft_ray.config.errors import ConfigError
from paft_ray.config.uris import without_password
from paft_ray.config.yaml_text import parse_value, without_quotes


def with_override(tree: dict[str, Any], override: str) -> dict[str, Any]:
    """Return a configuration's tree with `section.field=value` in it.

    Raises:
        ConfigError: It is malformed, or does not fit the tree.
    """
    path, equals, text = override.partition("=")
    keys, shown = path.split("."), without_password(override)
    if not equals or not all(keys):
        raise ConfigError(f"override {shown!r} is not of the form section.field=value")
    return _assign(tree, keys, _value(text, _fields_at(tree, keys), shown), shown)


def _value(text: str, fields: Sequence[dict[str, Any]], override: str) -> Any:
    """The value of an override, by the types that its field may have.

    What a text field gets is all of it, but for outer quotes. A field that may be a list or mapping
    as well takes what reads as one.
    """
    kinds = {kind for field in fields for kind in _kinds(field)}
    if "string" not in kinds or kinds & {"number", "integer", "boolean", "any"}:
        try:
            return parse_value(text)
        except ConfigError as error:
            raise ConfigError(f"override {override!r}: the value is {error}; quote it") from error
    if not text or ("null" in kinds and text in ("null", "Null", "NULL", "~")):
        return None
    if text[0] in "[{" and kinds & {"array", "object"}:
        try:
            value = parse_value(text)
        except ConfigError:
            return text
        return text if isinstance(value, str) else value
    return without_quotes(text)


def _fields_at(tree: Any, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The schemas that a path may have; several where a union's `type` is not in the tree yet."""
    schema = schema_of_config()
    nodes, place = _alternatives(schema, schema, tree), tree
    for key in keys:
        found = []
        if isinstance(place, list):
            place = place[int(key)] if key.isdigit() and int(key) < len(place) else None
        else:
            place = place.get(key) if isinstance(place, Mapping) else None
        for node in nodes:
            child = node.get("properties", {}).get(key, node.get("additionalProperties"))
            child = node.get("items") if child is None and key.isdigit() else child
            if child is True:
                child = {}
            if isinstance(child, dict):
                found += _alternatives(schema, child, place)
        nodes = found
    return nodes


def _alternatives(schema: dict[str, Any], node: dict[str, Any], value: Any) -> list[dict[str, Any]]:
    """What a schema stands for, without references; of a union, what the value's `type` names."""
    if "$ref" in node:
        return _alternatives(schema, resolve(schema, node), value)
    by_tag = node.get("discriminator", {}).get("mapping", {})
    tag = value.get("type") if isinstance(value, Mapping) else None
    if isinstance(tag, str) and tag in by_tag:
        return _alternatives(schema, {"$ref": by_tag[tag]}, value)
    options = [*node.get("anyOf", ()), *node.get("oneOf", ())]
    found = [found for option in options for found in _alternatives(schema, option, value)]
    return found or [node]


def _kinds(field: dict[str, Any]) -> set[str]:
    """Names of JSON types that a field without references may have; `any` for all of them."""
    if "type" in field:
        return {field["type"]}
    values = [*field.get("enum", ()), *([field["const"]] if "const" in field else ())]
    return {"string" if isinstance(value, str) else "number" for value in values} or {"any"}


def _assign(node: Any, keys: list[str], value: Any, override: str) -> Any:
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(node, list):
        if not key.isdigit() or int(key) >= len(node):
            raise ConfigError(
                f"override {override!r}: {key!r} is no index of a list of {len(node)}"
            )
        index = int(key)
        return [*node[:index], _assign(node[index], rest, value, override), *node[index + 1 :]]
    if node is None:
        node = {}
    if not isinstance(node, dict):
        raise ConfigError(f"override {override!r}: there is no field {key!r} inside {node!r}")
    return {**node, key: _assign(node.get(key), rest, value, override)}


@cache
def schema_of_config() -> dict[str, Any]:
    """Return the JSON schema of the whole configuration."""
    return Config.model_json_schema()


def resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Follow references, and take what a field is when it is not null."""
    if "$ref" in node:
        return resolve(schema, schema["$defs"][node["$ref"].rsplit("/", 1)[1]])
    options = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
    return resolve(schema, options[0]) if len(options) == 1 else node
