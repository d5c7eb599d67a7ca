"""What `train.py` compares: the same LoRA training by other people's loops and by ours.

Each function trains on the same examples with the same prompts, base model, batch, learning rate
and loss on answer tokens. It asks `turns` before every step, which waits there until it is this
competitor's turn, and says after it how many tokens the step read and what its loss was.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client
from typing import Any

import torch
from train_setup import CLIPPING, LEARNING_RATE, PEFT, Setup, Turns, make_planner

from paft_ray.config import TrainConfig
from paft_ray.models.load import add_adapter, load_base, load_tokenizer, store_frozen_in_bf16
from paft_ray.models.logprobs import answer_logprobs
from paft_ray.storage.paths import Storage
from paft_ray.training.batch_plan import plans


def train_plainly(setup: Setup, turns: Turns) -> None:
    """A padded PyTorch loop as tutorials have it: attention mask, all logits, labels of -100."""
    model = _foreign_model(setup).to(setup.device)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, weight_decay=0.0)
    examples, model = _examples(setup), model.train()
    for step in range(setup.steps):
        turns.before_step()
        batch = examples[step * setup.batch_size : (step + 1) * setup.batch_size]
        inputs = {k: v.to(setup.device) for k, v in _pad(batch, setup).items()}
        with torch.autocast(setup.device.type, torch.bfloat16, setup.dtype == "bfloat16"):
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, CLIPPING)
        optimizer.step()
        optimizer.zero_grad()
        turns.after_step(_useful(inputs), loss.item())
    turns.finish()


def train_with_trainer(setup: Setup, turns: Turns, by_length: bool = False) -> None:
    """Hugging Face's Trainer with DeepSpeed stage 1, batches in our order or grouped by length."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    _prepare_process(setup)
    deepspeed = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": "auto"},
    }
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            deepspeed=deepspeed,
            train_sampling_strategy="group_by_length" if by_length else "sequential",
            **_trainer_arguments(setup, folder),
        )
        collate = DataCollatorForSeq2Seq(load_tokenizer(setup.location), label_pad_token_id=-100)
        _observed(Trainer, turns)(
            model=_foreign_model(setup),
            args=arguments,
            train_dataset=_dataset(setup, "input_ids", "attention_mask", "labels"),
            data_collator=collate,
        ).train()
    turns.finish()


def train_with_trl(setup: Setup, turns: Turns, packing: bool = False) -> None:
    """TRL's SFTTrainer with loss on the completion only, padded or packed; in bf16 on bf16 weights.

    Its examples are the others' and in their order; packed ones form other batches.
    """
    from trl import SFTConfig, SFTTrainer

    tokens = setup.batch_size * 96  # about as many examples in a row as others have in a batch
    with tempfile.TemporaryDirectory() as folder:
        more = _trainer_arguments(setup, folder)
        if packing:
            more["per_device_train_batch_size"] = 1
        arguments = SFTConfig(
            packing=packing,
            max_length=tokens if packing else 512,
            completion_only_loss=True,
            gradient_checkpointing=False,  # on by default, which costs a forward pass a step
            train_sampling_strategy="sequential",
            **more,
        )
        _observed(SFTTrainer, turns)(
            model=_foreign_model(setup, bf16_weights=True),
            args=arguments,
            train_dataset=_dataset(setup, "input_ids", "completion_mask"),
            processing_class=load_tokenizer(setup.location),
        ).train()
    turns.finish()


def train_rows(setup: Setup, turns: Turns) -> None:
    """Our rows and kernels in a plain loop: no DeepSpeed, no Ray."""
    planner, model = make_planner(setup), _our_model(setup)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, weight_decay=0.0)
    model.train()
    for plan in plans(planner, 0, setup.steps):
        turns.before_step()
        total = 0.0
        for row in plan.rows:
            with torch.autocast(setup.device.type, torch.bfloat16, setup.dtype == "bfloat16"):
                loss = -answer_logprobs(model, row, setup.device).sum() / plan.answer_tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trainable, CLIPPING)
        optimizer.step()
        optimizer.zero_grad()
        turns.after_step(plan.tokens, total)
    turns.finish()


def train_engine(
    setup: Setup, turns: Turns, report: Callable[[dict[str, float]], None] = lambda _: None
) -> None:
    """Ours: `loop.fit` on a DeepSpeed engine, as a worker runs it."""
    from paft_ray.tracking import NullTracker
    from paft_ray.training.engine import Engine
    from paft_ray.training.ledger import Ledger
    from paft_ray.training.loop import LoopHooks, Recipe, fit
    from paft_ray.training.prompt_weights import PromptWeights
    from paft_ray.training.state.checkpoint import Checkpoints, Progress

    _prepare_process(setup)
    train = TrainConfig(
        steps=setup.steps,
        batch_size=setup.batch_size,
        row_tokens=setup.row_tokens,
        learning_rate=LEARNING_RATE,
        gradient_clipping=CLIPPING,
    )
    planner, never = make_planner(setup), setup.steps + 1
    engine = Engine(_our_model(setup), train, setup.dtype)
    read: list[int] = []

    def in_turns() -> Iterator[Any]:
        for plan in plans(planner, 0, setup.steps):
            turns.before_step()
            read.append(plan.tokens)
            yield plan

    def note(metrics: Any) -> None:
        report(dict(metrics))
        turns.after_step(read[-1], metrics["train/loss"])

    with tempfile.TemporaryDirectory() as folder:
        storage = Storage.open(folder)
        fit(
            engine,
            in_turns(),
            Progress(),
            Recipe(never, lambda step: LEARNING_RATE, never, seed=0, objective=train.objective),
            LoopHooks(
                NullTracker(),
                Checkpoints(storage, "benchmark", keep=1),
                Ledger(storage, 0),
                PromptWeights(len(planner.prompts)),
                note,
            ),
        )
    turns.finish()


