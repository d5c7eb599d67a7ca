"""One rank of a small training without Ray, started by test_exactness as a process of its own."""

import json
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
import torch.distributed as dist

from paft_ray.artifacts import Storage
from paft_ray.config import ScheduleConfig, TrainConfig
from paft_ray.modeling.model import load_base, load_tokenizer, make_trainable
from paft_ray.modeling.tokenization import TextEncoder
from paft_ray.prompts.template import parse
from paft_ray.tasks import Example
from paft_ray.tracking import NullTracker
from paft_ray.training.checkpoint import Checkpoints, Progress
from paft_ray.training.engine import Engine, prepare_process
from paft_ray.training.loop import Ledger, fit
from paft_ray.training.plan import Planner, plans
from paft_ray.training.sampler import PromptSampler
from paft_ray.training.schedule import learning_rate
from paft_ray.training.shards import SHARD_BYTES, SMALL_STATE

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

STEPS = 20
PEFT = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
ANSWERS = ["good", "very bad", "the plot was fine and the acting great", "not"]


def make_planner(folder: str, row_tokens: int, packing: bool) -> Planner:
    rng = random.Random(1)
    words = [
        "good",
        "bad",
        "fine",
        "awful",
        "great",
        "poor",
        "the",
        "film",
        "movie",
        "plot",
        "was",
        "is",
        "and",
        "very",
    ]
    examples = [
        Example(
            id=f"{number:016x}",
            fields={"text": " ".join(rng.choices(words, k=rng.randint(1, 30)))},
            answer=rng.choice(ANSWERS),
        )
        for number in range(40)
    ]
    texts = ["Tell how it feels: {text}\nAnswer:", "{text}\n\nlabel:", "Read {text} ->"]
    return Planner(
        examples=examples,
        prompts=[(str(i), parse(text, ("text",))) for i, text in enumerate(texts)],
        encoder=TextEncoder(load_tokenizer(folder), max_length=90),
        sampler=PromptSampler(seed=3, prompts=len(texts)),
        seed=3,
        batch_size=6,
        row_tokens=row_tokens,
        packing=packing,
        end_token=True,
    )


def train_plainly(model: torch.nn.Module, planner: Planner, train: TrainConfig, steps: int) -> None:
    """Padded batch, attention mask, all logits, labels of -100: nothing of ours but the data."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1.0, weight_decay=train.weight_decay)
    model.train()
    for step in range(steps):
        batch = []
        for slot in range(planner.batch_size):
            sequence, _ = planner.draw(step, slot)
            ids = [*sequence.input_ids, sequence.targets[-1]]
            batch.append((ids, len(sequence.targets)))
        longest = max(len(ids) for ids, _ in batch)
        input_ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, -100)
        for row, (ids, answer) in enumerate(batch):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
            labels[row, len(ids) - answer : len(ids)] = torch.tensor(ids[-answer:])
        loss = model(input_ids=input_ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, train.gradient_clipping)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(train.learning_rate, train.schedule, step, steps)
        optimizer.step()
        optimizer.zero_grad()


def train_config(options: dict) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "steps": STEPS,
            "batch_size": 6,
            "row_tokens": 96,  # several rows a step, of different natural number on two ranks
            "learning_rate": 1e-3 if options.get("full") else 1e-2,
            "weight_decay": 0.01,
            "gradient_clipping": 0.5,
            "schedule": ScheduleConfig(type="linear", warmup_share=0.1, final_share=0.5),
            "deepspeed": {"stage": options.get("stage", 1)},
        }
    )


def run_scenario(options: dict, model_folder: str, folder: Path) -> None:
    """Train as `options` say and leave `<name>.safetensors`."""
    train = train_config(options)
    planner = make_planner(model_folder, train.row_tokens, options.get("packing", True))
    peft = None if options.get("full") else PEFT
    base = load_base(model_folder)
    if options.get("full"):  # the harder case: one matrix, used at both ends
        base.get_output_embeddings().weight = base.get_input_embeddings().weight
    model = make_trainable(base, peft, seed=5)
    if options.get("plain"):
        train_plainly(model, planner, train, STEPS)
        named = model.named_parameters()
        weights = {n: p.detach().clone() for n, p in named if p.requires_grad}
    else:
        weights = train_on_engine(options, model, planner, train, folder)
    if dist.get_rank() == 0:
        safetensors.torch.save_file(weights, folder / f"{options['name']}.safetensors")
    dist.barrier()


def train_on_engine(
    options: dict,
    model: "PeftModel | PreTrainedModel",
    planner: Planner,
    train: TrainConfig,
    folder: Path,
) -> dict[str, torch.Tensor]:
    engine = Engine(model, train, "float32", options.get("small_state", SMALL_STATE))
    where = Storage.open(str(folder / options.get("continues", options["name"])))
    checkpoints = Checkpoints(
        where.child("checkpoints"),
        "test",
        keep=10,
        crew=engine.crew(),
        shard_bytes=options.get("shard_bytes", SHARD_BYTES),
    )
    progress = Progress()
    if (restored := checkpoints.load()) is not None:
        progress = restored.progress
        assert 0 < progress.step < STEPS
        engine.restore(restored.state, progress.step)
    else:
        assert "continues" not in options
    fit(
        engine,
        plans(planner, progress.step, options.get("until", STEPS), engine.ranks),
        progress,
        steps=STEPS,
        learning_rate=lambda step: learning_rate(train.learning_rate, train.schedule, step, STEPS),
        tracker=NullTracker(),
        checkpoints=checkpoints,
        every_steps=options.get("every", 1000),
        ledger=Ledger(where.child("ledger"), progress.step),
        report=lambda metrics: None,
    )
    return engine.gather_weights()


def main() -> None:
    settings = json.loads(sys.argv[1])
    rank, ranks, folder = settings["rank"], settings["ranks"], Path(settings["folder"])
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(ranks))
    meeting = f"file://{folder}/meeting-{ranks}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    prepare_process("cpu")
    for options in settings["scenarios"]:
        run_scenario(options, settings["model"], folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
