"""What README and docs promise: every command, configuration, import and link in them works."""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import yaml
from pydantic import TypeAdapter

from paft_ray.cli.grammar import build_parser, parse
from paft_ray.config import LLMConfig
from paft_ray.config.loading import load_config

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if not page.is_symlink())
DOCUMENTS = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *PAGES]
DOCUMENTS.append(ROOT / "k8s" / "README.md")
every_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)
AROUND: Mapping[str, Any] = {
    "name": "docs",
    "task": {"type": "builtin", "name": "sst2"},
    "prompts": {"files": ["stock:choices"]},
    "model": {"path": "./my-model"},
    "train": {"steps": 10},
}
"""What a part of a configuration stands in."""
OTHERS = {"docker", "export", "git", "head", "helm", "kind", "kubectl", "pip"}
"""Programs of others that commands begin with."""


class Block(NamedTuple):
    language: str
    title: str | None
    text: str


def blocks(document: Path) -> Iterator[Block]:
    """The fenced blocks of a document."""
    text = document.read_text(encoding="utf-8")
    for found in re.finditer(r"^( *)```(\w+)(.*)\n((?:.*\n)*?)\1```$", text, re.MULTILINE):
        title = re.search(r'title="([^"]+)"', found[3])
        yield Block(found[2], title[1] if title else None, textwrap.dedent(found[4]))


def prose(document: Path) -> str:
    """A document without its blocks of code and its comments."""
    text = document.read_text(encoding="utf-8")
    return re.sub(r"^( *)```\w+.*\n(?:.*\n)*?\1```$|<!--.*?-->", "", text, flags=re.MULTILINE)


def configuration(block: Block) -> dict[str, Any]:
    """The configuration that a block holds, or that it is a part of."""
    tree = yaml.safe_load(block.text)
    if {"name", "task", "prompts"} <= tree.keys():
        return tree
    merged = dict(AROUND)
    for section, value in tree.items():
        part = isinstance(value, dict) and "type" not in value
        merged[section] = {**merged.get(section, {}), **value} if part else value
    return merged


@every_document
def test_configurations_are_accepted(document: Path) -> None:
    for block in blocks(document):
        if block.language == "yaml" and "type" in (tree := yaml.safe_load(block.text)):
            TypeAdapter(LLMConfig).validate_python(tree)
        elif block.language == "yaml":
            load_config(configuration(block))


@every_document
def test_commands_in_blocks_are_accepted(document: Path) -> None:
    files = {block.title: configuration(block) for block in blocks(document)
             if block.language == "yaml" and block.title and block.title != "llm.yaml"}  # fmt: skip
    texts = [block.text for block in blocks(document) if block.language == "sh"]
    texts += re.findall(r"^ {4}((?:make|paft|python|ray) .+)$", prose(document), re.MULTILINE)
    for text in texts:
        for line in text.replace("\\\n", " ").splitlines():
            check_command(shlex.split(line, comments=True), files)


def check_command(words: list[str], files: Mapping[str | None, Mapping[str, Any]]) -> None:
    """Check that a command exists, and that its configuration takes its values."""
    while words and re.fullmatch(r"\w+=\S*( .*)?", words[0]):
        words = words[1:]
    if not words or words[0] in OTHERS:
        return
    if ">" in words:
        words = words[: words.index(">")]
    match words:
        case ["paft", *arguments]:
            check_paft(arguments, files)
        case ["eval", inner]:
            check_command(shlex.split(inner.removeprefix("$(").removesuffix(")")), files)
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
        case ["python", "-m", *_]:
            pass
        case ["python", script, *arguments]:
            assert (ROOT / script).exists(), script
            if arguments and Path(script).parent.name == "jobs":
                check_paft([Path(script).stem, *arguments], files)
        case ["ray", "job", "submit", *options]:
            check_command(options[options.index("--") + 1 :], files)
        case ["ray", *_]:
            pass
        case _:
            raise AssertionError(f"no known program: {shlex.join(words)}")


def check_paft(arguments: list[str], files: Mapping[str | None, Mapping[str, Any]]) -> None:
    if arguments[0].startswith("--"):
        assert arguments[0] in build_parser().format_help()
        return
    options = parse(arguments)
    if (name := getattr(options, "config", None)) is not None:
        known = load_config(ROOT / name) if (ROOT / name).exists() else None
        load_config(ROOT / name if known else files.get(name, AROUND), options.overrides)


@every_document
def test_commands_in_sentences_are_accepted(document: Path) -> None:
    if document.name == "CHANGELOG.md":
        pytest.skip("it names commands as they were")
    verbs = next(a for a in build_parser()._actions if a.dest == "verb").choices or ()
    for code in re.findall(r"`(paft [^`]+)`", prose(document)):
        words = shlex.split(code)[1:]
        if "|" in words:  # several verbs
            continue
        if len(words) == 1:
            assert words[0] in verbs or words[0] in build_parser().format_help(), code
        else:
            check_paft(words, {})
    for script in re.findall(r"\bjobs/[\w/]+\.(?:py|yaml)", document.read_text(encoding="utf-8")):
        assert (ROOT / script).exists(), script


@every_document
def test_python_blocks_import_what_there_is(document: Path) -> None:
    for block in blocks(document):
        for node in ast.walk(ast.parse(block.text)) if block.language == "python" else ():
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("paft_ray"):
                names = defined_in(node.module or "")
                assert not (missing := {each.name for each in node.names} - names), missing


def defined_in(module: str) -> set[str]:
    """The names that a module defines or imports, without running it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            names |= {each.asname or each.name for each in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
    return names


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if "://" in target:
            there = urlsplit(target)
            assert there.scheme == "https" and "." in there.netloc, target
            continue
        place, _, anchor = target.partition("#")
        file = (document.parent / place).resolve() if place else document
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(document: Path) -> set[str]:
    """The names of a document's headings, as sites and forges make them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE):
        given = re.search(r"\{#([\w-]+)\}$", heading)
        words = re.sub(r"[^\w\s-]", "", heading.lower()).strip()
        found.add(given[1] if given else re.sub(r"\s", "-", words))
    return found


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    site = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    named = set(re.findall(r"[\w/-]+\.md", str(site["nav"])))
    assert named == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


def test_pages_that_are_made_from_code_and_records_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "jobs/docs/pages.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_errors_that_troubleshooting_explains_are_raised() -> None:
    texts = [
        node.value
        for path in (ROOT / "paft_ray").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    pieces = [piece.strip() for said in re.findall(r'^## "(.+)"$', page, re.MULTILINE)
              for piece in said.split("...") if piece.strip()]  # fmt: skip
    assert len(pieces) > 10
    assert [piece for piece in pieces if not any(piece in text for text in texts)] == []
