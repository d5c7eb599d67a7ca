"""A run of a model whose sequences mix in packed rows: trained and scored one by one, and said."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Lfm2Config, Lfm2ForCausalLM

from factories import run_config
from paft_ray.config.loading import load_config
from paft_ray.models.check_process import ModelCheckProcess
from paft_ray.pipeline.perform import open_context
from paft_ray.pipeline.run import run


@pytest.mark.ray
@pytest.mark.slow
def test_run_of_a_model_that_mixes_rows_says_so(
    tiny_model: Path, review_file: Path, tmp_path: Path, ray_cluster: None
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention", "conv"],
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    Lfm2ForCausalLM(config).save_pretrained(tmp_path / "model")
    about = run_config(
        tmp_path / "model",
        review_file,
        tmp_path / "storage",
        train={"steps": 2},
        variants=[{"type": "paft"}],
        evaluation={"prompts": 2, "examples": 8},
    )
    with ModelCheckProcess() as checks:
        run(open_context(load_config(about)), checks)
    folder = tmp_path / "storage" / "runs" / "small"
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    paft = summary["models"]["paft"]
    for model in summary["models"].values():
        assert model["packing"].startswith("unpacked: one sequence a row")
    assert paft["trained_packing"].startswith("unpacked: one sequence a row")
    assert "one sequence a row" in (folder / "report.html").read_text(encoding="utf-8")
