"""From YAML and overrides to a configuration, and the messages on the way."""

import json
import string
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from paft_ray.config import Config
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import (
    changed_fields,
    dump_config,
    load_config,
    load_recorded,
    resolve_path,
)
from paft_ray.config.uris import without_password

BASE = {
    "name": "try",
    "task": {"type": "builtin", "name": "sst2"},
    "prompts": {"files": ["prompts.txt"]},
    "model": {"path": "owner/model"},
    "train": {"steps": 10},
}


def message_of(source, overrides=()) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_yaml_file_is_read_with_its_overrides(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(BASE))
    config = load_config(path, ["train.steps=20", "model.peft={peft_type: lora, r: 4}"])
    assert config.train.steps == 20
    assert config.model.peft == {"peft_type": "LORA", "r": 4}
    assert load_config(str(path)) == load_config(BASE)


def test_file_that_a_run_keeps_is_its_configuration(tmp_path):
    record = {"config": {**BASE, "task": {**BASE["task"]}}, "content": {"work": "run"}}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    assert load_config(str(path)).task == load_recorded(BASE).task
    assert load_config(path, ["train.steps=20"]).train.steps == 20
    stored = Path(__file__).parents[1] / "fixtures/stored_run/storage/runs/generated/config.json"
    recorded = json.loads(stored.read_text(encoding="utf-8"))["config"]
    assert load_config(stored) == load_recorded(recorded)
    assert "answer_end" not in recorded["task"]
    assert load_config(stored).task.answer_end != load_config(recorded).task.answer_end


def test_loading_changes_neither_the_tree_nor_its_parts():
    tree = json.loads(json.dumps(BASE))
    load_config(tree, ["train.steps=20", "prompts.files.0=b.txt", "evaluation.prompts=3"])
    assert tree == BASE


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.learning_rate=1e-4", ("train", "learning_rate"), 1e-4),
        ("train.learning_rate=3E+0", ("train", "learning_rate"), 3.0),
        ("prompts.files=[a.txt, b.csv]", ("prompts", "files"), ("a.txt", "b.csv")),
        ("prompts.files.0=other.txt", ("prompts", "files"), ("other.txt",)),
        ("tracking.uri=http://host:5000/?a=b", ("tracking", "uri"), "http://host:5000/?a=b"),
        ("tracking.uri=", ("tracking", "uri"), None),
        (
            "model.peft={peft_type: LORA, x: [1e-1, '1e-1']}",
            ("model", "peft"),
            {"peft_type": "LORA", "x": [0.1, "1e-1"]},
        ),
        ("train.packing=no", ("train", "packing"), False),
        # a text field takes what stands there
        ("storage=/data/my runs #1", ("storage",), "/data/my runs #1"),
        ("storage='/data/my runs #1'", ("storage",), "/data/my runs #1"),
        ("storage=[a, b]", ("storage",), "[a, b]"),
        ("storage=a: {b", ("storage",), "a: {b"),
        ("storage='a' # 'b'", ("storage",), "'a' # 'b'"),
        ('storage="C:\\data"', ("storage",), "C:\\data"),
        ("name=2024", ("name",), "2024"),
        ("model.revision=0123", ("model", "revision"), "0123"),
        ("model.revision=null", ("model", "revision"), None),
        ("model.revision='null'", ("model", "revision"), "null"),
        ("prompts.files.0=x: #y", ("prompts", "files"), ("x: #y",)),
        # others are YAML, in which nothing is a comment
        ("prompts.files=[my runs #1.txt, b]", ("prompts", "files"), ("my runs #1.txt", "b")),
        ("evaluation.prompts=null", ("evaluation", "prompts"), None),
        ("train.sampling.temperature=inf", ("train", "sampling", "temperature"), float("inf")),
        (
            "model.peft={peft_type: LORA, x: [a #1, null]}",
            ("model", "peft"),
            {"peft_type": "LORA", "x": ["a #1", None]},
        ),
        ("model.path='1e3'", ("model", "path"), "1e3"),
        ("evaluation.workers.cpus=0.5", ("evaluation", "workers", "cpus"), 0.5),
    ],
)
def test_override_sets_one_field_to_a_yaml_value(override, path, value):
    field = load_config(BASE, [override])
    for key in path:
        field = getattr(field, key)
    assert field == value


def test_overrides_are_applied_in_order():
    assert load_config(BASE, ["train.steps=2", "train.steps=3"]).train.steps == 3


words = st.text(string.ascii_letters + "äß_- :#'\"{}[],&*!|>%@`?\t", max_size=20)


