"""The model that a rank builds: which of its weights are trained in which dtype."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from factories import LORA, run_config
from paft_ray.config.loading import load_config
from paft_ray.models.kept import KeptBase
from paft_ray.training.distributed.build import build_model


@pytest.mark.parametrize(
    ("files", "arithmetic", "peft", "trained", "others"),
    [
        (torch.bfloat16, "bfloat16", None, {torch.bfloat16}, set()),
        (torch.float32, "bfloat16", None, {torch.float32}, set()),
        (torch.bfloat16, "float32", None, {torch.float32}, set()),
        (torch.bfloat16, "bfloat16", LORA, {torch.float32}, {torch.float32, torch.bfloat16}),
    ],
    ids=["bf16 as in its files", "fp32 as in its files", "in fp32", "an adapter"],
)
def test_weights_that_are_all_trained_have_the_dtype_of_the_models_files(
    files: torch.dtype,
    arithmetic: str,
    peft: dict | None,
    trained: set,
    others: set,
    tiny_model: Path,
    review_file: Path,
    tmp_path: Path,
) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=files).save_pretrained(tmp_path)
    changes = {"model": {"peft": peft, "dtype": arithmetic}}
    changes["train"] = {"deepspeed": {"stage": 1}}
    config = load_config(run_config(tmp_path, review_file, tmp_path / "storage", **changes))
    job: Any = SimpleNamespace(
        config=config, dtype=arithmetic, base=str(tmp_path), shares_workers=False, warm_start=None
    )
    model = build_model(job, torch.device("cpu"), KeptBase())
    parameters = list(model.parameters())
    assert {p.dtype for p in parameters if p.requires_grad} == trained
    assert {p.dtype for p in parameters if not p.requires_grad} == others
