"""Exports of a finished training: loaded as a user does, refused before anything is written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from factories import LORA, run_config
from paft_ray.cli import call
from paft_ray.config.loading import load_config
from paft_ray.evaluation.predictors import ModelPredictor
from paft_ray.models.base_model import BaseSource
from paft_ray.models.load import (
    adapter_files,
    add_adapter,
    load_base,
    load_tokenizer,
    reads_positions,
)
from paft_ray.models.logprobs import ForwardPass, score_sequences
from paft_ray.models.tokenization import TextEncoder
from paft_ray.pipeline.perform import open_context
from paft_ray.runs.context import RunContext
from paft_ray.runs.examples import store_examples
from paft_ray.serving.record import MadeFrom, Verified
from paft_ray.storage.artifacts import ArtifactWriter
from paft_ray.tracking import NullTracker, TrackedRun
from paft_ray.training.identity import training_folder
from paft_ray.training.job import Job
from paft_ray.training.output.save import complete_training, trainable_copy, training_record
from paft_ray.training.state.checkpoint import Progress

PROMPT = "Tell how it feels: {review}\nAnswer:"


def write_config(folder: Path, model: Path, reviews: Path, peft: dict) -> Path:
    config = run_config(
        model,
        reviews,
        folder / "storage",
        model={"peft": peft},
        variants=[{"type": "single_prompt"}, {"type": "paft"}],
    )
    folder.mkdir(exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def leave_training(context: RunContext, noise: float) -> None:
    """What a training of `paft` leaves, with noise for what it learned."""
    config = context.config
    training = config.trainings[-1]
    assert config.model.peft is not None
    model = add_adapter(load_base(config.model.path), config.model.peft, config.seed)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * drawn.to(parameter))
    writer = ArtifactWriter(training_folder(context.run_folder, training))
    files = adapter_files(model, trainable_copy(model), config.model.path)
    for name, data in files.items():
        writer.add(f"adapter/{name}", data)
    job = Job(
        config=config,
        task=context.task,
        examples=store_examples(context.storage, context.task.train),
        prompts=(("p0", PROMPT),),
        source=BaseSource(config.model.path),
        dtype="float32",
        folder=writer.folder,
        identity="0123456789abcdef",
        label=training.label,
        tracked=TrackedRun(f"training/{training.name}", "run"),
        steps=5,
        cpus=1,
        tracking=None,
        control=None,  # pyright: ignore[reportArgumentType]
        made_from=MadeFrom(context.task_identity, context.model_identity, "0" * 16),
    )
    verified = Verified(len(files), 1.0, 1.0, 1.0)
    record = training_record(job, Progress(5, loss=1.0), 1, verified)
    complete_training(job, writer, record, NullTracker())


@pytest.fixture(scope="module")
def make_run(
    tiny_model: Path, review_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The configuration of a run whose variant `paft` is trained."""

    def make(peft: dict, noise: float = 0.2) -> Path:
        folder = tmp_path_factory.mktemp("run")
        path = write_config(folder, tiny_model, review_file, peft)
        leave_training(open_context(load_config(path)), noise)
        return path

    return make


@pytest.fixture(scope="module")
def finished(make_run: Callable[..., Path]) -> Path:
    return make_run(LORA)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    shutil.copytree(finished.parent, tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(str(finished.parent), str(path.parent)), encoding="utf-8")
    return path


