"""What a rank builds: a model with weights in their dtypes, and what makes its batches."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from factories import LORA, run_config
from paft_ray.config.loading import load_config
from paft_ray.models.kept import KeptBase
from paft_ray.prompts.variation import PLAIN
from paft_ray.runs.examples import store_examples
from paft_ray.storage.paths import Storage
from paft_ray.tasks import load_task
from paft_ray.training.distributed.build import build_model, build_planner
from paft_ray.training.draws import Draw
from paft_ray.training.prompt_weights import UNIFORM
from paft_ray.training.reinforcement.rollouts import asked_at


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


def test_ledger_says_of_every_rollout_what_its_question_was_put_with(
    tiny_model: Path, review_file: Path, tmp_path: Path
) -> None:
    objective = {"type": "grpo", "rollouts": 4, "prompts_per_question": 2, "updates": 2}
    tree = run_config(
        tiny_model, review_file, tmp_path / "storage",
        train={
            "batch_size": 8, "row_tokens": 700, "objective": objective,
            "variation": {"demonstrations": {"shots": 2}},
        },
    )  # fmt: skip
    config = load_config(tree)
    task = load_task(config.task, 0)
    model = AutoModelForCausalLM.from_pretrained(str(tiny_model))
    job: Any = SimpleNamespace(
        paraphrases=None,
        config=config,
        task=task.without_examples(),
        examples=store_examples(Storage.open(str(tmp_path)), task.train),
        base=str(tiny_model),
        prompts=(("p0", "Say: {review} ="), ("p1", "{review} ->")),
    )
    planner = build_planner(job, model)
    told = set()
    for one in asked_at(planner, config.train.objective, 6, UNIFORM):  # pyright: ignore
        draw = Draw(one.put.example.id, "", one.example, one.prompt, 1, trimmed=False)
        assert one.put.condition != PLAIN
        shown = [example.id for example in one.put.condition.demonstrations]
        for step in (6, 7):
            for slot in range(one.first, one.first + one.count):
                found = json.loads(planner.describe(step, slot, draw) or "")
                assert found["demonstrations"] == shown
        told.add(tuple(shown))
    assert len(told) == 2
