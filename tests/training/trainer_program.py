"""Trains with Hugging Face's Trainer or TRL's SFTTrainer under prompts drawn by position.

As a program it is one rank of several, which test_prompt_dataset starts: the arguments are a
model's folder, a folder for what was read and trained, and scenarios as JSON.
"""

import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rank_program import PEFT, make_planner
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from paft_ray.config import TrainConfig
from paft_ray.training.batch_plan import Planner
from paft_ray.training.prompt_dataset import IGNORED, PromptDataset

STEPS, LEARNING_RATE = 4, 1e-2
Rows = list[tuple[list[int], list[int]]]
"""Ids of each sequence, and its labels from the first one that is learned."""


def small_train(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "steps": STEPS, "batch_size": 6, "learning_rate": LEARNING_RATE, "row_tokens": 200,
            "schedule": {"type": "constant", "warmup_share": 0.0},
            **changes,
        }
    )  # fmt: skip


def small_planner(model: str, train: TrainConfig) -> Planner:
    return replace(make_planner(model, train, packing=True), batch_size=train.batch_size)


def adapted(model: str) -> Any:
    from peft import get_peft_config, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    torch.manual_seed(5)
    return get_peft_model(base, get_peft_config({"task_type": "CAUSAL_LM", **PEFT}))


def rows_of(batch: dict[str, torch.Tensor]) -> Rows:
    """What a padded batch holds: padding has no label, and no answer is empty."""
    found = []
    for ids, mask, labels in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
    ):
        length = int(mask.sum())
        assert not (labels[length:] != IGNORED).any()
        read, learned = ids[:length].tolist(), labels[:length].tolist()
        first = next(at for at, label in enumerate(learned) if label != IGNORED)
        assert learned[first:] == read[first:]
        found.append((read, learned[first:]))
    return found


def make_trainer(
    kind: str, data: PromptDataset, model: Any, folder: Path, **options: Any
) -> tuple[Trainer, dict[int, list[Rows]]]:
    """A trainer, and by step the batches that its model read."""
    seen: dict[int, list[Rows]] = {}
    settings = {
        "per_device_train_batch_size": 6, "gradient_accumulation_steps": 1, "report_to": [],
        "use_cpu": True, "bf16": False, "learning_rate": LEARNING_RATE, "max_grad_norm": 1.0,
        "lr_scheduler_type": "constant", "weight_decay": 0.0, "logging_steps": 1,
        "disable_tqdm": True, "save_steps": 2,
        "dataloader_pin_memory": False, **options,
    }  # fmt: skip
    if kind == "sft":
        from trl import SFTConfig, SFTTrainer

        made, arguments = SFTTrainer, SFTConfig(str(folder), **{**data.sft_arguments, **settings})
    else:
        made, arguments = Trainer, TrainingArguments(str(folder), **{**data.arguments, **settings})

    class Watched(made):
        def training_step(self, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
            seen.setdefault(self.state.global_step, []).append(rows_of(inputs))
            return super().training_step(model, inputs, *more, **named)

    processing = {"processing_class": data._planner.encoder.tokenizer}
    return Watched(model, arguments, **processing, **data.for_trainer()), seen


def losses_of(trainer: Trainer) -> dict[int, float]:
    """Loss of each step, from 0, as the trainer logs it."""
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {entry["step"] - 1: entry["loss"] for entry in logged}


def as_drawn(planner: Planner, step: int) -> Rows:
    """What our own sampler draws for a step."""
    rows = []
    for [sequence], _ in planner.draw(step, range(planner.batch_size)):
        answer = list(sequence.targets)
        rows.append(([*sequence.input_ids, answer[-1]], answer))
    return rows


def main(model: str, folder: Path, scenarios: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    data = PromptDataset(small_planner(model, small_train()), small_train(), STEPS)
    for scenario in scenarios:
        name, kind = scenario.pop("name"), scenario.pop("kind")
        resumes = scenario.pop("resumes", False)
        begin = partial(make_trainer, kind, data, folder=folder / name, **scenario)
        trainer, seen = begin(model=adapted(model))
        trainer.train()
        found = {"seen": seen, "losses": losses_of(trainer)}
        if resumes:
            trainer, again = begin(model=adapted(model))
            trainer.train(resume_from_checkpoint=str(folder / name / "checkpoint-2"))
            found |= {"again": again}
        (folder / f"{name}-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
