"""Measurements of steps: what is recorded, and what is left out."""

import time
from pathlib import Path

import pytest
import torch
from rank_program import PEFT, make_planner, train_config

from paft_ray.models.load import load_base, make_trainable
from paft_ray.serving.record import MadeFrom, Speed, TrainingRecord
from paft_ray.training.engine import Engine
from paft_ray.training.local import train_locally
from paft_ray.training.speed import StepClock, device_peak

CPU = torch.device("cpu")


def test_every_step_has_its_speed_and_the_record_their_means_without_the_first(
    tiny_model: Path,
) -> None:
    train = train_config({"train": {"steps": 5}})
    model = make_trainable(load_base(str(tiny_model)), PEFT, seed=5)
    engine = Engine(model, train, "float32", deepspeed=False)
    assert engine.meter.speed() is None
    planner = make_planner(str(tiny_model), train, packing=True)
    steps: list[dict[str, float]] = []
    train_locally(engine, planner, train, lambda metrics: steps.append(dict(metrics)))
    plans = [planner.plan(step) for step in range(5)]
    parts = [
        f"train/seconds/{p}" for p in ("plan", "forward_backward", "communication", "optimizer")
    ]
    for metrics, plan in zip(steps, plans, strict=True):
        seconds = plan.tokens / metrics["train/tokens_per_second"]
        timed = [metrics[part] for part in parts]
        assert all(each >= 0 for each in timed)
        assert 0.5 * seconds < sum(timed) <= seconds
        flops = sum(engine.meter.flops(row) for row in plan.rows)
        rate = flops / seconds / metrics["train/share_of_matrix_rate"]
        assert rate == pytest.approx(engine.meter.speed().matrix_rate)
        # nobody states a peak of this CPU, and it has no memory of its own
        assert not {"train/mfu", "train/peak_gpu_memory_gb"} & metrics.keys()
    speed = engine.meter.speed()
    assert speed is not None
    assert speed.steps == 4
    whole = sum(p.tokens / m["train/tokens_per_second"] for m, p in zip(steps, plans, strict=True))
    first = plans[0].tokens / steps[0]["train/tokens_per_second"]
    tokens = sum(plan.tokens for plan in plans[1:])
    assert speed.tokens_per_second == pytest.approx(tokens / (whole - first))
    mean = sum(metrics["train/seconds/optimizer"] for metrics in steps[1:]) / 4
    assert speed.seconds["optimizer"] == pytest.approx(mean)


def test_part_within_another_is_counted_once() -> None:
    clock = StepClock(CPU)
    started = time.perf_counter()
    clock.enter("forward_backward")
    with clock.within("communication"):
        torch.randn(1000, 1000).sum()
    clock.enter("optimizer")
    clock.enter(None)
    whole = time.perf_counter() - started
    parts = clock.take()
    assert parts.keys() == {"forward_backward", "communication", "optimizer"}
    assert sum(parts.values()) <= whole
    assert parts["communication"] > parts["forward_backward"]
    assert clock.take() == {}


@pytest.mark.parametrize(
    ("name", "dtype", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA H100 80GB HBM3", "float32", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16", None),
        ("NVIDIA A10G", "bfloat16", None),
        ("NVIDIA A1000", "bfloat16", None),
        ("Some GPU", "bfloat16", None),
    ],
)
def test_peak_is_that_of_the_data_sheet_or_none(
    name: str, dtype: str, tflops: float | None
) -> None:
    assert device_peak(name, dtype) == (None if tflops is None else tflops * 1e12)


def test_record_of_a_training_keeps_its_speed_and_leaves_out_what_was_not_measured() -> None:
    record = TrainingRecord(
        variant="paft", seed=0, steps=3, tokens=9, answer_tokens=3, trimmed=0, seconds=1.0,
        prompts=2, workers=1, dtype="float32", last_loss=0.5, made_from=MadeFrom("t", "m", "p"),
        speed=Speed(steps=2, tokens_per_second=7.0, seconds={"plan": 0.1}),
    )  # fmt: skip
    stored = record.to_json()
    assert stored["speed"] == {"steps": 2, "tokens_per_second": 7.0, "seconds": {"plan": 0.1}}
    assert TrainingRecord.from_json(stored) == record