@given(words)
def test_override_with_a_quoted_text_gives_back_that_text(text):
    config = load_config(BASE, [f"tracking.experiment={json.dumps('x' + text)}"])
    assert config.tracking.experiment == "x" + text


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "train.steps": st.integers(1, 10**6),
            "train.learning_rate": st.floats(1e-12, 1, allow_subnormal=False),
            "train.weight_decay": st.floats(0, 10),
            "prompts.dedup.similarity": st.floats(0.01, 1),
            "evaluation.examples": st.none() | st.integers(1, 10**6),
            "task.overlong": st.sampled_from(["refuse", "trim"]),
            "storage": st.text(string.ascii_letters + "/._", min_size=1).map("s".__add__),
        },
    )
)
def test_overrides_give_what_the_same_values_in_the_tree_give(values):
    tree = json.loads(json.dumps(BASE))
    for path, value in values.items():
        *sections, key = path.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    overrides = [f"{path}={json.dumps(value)}" for path, value in values.items()]
    assert load_config(BASE, overrides) == load_config(tree)


def test_dumped_configuration_loads_to_the_same_one():
    config = load_config(BASE, ["train.learning_rate=1e-4", "variants=[{type: single_prompt}]"])
    tree = dump_config(config)
    assert load_config(tree) == config
    assert load_config(json.loads(json.dumps(tree))) == config
    assert tree["train"]["schedule"] == {
        "type": "cosine",
        "warmup_share": 0.1,
        "final_share": 0.0,
    }


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        # unknown keys: everywhere, in every variant of a union
        (["trian.steps=3"], ["trian: unknown key", "'train'"]),
        (["train.step=3"], ["train.step: unknown key", "'steps'"]),
        (["train.schedule.warmup=3"], ["train.schedule.warmup: unknown key", "'warmup_share'"]),
        (["task.nmae=x"], ["task.nmae: unknown key", "'name'"]),
        (["task={type: builtin, nam: sst2}"], ["task.nam: unknown key", "'name'"]),
        (["variants=[{type: paft, prompt: x}]"], ["variants.0.prompt: unknown key", "type"]),
        (
            ["prompts.generation.llms=[{type: fake, fail_evry: 3}]"],
            ["prompts.generation.llms.0.fail_evry: unknown key", "'fail_every'"],
        ),
        (
            ["prompts.generation.llms=[{type: fake}, {type: openai, api_key: x}]"],
            ["prompts.generation.llms.1.api_key: unknown key", "'api_key_env'"],
        ),
        # types of a union
        (["task={name: sst2}"], ["task.type: missing", "builtin, custom"]),
        (["task.type=bultin"], ["task.type: 'bultin'", "builtin, custom"]),
        (["variants=[{type: paftt}]"], ["variants.0.type: 'paftt'", "paft, single_prompt"]),
        (
            ["prompts.generation.llms=[{type: gpt}]"],
            ["prompts.generation.llms.0.type: 'gpt'", "fake, openai, transformers"],
        ),
        # values
        (["train.batch_size=0"], ["train.batch_size: 0", "has to be at least 1; the default is 8"]),
        (["train.batch_size=many"], ["train.batch_size: 'many'", "whole number"]),
        (["train=3"], ["train: 3", "section"]),
        (["train.profile={steps: [3, 2]}"], ["train.profile.steps", "no less than the first"]),
        (["train.profile={steps: [0, 2]}"], ["train.profile.steps", "1 or more"]),
        (["prompts.files=a.txt"], ["prompts.files: 'a.txt'", "list"]),
        (["prompts.files=[2024]"], ["prompts.files.0: 2024", "a text", "quotes"]),
        # malformed overrides
        (["train.steps"], ["'train.steps'", "section.field=value"]),
        (["=3"], ["'=3'", "section.field=value"]),
        (["train..steps=3"], ["'train..steps=3'", "section.field=value"]),
        (["train.steps=[3"], ["'train.steps=[3'", "not valid YAML", "quote"]),
        (["name.x=3"], ["'name.x=3'", "'x'", "'try'"]),
        (["prompts.files.7=x"], ["'prompts.files.7=x'", "'7'", "list of 1"]),
        (["prompts.files.x=x"], ["'prompts.files.x=x'", "'x'", "list of 1"]),
    ],
)
def test_wrong_override_is_refused_with_path_value_and_rule(overrides, parts):
    message = message_of(BASE, overrides)
    assert all(part in message for part in parts), message


