"""What the shipped files promise: every configuration loads, every named command parses."""

import re
from pathlib import Path

import pytest

from paft_ray.cli.grammar import SUBMIT, parse
from paft_ray.cli.verbs import VERBS
from paft_ray.loading import load_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configuration_loads(path: Path) -> None:
    assert load_config(path).name == path.stem


def test_the_demo_is_a_real_run_of_both_variants() -> None:
    config = load_config(ROOT / "jobs/configs/demo.yaml")
    assert [variant.label for variant in config.variants] == ["single_prompt", "paft"]
    assert config.prompts.generation is not None
    assert {llm.type for llm in config.prompts.generation.llms} == {"transformers"}


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "k8s/README.md"]
)
def test_commands_that_a_document_names_parse(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    verbs = "|".join((*VERBS, SUBMIT))
    commands = re.findall(rf"\bpaft ((?:{verbs})(?: [^\s`|]+\.yaml[^`\n|]*)?)", text)
    for command in commands:
        words = command.split()
        if len(words) > 1:
            parse([word.strip("'") for word in words if word[0] != "#"])
    for script in re.findall(r"jobs/\w+\.py", text):
        assert (ROOT / script).exists(), script


def test_readme_names_every_module() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "paft_ray").glob("*.py"):
        if path.stem != "__init__":
            assert f"{path.name}`" in readme, path.name
    for folder in (ROOT / "paft_ray").iterdir():
        if (folder / "__init__.py").exists():
            assert f"{folder.name}/" in readme, folder.name


def test_constraints_hold_exact_versions_and_no_addresses() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.-]+==[\w.]+", line), line