def export(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert call(["export", *arguments, "--json"]) == 0, capfd.readouterr().err
    return json.loads(capfd.readouterr().out)


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def log_likelihoods(model: Any, folder: Path) -> list[float]:
    encoder = TextEncoder(load_tokenizer(str(folder)))
    encoded = [
        encoder.encode(lambda _: "the film was", {}, [answer])[0].sequence()
        for answer in ("very good", "bad", "a poor plot")
    ]
    packing = not isinstance(model, PeftModel) or reads_positions(model)
    reading = ForwardPass("float32", 64, packing)
    return [s[0] for s in score_sequences(model.eval(), encoded, reading)]


def test_exported_adapter_loads_with_peft_and_its_card_runs(
    finished: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str], monkeypatch
) -> None:
    result = export(capfd, str(finished))
    folder = Path(result["folder"])
    assert folder == finished.parent / "storage/runs/small/export/paft/adapter"
    assert files_of(folder) == {*result["files"], "manifest.json"}
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    alone = log_likelihoods(base, tiny_model)
    adapted = PeftModel.from_pretrained(base, str(folder))
    assert log_likelihoods(adapted, tiny_model) != pytest.approx(alone, abs=0.1)
    code = (folder / "README.md").read_text(encoding="utf-8").partition("```python\n")[2]
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"print": lambda text: names.update(printed=text)}
    exec(code.partition("\n```\n")[0], names)
    assert isinstance(names["printed"], str)
    assert "(your review)" in names["text"]


