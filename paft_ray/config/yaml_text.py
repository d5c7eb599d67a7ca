"""Reads YAML of unknown origin: in bounded time and memory, and as values of overrides.

Anchors and aliases may repeat a part, so that a few hundred bytes stand for more values than memory
holds: what a text stands for is counted before it is built.
"""

import re
from typing import Any, ClassVar

import yaml

from paft_ray.config.errors import ConfigError, one_line

MAX_BYTES = 500_000
"""Longest text."""
_MAX_VALUES = 200_000
_NUMBER_SIGN = "\ue000"
"""Stands for '#' while the value of an override is read, where nothing is a comment."""


class _Loader(yaml.SafeLoader):
    """Safe YAML 1.1, with the numbers of YAML 1.2, and without keys given twice.

    1e-4 is a number, 010 is not eight, and 1:30 is no number of sixtieths.
    """

    yaml_implicit_resolvers: ClassVar[  # pyright: ignore[reportIncompatibleVariableOverride]
        dict[str, list[tuple[str, re.Pattern[str]]]]
    ] = {
        first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:int"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def get_single_node(self) -> Any:
        node: Any = super().get_single_node()
        if node is not None and _count(node, {}) > _MAX_VALUES:
            raise yaml.constructor.ConstructorError(
                None, None, f"with its aliases it has more than {_MAX_VALUES} values"
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := sorted({key for key in keys if isinstance(key, str) and keys.count(key) > 1}):
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice[0]!r} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$"),
    list("-+0123456789"),
)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ConfigError: It is no YAML, or stands for too much; the message says only that.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"not valid YAML: longer than {MAX_BYTES} bytes")
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise ConfigError("not valid YAML: nested too deeply") from error
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        # the library's own constructors raise any of these for a tag that does not fit its value
        raise ConfigError(f"not valid YAML: {one_line(error, 400)}") from error


def parse_value(text: str) -> Any:
    """The value of an override: YAML in which '#' begins no comment.

    Raises:
        ConfigError: It is no YAML, or stands for too much.
    """
    return _with_number_signs(parse_yaml(text.replace("#", _NUMBER_SIGN)))


def without_quotes(text: str) -> str:
    """A text without its outer quotes; a double-quoted one is read as YAML, with its escapes."""
    if len(text) < 2 or text[0] not in "'\"" or text[0] != text[-1]:
        return text
    try:
        _, scalar, _ = yaml.scan(text.replace("#", _NUMBER_SIGN))
        if isinstance(scalar, yaml.ScalarToken) and scalar.end_mark.index == len(text):
            return _with_number_signs(scalar.value)
    except (yaml.YAMLError, ValueError):  # it is no scalar, or not that alone
        pass
    return text if text[0] in text[1:-1] else text[1:-1]


def _count(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Count the values that a node stands for; one that contains itself counts as too many."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if node not in known:
        known[node] = _MAX_VALUES + 1  # while its entries are counted
        entries = node.value
        if isinstance(node, yaml.MappingNode):
            entries = [entry for pair in entries for entry in pair]
        known[node] = 1 + sum(_count(entry, known) for entry in entries)
    return known[node]


def _with_number_signs(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(_NUMBER_SIGN, "#")
    if isinstance(value, list):
        return [_with_number_signs(entry) for entry in value]
    if isinstance(value, dict):
        return {_with_number_signs(key): _with_number_signs(v) for key, v in value.items()}
    return value
