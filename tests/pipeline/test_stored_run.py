"""What earlier versions left behind is read today, and never mixed.

The version that made `fixtures/stored_run` split rows by another rule (`RULES["examples"]`): its
runs and searches are refused with that reason, while its pools and answers, in which no split takes
part, are found, and its reports and adapters can still be had. What `stored_run_2` holds is
complete. Nothing here starts Ray: whatever were not found would have to.
"""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

import paft_ray
from paft_ray.cli import call
from paft_ray.cli.grammar import parse
from paft_ray.config import Config
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import load_config
from paft_ray.models.check_process import ModelCheckProcess
from paft_ray.pipeline.perform import Work, check_model, open_context
from paft_ray.pipeline.recorded import check_recorded
from paft_ray.pipeline.run import evaluate
from paft_ray.pipeline.variants import prompts_by_variant
from paft_ray.pipeline.verbs import VERBS
from paft_ray.prompts.build import build_prompt_pool, pool_fingerprint, request_book
from paft_ray.prompts.generate.kept_answers import Answers
from paft_ray.report.pool import build_published_pool
from paft_ray.runs.opening import open_run
from paft_ray.runs.progress import SilentScreen
from paft_ray.storage.artifacts import load_manifest
from paft_ray.storage.lock import live_holder, lock
from paft_ray.storage.paths import Storage
from paft_ray.training.distributed.trainer import train
from paft_ray.training.identity import training_fingerprint, training_folder

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def stored_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of everything of the second version, which is the working directory."""
    folder = tmp_path / "copy"
    shutil.copytree(FIXTURES / "stored_run_2", folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of everything, which is the working directory."""
    folder = tmp_path / "copy"
    shutil.copytree(FIXTURES / "stored_run", folder)
    for path in folder.glob("*.yaml"):  # that version did not score the end of a choice
        text = path.read_text().replace("\ntask:\n", "\ntask:\n  answer_end: ignored\n")
        path.write_text(text)
    monkeypatch.chdir(folder)
    return folder


class Told(SilentScreen):
    """Keeps the lines that it is to show."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for a cluster fails at once."""
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def config_of(name: str) -> Config:
    return load_config(f"{name}.yaml")