def test_several_problems_are_all_named_up_to_a_few():
    wrong = ["train.batch_size=0", "evaluation.examples=0", "seed=-1"]
    message = message_of(BASE, wrong)
    assert message.startswith("seed: -1")
    assert "(also train.batch_size: 0: has to be at least 1; " in message
    assert message.endswith("evaluation.examples: 0: has to be at least 1)")
    message = message_of(BASE, [*wrong, "train.steps=0", "train.packing=7", "train.stepz=1"])
    assert message.startswith("train.stepz: unknown key")
    assert message.endswith(" (and 2 more problems)")


def test_wrong_entry_of_a_list_is_one_problem():
    message = message_of(BASE, ["variants=[{type: paftt}]"])
    assert message == (
        "variants.0.type: 'paftt' is none of them; use one of: "
        "bound_prompts, human_prompt, paft, single_prompt"
    )


def test_missing_section_is_named():
    tree = {key: value for key, value in BASE.items() if key != "model"}
    assert message_of(tree) == "model: missing, and it has no default"


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["no such file", "name an existing"]),
        (b"a: [1", ["not valid YAML"]),
        (b"- a\n- b\n", ["list", "mapping of sections"]),
        (b"42", ["a single value", "mapping of sections"]),
        (b"", ["empty", "mapping of sections", "paft init"]),
        (b"a: \xff", ["cannot be read", "text file"]),
    ],
)
def test_unreadable_yaml_is_refused_with_its_path(tmp_path, content, parts):
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content)
    message = message_of(path)
    assert message.startswith(str(path))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    "override",
    [
        "model.path=hf_" + "a1B2" * 8,
        "model.peft.token=sk-" + "abcd" * 6,
        "tracking.uri=https://me:hunter22@host/",
        "variants=[{type: single_prompt, prompt: 'key AKIA" + "ABCDEFGH12345678" + "'}]",
    ],
)
def test_what_looks_like_a_secret_is_refused_and_not_shown(override):
    message = message_of(BASE, [override])
    path, _, secret = override.partition("=")
    assert message.startswith(path)
    assert "environment variable" in message
    assert secret not in message
    assert "hunter22" not in message


def test_changed_fields_are_dotted_sorted_and_short():
    old = {"b": {"x": 1, "y": 2}, "a": "same", "c": [1], "gone": 1}
    new = {"b": {"x": 1, "y": 3}, "a": "same", "c": [2], "new": "long" * 40}
    changes = changed_fields(old, new)
    assert [change.split(" ")[0] for change in changes] == ["b.y", "c.0", "gone", "new"]
    assert changes[0] == "b.y (2 -> 3)"
    assert len(changes[3]) < 90
    assert changed_fields(old, old) == []


