"""What the version that made `fixtures/stored_run` left behind is read today, and never mixed.

That version split rows by another rule (`RULES["examples"]`): its runs and searches are refused
with that reason, while its pools and answers, in which no split takes part, are found, and its
reports and adapters can still be had. Nothing here starts Ray: whatever were not found would have
to.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

import paft_ray
from paft_ray.cli import call
from paft_ray.config import Config
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import load_config
from paft_ray.pipeline.perform import open_context
from paft_ray.prompts.build import build_prompt_pool, pool_fingerprint, request_book
from paft_ray.prompts.generate.kept_answers import Answers
from paft_ray.storage.artifacts import load_manifest
from paft_ray.storage.paths import Storage
from paft_ray.training.identity import training_fingerprint, training_folder

STORED = Path(__file__).parents[1] / "fixtures" / "stored_run"


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of everything, which is the working directory."""
    folder = tmp_path / "copy"
    shutil.copytree(STORED, folder)
    for path in folder.glob("*.yaml"):  # that version did not score the end of a choice
        text = path.read_text().replace("\ntask:\n", "\ntask:\n  answer_end: ignored\n")
        path.write_text(text)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for a cluster fails at once."""
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def config_of(name: str) -> Config:
    return load_config(f"{name}.yaml")


EARLIER = "made by an earlier version, which split rows into train, validation and test by another"


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        ("run", "from-files"),
        ("train", "from-files"),
        ("evaluate", "from-files"),
        ("plan", "from-files"),
        ("train", "generated"),
        ("tune", "searched"),
    ],
)
def test_stored_run_or_search_of_another_rule_is_refused_with_the_reason(
    verb: str, name: str, stored: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = files(stored / "storage")
    assert call([verb, f"{name}.yaml"]) == 2
    err = capfd.readouterr().err
    assert EARLIER in err
    assert "--overwrite" in err
    assert files(stored / "storage") == before


def test_stored_pool_is_found(stored: Path) -> None:
    context = open_context(config_of("from-files"))
    pools = {path.name for path in (stored / "storage/pools").iterdir()}
    build_prompt_pool(context)
    assert pool_fingerprint(context) in pools
    assert {path.name for path in (stored / "storage/pools").iterdir()} == pools


def test_pool_that_was_probed_on_examples_of_another_split_is_not_found(stored: Path) -> None:
    context = open_context(config_of("generated"))
    assert not (stored / "storage/pools" / pool_fingerprint(context)).exists()


def test_stored_training_of_another_rule_is_not_continued(stored: Path) -> None:
    context = open_context(config_of("from-files"))
    training = next(t for t in context.config.trainings if t.label == "paft")
    manifest = load_manifest(training_folder(context.run_folder, training))
    assert manifest is not None
    prompts = build_prompt_pool(context).train
    now = training_fingerprint(context, context.config.of_training(training), prompts)
    assert manifest.fingerprint != now


def test_stored_answers_of_an_llm_are_those_that_are_asked_for(stored: Path) -> None:
    context = open_context(config_of("generated"))
    book = request_book(context)
    assert book is not None
    [folder] = (stored / "storage/generations").iterdir()
    assert folder.name == book.keys[0]
    kept: dict[str, Any] = {}
    for path in folder.glob("*.jsonl"):
        kept |= Answers(Storage.open(str(folder)), path.stem).read()
    units = book.units(0, 1000)
    assert {request.id for unit in units for request in book.requests(unit)} == set(kept)


def test_stored_run_gets_its_report_and_exports_its_adapter(stored: Path) -> None:
    assert call(["report", "from-files.yaml"]) == 0
    page = (stored / "storage/runs/from-files/report.html").read_text(encoding="utf-8")
    assert "<table" in page
    assert call(["export", "from-files.yaml", "--variant", "paft", "--out", "exported"]) == 0
    kept = stored / "storage/runs/from-files/training/paft-s1/adapter/adapter_model.safetensors"
    assert (stored / "exported" / kept.name).read_bytes() == kept.read_bytes()


def test_stored_search_exports_its_best_finalist(stored: Path) -> None:
    assert call(["export", "searched.yaml", "--out", "exported"]) == 0
    assert (stored / "exported" / "adapter_model.safetensors").is_file()


def test_stored_run_is_refused_under_another_configuration(
    stored: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(["run", "from-files.yaml", "train.learning_rate=0.1"]) == 2
    assert "train.learning_rate (0.01 -> 0.1)" in capfd.readouterr().err


def test_python_refuses_what_the_command_refuses(stored: Path) -> None:
    with pytest.raises(ConfigError, match=EARLIER):
        paft_ray.run(paft_ray.load_config("from-files.yaml"))
    with pytest.raises(ConfigError, match="learning_rate"):
        paft_ray.train(paft_ray.load_config("from-files.yaml", ["train.learning_rate=0.1"]))
