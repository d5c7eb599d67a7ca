"""What a person can ask of the command line itself: help, examples, version, completion."""

import re
import shlex
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from paft_ray.cli import call
from paft_ray.cli.grammar import SHELLS, build_parser, parse
from paft_ray.cli.help import EXAMPLES


def verbs() -> list[str]:
    [actions] = [a for a in build_parser()._actions if a.dest == "verb"]
    return list(actions.choices or ())


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_has_examples_that_its_grammar_takes(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse([verb, "--help"])
    shown = capsys.readouterr().out
    assert EXAMPLES[verb]
    for example in EXAMPLES[verb]:
        assert f"  {example}\n" in shown
        [command] = re.findall(r"paft ([^)>]+)", example)
        assert parse(shlex.split(command)).verb == verb


@pytest.mark.parametrize("verb", ["run", "train", "evaluate", "tune", "submit", "robustness"])
def test_help_of_work_says_where_it_is_kept_and_that_it_continues(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([verb, "--help"], ["--help"]):
        with pytest.raises(SystemExit, match="0"):
            parse(words)
        shown = capsys.readouterr().out
        assert "storage=PLACE" in shown
        assert "Giving the same command again continues what was interrupted" in shown


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        call(["--version"])
    assert capsys.readouterr().out == f"paft {metadata.version('paft_ray')}\n"


def completed(script: str, words: list[str], folder: Path) -> list[str]:
    """What bash offers for the last of some words."""
    program = "\n".join([
        script,
        f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}",
        "_shtab_paft; printf '%s\\n' \"${COMPREPLY[@]}\"",
    ])  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, check=True, cwd=folder
    )
    return done.stdout.split()


def test_bash_completes_verbs_options_files_and_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(["completion", "bash"]) == 0
    script = capfd.readouterr().out
    (tmp_path / "reviews.yaml").touch()
    (tmp_path / "storage/runs/demo").mkdir(parents=True)
    assert set(completed(script, ["paft", "r"], tmp_path)) == {
        "report", "robustness", "run", "runs",
    }  # fmt: skip
    assert completed(script, ["paft", "run", "rev"], tmp_path) == ["reviews.yaml"]
    assert "--overwrite" in completed(script, ["paft", "run", "--o"], tmp_path)
    assert completed(script, ["paft", "status", "de"], tmp_path) == ["demo"]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_a_script(shell: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(["completion", shell]) == 0
    assert "robustness" in capfd.readouterr().out
