"""Which switches can be used here, together."""

import pytest

from paft_ray.config import Config
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import load_config
from paft_ray.models.switch_check import check_switches

ON_GPUS = ("train.workers.gpus=1",)


def config(*overrides: str) -> Config:
    tree = {
        "name": "try",
        "task": {
            "type": "custom", "name": "t", "description": "Say what it is.", "path": "x.jsonl",
            "fields": {"a": "a"}, "answer": "b",
        },
        "prompts": {"files": ["p.jsonl"]},
        "model": {"path": "./m"},
        "train": {"steps": 2},
    }  # fmt: skip
    return load_config(tree, overrides)


def check(*overrides: str, dtype: str = "bfloat16") -> list[str]:
    return list(check_switches(config(*overrides), dtype, cluster=False))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model.attention=sdpa",),
        ("model.attention=blocks", "train.activation_checkpointing=true"),
        ("model.attention=flex_attention", *ON_GPUS),
        ("model.quantization=nf4", "train.deepspeed.stage=2"),
        ("train.deepspeed.offload=optimizer", *ON_GPUS),
        ("train.deterministic=true", *ON_GPUS),
    ],
)
def test_switches_that_work_are_accepted_in_silence(overrides):
    assert check(*overrides) == []


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["model.attention=flex_attention"], "has no backward pass on CPUs"),
        (["model.attention=flash_attention_2"], "runs on GPUs alone"),
        (["model.attention=varlen"], "runs on GPUs alone"),
        (["model.attention=flash_attention_2", *ON_GPUS], "needs the package flash_attn"),
        (["model.quantization=nf4", "train.deepspeed.stage=3"], "no 4-bit ones; use stage 2"),
        (["train.compile=true", "train.deepspeed.stage=3"], "use stage 2"),
        (
            [
                "train.activation_checkpointing=true",
                "model.peft={peft_type: PREFIX_TUNING, num_virtual_tokens: 5}",
            ],
            "loses the cache",
        ),
        (
            [
                "train.objective={type: consistency}",
                "model.peft={peft_type: PROMPT_TUNING, num_virtual_tokens: 5}",
            ],
            "one sequence in a row",
        ),
    ],
)
def test_switches_that_cannot_work_are_refused_with_the_reason(overrides, rule):
    with pytest.raises(ConfigError, match=rf"^(model|train)\..*{rule}"):
        check(*overrides)


def test_deterministic_training_on_cpus_is_told_that_it_is_anyway():
    assert "bit-identical anyway" in " ".join(check("train.deterministic=true"))


@pytest.mark.parametrize("attention", ["flash_attention_2", "varlen"])
def test_kernels_of_16_bits_in_fp32_are_refused(attention, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    overrides = (f"model.attention={attention}", *ON_GPUS)
    assert check(*overrides) == []
    with pytest.raises(ConfigError, match="computes in bfloat16"):
        check(*overrides, dtype="float32")


def test_4_bits_without_bitsandbytes_are_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"bitsandbytes, .* pip install 'paft_ray\[quantized\]'"):
        check("model.quantization=nf4")


def test_compilation_on_cpus_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="no-such-compiler is not installed"):
        check("train.compile=true")
    assert check("train.compile=true", *ON_GPUS) == []
    monkeypatch.setenv("CXX", "sh")
    [warning] = check("train.compile=true")
    assert "before the first step" in warning


def test_offload_without_gpus_is_warned_of():
    [warning] = check("train.deepspeed.offload=optimizer")
    assert "frees no memory" in warning