@pytest.mark.parametrize(
    "peft",
    [
        LORA,
        {"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": []},
        {**LORA, "use_dora": True},
    ],
    ids=["lora", "ia3", "dora"],
)
def test_merged_model_has_the_log_likelihoods_of_base_and_adapter(
    peft: dict, make_run: Callable[..., Path], tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = make_run(peft)
    merged = Path(export(capfd, str(run), "--merge")["folder"])
    adapter = run.parent / "storage/runs/small/training/paft-s0/adapter"
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    expected = log_likelihoods(PeftModel.from_pretrained(base, str(adapter)), tiny_model)
    model = AutoModelForCausalLM.from_pretrained(merged)
    assert model.dtype == torch.float32
    assert log_likelihoods(model, merged) == pytest.approx(expected, abs=1e-4)
    assert "library_name: transformers" in (merged / "README.md").read_text(encoding="utf-8")


def test_merged_model_keeps_the_type_that_the_base_is_stored_in(
    tiny_model: Path, review_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    half = tmp_path / "half"
    shutil.copytree(tiny_model, half)
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(half)
    run = write_config(tmp_path / "run", half, review_file, LORA)
    leave_training(open_context(load_config(run)), 0.2)
    result = export(capfd, str(run), "--merge")
    assert AutoModelForCausalLM.from_pretrained(result["folder"]).dtype == torch.bfloat16
    before, after = result["verified"].values()
    assert after == pytest.approx(before, rel=0.05)
    assert after != before


def test_export_again_reuses_it_and_only_the_card_is_new(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    first = export(capfd, str(run), "--out", str(out))
    assert not first["reused"]
    weights = out / "adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    (out / "README.md").unlink()
    again = export(capfd, str(run), "--out", str(out))
    assert again["reused"]
    assert again["files"] == first["files"]
    assert weights.stat().st_mtime_ns == before
    assert (out / "README.md").exists()


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of an export that exits with 2 in at most two lines."""
    capfd.readouterr()  # what the test's own loading of models printed
    assert call(["export", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) <= 2
    return err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--variant", "single_prompt"), "single_prompt of run 'small' is not trained"),
        (("--variant", "nonsense"), "none of this run's: single_prompt, paft"),
        (("--merge", "--pyfunc"), "two kinds of folder"),
        (("name=other",), "run `paft train`"),
    ],
)
def test_export_of_what_is_not_there_exits_2_and_writes_nothing(
    arguments: tuple[str, ...], message: str, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = files_of(run.parent)
    assert message in refused(capfd, str(run), *arguments)
    assert files_of(run.parent) == before


@pytest.mark.parametrize("kind", [[], ["--merge"], ["--pyfunc"], ["--variant", "paft"]])
@pytest.mark.parametrize("model", ["base", "endpoint"])
def test_export_without_a_variant_exits_2_as_a_training_does(
    model: str, kind: list[str], run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(run.read_text(encoding="utf-8")) | {"variants": []}
    if model == "endpoint":
        served = {"type": "endpoint", "base_url": "http://127.0.0.1:9/v1", "model": "m"}
        config["evaluation"] = {"subjects": [served | {"api": "completions"}]}
        del config["model"], config["train"]
    run.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert "variants: [] trains nothing" in refused(capfd, str(run), *kind)


def test_merge_of_prompt_learning_exits_2_and_writes_nothing(
    make_run: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    run = make_run({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4})
    before = files_of(run.parent)
    assert "--merge: PROMPT_TUNING puts virtual tokens" in refused(capfd, str(run), "--merge")
    assert files_of(run.parent) == before
    assert export(capfd, str(run))["kind"] == "adapter"


def test_export_into_a_folder_that_holds_something_else_exits_2_and_leaves_it(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work", encoding="utf-8")
    assert "thesis.txt" in refused(capfd, str(run), "--out", str(out))
    assert files_of(out) == {"thesis.txt"}
    (out / "thesis.txt").unlink()
    (out / ".hidden").write_text("kept", encoding="utf-8")
    export(capfd, str(run), "--out", str(out))
    assert (out / ".hidden").read_text(encoding="utf-8") == "kept"
    assert "another export" in refused(capfd, str(run), "--merge", "--out", str(out))


def test_export_of_a_tampered_adapter_exits_2_and_writes_nothing(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = run.parent / "storage/runs/small/training/paft-s0/adapter/adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    before = files_of(run.parent)
    assert "a checksum differs" in refused(capfd, str(run))
    assert files_of(run.parent) == before


def test_export_after_the_base_model_changed_exits_2(
    run: Path, tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    model = AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    model.save_pretrained(other)
    message = refused(capfd, str(run), f"model.path={other}")
    assert "trained on another model" in message


PREDICT = """
import json, sys
import mlflow, pandas as pd
folder, base, rows, text = json.loads(sys.argv[1])
model = mlflow.pyfunc.load_model(folder, model_config={"base": base})
fields = model.predict(pd.DataFrame([{"review": row} for row in rows]))
prompt = "Judge: {review} ->"
other = model.predict(pd.DataFrame([{"review": row} for row in rows]), params={"prompt": prompt})
column = model.predict(pd.DataFrame([{"review": row, "prompt": prompt} for row in rows]))
texts = model.predict(pd.DataFrame([{"text": text.replace("{review}", row)} for row in rows]))
found = {"fields": fields, "other": other, "column": column, "texts": texts}
names = [column.name for column in model.metadata.signature.inputs]
print(json.dumps({**{k: list(v["answer"]) for k, v in found.items()}, "names": names}))
"""


@pytest.mark.slow
def test_pyfunc_in_a_fresh_process_answers_fields_and_finished_prompts_as_evaluation_does(
    run: Path, tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "moved"
    export(capfd, str(run), "--pyfunc", "--out", str(tmp_path / "pyfunc"))
    (tmp_path / "pyfunc").rename(out)
    assert "pickle" not in " ".join(files_of(out) - {"MLmodel"})
    assert str(tmp_path) not in (out / "MLmodel").read_text("utf-8")
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 100_000
    context = open_context(load_config(run))
    examples = context.task.test[:12]
    base = tmp_path / "base moved too"
    shutil.copytree(tiny_model, base)
    arguments = [str(out), str(base), [e.fields["review"] for e in examples], PROMPT]
    process = subprocess.run(
        [sys.executable, "-c", PREDICT, json.dumps(arguments)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout.strip().splitlines()[-1])
    scorer = ModelPredictor(context.config, context.task, str(tiny_model), "float32", "cpu")
    adapter = str(run.parent / "storage/runs/small/training/paft-s0/adapter")
    expected = {
        text: [score.prediction for score in scorer.score(adapter, "p", text, examples)]
        for text in (PROMPT, "Judge: {review} ->")
    }
    assert found["names"] == ["review", "text", "prompt"]
    assert found["fields"] == found["texts"] == expected[PROMPT]
    assert found["other"] == found["column"] == expected["Judge: {review} ->"]
    assert set(found["fields"]) == {"positive", "negative"}