def test_a_key_given_twice_is_refused_and_a_merged_one_is_not(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("name: a\nseed: 1\nname: b\n")
    with pytest.raises(ConfigError, match="the key 'name' is given twice"):
        load_config(path)
    path.write_text("name: {<<: {a: 1}, <<: {b: 2}}\n")
    with pytest.raises(ConfigError, match="name"):
        load_config(path)


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", "? [1, 2]\n: 3", "[" * 5000])
def test_yaml_that_contains_itself_or_is_too_deep_is_refused(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_config(path)


@pytest.mark.parametrize("location", ["~nosuchuser/x", "./" + "x" * 300, "./a\0b"])
def test_path_that_cannot_be_is_refused(location):
    with pytest.raises(ConfigError, match="no usable path"):
        resolve_path(location)


def test_mistyped_folder_beside_existing_ones_is_no_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert resolve_path("models/tiny") == Path("models/tiny")


def test_local_paths_are_distinguished_from_hub_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    for local in ("here", "./x", "../x", "/x/y", "a/b/c", "rows.jsonl", "data/m.gguf", "d/x.CSV"):
        assert resolve_path(local) == Path(local), local
    for other in ("gpt2", "owner/model", "Qwen/Qwen2.5-0.5B", "owner/v0.1", "s3://b/c", "hf://a/b"):
        assert resolve_path(other) is None, other


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_path("~/data") == tmp_path / "data"


def test_package_path_is_found_without_importing_the_package(tmp_path, monkeypatch):
    package = tmp_path / "holds_data"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_path("pkg:holds_data/inner/x.csv") == package / "inner" / "x.csv"
    assert "holds_data" not in sys.modules


@pytest.mark.parametrize("location", ["pkg:no_such_thing/x", "pkg:", "pkg:os.path/x", "pkg:a b/x"])
def test_package_that_is_not_installed_is_refused(location):
    with pytest.raises(ConfigError, match=r"pkg:.*is not installed; install it"):
        resolve_path(location)


def test_loading_imports_no_machine_learning():
    code = (
        "import sys, paft_ray.config.loading\n"
        "heavy = {'torch', 'ray', 'transformers', 'peft', 'deepspeed', 'datasets', 'mlflow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_configuration_is_frozen():
    config = load_config(BASE)
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 3  # type: ignore[misc]
    assert isinstance(config, Config)


def repeated(first: str, form: str) -> str:
    """YAML that names nine copies of each line in the next one."""
    lines = [f"a: &a {first}"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} " + form % ", ".join([f"*{before}"] * 9))
    return "\n".join(lines)


LAUGHS = repeated("[x, x, x, x, x, x, x, x, x]", "[%s]")
MERGES = repeated("{x: 1}", "{<<: [%s]}")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (LAUGHS, "more than 200000 values"),
        ("a: &a {b: [*a]}", "more than 200000 values"),
        (MERGES, "more than 200000 values"),
        ("[" * 100_000, "nested too deeply"),
        ("seed: " + "9" * 5000, "not valid YAML"),
        ("seed: !!bool maybe", "not valid YAML"),
        ("seed: !!timestamp never", "not valid YAML"),
        ("seed: 2024-99-99", "not valid YAML"),
        ("x" * 500_001, "longer than 500000 bytes"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_hostile_yaml_is_refused_soon(tmp_path, text, rule):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    began = time.process_time()
    assert rule in message_of(path)
    assert time.process_time() - began < 10


def test_file_without_an_end_is_refused():
    assert "/dev/zero" in message_of("/dev/zero")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:pass@host/x", "http://***@host/x"),
        ("http://user:pa/ss@host/x", "http://***@host/x"),
        ("http://user:pa?ss@host/x", "http://***@host/x"),
        ("http://user:12/ab@host", "http://***@host"),
        ("http://user:pa'\"<s@host", "http://***@host"),
        ("https://token@host/x", "https://***@host/x"),
        ("redis://:pass@host", "redis://***@host"),
        ("s3://KEY:SEC/RET@bucket/x?region=a", "s3://***@bucket/x?region=a"),
        ("http://h/?password=x&a=b", "http://h/?password=***&a=b"),
        ("http://h/?a=b&Access%2DToken=x", "http://h/?a=b&Access%2DToken=***"),
        ("postgresql://team@db/x?sslpassword=x", "postgresql://team@db/x?sslpassword=***"),
        ("http://h/x#access_token=x", "http://h/x#access_token=***"),
        ("http://h/x?code=x&jwt=y", "http://h/x?code=***&jwt=***"),
        ("mssql://h;user=a;password=b", "mssql://h;user=a;password=***"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Da%3BPWD%3Db", "mssql+pyodbc:///?odbc_connect=***"),
        ("sqlite+pysqlcipher://:pass@/x.db", "sqlite+pysqlcipher://***@/x.db"),
    ],
)
def test_password_in_a_uri_is_refused_and_hidden_wherever_it_is(uri, shown):
    for text in (uri, f"see {uri} there"):
        assert without_password(text) == text.replace(uri, shown)
        message = message_of({**BASE, "tracking": {"uri": text}})
        assert "looks like a secret" in message and uri not in message
    assert uri not in message_of(BASE, [f"tracking.uri:{uri}"])


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://team@db/mlflow", "gs://anonymous@bucket/x", "sqlite:////a@b/x:y@z.db",
        "http://host:80/?mail=a@b", "see http://x.com and mail a@b.c", "hf://datasets/a/b@main",
        "http://h/?keyword=x", "http://h/?country_code=x", "sqlite:///my;key=x.db",
        "s3://b/x?endpoint_override=127.0.0.1:90&scheme=http",
    ],
)  # fmt: skip
def test_uri_without_a_password_is_taken_as_it_is(text):
    assert without_password(text) == text
    assert load_config({**BASE, "tracking": {"uri": text}}).tracking.uri == text


@pytest.mark.parametrize(
    "text", ["x" * 10**6, "a://" * 10**5, "a://b:" + "/@" * 10**5, "?" * 10**6]
)
def test_looking_for_passwords_takes_time_in_proportion_to_the_text(text):
    began = time.process_time()
    without_password(text)
    assert time.process_time() - began < 10


def test_configuration_inside_a_package_is_read_and_a_missing_package_is_named() -> None:
    assert load_config("pkg:paft_ray/configs/demo.yaml", ["seed=3"]).seed == 3
    with pytest.raises(ConfigError, match="package 'no_such' is not installed; install it"):
        load_config("pkg:no_such/demo.yaml")
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        load_config("pkg:paft_ray/configs/none.yaml")
