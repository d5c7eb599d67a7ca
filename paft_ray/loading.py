"""From a YAML file and overrides to one validated `Config`, with errors that name the remedy.

Order: YAML, then `section.field=value` overrides, then a look for secrets, then one validation;
unknown keys are refused with their path and the nearest known key.
"""

import difflib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from paft_ray.config import Config
from paft_ray.errors import ConfigError

_SECRET = re.compile(
    r"\b(sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|gsk_[A-Za-z0-9]{16,}|AKIA[0-9A-Z]{16}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}|xox[abpr]-[A-Za-z0-9-]{10,}|AIza[0-9A-Za-z_-]{30,})"
)
_URL_PASSWORD = re.compile(r"://[^/\s:@]+:[^/\s@]+@")


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Read a configuration, apply overrides, validate once.

    Args:
        source: Path of a YAML file, or the tree itself.
        overrides: `section.field=value`; the value is YAML, a number selects a list's entry.

    Raises:
        ConfigError: Unreadable file, malformed override, unknown key, wrong type, impossible
            combination, or a value that looks like a secret.
    """
    tree = dict(source) if isinstance(source, Mapping) else _read_yaml(Path(source))
    for override in overrides:
        tree = _override(tree, override)
    _refuse_secrets(tree)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error


def resolve_path(location: str) -> Path | None:
    """The local path that a `path` field names, or None where it is not local (a hub name, a URI).

    `pkg:NAME/inner/path` lies inside an installed Python package, which is not imported.

    Raises:
        ConfigError: `pkg:` names a package that is not installed.
    """
    if location.startswith("pkg:"):
        package, _, inner = location.removeprefix("pkg:").partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"{location}: package {package!r} is not installed; install it")
        return Path(next(iter(spec.submodule_search_locations))) / inner
    if "://" in location:
        return None
    path = Path(location).expanduser()
    looks_local = path.exists() or location.startswith((".", "/", "~")) or path.suffix != ""
    return path if looks_local or location.count("/") > 1 else None


def dump_config(config: Config) -> dict[str, Any]:
    """The tree as plain YAML- and JSON-ready values, defaults included."""
    return json.loads(config.model_dump_json())


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Dotted paths at which two trees differ, as `path (old -> new)`, sorted."""
    changes: list[str] = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        where = f"{path}.{key}" if path else key
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += changed_fields(before, after, where)
        elif before != after:
            changes.append(f"{where} ({_short(before)} -> {_short(after)})")
    return changes


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; name an existing YAML configuration") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); name a YAML text file") from error
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML: {where}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds {type(tree).__name__}, not a mapping of sections")
    return tree


def _override(tree: dict[str, Any], override: str) -> dict[str, Any]:
    path, equals, text = override.partition("=")
    if not equals or not all(path.split(".")):
        raise ConfigError(f"override {override!r} is not of the form section.field=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override {override!r}: the value is not valid YAML; quote it"
        ) from error
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        value = float(value)  # YAML 1.1 reads 1e-4 as text
    return _assign(tree, path.split("."), value, override)


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


def _refuse_secrets(tree: Any, path: str = "") -> None:
    for where, text in _texts(tree, path):
        if _SECRET.search(text) or _URL_PASSWORD.search(text):
            raise ConfigError(
                f"{where}: the value looks like a secret and is not shown; put it into an "
                "environment variable and name that variable (api_key_env) instead"
            )


def _texts(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _texts(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _texts(value, f"{path}.{index}")
    elif isinstance(node, str):
        yield path, node


_UNION_TAGS = {"builtin", "custom", "transformers", "openai", "fake", "paft", "single_prompt"}


def _explain(error: ValidationError) -> str:
    """The first problem in one line: path, value, rule, remedy; and how many more there are."""
    problems = error.errors()
    first = problems[0]
    # pydantic puts the tag of a union into the location; a user's path does not have it
    location = [
        str(part)
        for i, part in enumerate(first["loc"])
        if not (i > 0 and part in _UNION_TAGS and isinstance(part, str))
    ]
    path = ".".join(location) or "configuration"
    value = first.get("input")
    if first["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        text = f"{path}: unknown key; {remedy}"
    elif first["type"] == "missing":
        text = f"{path}: missing, and it has no default"
    else:
        rule = first["msg"].removeprefix("Value error, ")
        rule = rule[0].lower() + rule[1:]
        shown = (
            "" if isinstance(value, Mapping) or path == "configuration" else f" {_short(value)}:"
        )
        text = f"{path}:{shown} {rule}"
    if len(problems) > 1:
        text += f" (and {len(problems) - 1} more problem{'s' if len(problems) > 2 else ''})"
    return " ".join(text.split())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _known_keys(location: list[str]) -> list[str]:
    """Field names of the section at `location`, for all variants of a union together."""
    schema = Config.model_json_schema()
    nodes = [schema]
    for key in location:
        nodes = [child for node in nodes for child in _children(schema, node, key)]
    names: dict[str, None] = {}
    for node in nodes:
        for variant in _resolve(schema, node):
            names.update(dict.fromkeys(variant.get("properties", {})))
    return list(names)


def _children(schema: dict, node: dict, key: str) -> Iterator[dict]:
    for variant in _resolve(schema, node):
        if key in variant.get("properties", {}):
            yield variant["properties"][key]
        elif key.isdigit() and "items" in variant:
            yield variant["items"]


def _resolve(schema: dict, node: dict) -> Iterator[dict]:
    if "$ref" in node:
        yield from _resolve(schema, schema["$defs"][node["$ref"].rsplit("/", 1)[1]])
    elif "anyOf" in node or "oneOf" in node:
        for option in node.get("anyOf", []) + node.get("oneOf", []):
            yield from _resolve(schema, option)
    else:
        yield node
