"""`paft plan` of trainings whose model writes what it learns from."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from transformers import Qwen2Config

from paft_ray.cli import call
from paft_ray.training.estimates import ModelSizes
from paft_ray.training.reinforcement.estimates import least_hours

pytestmark = pytest.mark.usefixtures("warm_checks")

CONFIG = Path(__file__).parents[2] / "jobs/configs/paper_grpo.yaml"
QWEN = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 4,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "architectures": ["Qwen2ForCausalLM"],
}


@pytest.fixture
def here(tiny_model: Path, tmp_path: Path) -> list[str]:
    """Overrides: a folder with the shape of Qwen2.5 7B and a tokenizer, and a few questions."""
    folder = tmp_path / "qwen"
    ignored = shutil.ignore_patterns("*.safetensors", "config.json", "generation_config.json")
    shutil.copytree(tiny_model, folder, ignore=ignored)
    Qwen2Config(**QWEN).save_pretrained(folder)
    lines = [
        {"question": f"Ann has {n} apples and buys 2. How many?", "answer": f"So.\n#### {n + 2}"}
        for n in range(60)
    ]
    rows = tmp_path / "gsm8k.jsonl"
    rows.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return [f"model.path={folder}", f"task.path={rows}", f"storage={tmp_path / 'storage'}"]


def gpus_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this node have GPUs of this name, with 80 GB."""
    tools = tmp_path / "tools"
    tools.mkdir()
    tool = tools / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\ncase "$1" in *name*) echo "{name}, Disabled";; *) echo '
                    '"81559, Disabled";; esac\n', encoding="utf-8")  # fmt: skip
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")


def test_plan_takes_gsm8k_and_a_model_without_weights(
    here: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus_named("NVIDIA H100 80GB HBM3", tmp_path, monkeypatch)
    assert call(["plan", str(CONFIG), *here, "--json"]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert len(plan["training"]) == 4 * 3
    tokens, batches = 300 * 256 * 400, 300
    one, several = 4 * 401, 32 * 401  # 32 questions for 8 workers, all under 1 or under 8 prompts
    passes = {"grpo_one_prompt": one, "grpo_pool": one, "grpo_prompts_together": several}
    assert plan["sampling"] == {
        label: {"tokens_at_most": tokens, "passes_of_a_worker_at_most": batches * each}
        for label, each in passes.items()
    }
    sizes = plan["sizes"]
    memory = sizes["worker_memory_gb"]
    kept = 2 * 4 * 4 * 128 * 2 * 8 * (512 + 400)  # keys and values of 8 texts in bf16
    read, logits = 34 * 3584 * 512, 4 * 4 * 8 * 152064  # a layer's one copy is among the kept
    assert memory["sampling"] == pytest.approx((kept * 5 / 4 + read + logits) / 1e9, abs=1e-3)
    rest = sum(value for purpose, value in memory.items() if purpose not in ("all", "sampling"))
    assert memory["all"] == pytest.approx(rest, abs=0.01)  # it is less than activations
    # all weights but the table of tokens, in bf16, at 3350 GB/s
    hours = sizes["sampling_hours_of_longest_texts_at_least"]
    read_s = 2 * (sizes["parameters"] - sizes["trainable"] - 152064 * 3584) / 3.35e12
    assert hours["grpo_pool"] == pytest.approx(batches * one * read_s / 3600, rel=0.05)
    assert hours["grpo_prompts_together"] == pytest.approx(8 * hours["grpo_pool"], rel=0.01)
    assert not (tmp_path / "storage").exists()


def test_plan_with_a_sample_of_the_data_and_without_a_tokenizer_says_so(
    here: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus_named("Some Accelerator", tmp_path, monkeypatch)
    folder, rows = (Path(text.partition("=")[2]) for text in here[:2])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    rows.write_text("\n".join(rows.read_text().splitlines()[:20]), encoding="utf-8")
    assert call(["plan", str(CONFIG), *here, "--json"]) == 0
    out, err = capfd.readouterr()
    assert "no weights and no tokenizer: it can be planned with, and nothing else" in err
    assert "train.batch_size: 256 (32 questions) is more than the 14 training examples" in err
    assert json.loads(out)["sampling"]["grpo_pool"]["tokens_at_most"] == 30_720_000
    assert "hours" not in out  # of a GPU that nobody knows
    assert call(["train", str(CONFIG), *here]) == 2


def test_plan_takes_the_variant_that_needs_the_most(
    here: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A training that writes needs more than the others where its texts are long and many."""
    tree = yaml.safe_load(CONFIG.read_text())
    own = {"objective": {**tree["train"].pop("objective"), "rollouts": 256}}
    del tree["train"]["workers"]
    tree["train"] |= {"row_tokens": 1024, "activation_checkpointing": True}
    tree["variants"] = [{"type": "paft"}, {"type": "paft", "name": "grpo", "train": own}]
    tree["evaluation"]["workers"] = {"num": 1}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert call(["plan", str(path), *here, "task.max_length=512", "--json"]) == 0
    memory = json.loads(capfd.readouterr().out)["sizes"]["worker_memory_gb"]
    assert memory["sampling"] > memory["activations"]
    rest = sum(v for purpose, v in memory.items() if purpose not in ("all", "activations"))
    assert memory["all"] == pytest.approx(rest, abs=0.01)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", 3350),
        ("NVIDIA H100 PCIe", 2040),
        ("NVIDIA H100 NVL", 3940),
        ("NVIDIA H200", 4800),
        ("NVIDIA GH200 480GB", 4900),
        ("NVIDIA A100-SXM4-80GB", 2039),
        ("NVIDIA L40S", 864),
        ("NVIDIA L4", 300),
    ],
)
def test_memory_of_gpus_is_as_fast_as_their_maker_says(name: str, rate: float) -> None:
    sizes = ModelSizes(parameters=10**9, trainable=1, linear=0, layers=1, hidden=1, vocabulary=1)
    hours = least_hours(sizes, 4e9, "float32", 3600, name)
    assert hours == pytest.approx(4 / rate, rel=1e-6)
    assert least_hours(sizes, 4e9, "float32", 3600, f"{name} MIG 1g.10gb") is None
