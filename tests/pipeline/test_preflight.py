"""What is refused before anything is started or written, and what is only warned of."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from paft_ray.config import Config
from paft_ray.config.affects import result_fields
from paft_ray.config.errors import ConfigError, DataError, PaftError
from paft_ray.config.loading import dump_config, load_config
from paft_ray.models.dtype import cpu_has_bfloat16, resolve_dtype
from paft_ray.pipeline.preflight import Checked, preflight
from paft_ray.pipeline.recorded import RUN_RECORD

TEMPLATES = [f"{word} the thing: {{thing}}\nColour:" for word in ("Judge", "Name", "Tell", "Say")]
OPENAI = "{type: openai, base_url: 'http://localhost:1/v1', model: m, api_key_env: PAFT_TEST_KEY}"


@dataclass(frozen=True)
class World:
    """A folder with all that a run needs."""

    root: Path

    def load(self, *overrides: str) -> Config:
        return load_config(self.root / "config.yaml", [*overrides])

    def check(self, *overrides: str, overwrite: bool = False) -> Checked:
        return preflight(self.load(*overrides), overwrite)

    def write(self, name: str, content: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        return path

    def record(self, config: dict) -> None:
        self.write(f"storage/runs/try/{RUN_RECORD}", json.dumps({"config": config}))

    def everything(self) -> dict[str, bytes | None]:
        return {
            str(p.relative_to(self.root)): p.read_bytes() if p.is_file() else None
            for p in sorted(self.root.rglob("*"))
        }


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("PAFT_TEST_KEY", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    here = World(tmp_path)
    here.write("model/config.json", json.dumps({"model_type": "llama", "n_positions": 512}))
    here.write("model/tokenizer.json", "{}")
    matrix = np.zeros((4, 4), np.float32)
    save_file(
        {f"model.layers.0.self_attn.{name}_proj.weight": matrix for name in "qv"},
        tmp_path / "model" / "model.safetensors",
    )
    rows = [{"thing": f"t{n}", "colour": ("red", "blue")[n % 2]} for n in range(100)]
    here.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    here.write("prompts.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in TEMPLATES))
    config = {
        "name": "try",
        "storage": str(tmp_path / "storage"),
        "task": {
            "type": "custom",
            "name": "colours",
            "description": "Say what colour the thing has.",
            "path": str(tmp_path / "rows.jsonl"),
            "fields": {"thing": "thing"},
            "answer": "colour",
            "choices": ["red", "blue"],
        },
        "prompts": {
            "files": [str(tmp_path / "prompts.jsonl")],
            "split": {"validation": 1, "test": 2},
        },
        "model": {"path": str(tmp_path / "model"), "dtype": "float32"},
        "train": {"steps": 2},
        "evaluation": {"selection_examples": 2},
    }
    here.write("config.yaml", yaml.safe_dump(config))
    return here


def nothing(world: World) -> None:
    pass


def write(name: str, content: str) -> Callable[[World], object]:
    return lambda world: world.write(name, content)


def remove(name: str) -> Callable[[World], object]:
    return lambda world: (world.root / name).unlink()


def cut(name: str, size: int) -> Callable[[World], object]:
    return lambda world: (world.root / name).write_bytes((world.root / name).read_bytes()[:size])


def trained_with(*overrides: str) -> Callable[[World], object]:
    return lambda world: world.record(dump_config(world.load(*overrides)))


LLMS = "prompts.generation.llms"
# what was done to the files, overrides ({} is the folder), what the message says
WRONG = {
    "profiled step lies outside of the training": (
        nothing,
        ["train.profile={{steps: [2, 3]}}"],
        ["train.profile.steps: step 3", "2 steps", "name earlier ones"],
    ),
    "profiled step of epochs lies outside of the training": (
        nothing,
        ["train.steps=null", "train.epochs=1", "train.profile={{steps: [1, 9999]}}"],
        ["train.profile.steps: step 9999", "name earlier ones"],
    ),
    "storage is a file": (
        write("taken", "x"),
        ["storage={}/taken"],
        ["storage: {}/taken", "is a file", "name a folder"],
    ),
    "storage lies in a file": (
        write("taken", "x"),
        ["storage={}/taken/deep/er"],
        ["storage: {}/taken", "is a file", "name a folder"],
    ),
    "storage has an unknown scheme": (
        nothing,
        ["storage=ftp://host/x"],
        ["storage: 'ftp://host/x'", "s3://"],
    ),
    "run is another one": (
        trained_with("train.learning_rate=0.5"),
        [],
        ["'try'", "{}/storage", "train.learning_rate (0.5 -> 0.0002)", "--overwrite"],
    ),
    "run is quite another one": (
        trained_with("seed=5", "train.steps=9", "train.batch_size=2", "task.max_length=64"),
        [],
        ["seed (5 -> 0)", "task.max_length (64 -> 512)", "train.batch_size", "and 1 more", "name"],
    ),
    "run's record is torn": (
        write("storage/runs/try/config.json", '{"config": {'),
        [],
        ["name: {}/storage/runs/try/config.json", "no record", "--overwrite"],
    ),
    "run's record is of something else": (
        write("storage/runs/try/config.json", '{"settings": 3}'),
        [],
        ["name: {}/storage/runs/try/config.json", "no record", "--overwrite"],
    ),
    "tracking in a folder": (
        nothing,
        ["tracking.uri=mlruns"],
        ["tracking.uri: 'mlruns'", "folder", "sqlite:///"],
    ),
    "tracking in a folder by URI": (
        nothing,
        ["tracking.uri=file:///x/mlruns"],
        ["tracking.uri: 'file:///x/mlruns'", "folder", "sqlite:///"],
    ),
    "tracking with an unknown scheme": (
        nothing,
        ["tracking.uri=wandb://x"],
        ["tracking.uri: 'wandb://x'", "'wandb'", "sqlite:///"],
    ),
    "tracking database without a file": (
        nothing,
        ["tracking.uri='sqlite://'"],
        ["tracking.uri: 'sqlite://'", "no file", "sqlite:///folder/mlflow.db"],
    ),
    "tracking database is a folder": (
        nothing,
        ["tracking.uri=sqlite:///{}/model"],
        ["tracking.uri: {}/model", "is a folder", "name a file"],
    ),
    "tracking database lies in a file": (
        nothing,
        ["tracking.uri=sqlite:///{}/rows.jsonl/x.db"],
        ["tracking.uri: {}/rows.jsonl", "is a file"],
    ),
    "too many workers": (
        nothing,
        ["train.workers.num=100000"],
        ["train.workers.num: 100000", f"{os.cpu_count()}", "lower", "RAY_ADDRESS"],
    ),
    "workers with too many CPUs": (
        nothing,
        ["train.workers.cpus=50000.5"],
        ["train.workers.num: 1 with 50000.5 CPUs", "train.workers.cpus"],
    ),
    "too many evaluation workers": (
        nothing,
        ["evaluation.workers.num=100000"],
        ["evaluation.workers.num: 100000", "RAY_ADDRESS"],
    ),
    "workers on a GPU that is not there": (
        nothing,
        ["train.workers.gpus=1"],
        ["train.workers.gpus: 1", "no GPU", "set it to 0"],
    ),
    "evaluation on a GPU that is not there": (
        nothing,
        ["evaluation.workers.gpus=0.5"],
        ["evaluation.workers.gpus: 0.5", "no GPU", "set it to 0"],
    ),
    "too many LLM actors": (
        nothing,
        [LLMS + "=[{{type: fake}}, {{type: transformers, path: {}/model, actors: 100000}}]"],
        ["prompts.generation.llms.1.actors: 100000", "prompts.generation.llms.1.cpus"],
    ),
    "attention that cannot train here": (
        nothing,
        ["model.attention=flex_attention"],
        ["model.attention: flex_attention", "CPUs", "use auto"],
    ),
    "warm start from nothing": (
        nothing,
        ["train.warm_start={}/model"],
        ["train.warm_start: {}/model", "holds no adapter", "name a folder"],
    ),
    "model folder is missing": (
        nothing,
        ["model.path={}/no-model"],
        ["model.path: {}/no-model", "does not exist", "hub name"],
    ),
    "model without configuration": (
        remove("model/config.json"),
        [],
        ["model.path: {}/model/config.json", "does not exist"],
    ),
    "model with torn weights": (
        cut("model/model.safetensors", 50),
        [],
        ["model.path: {}/model/model.safetensors", "cut off", "again"],
    ),
    "model without tokenizer": (
        remove("model/tokenizer.json"),
        [],
        ["model.path: {}/model", "no tokenizer", "save_pretrained"],
    ),
    "model in GGUF, torn": (
        write("m.gguf", "GGUF"),
        ["model.path={}/m.gguf"],
        ["model.path: {}/m.gguf", "GGUF", "again"],
    ),
    "model too short for the examples": (
        nothing,
        ["task.max_length=1024"],
        ["task.max_length: 1024", "512", "{}/model", "lower it"],
    ),
    "peft method that is not supported": (
        nothing,
        ["model.peft={{peft_type: adalora, target_modules: [q_proj]}}"],
        ["model.peft.peft_type: ADALORA is not supported", "use LORA"],
    ),
    "LLM folder is missing": (
        nothing,
        [LLMS + "=[{{type: transformers, path: {}/no-llm}}]"],
        ["prompts.generation.llms.0.path: {}/no-llm", "does not exist"],
    ),
    "LLM's key is not set": (
        nothing,
        [f"{LLMS}=[{OPENAI.replace('{', '{{').replace('}', '}}')}]"],
        ["prompts.generation.llms.0.api_key_env", "PAFT_TEST_KEY", "not set", "set it"],
    ),
    "task file is missing": (
        nothing,
        ["task.path={}/no.jsonl"],
        ["{}/no.jsonl", "no such file", "task.path"],
    ),
    "task row with a wrong answer": (
        write("rows.jsonl", '{"thing": "x", "colour": "green"}\n'),
        [],
        ["{}/rows.jsonl, line 1", "'green'", "red, blue"],
    ),
    "task with a split left empty": (
        write("rows.jsonl", '{"thing": "x", "colour": "red"}\n'),
        [],
        ["{}/rows.jsonl", "split empty", "add rows"],
    ),
    "task column that is missing": (
        nothing,
        ["task.answer=hue"],
        ["{}/rows.jsonl, line 1", "'hue'", "'colour'"],
    ),
    "batch larger than the training examples": (
        nothing,
        ["train.batch_size=1000"],
        ["train.batch_size: 1000", "training examples", "lower it"],
    ),
    "more questions of a variant's own than training examples": (
        nothing,
        [
            "task.max_length=64",
            "variants=[{{type: paft, train: {{batch_size: 800, objective: {{type: grpo}}}}}}]",
        ],
        ["train.batch_size: 800 (100 questions)", "training examples", "lower it"],
    ),
    "variant that writes more than its model reads": (
        nothing,
        [
            "train.row_tokens=999999",
            "variants=[{{type: paft, train: {{batch_size: 8, objective: {{type: grpo, "
            "max_new_tokens: 99999}}}}}}]",
        ],
        ["train.objective.max_new_tokens: 99999", "made for", "lower"],
    ),
    "prompt file is missing": (
        nothing,
        ["prompts.files=[{}/no.txt]"],
        ["prompts.files: ", "{}/no.txt"],
    ),
    "prompt file without a usable template": (
        write("prompts.jsonl", '{"text": "Say something."}\n'),
        [],
        ["prompts.files: none of the 1 templates in {}/prompts.jsonl", "{{thing}}"],
    ),
    "fewer templates than the split asks for": (
        nothing,
        ["prompts.split.test=4"],
        ["prompts.files: 4 usable", "6", "lower"],
    ),
    "fewer templates than the pool size asks for": (
        nothing,
        ["prompts.pool_size=2"],
        ["prompts.files: 4 usable", "5", "prompts.pool_size", "lower"],
    ),
    "single prompt without the slot": (
        nothing,
        ["variants=[{{type: paft}}, {{type: single_prompt, prompt: 'What colour?'}}]"],
        ["variants.1.prompt", "{{thing}}"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_refused_in_two_lines_and_nothing_is_written(world, case):
    arrange, overrides, says = WRONG[case]
    arrange(world)
    before = world.everything()
    with pytest.raises(PaftError) as caught:
        world.check(*(override.format(world.root) for override in overrides))
    message = str(caught.value)
    assert isinstance(caught.value, DataError if case.startswith("task ") else ConfigError)
    for part in says:
        assert part.format(world.root) in message
    assert message.count("\n") <= 1
    assert world.everything() == before


def test_what_can_work_is_checked_without_warnings_and_nothing_is_written(world):
    before = world.everything()
    checked = world.check()
    assert checked.warnings == ()
    assert checked.task.name == "colours"
    assert len(checked.task.train) + len(checked.task.validation) + len(checked.task.test) == 100
    assert checked.model.kind == "local"
    assert checked.model.context_length == 512
    assert world.everything() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_storage_that_is_not_writable_is_refused(world):
    (world.root / "sealed").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match=r"storage: .*/sealed is not writable.*another folder"):
        world.check(f"storage={world.root}/sealed/x")


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.checkpoint.every_steps=5", "train.max_failures=0", "train.workers.cpus=0.5"],
        ["evaluation.workers.cpus=0.5", "tracking.type=none", "train.profile={steps: [1, 2]}"],
        [],
    ],
)
def test_run_that_differs_in_nothing_that_moves_results_goes_on(world, overrides):
    world.record(dump_config(world.load()))
    world.check(*overrides)


def test_run_that_differs_passes_with_another_name_or_overwrite(world):
    world.record(dump_config(world.load("seed=5")))
    world.check("name=other")
    world.check(overwrite=True)


@pytest.mark.parametrize(
    ("override", "said"),
    [("model.path=./nowhere", "model.path: nowhere"), ("task.answer=lable", "'lable'")],
)
def test_value_that_is_wrong_is_named_before_the_name_that_is_taken(world, override, said):
    world.record(dump_config(world.load()))
    with pytest.raises(PaftError) as caught:
        world.check(override)
    assert said in str(caught.value) and "--overwrite" not in str(caught.value)


def test_run_recorded_before_a_field_existed_goes_on_with_the_field_at_its_default(world):
    recorded = dump_config(world.load())
    del recorded["train"]["packing"]
    world.record(recorded)
    world.check()


def test_run_recorded_with_a_field_that_is_gone_is_refused_by_its_name(world):
    recorded = dump_config(world.load())
    world.record({**recorded, "train": {**recorded["train"], "momentum": 0.5}})
    with pytest.raises(ConfigError, match=r"train\.momentum \(0\.5 -> None\)"):
        world.check()


def test_result_fields_leave_out_names_places_and_workers_only(world):
    config = world.load()
    fields, everything = result_fields(config), dump_config(config)
    assert set(everything) - set(fields) == {"name", "storage", "tracking", "tuning"}
    gone = {"workers", "checkpoint", "max_failures", "warm_start"}
    gone |= {"activation_checkpointing", "deterministic", "profile", "validation", "variation"}
    assert set(everything["train"]) - set(fields["train"]) == gone
    assert set(everything["evaluation"]) - set(fields["evaluation"]) == {
        "workers", "name", "subjects", "variation", "backend", "trained_prompts",
        "prompt_files",
    }  # fmt: skip
    gone = {"path", "test_path", "splits", "group", "stop", "grade", "choices_as"}
    gone |= {"examples_per_class"}
    assert set(everything["task"]) - set(fields["task"]) == gone
    gone = {"path", "attention", "trust_remote_code", "chat_template_kwargs", "system"}
    assert set(everything["model"]) - set(fields["model"]) == gone
    variants = [
        {k: v for k, v in each.items() if k not in ("train", "pool_size")}
        for each in everything["variants"]
    ]
    assert (fields["seed"], fields["variants"]) == (everything["seed"], variants)


def test_held_out_author_is_one_of_several_llms(world):
    llms = 'prompts.generation={"llms": [{"type": "fake"}, %s]}'
    other = '{"type": "openai", "base_url": "http://x/v1", "model": "m"}'
    world.check(llms % other, "prompts.split.held_out_llm=m")
    for author, written in (
        ("n", llms % other),
        ("fake", 'prompts.generation={"llms": [{"type": "fake"}]}'),
    ):
        with pytest.raises(ConfigError, match=r"prompts\.split\.held_out_llm.*name one of several"):
            world.check(written, f"prompts.split.held_out_llm={author}")


def test_result_fields_know_authors_by_what_they_write_and_not_by_how_they_are_reached(world):
    def fields(**llm):
        base = {"type": "openai", "base_url": "http://x/v1", "model": "m"}
        written = json.dumps({"llms": [{**base, **llm}]})
        return result_fields(world.load(f"prompts.generation={written}"))

    assert fields(concurrency=3, timeout_s=5, max_attempts=1, api_key_env="KEY") == fields()
    assert fields(max_tokens=7) != fields()
    assert fields(model="n") != fields()


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///{}/new/mlflow.db",
        "http://localhost:5000",
        "https://host/mlflow",
        "databricks",
        "databricks://profile",
        "postgresql+psycopg2://host/db",
    ],
)
def test_tracking_uri_that_mlflow_takes_passes(world, uri):
    before = world.everything()
    world.check(f"tracking.uri={uri.format(world.root)}")
    assert world.everything() == before


def test_tracking_uri_is_not_looked_at_when_tracking_is_off(world):
    world.check("tracking.uri=mlruns", "tracking.type=none")


def test_stage_0_is_refused_where_auto_means_bfloat16(world, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    overrides = ["train.deepspeed.stage=0", "model.dtype=auto", "train.workers.gpus=1"]
    with pytest.raises(ConfigError, match=r"train\.deepspeed\.stage: 0 .*'auto'.*use stage 1"):
        world.check(*overrides)
    world.check("train.deepspeed.stage=0", "model.dtype=float32")


def test_workers_of_a_cluster_are_not_measured_by_this_machine(world, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    world.check("train.workers.num=100000", "train.workers.gpus=1", "evaluation.workers.gpus=1")


def test_openai_llm_with_its_key_set_passes(world, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("PAFT_TEST_KEY", "x")
    assert world.check(f"{LLMS}=[{OPENAI}]").warnings == ()


def test_openai_llm_without_its_key_is_a_warning_where_other_nodes_may_have_it(world, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    (warning,) = world.check(f"{LLMS}=[{OPENAI}]").warnings
    assert "PAFT_TEST_KEY" in warning


@pytest.mark.parametrize(
    ("package", "override", "path"),
    [
        ("openai", f"{LLMS}=[{OPENAI}]", "prompts.generation.llms.0"),
        ("gguf", "model.path={}/m.gguf", "model.path"),
    ],
)
def test_package_that_is_not_installed_is_named_with_its_extra(
    world, monkeypatch, package, override, path
):
    world.write("m.gguf", "GGUF")
    monkeypatch.setenv("PAFT_TEST_KEY", "x")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as caught:
        world.check(override.replace("{}", str(world.root)))
    assert str(caught.value).startswith(f"{path}: ")
    assert f"pip install 'paft_ray[{package}]'" in str(caught.value)


def test_generated_prompts_need_no_number_of_templates_in_files(world):
    world.check("prompts.split.test=50", f"{LLMS}=[{{type: fake}}]")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["evaluation.examples=5000"], ["evaluation.examples: 5000", "test examples"]),
        (["evaluation.prompts=5"], ["evaluation.prompts: 5, of 2"]),
        (
            ["evaluation.selection_examples=999", "variants=[{type: single_prompt}]"],
            ["evaluation.selection_examples: 999"],
        ),
        (["model.path=owner/model"], ["model.revision", "owner/model", "commit"]),
        (["model.chat_template=auto"], ["model.chat_template", "none"]),
    ],
)
def test_what_may_not_be_meant_is_warned_of(world, monkeypatch, overrides, says):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(world.root / "hub"))
    world.write("hub/models--owner--model/refs/main", "c0ffee")
    world.write("hub/models--owner--model/snapshots/c0ffee/config.json", "{}")
    (warning,) = world.check(*overrides).warnings
    assert all(part in warning for part in says), warning
    assert "\n" not in warning


def test_templates_of_a_file_that_are_left_out_are_named(world):
    bad = ["What colour has {thng}?", "Say {{thing}} now.", *(f"Say {n}." for n in range(5))]
    good = ['Reply as {"colour": "red"}: {thing}', "Fill [in] List[str] for {thing}"]
    world.write("own.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in [*bad, *good]))
    files = [str(world.root / "prompts.jsonl"), str(world.root / "own.jsonl")]
    *named, more = world.check(f"prompts.files={json.dumps(files)}").warnings
    assert len(named) == 5
    where = f"prompts.files: template 1 of {files[1]} is left out"
    assert named[0].startswith(f"{where} (unknown_slot: {{thng}}; write {{thing}}, or ")
    assert "What colour has {thng}?" in named[0]
    assert "{{thing}}; write {thing})" in named[1]
    assert more == f"prompts.files: 2 more templates of {files[1]} are left out"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vendor_id : AuthenticAMD\nflags\t\t: fpu avx512_bf16 sse", True),
        ("vendor_id : GenuineIntel\nflags\t\t: fpu avx512_bf16 sse", False),
        ("flags\t\t: fpu avx512_bf16 sse", False),
        ("processor: 0\nflags: fpu amx_bf16\n", True),
        ("flags: fpu avx512f\nbugs: amx_bf16\n", False),
        ("", False),
    ],
)
def test_processor_that_is_faster_in_bfloat16_is_told_by_vendor_and_flags(tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_has_bfloat16(tmp_path / "cpuinfo") is expected
    assert cpu_has_bfloat16(tmp_path / "missing") is False


def test_arithmetic_auto_is_resolved_and_any_other_is_kept():
    assert resolve_dtype("float32", gpus=8) == "float32"
    assert resolve_dtype("bfloat16", gpus=0) == "bfloat16"
    assert resolve_dtype("auto", gpus=0.5) == "bfloat16"
    assert resolve_dtype("auto", gpus=0) == ("bfloat16" if cpu_has_bfloat16() else "float32")


def test_preflight_imports_neither_ray_nor_torch(world):
    code = (
        "import sys\n"
        "from paft_ray.config.loading import load_config\n"
        "from paft_ray.pipeline.preflight import preflight\n"
        "preflight(load_config(sys.argv[1]))\n"
        "heavy = {'torch', 'ray', 'transformers', 'peft', 'deepspeed', 'mlflow', 'datasets'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(world.root / "config.yaml")]
    subprocess.run(command, check=True, timeout=60)


def test_choice_that_cannot_win_without_its_end_is_warned_of(world: World) -> None:
    ignored = "task.answer_end=ignored"
    assert world.check(ignored).warnings == ()
    prefixed = ["task.choices=[red, blue, redder]", ignored]
    [warning] = world.check(*prefixed).warnings
    assert "'redder' never wins against 'red'" in warning
    assert world.check(prefixed[0]).warnings == ()


def test_text_to_stop_at_that_an_answer_holds_is_refused(world: World) -> None:
    free = ["task.choices=null", "task.labels=null"]
    assert world.check(*free, "task.stop=['!']").warnings == ()
    with pytest.raises(ConfigError, match=r"task\.stop: 'e' occurs in the answer .* another text"):
        world.check(*free, "task.stop=['!', e]")
