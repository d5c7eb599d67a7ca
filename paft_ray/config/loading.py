"""Reads YAML and overrides into one validated `Config`, with errors that name the remedy.

Order: YAML, `section.field=value` overrides, a check for secrets, one validation.
"""

import difflib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from paft_ray.config import Config
from paft_ray.config.errors import ConfigError, one_line
from paft_ray.config.model import NO_MODEL
from paft_ray.config.overrides import resolve, schema_of_config, with_override
from paft_ray.config.task import earlier_answer_end
from paft_ray.config.uris import has_password
from paft_ray.config.yaml_text import MAX_BYTES, parse_yaml

_SECRET = re.compile(
    r"\b(sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|gsk_[A-Za-z0-9]{16,}|AKIA[0-9A-Z]{16}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}|xox[abpr]-[A-Za-z0-9-]{10,}|AIza[0-9A-Za-z_-]{30,})"
)
# what pydantic says, and what is said instead
_WORDS = (
    (r"^Input should be", "has to be"),
    (r"a valid (integer|int)\b.*", "a whole number"),
    (r"a valid number.*", "a number"),
    (r"a valid boolean.*", "true or false"),
    (r"a valid string", "a text"),
    (r"a valid (list|tuple)", "a list"),
    (
        r"a valid dictionary( or (instance of \w+|object to extract fields from))?",
        "a section with keys of its own",
    ),
    (r"greater than or equal to", "at least"),
    (r"less than or equal to", "at most"),
    (r"(List|Tuple) should have", "a list has to have"),
    (r"item(s?) after validation, not (\d+)", r"item\1, not \2"),
    (r"String should have", "a text has to have"),
)
_MOST = 4
"""Problems of a configuration that are named."""
_RECORD = {"config", "content"}
"""Keys of the `config.json` that a run keeps."""
_FILE_ENDINGS = (
    *(".csv", ".gguf", ".json", ".jsonl", ".ndjson", ".parquet", ".tsv", ".txt"),
    *(".bz2", ".gz", ".xz", ".zst"),
)


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Read a configuration, apply overrides, validate once.

    Args:
        source: Path of a YAML file or of the `config.json` that a run keeps, `pkg:NAME/inner/path`
            inside an installed package, or the tree itself.
        overrides: `section.field=value`; the value is YAML without comments, and for a field that
            is text all that follows, without outer quotes. A number selects a list's entry.

    Raises:
        ConfigError: Unreadable file, malformed override, unknown key, wrong type, impossible
            combination, or a value that looks like a secret.
    """
    if isinstance(source, str):
        source = resolve_path(source) or Path(source)
    tree = dict(source) if isinstance(source, Mapping) else read_yaml(source)
    if tree.keys() >= _RECORD and isinstance(tree["config"], dict):
        tree = _as_then(tree["config"])
    for override in overrides:
        tree = with_override(tree, override)
    _refuse_secrets(tree)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error


def load_recorded(tree: dict[str, Any]) -> Config:
    """Load the configuration that a run recorded; a field that it lacks means what it did then.

    Raises:
        ConfigError: It has a field that was removed since.
    """
    return load_config(_as_then(tree))


def _as_then(tree: dict[str, Any]) -> dict[str, Any]:
    """A recorded tree, with fields whose default depends on their section filled in."""
    task = tree.get("task")
    if isinstance(task, Mapping) and "answer_end" not in task:
        earlier = earlier_answer_end(load_config(tree).task)
        return {**tree, "task": {**task, "answer_end": earlier}}
    return tree


def from_anywhere(location: str) -> str:
    """The value of a `path` field, made to mean the same in every working directory."""
    path = None if location.startswith("pkg:") else resolve_path(location)
    return location if path is None else str(path.absolute())


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
    path = local_path(location)
    in_a_folder = location.count("/") == 1 and Path(location).parent.is_dir()
    looks_local = (
        path.exists()
        or location.startswith((".", "/", "~"))
        or location.count("/") > 1
        or in_a_folder
    )
    is_file_name = path.suffix.lower() in _FILE_ENDINGS  # a hub name may hold a point: Qwen2.5-7B
    return path if looks_local or is_file_name else None


def local_path(location: str) -> Path:
    """A local path with `~` expanded.

    Raises:
        ConfigError: No file could have this name here.
    """
    try:
        path = Path(location).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            path.lstat()  # unlike exists(), it raises for a name that is impossible
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{_short(location)} is no usable path ({one_line(error)}); name another"
        ) from error
    return path


def dump_config(config: Config) -> dict[str, Any]:
    """The tree as plain YAML- and JSON-ready values, defaults included."""
    return json.loads(config.model_dump_json())


def without_unread(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's tree without what nothing reads: `train`, where there is no variant, and
    a `model` that is none.
    """
    if tree.get("variants") != []:
        return dict(tree)
    kept = {name: section for name, section in tree.items() if name != "train"}
    model = kept.get("model")
    if isinstance(model, Mapping) and model.get("path") == NO_MODEL:
        del kept["model"]
    elif isinstance(model, Mapping):
        kept["model"] = {name: value for name, value in model.items() if name != "peft"}
    return kept


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Dotted paths at which two trees differ, as `path (old -> new)`, sorted."""
    changes: list[str] = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        where = f"{path}.{key}" if path else key
        if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
            before, after = _numbered(before), _numbered(after)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += changed_fields(before, after, where)
        elif before != after:
            changes.append(f"{where} ({_short(before)} -> {_short(after)})")
    return changes


def _numbered(values: Sequence[Any]) -> dict[str, Any]:
    return {str(index): value for index, value in enumerate(values)}


def read_yaml(path: Path) -> dict[str, Any]:
    """The tree of a YAML file.

    Raises:
        ConfigError: It cannot be read, or is no mapping.
    """
    try:
        with path.open("rb") as stream:  # which may be a pipe, or have no end
            text = stream.read(MAX_BYTES + 1).decode("utf-8")
        tree = parse_yaml(text)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; name an existing YAML configuration") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); name a YAML text file") from error
    if not isinstance(tree, dict):
        kinds = {str: "a text", list: "a list", type(None): "empty"}
        found = kinds.get(type(tree), "a single value")
        raise ConfigError(
            f"{path}: {found}, not a mapping of sections; `paft init DATA` writes a configuration "
            "for your own data"
        )
    try:
        json.dumps(tree, default=str)
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: {one_line(error)}; anchors may not contain themselves, and keys are words"
        ) from error
    return tree


def _refuse_secrets(tree: Any, path: str = "") -> None:
    for where, text in _texts(tree, path):
        if _SECRET.search(text) or has_password(text):
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


def _explain(error: ValidationError) -> str:
    """The problems in one line, each as path, value, rule, remedy; of many the first few.

    An unknown key comes before a missing one: it is mostly the same key, misspelt.
    """
    problems = [p for p in error.errors() if not _is_consequence(p, error)]
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    first, *others = dict.fromkeys(map(_explain_one, problems))
    text = f"{first} (also {'; '.join(others[: _MOST - 1])})" if others else first
    left = len(others) - _MOST + 1
    return f"{text} (and {left} more problem{'s' * (left > 1)})" if left > 0 else text


def _explain_one(problem: Any) -> str:
    keys, node = _locate(problem["loc"])
    path = ".".join(keys) or "configuration"
    value = problem.get("input")
    if problem["type"] == "extra_forbidden":
        _, section = _locate(problem["loc"][:-1])
        known = list(section.get("properties", {}))
        text = f"{path}: unknown key; {_suggest(keys[-1], known)}"
    elif problem["type"] == "missing":
        text = f"{path}: missing, and it has no default"
    elif problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        _, section = _locate(problem["loc"])
        tags = ", ".join(section["discriminator"]["mapping"])
        tag = problem.get("ctx", {}).get("tag")
        given = f"{tag!r} is none of them" if tag else "missing"
        text = f"{path}.type: {given}; use one of: {tags}"
    else:
        rule = _rule(problem["msg"])
        if problem["type"] == "string_type" and isinstance(value, bool | int | float | date):
            rule += "; put it in quotes"
        default = node.get("default")
        if problem["msg"].startswith("Input should be") and isinstance(default, int | float | str):
            rule += f"; the default is {json.dumps(default)}"
        hidden = isinstance(value, Mapping) or path == "configuration"
        text = f"{path}: {rule}" if hidden else f"{path}: {_short(value)}: {rule}"
    return " ".join(text.split())


def _rule(message: str) -> str:
    """A rule of pydantic in the words of this project."""
    rule = message.removeprefix("Value error, ")
    for pattern, words in _WORDS:
        rule = re.sub(pattern, words, rule)
    return rule[0].lower() + rule[1:]


def _is_consequence(problem: Any, error: ValidationError) -> bool:
    """Return whether a list is only too short because an entry of it is wrong."""
    place = problem["loc"]
    return problem["type"] == "too_short" and any(
        len(other["loc"]) > len(place) and other["loc"][: len(place)] == place
        for other in error.errors()
    )


def _suggest(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _locate(location: Sequence[int | str]) -> tuple[list[str], dict[str, Any]]:
    """The path that a user would write, and the schema of what lies there.

    pydantic puts the tag of a union into its locations; a user's path does not have it.
    """
    schema = schema_of_config()
    keys: list[str] = []
    node: dict[str, Any] = schema
    for part in location:
        node = resolve(schema, node)
        variants = node.get("discriminator", {}).get("mapping", {})
        if part in variants:
            node = {"$ref": variants[part]}
            continue
        if str(part).startswith("["):  # pydantic's mark behind a key of a mapping, or our tag
            defined = schema.get("$defs", {})
            node = defined.get(str(part).strip("[]"), node)
            continue
        keys.append(str(part))
        child = node.get("properties", {}).get(part, node.get("additionalProperties"))
        node = child if isinstance(child, dict) else node.get("items") or {}
    return keys, resolve(schema, node)
