"""Memory of a model while it is loaded and divided: no copy in fp32, no whole model on a rank."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

PROGRAM = Path(__file__).with_name("memory_program.py")


def write_zeros(folder: Path, **settings: Any) -> int:
    """Write a Llama of zeros in bf16 that takes no room on the disk; returns its bytes."""
    config = LlamaConfig(max_position_embeddings=1024, tie_word_embeddings=True, **settings)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    header, end = {}, 0
    for name, parameter in model.named_parameters():
        begin, end = end, end + 2 * parameter.numel()
        header[name] = {
            "dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [begin, end],
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64 + 56)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + end)
    return end


def start(**settings: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), json.dumps(settings)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def grown(process: subprocess.Popen[str]) -> dict[str, int]:
    output = process.communicate(timeout=900)[0]
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_model_of_a_billion_weights_in_bf16_takes_little_more_memory_than_its_file(
    tmp_path: Path,
) -> None:
    size = write_zeros(
        tmp_path,
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    found = grown(start(model=str(tmp_path)))
    assert found["weights"] == size / 2 > 1e9
    assert found["grown"] < 1.2 * size


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rank_under_zero_3_never_holds_a_whole_model_while_it_is_built(tmp_path: Path) -> None:
    size = write_zeros(
        tmp_path,
        vocab_size=8000,
        hidden_size=768,
        intermediate_size=2112,
        num_hidden_layers=80,
        num_attention_heads=12,
        num_key_value_heads=12,
    )
    how = {"model": str(tmp_path), "folder": str(tmp_path), "ranks": 2}
    ranks = [start(rank=rank, **how) for rank in range(2)]
    for found in map(grown, ranks):
        assert 0.4 * size < found["grown"] < 0.7 * size
