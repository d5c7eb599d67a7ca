"""Is it right on this GPU: attention, leaks, checkpointing, steps, memory, engines, what is stored.

Each function measures one row of `gpu.py`, and returns its figures; `holds` says whether they are
as they should be.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gpu_models import (
    ONE_B,
    Bench,
    NotHereError,
    Subject,
    gradients,
    logprobs_of,
    mean_loss,
    plain_base,
    rival,
    widen,
)

from paft_ray.models.gpu import compute_deterministically
from paft_ray.models.load import prepare_loaded
from paft_ray.models.narrow import WIDE
from paft_ray.models.packing import Row, build_row
from paft_ray.training.deepspeed_engine import prepare_process

Figures = dict[str, Any]
_MOST_ERROR = 2e-2
"""Of gradients in bf16 against fp32, as a share of the gradient's norm."""
_MOST_RESERVED = 1.15


def attention(bench: Bench, kind: str) -> Figures:
    """Gradients of a packed row against fp32, a sequence at a time; and whether anything leaks.

    What bf16 costs depends on the model: where that is more than 2%, an error is right that is no
    larger than that of transformers and peft, which read each sequence alone.
    """
    subject = bench.small
    sequences = subject.sequences(bench.tokens(2048), 0.2)
    packed = build_row(sequences, range(len(sequences)))
    reference = _reference(bench)
    with subject.engine(kind) as engine:
        found = gradients(engine, [packed])
        leak = _leak(subject, packed)
    error = float((found - reference).norm() / reference.norm())
    theirs = float((_theirs(bench) - reference).norm() / reference.norm())
    holds = error <= max(_MOST_ERROR, 1.05 * theirs) and leak == 0.0
    return {"gradient_error": error, "error_of_theirs": theirs, "leak": leak, "holds": holds}


def _reference(bench: Bench) -> torch.Tensor:
    """The gradient in fp32, each sequence in a row of its own, under torch's plain attention."""
    found = _REFERENCES.get(bench)
    if found is None:
        subject = Subject(bench, bench.shape(ONE_B), "float32")
        sequences = subject.sequences(bench.tokens(2048), 0.2)
        with subject.engine("sdpa") as engine:
            alone = [build_row(sequences, [index]) for index in range(len(sequences))]
            found = _REFERENCES[bench] = gradients(engine, alone)
        del subject
        bench.free()
    return found


_REFERENCES: dict[Bench, torch.Tensor] = {}
_THEIRS: dict[Bench, torch.Tensor] = {}


def _theirs(bench: Bench) -> torch.Tensor:
    """The gradient by transformers and peft in bf16, each sequence alone."""
    if (found := _THEIRS.get(bench)) is None:
        found = _THEIRS[bench] = _plain_gradients(bench)
        bench.free()
    return found