def train_inside_ray(setup: Setup, address: str, key: bytes) -> None:
    """Ours in a worker of Ray Train, which speaks to the benchmark itself."""
    from paft_ray.cluster.session import ray_session

    def work(_: dict[str, Any]) -> None:
        import ray.train

        torch.set_num_threads(1)

        def report(metrics: dict[str, float]) -> None:
            if metrics["step"] % 50 == 0:  # as often as our worker does
                ray.train.report(metrics)

        with Client(address, authkey=key) as connection:
            connection.send(setup.name)
            train_engine(setup, Turns(connection), report)

    gpu = setup.device.type == "cuda"
    with ray_session(), tempfile.TemporaryDirectory() as folder:
        from ray.train import RunConfig, ScalingConfig  # ray reads its environment when imported
        from ray.train.torch import TorchConfig, TorchTrainer

        TorchTrainer(
            work,
            train_loop_config={},
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=1, use_gpu=gpu, resources_per_worker={"CPU": 1, "GPU": int(gpu)}
            ),
            run_config=RunConfig(name="benchmark", storage_path=folder),
        ).fit()


def _prepare_process(setup: Setup) -> None:
    from paft_ray.training.deepspeed_engine import prepare_process

    with tempfile.NamedTemporaryFile() as meeting:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            os.environ.setdefault(name, value)
        if not torch.distributed.is_initialized():
            backend = "nccl" if setup.device.type == "cuda" else "gloo"
            where = f"file://{meeting.name}-rank"
            torch.distributed.init_process_group(backend, where, rank=0, world_size=1)
    prepare_process(setup.device.type)


def _our_model(setup: Setup) -> Any:
    model = add_adapter(load_base(setup.location), PEFT, seed=0).to(setup.device)
    if setup.dtype == "bfloat16":
        store_frozen_in_bf16(model)
    return model


def _foreign_model(setup: Setup, bf16_weights: bool = False) -> Any:
    """The base model as transformers loads it, with the adapter that ours begins with."""
    from peft import get_peft_config, get_peft_model
    from transformers import AutoModelForCausalLM

    halve = bf16_weights and setup.dtype == "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(
        setup.location, dtype=torch.bfloat16 if halve else torch.float32
    )
    torch.manual_seed(0)
    return get_peft_model(model, get_peft_config({"task_type": "CAUSAL_LM", **PEFT}))


def _examples(setup: Setup) -> list[dict[str, list[int]]]:
    """All examples in the order of the steps, tokenised beforehand."""
    planner, examples = make_planner(setup), []
    for step in range(setup.steps):
        for [sequence], _ in planner.draw(step, range(setup.batch_size)):
            answer = list(sequence.targets)
            ids = [*sequence.input_ids, answer[-1]]
            context = len(ids) - len(answer)
            examples.append(
                {
                    "input_ids": ids,
                    "attention_mask": [1] * len(ids),
                    "labels": [-100] * context + answer,
                    "completion_mask": [0] * context + [1] * len(answer),
                }
            )
    return examples


def _dataset(setup: Setup, *columns: str) -> Any:
    from datasets import Dataset

    return Dataset.from_list(_examples(setup)).select_columns(list(columns))


def _pad(batch: list[dict[str, list[int]]], setup: Setup) -> dict[str, torch.Tensor]:
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    longest = max(len(example["input_ids"]) for example in batch)
    return {
        name: torch.tensor([e[name] + [value] * (longest - len(e[name])) for e in batch])
        for name, value in fill.items()
    }


def _useful(inputs: Any) -> int:
    """Tokens of a batch but for each example's last, which nobody has to read."""
    if inputs.get("attention_mask") is not None:
        return int(inputs["attention_mask"].sum()) - len(inputs["input_ids"])
    return int((inputs["position_ids"] != 0).sum())


def _trainer_arguments(setup: Setup, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "max_steps": setup.steps,
        "per_device_train_batch_size": setup.batch_size,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "bf16": setup.dtype == "bfloat16",
        "use_cpu": setup.device.type == "cpu",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }


def _observed(trainer: type, turns: Turns) -> type:
    """A trainer that takes its steps in turns."""

    class Observed(trainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            turns.before_step()
            tokens = _useful(inputs)
            loss = super().training_step(model, inputs, *args, **kwargs)
            turns.after_step(tokens, float(loss))
            return loss

    return Observed


COMPETITORS: dict[str, tuple[str, Callable[[Setup, Turns], None]]] = {
    "plain": ("plain padded PyTorch loop", train_plainly),
    "hf": ("HF Trainer + DeepSpeed", train_with_trainer),
    "hf_by_length": (
        "HF Trainer + DeepSpeed, by length",
        lambda setup, turns: train_with_trainer(setup, turns, by_length=True),
    ),
    "trl": ("TRL SFTTrainer", train_with_trl),
    "trl_packed": (
        "TRL SFTTrainer, packed",
        lambda setup, turns: train_with_trl(setup, turns, packing=True),
    ),
    "loop": ("ours without DeepSpeed and Ray", train_rows),
    "engine": ("ours without Ray", train_engine),
}
"""Key to name and function; `ours`, inside Ray Train, is `train_inside_ray`."""
