"""Prompts drawn by position in other people's trainers: what is read is what `paft train` reads."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from rank_program import PEFT
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from trainer_program import (
    STEPS,
    Rows,
    adapted,
    as_drawn,
    losses_of,
    make_trainer,
    rows_of,
    small_planner,
    small_train,
)

from paft_ray.config.errors import ConfigError
from paft_ray.models.load import load_base, make_trainable
from paft_ray.training.engine import Engine
from paft_ray.training.local import train_locally
from paft_ray.training.prompt_dataset import PromptDataset, _check_order

# TRL sets it by the name that transformers gave up
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
KINDS = ("trainer", "sft")


@pytest.fixture(scope="module")
def data(tiny_model: Path) -> PromptDataset:
    return PromptDataset(small_planner(str(tiny_model), small_train()), small_train(), STEPS)


@pytest.fixture(scope="module")
def drawn(data: PromptDataset) -> list[Rows]:
    return [as_drawn(data._planner, step) for step in range(STEPS)]


def batches_of(seen: dict[Any, list[Rows]]) -> dict[int, Rows]:
    """By step all that was read, batch after batch."""
    return {int(step): [row for batch in found for row in batch] for step, found in seen.items()}


def test_items_are_the_examples_and_prompts_that_our_own_sampler_draws(
    data: PromptDataset, drawn: list[Rows]
) -> None:
    planner = data._planner
    assert len(data) == STEPS * 6
    for position in (23, 0, 7, 6, 5):
        step, slot = divmod(position, 6)
        draw = data.draw(position)
        assert draw.prompt == planner.sampler.index(step, slot, example=draw.example)
        ids, answer = drawn[step][slot]
        item = data[position]
        assert item["input_ids"] == ids
        assert item["labels"] == [-100] * (len(ids) - len(answer)) + answer
    with pytest.raises(IndexError, match="24 is not one of 24"):
        data[24]


@pytest.mark.parametrize("workers", [0, 2])
def test_own_loop_reads_the_batches_of_paft_train(
    data: PromptDataset, drawn: list[Rows], workers: int
) -> None:
    loader = DataLoader(data, batch_size=3, collate_fn=data.collate, num_workers=workers)
    read = [row for batch in loader for row in rows_of(batch)]
    assert read == [row for step in drawn for row in step]


@pytest.mark.parametrize("kind", KINDS)
def test_trainer_with_workers_and_accumulation_reads_the_draws_and_goes_on_with_them(
    data: PromptDataset, drawn: list[Rows], tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    options = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3,
        "dataloader_num_workers": 2,
    }  # fmt: skip
    model = str(tiny_model)
    trainer, seen = make_trainer(kind, data, adapted(model), tmp_path, **options)
    trainer.train()
    assert batches_of(seen) == dict(enumerate(drawn))
    resumed, again = make_trainer(kind, data, adapted(model), tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert batches_of(again) == dict(enumerate(drawn[2:], start=2))
    assert losses_of(resumed)[3] == losses_of(trainer)[3]
    other = PromptDataset(replace(data._planner, seed=4), small_train(), STEPS)
    wrong, _ = make_trainer(kind, other, adapted(model), tmp_path, **options)
    with pytest.raises(ConfigError, match="checkpoint of step 2 was made with other draws"):
        wrong.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("kind", KINDS)
def test_trainer_learns_what_our_own_loop_learns(
    data: PromptDataset, tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    model = str(tiny_model)
    trainer, _ = make_trainer(kind, data, adapted(model), tmp_path, save_strategy="no")
    trainer.train()
    torch.manual_seed(5)
    engine = Engine(
        make_trainable(load_base(model), PEFT, seed=5), small_train(), "float32", deepspeed=False
    )
    losses: list[float] = []
    train_locally(
        engine, data._planner, small_train(), lambda metrics: losses.append(metrics["train/loss"])
    )
    assert losses_of(trainer) == pytest.approx(dict(enumerate(losses)), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"train_sampling_strategy": "random"}, "pass it \\*\\*arguments of the data set"),
        ({"per_device_train_batch_size": 4}, "is not the 6 examples of a step"),
        ({"max_steps": 5}, "takes 5 steps, and 4 are drawn"),
        ({"max_steps": -1, "num_train_epochs": 2}, "takes 8 steps, and 4 are drawn"),
        ({"ignore_data_skip": True}, "ignore_data_skip"),
    ],
)
def test_trainer_that_would_read_another_order_is_refused_before_its_first_step(
    data: PromptDataset, tiny_model: Path, tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    trainer, seen = make_trainer("trainer", data, adapted(str(tiny_model)), tmp_path, **options)
    with pytest.raises(ConfigError, match=why):
        trainer.train()
    assert seen == {}


def test_collator_without_the_check_is_refused(data: PromptDataset) -> None:
    given = data.for_trainer()
    with pytest.raises(ConfigError, match="callbacks included"):
        given["data_collator"]([given["train_dataset"][0]])
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [5], "labels": [5]}]
    batch = given["data_collator"](rows)  # an eval_dataset's
    assert rows_of(batch) == [([5, 6, 7], [6, 7]), ([5], [5])]


def loader_of(rank: int, ranks: int, size: int, sampler: Any, **options: Any) -> Any:
    """What accelerate makes of a loader, as far as the order of positions goes."""
    batches = BatchSampler(sampler, size, drop_last=False)
    return SimpleNamespace(batch_sampler=BatchSamplerShard(batches, ranks, rank, **options))


def arguments_of(rank: int, ranks: int, size: int, accumulated: int) -> Any:
    return SimpleNamespace(
        train_batch_size=size, process_index=rank, world_size=ranks,
        gradient_accumulation_steps=accumulated,
    )  # fmt: skip


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 5))
def test_ranks_read_all_positions_of_every_step_and_no_others(
    ranks: int, size: int, accumulated: int, steps: int
) -> None:
    batch = ranks * size * accumulated
    read: list[set[int]] = [set() for _ in range(steps)]
    for rank in range(ranks):
        positions = range(steps * batch)
        loader = loader_of(rank, ranks, size, SequentialSampler(positions))
        _check_order(loader, arguments_of(rank, ranks, size, accumulated), steps)
        for number, found in enumerate(loader.batch_sampler):
            read[number // accumulated] |= set(found)
    assert read == [set(range(step * batch, (step + 1) * batch)) for step in range(steps)]


@pytest.mark.parametrize(
    "make",
    [
        lambda rank: loader_of(rank, 2, 4, RandomSampler(range(48))),
        lambda rank: loader_of(rank, 2, 4, SequentialSampler(range(48)), split_batches=True),
        lambda rank: SimpleNamespace(
            batch_sampler=BatchSampler(SequentialSampler(range(48)), 4, False)  # all read all
        ),
    ],
    ids=["random", "split batches", "dispatched"],
)
def test_other_order_over_two_ranks_is_refused_on_both(make: Callable[[int], Any]) -> None:
    for rank in range(2):
        with pytest.raises(ConfigError, match="are next"):
            _check_order(make(rank), arguments_of(rank, 2, 4, 2), 3)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"objective": {"type": "expected_reward"}}, "train.objective"),
        ({"sampling": {"temperature": 1.0}}, "train.sampling.temperature"),
        ({"variation": {"paraphrases": {"per_example": 2}}}, "train.variation.paraphrases"),
    ],
)
def test_what_depends_on_more_than_a_position_is_refused(
    data: PromptDataset, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        PromptDataset(data._planner, small_train(**changes), STEPS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_read_the_draws_of_every_step_between_them(
    tiny_model: Path, tmp_path: Path, data: PromptDataset, drawn: list[Rows]
) -> None:
    scenarios = [
        {"name": kind, "kind": kind, "per_device_train_batch_size": 1, "resumes": True,
         "gradient_accumulation_steps": 3, "dataloader_num_workers": 2, "ddp_backend": "gloo"}
        for kind in KINDS
    ]  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(__file__).with_name("trainer_program.py")
    path = os.pathsep.join([str(program.parent), str(program.parents[1])])
    command = [sys.executable, str(program), str(tiny_model), str(tmp_path), json.dumps(scenarios)]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **where, "RANK": str(n), "LOCAL_RANK": str(n), "PYTHONPATH": path},
        )
        for n in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate()[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert not any(process.returncode for process in ranks), "\n".join(said)
    for kind in KINDS:
        both = [json.loads((tmp_path / f"{kind}-{n}.json").read_text()) for n in range(2)]
        for name, first in (("seen", 0), ("again", 2)):
            steps = [batches_of(rank[name]) for rank in both]
            for step in range(first, STEPS):
                read = [tuple(map(tuple, row)) for rank in steps for row in rank[step]]
                wanted = [tuple(map(tuple, row)) for row in drawn[step]]
                assert len(read) == 6
                assert sorted(read) == sorted(wanted)
            assert all(set(rank) == set(range(first, STEPS)) for rank in steps)
        one, _ = make_trainer(kind, data, adapted(str(tiny_model)), tmp_path / f"one-{kind}")
        one.train()
        two = {int(step): loss for step, loss in both[0]["losses"].items()}
        assert two == pytest.approx(losses_of(one), rel=1e-3)