def _plain_gradients(bench: Bench) -> torch.Tensor:
    subject = bench.small
    with subject.engine():  # the adapter as it begins
        model = rival(bench, subject)
    sequences = subject.sequences(bench.tokens(2048), 0.2)
    answers = sum(len(each.targets) for each in sequences)
    for each in sequences:
        ids = torch.tensor([each.input_ids], device=bench.device)
        targets = torch.tensor(each.targets, device=bench.device)
        with torch.autocast(bench.device.type, torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits[0, list(each.positions)]
        loss = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
        (loss / answers).backward()
    trained = [p.grad for p in model.parameters() if p.requires_grad]
    return torch.cat([gradient.flatten().float() for gradient in trained if gradient is not None])


def _leak(subject: Subject, row: Row) -> float:
    """How far other sequences' log-probabilities move when one sequence's tokens change."""
    middle = len(row.members) // 2
    starts = np.append(np.flatnonzero(row.position_ids_T == 0), row.tokens)
    other_ids_T = row.input_ids_T.copy()
    own = slice(starts[middle], starts[middle + 1])
    other_ids_T[own] = np.random.default_rng(2).integers(
        4, subject.shape.vocabulary, own.stop - own.start
    )
    changed = replace(row, input_ids_T=other_ids_T)
    elsewhere = torch.from_numpy(row.members_A != middle).to(subject.bench.device)
    before, after = (
        logprobs_of(subject.model, subject.arithmetic, each)[elsewhere] for each in (row, changed)
    )
    return float((after - before).abs().max())


def checkpointing(bench: Bench) -> Figures:
    """Gradients with dropout, activations kept and computed again, by deterministic kernels."""
    subject = Subject(bench, bench.shape(ONE_B), "bfloat16", dropout=0.1)
    row, found = subject.row(bench.tokens(2048), 0.2), []
    for again in (False, True):
        with subject.engine(activation_checkpointing=again) as engine, deterministic():
            torch.manual_seed(3)
            found.append(gradients(engine, [row]))
    error = float((found[1] - found[0]).norm() / found[0].norm())
    return {"gradient_error": error, "holds": error <= 1e-3}


def same_step_twice(bench: Bench) -> Figures:
    """How far two passes over the same row differ: atomic additions make that, unless forbidden."""
    figures = {f"{name}_by_default": value for name, value in _twice(bench.small).items()}
    with deterministic():
        figures |= (same := _twice(bench.small))
    holds = figures["logprobs_moved_by_default"] == 0.0 and not any(same.values())
    return {**figures, "holds": holds}


def _twice(subject: Subject) -> dict[str, float]:
    row, found = subject.row(subject.bench.tokens(2048), 0.2), []
    for _ in range(2):
        with subject.engine() as engine:
            found.append(
                (logprobs_of(subject.model, subject.arithmetic, row), gradients(engine, [row]))
            )
    (loss, gradient), (other_loss, other_gradient) = found
    error = float((gradient - other_gradient).norm() / gradient.norm())
    return {"logprobs_moved": float((loss - other_loss).abs().max()), "gradient_error": error}


@contextmanager
def deterministic() -> Iterator[None]:
    """As `train.deterministic: true` does."""
    compute_deterministically()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def rows_of_varying_length(bench: Bench) -> Figures:
    """Memory that is reserved after 60 steps over rows of varying length, over what is used."""
    subject, lengths = bench.small, np.random.default_rng(4).integers(300, 4097, 60)
    with subject.engine(steps=60) as engine:
        for step, tokens in enumerate(lengths.tolist()):
            engine.accumulate(subject.row(max(8, bench.tokens(tokens)), 0.2, step), mean_loss)
            engine.step(1e-4)
        if not bench.on_gpu:
            return {"steps": 60, "holds": True}
        reserved, used = torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
    ratio = reserved / used
    return {"steps": 60, "reserved_over_used": ratio, "holds": ratio <= _MOST_RESERVED}


def engine_of_deepspeed(bench: Bench, stage: int, offload: str = "none") -> Figures:
    """Three steps under DeepSpeed, against the plain engine's."""
    plain = _three_steps(bench.small, None)
    subject = Subject(bench, bench.shape(ONE_B), "bfloat16")  # stage 3 divides it for good
    with _group_of_one(bench):
        found = _three_steps(subject, {"stage": stage, "offload": offload})
    moved = max(abs(one - other) / abs(other) for one, other in zip(found, plain, strict=True))
    return {"losses": found, "against_plain": moved, "holds": moved <= 2e-3}


def _three_steps(subject: Subject, deepspeed: Mapping[str, Any] | None) -> list[float]:
    """The loss of each step, over the same row."""
    bench, found = subject.bench, []
    row = subject.row(bench.tokens(1024), 0.2)
    with subject.engine("auto", deepspeed, workers={"gpus": int(bench.on_gpu)}) as engine:
        for _ in range(3):
            engine.accumulate(row, lambda logprobs_A: _noted(logprobs_A, found))
            engine.step(1e-3)
        if deepspeed is not None:
            engine.release()
    return found


def _noted(logprobs_A: torch.Tensor, losses: list[float]) -> torch.Tensor:
    loss = mean_loss(logprobs_A)
    losses.append(float(loss.detach()))
    return loss


@contextmanager
def _group_of_one(bench: Bench) -> Iterator[None]:
    """A process group of one rank, with NCCL on a GPU, for DeepSpeed."""
    try:
        import deepspeed  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise NotHereError(f"deepspeed cannot be imported ({error})") from error
    if not torch.distributed.is_initialized():  # DeepSpeed keeps it for good
        store = torch.distributed.TCPStore("127.0.0.1", 0, 1, is_master=True)
        backend = "nccl" if bench.on_gpu else "gloo"
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= place
    linear = torch.nn.functional.linear
    try:
        prepare_process(bench.device.type)
        yield
    finally:
        torch.nn.functional.linear = linear  # stage 3 leaves its own, which keeps and costs more
        for name in place:  # others' trainers would look for a launcher
            del os.environ[name]


def checkpoint_and_restore(bench: Bench) -> Figures:
    """Steps after a restored checkpoint against those that were not interrupted, deterministic."""
    subject = bench.small
    row = subject.row(bench.tokens(1024), 0.2)

    def step(engine: Any) -> float:
        found: list[float] = []
        engine.accumulate(row, lambda logprobs_A: _noted(logprobs_A, found))
        engine.step(1e-3)
        return found[0]

    with subject.engine(steps=4) as engine, deterministic():
        for _ in range(2):
            step(engine)
        state = dict(engine.gather())
        wanted = [step(engine) for _ in range(2)]
    with subject.engine(steps=4) as engine, deterministic():
        engine.restore(state.items(), 2)
        found = [step(engine) for _ in range(2)]
    moved = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
    return {"losses": found, "moved": moved, "holds": moved == 0.0}


def save_and_load(bench: Bench) -> Figures:
    """The loss of a stored adapter on a fresh base, against that of the model in memory."""
    from paft_ray.models.load import load_adapter

    subject = bench.small
    row = subject.row(bench.tokens(1024), 0.2)
    with subject.engine(), tempfile.TemporaryDirectory() as folder:
        wanted = float(mean_loss(logprobs_of(subject.model, subject.arithmetic, row)))
        subject.model.save_pretrained(folder)
        base = prepare_loaded(widen(plain_base(bench, subject.shape), "float32"), "auto", WIDE)
        loaded = load_adapter(base, folder, "default").to(bench.device)
        found = float(mean_loss(logprobs_of(loaded, subject.arithmetic, row)))
    bench.free()
    error = abs(found - wanted) / abs(wanted)
    return {"loss": wanted, "loaded": found, "error": error, "holds": error <= 1e-2}
