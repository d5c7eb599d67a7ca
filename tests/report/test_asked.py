"""The prompts that a page shows of each model, and those that it doubts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from synthetic_run import make_run

from paft_ray.report import write_report
from paft_ray.report.asked import prompts_asked
from paft_ray.report.files import MLFLOW_FILE, RunFiles, read_run
from paft_ray.report.oddness import odd_prompts
from paft_ray.storage.paths import Storage, to_parquet

GOOD = (
    "Tell whether the review is kind.",
    "Say how the reviewer felt about the film.",
    "Decide if the sentence is positive or negative.",
    "Read the sentence and name its tone.",
    "Classify the opinion that is expressed here.",
    "Is this praise or criticism?",
    "Which label fits the review best?",
)
NONSENSE = "Classify the sentence: Ogvak Lejman, Qadar de Kalimna, Limpal"


def run_with(folder: Storage, instructions: tuple[str, ...]) -> RunFiles:
    """A run whose prompts have these instructions."""
    make_run(folder)
    rows: tuple[dict[str, Any], ...] = tuple(
        {
            "prompt_id": f"p{n}",
            "text": f"{text}\n{{sentence}}",
            "instruction": text,
            "split": "test",
        }
        for n, text in enumerate(instructions)
    )
    return replace(read_run(folder), prompts=rows)


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return Storage.open(str(tmp_path / "run"))


def test_prompt_of_words_that_stand_nowhere_else_is_doubted(folder: Storage):
    odd = odd_prompts(run_with(folder, (*GOOD, NONSENSE)))
    assert odd == {"p7": ("ogvak", "lejman", "qadar", "de", "kalimna", "limpal")}


def test_pages_list_the_prompts_that_they_doubt(folder: Storage):
    make_run(folder)
    table = folder.read_table("prompts.parquet").to_pylist()
    table[-1] |= {"instruction": NONSENSE, "text": f"{NONSENSE} {{sentence}}"}
    folder.write_bytes("prompts.parquet", to_parquet(pa.Table.from_pylist(table)))
    page = Path(write_report(folder)).read_text("utf-8")
    assert "May be nonsense: 2 of the prompts" in page, "this one and the hostile one"
    assert "ogvak, lejman, qadar, de, kalimna, limpal" in page


def test_words_of_examples_and_of_other_prompts_are_known(folder: Storage):
    run = run_with(folder, (*GOOD, NONSENSE, f"Please: {NONSENSE}"))
    assert odd_prompts(run) == {}, "another prompt says the same"
    example = {"fields": '{"sentence": "ogvak lejman qadar kalimna"}'}
    run = replace(run_with(folder, (*GOOD, NONSENSE)), examples={"e": example})
    assert odd_prompts(run) == {}


def test_language_that_no_wording_is_in_doubts_nothing(folder: Storage):
    german = ("Wie ist die Stimmung?", "Bewerte folgende Rezension bitte.", "Gut oder schlecht?")
    assert odd_prompts(run_with(folder, german)) == {}


def test_each_model_shows_its_own_prompts_and_all_show_the_held_out_ones(folder: Storage):
    make_run(folder)
    config = folder.read_json("config.json")
    config["config"]["variants"] = [{"type": "single_prompt"}, {"type": "paft"}]
    folder.write_json("config.json", config)
    for label, count in (("single_prompt", 1), ("paft", 84)):
        own = folder.child("training", f"{label}-s0")
        manifest = own.read_json("manifest.json")
        first = {"id": "train07", "text": "Judge it. {sentence}"}
        manifest["about"] |= {"prompts": count, "prompt": first}
        own.write_json("manifest.json", manifest)
    single, paft, held_out = prompts_asked(run := read_run(folder), odd_prompts(run))
    assert [shown.text for shown in single.prompts] == ["Judge it. {sentence}"]
    assert "does best with" in single.way
    assert paft.way == "drawn afresh for every example from 84 prompts of the pool"
    assert len(paft.prompts) == 3
    assert {shown.text for shown in paft.prompts} <= {
        row["text"] for row in read_run(folder).prompts if row["split"] == "train"
    }
    assert (held_out.label, held_out.count, held_out.way) == ("", 12, "12 that no training saw")
    page = Path(write_report(folder)).read_text("utf-8")
    assert "Judge it." in page.split('id="asked"')[1].split("</section>")[0]


def test_page_links_to_the_run_in_mlflow_where_it_is_known(folder: Storage):
    make_run(folder)
    assert "MLflow" not in Path(write_report(folder)).read_text("utf-8")
    page = "https://mlflow.example.com/#/experiments/3/runs/ab12"
    folder.write_json(MLFLOW_FILE, {"page": page, "command": ""})
    source = Path(write_report(folder)).read_text("utf-8")
    assert source.count(f'href="{page}"') == 2
    command = "mlflow ui --backend-store-uri sqlite:///x/mlflow.db"
    folder.write_json(MLFLOW_FILE, {"page": page, "command": command})
    assert command in Path(write_report(folder)).read_text("utf-8")
