"""`paft status RUN`: results of a run, or how far it is, from what lies on storage; no Ray."""

import json
import shutil
from pathlib import Path

import pytest

from factories import run_config
from paft_ray.cli import call
from paft_ray.config.loading import load_config
from paft_ray.pipeline.perform import open_context
from paft_ray.report import results_table
from paft_ray.runs.opening import open_run
from paft_ray.runs.progress import SilentScreen
from paft_ray.runs.progress_record import RecordingScreen
from paft_ray.storage.lock import lock
from paft_ray.storage.paths import Storage

STORED = Path(__file__).parents[1] / "fixtures/stored_run/storage/runs"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A complete run, a complete search, a run that only has begun."""
    folder = tmp_path / "storage"
    for name in ("from-files", "searched", "generated"):
        shutil.copytree(STORED / name, folder / "runs" / name)
    return folder


def test_complete_run_shows_its_table_and_report(
    storage: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(["status", "from-files", f"storage={storage}"]) == 0
    shown = capfd.readouterr().out
    summary = json.loads((storage / "runs/from-files/summary.json").read_text())
    assert shown.startswith("run from-files: complete\n")
    assert results_table(summary) in shown
    assert shown.endswith(f"report:  {storage}/runs/from-files/report.html\n")
    assert call(["status", "searched", f"storage={storage}"]) == 0
    assert "search searched: complete" in (shown := capfd.readouterr().out)
    assert "trial" in shown


def test_run_at_work_shows_its_process_and_stages(
    storage: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Storage.open(str(storage / "runs/generated"))
    screen = RecordingScreen(SilentScreen(), folder)
    command = ["status", "generated", f"storage={storage}"]
    with lock(folder, "run"):
        with screen.stage("prompt pool") as stage:
            stage.finish("40 candidates")
        with screen.stage("train paft") as stage:
            stage.expect(150)
            stage.reach(62)
            screen._write()
            assert call(command) == 0
            shown = capfd.readouterr().out
            assert call([*command, "--json"]) == 0
            data = json.loads(capfd.readouterr().out)
    assert shown.startswith("run generated: running: process ")
    assert "    prompt pool  done: 40 candidates, 0 s\n" in shown
    assert "    train paft   running at 62 of 150 (41%), 0 s\n" in shown
    assert data["state"] == "running" and "process" in data["holder"]
    assert [stage["done"] for stage in data["progress"]["stages"]] == [0, 62]
    assert call(command) == 0
    shown = capfd.readouterr().out
    assert (
        "not finished, and no process is at work; the command that began it continues it" in shown
    )


def test_run_of_an_earlier_version_says_that_no_progress_was_kept(
    storage: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(["status", "generated", f"storage={storage}"]) == 0
    assert "how far it is was not kept" in capfd.readouterr().out
    (storage / "runs/from-files/summary.json").write_text("{")
    assert call(["status", "from-files", f"storage={storage}"]) == 0
    assert f"damaged: {storage}/runs/from-files/summary.json" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("from-file", "no run of this name in {storage}; did you mean from-files?"),
        ("zzz", "`paft runs` lists what is there"),
        ("../x", "is no name of a run"),
    ],
)
def test_run_that_is_not_there_exits_2(
    name: str, said: str, storage: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(["status", name, f"storage={storage}", "--json"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and said.format(storage=storage) in err
    for wrong in ([], ["a", "b"]):
        with pytest.raises(SystemExit, match="2"):
            call(["status", *wrong])


def test_open_run_keeps_its_stages_where_status_reads_them(
    tiny_model: Path, review_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = run_config(
        tiny_model, review_file, tmp_path / "kept", tracking={"type": "none"}, name="opened"
    )
    with open_run(open_context(load_config(config))) as (context, _):
        with context.screen.stage("prompt pool") as stage:
            stage.finish("40 candidates")
        assert call(["status", "opened", f"storage={tmp_path / 'kept'}"]) == 0
    shown = capfd.readouterr().out
    assert shown.startswith("run opened: running: process ")
    assert "prompt pool  done: 40 candidates" in shown