@pytest.mark.parametrize(("verb", "name"), [("run", "from-files"), ("tune", "searched")])
def test_stored_run_or_search_is_complete(
    verb: str, name: str, stored_2: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = files(stored_2 / "storage")
    assert call([verb, f"{name}.yaml", "--json"]) == 0
    out, err = capfd.readouterr()
    summary = json.loads((stored_2 / f"storage/runs/{name}/summary.json").read_text())
    found = json.loads(out)
    assert (found["summary"] if verb == "tune" else found) == summary
    assert "is complete, nothing to do" in err
    after = files(stored_2 / "storage")
    assert {name: after[name] for name in before} == before


def test_log_of_a_job_holds_the_table_and_next_commands_before_the_line_for_programs(
    stored_2: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(["run", "from-files.yaml", "--json"]) == 0
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 1
    head, _, after = err.partition("\nheld-out prompts (")
    assert "PAFT is " in head, "the table begins with what is shown"
    assert "report:  " in after
    commands = [line.split("#")[0] for line in after.split("\nnext:\n")[1].splitlines() if line]
    assert len(commands) == 3
    for command in commands[:2]:
        _, *words = shlex.split(command)
        options = parse(words)
        load_config(options.config, options.overrides)


def test_stages_tell_what_llms_wrote_and_what_is_held_out(stored_2: Path) -> None:
    screen = Told()
    pool = build_published_pool(open_context(config_of("generated"), screen=screen))
    written = [line for line in screen.lines if line.startswith("    an LLM wrote: ")]
    held_out = [line for line in screen.lines if line.startswith("    held out: ")]
    assert len(written) == min(3, len(pool.train))
    for line, prompt in zip(held_out, pool.test[:3], strict=True):
        assert line.startswith(f"    held out: {json.dumps(prompt.text[:40])[:-1]}")


@pytest.mark.parametrize(("verb", "name"), [("run", "from-files"), ("tune", "searched")])
def test_run_or_search_is_complete_also_after_its_report_was_written_again(
    verb: str, name: str, stored_2: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = stored_2 / "storage/runs" / name
    before = json.loads((run / "manifest.json").read_text())["files"]["report.html"]["size"]
    assert call(["report", f"{name}.yaml"]) == 0
    assert (run / "report.html").stat().st_size != before, "this version writes the same page"
    assert call([verb, f"{name}.yaml", "tracking.type=none"]) == 0
    assert "is complete, nothing to do" in "".join(capfd.readouterr())
    assert call(["export", f"{name}.yaml", "--out", str(stored_2 / "adapter")]) == 0


def test_only_commands_that_discard_what_is_there_take_overwrite(stored_2: Path) -> None:
    before = files(stored_2 / "storage")
    config = load_config("from-files.yaml", ["train.learning_rate=0.5"])
    for verb in (paft_ray.evaluate, paft_ray.write_report, paft_ray.export_model):
        with pytest.raises(ConfigError, match="overwrite: this command discards nothing"):
            verb(config, paft_ray.Options(overwrite=True))
    assert files(stored_2 / "storage") == before


def test_further_evaluation_takes_the_variants_as_they_were_trained(stored_2: Path) -> None:
    storage = Storage.open("storage")
    variants = config_of("from-files").variants
    assert {variant.label for variant in variants} >= {"paft"}
    check_recorded(load_config("from-files.yaml", ["evaluation.name=more"]), storage)
    only = "variants=[{type: paft}]"
    check_recorded(load_config("from-files.yaml", ["evaluation.name=more", only]), storage)
    for other in ("pool_size: 1", "train: {steps: 500}"):
        changed = f"variants=[{{type: paft, {other}}}]"
        config = load_config("from-files.yaml", ["evaluation.name=more", changed])
        with pytest.raises(ConfigError, match=r"variants.paft.*what the run was trained with"):
            check_recorded(config, storage)


def test_further_evaluation_waits_for_no_run_that_is_at_work(stored_2: Path) -> None:
    """Both keep their scores in the run's folder, and send its events to MLflow."""
    further = ["evaluation.name=more", "tracking.type=none"]
    context = open_context(load_config("from-files.yaml", further))
    refused = pytest.raises(ConfigError, match="run 'from-files' is in use by")
    with lock(context.run_folder, "run 'from-files'"), refused, open_run(context):
        pass
    with open_run(context):
        assert live_holder(context.run_folder) and live_holder(context.results_folder)
    assert not live_holder(context.run_folder)


class AskedError(Exception):
    """The first check of a model that is asked for."""


class Checks:
    """Model checks that end with the first one."""

    def begin(self, check: Callable[..., Any], *_: Any) -> None:
        raise AskedError(check.__name__)


def test_run_that_was_evaluated_and_not_trained_has_its_model_checked(stored_2: Path) -> None:
    context = open_context(config_of("from-files"))
    work = Work(VERBS["run"], context, paft_ray.Options(), None, cast(ModelCheckProcess, Checks()))
    with pytest.raises(AskedError, match="warm_up"):
        check_model(work)
    shutil.rmtree(stored_2 / "storage/runs/from-files/training")
    with pytest.raises(AskedError, match="check_adapters"):
        check_model(work)


def test_name_of_a_stored_search_is_refused_to_a_run_as_that(
    stored_2: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(["run", "searched.yaml"]) == 2
    assert "holds a search" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["from-files", "generated"])
def test_stored_pool_and_trainings_are_found(name: str, stored_2: Path) -> None:
    context = open_context(config_of(name))
    pools = {path.name for path in (stored_2 / "storage/pools").iterdir()}
    pool = build_prompt_pool(context)
    assert pool_fingerprint(context) in pools
    assert {path.name for path in (stored_2 / "storage/pools").iterdir()} == pools
    prompts = prompts_by_variant(context, build_published_pool(context))
    for training in context.config.trainings:
        assert train(context, prompts[training.label], training, pool).reused


def test_stored_scores_are_found_part_by_part(stored_2: Path) -> None:
    run = stored_2 / "storage" / "runs" / "from-files"
    for lost in ("manifest.json", "summary.json", "scores.parquet"):
        (run / lost).rename(stored_2 / lost)
    parts = files(run / "scores")
    with ModelCheckProcess() as checks:
        evaluate(open_context(config_of("from-files")), checks)
    assert files(run / "scores") == parts
    assert (run / "scores.parquet").read_bytes() == (stored_2 / "scores.parquet").read_bytes()


def test_python_gets_what_the_command_prints(
    stored_2: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = paft_ray.run(paft_ray.load_config("from-files.yaml"))
    assert call(["run", "from-files.yaml", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == result.data
    with pytest.raises(ConfigError, match="learning_rate"):
        paft_ray.train(paft_ray.load_config("from-files.yaml", ["train.learning_rate=0.1"]))


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
