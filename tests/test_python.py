"""The versions of Python that pyproject names: nothing that they lack is imported.

`make check` asks pyright the same of all names, for the oldest and the newest version.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REMOVED = {
    "aifc", "asynchat", "asyncore", "audioop", "cgi", "cgitb", "chunk", "crypt", "distutils",
    "imghdr", "imp", "lib2to3", "mailcap", "msilib", "nis", "nntplib", "ossaudiodev", "pipes",
    "smtpd", "sndhdr", "spwd", "sunau", "telnetlib", "uu", "xdrlib",
}  # fmt: skip
"""Modules that Python 3.12 and 3.13 removed."""


def imported(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("folder", ["paft_ray", "jobs", "k8s", "tests"])
def test_code_is_of_python_3_11_and_imports_nothing_that_later_ones_removed(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        tree = ast.parse(path.read_bytes(), str(path), feature_version=(3, 11))
        assert not imported(tree) & REMOVED, path
