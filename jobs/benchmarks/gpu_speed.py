"""How quick is it on this GPU: training, others' loops on the same sequences, scoring, writing.

Each function measures one row of `gpu.py`. A row of training carries the loss and the gradient norm
of its first step; it counts only where they agree with the other rows on the same sequences.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from gpu_models import EIGHT_B, Bench, NotHereError, mean_loss, rival

from paft_ray.models.cuda import kernels
from paft_ray.models.flops import model_flops
from paft_ray.models.generation import continue_texts
from paft_ray.models.logprobs import ForwardPass, inference, score_sequences
from paft_ray.models.packing import TokenSequence, batches_by_length, build_row
from paft_ray.training.speed import device_peak

Figures = dict[str, Any]
_WARM_UP, _MOST_STEPS, _SECONDS = 3, 12, 3.0


def steps(bench: Bench, step: Callable[[], None]) -> float:
    """The median seconds of a step, after some that are not counted."""
    for _ in range(1 if bench.rehearsal else _WARM_UP):
        step()
    bench.synchronize()
    found: list[float] = []
    most = 3 if bench.rehearsal else _MOST_STEPS
    while len(found) < 3 or (len(found) < most and sum(found) < _SECONDS):
        started = time.perf_counter()
        step()
        bench.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def training(bench: Bench, kind: str, tokens: int, share: float, how: str = "") -> Figures:
    """Steps of one packed row: tokens a second, MFU, memory beyond the weights.

    Args:
        bench: See `Bench`.
        kind: Of attention.
        tokens: Of the row.
        share: Of them that are answers.
        how: `compiled`; `unfused`, as layers of transformers and peft are; empty for the default.
    """
    subject, first, compiled = bench.large, [], []
    row = subject.row(bench.tokens(tokens), share)
    fused = _unfused() if how == "unfused" else nullcontext()
    with fused, subject.engine(kind, compile=how == "compiled") as engine:
        flops = engine.meter.flops(row)
        before = torch.cuda.memory_allocated() if bench.on_gpu else 0
        if bench.on_gpu:
            torch.cuda.reset_peak_memory_stats()

        def step() -> None:
            compiled.append(_graphs())
            engine.accumulate(row, lambda logprobs_A: _first(mean_loss(logprobs_A), first))
            norm = engine.step(0.0 if len(first) < 2 else 1e-6)
            if len(first) == 1:
                first.append(norm)

        seconds = steps(bench, step)
    return {
        "loss": first[0],
        "gradient_norm": first[1],
        **_rates(bench, row.tokens, flops, seconds),
        **_memory(bench, before),
        **({"recompilations": _graphs() - compiled[1]} if how == "compiled" else {}),
    }


def _first(loss: torch.Tensor, found: list[float]) -> torch.Tensor:
    if not found:
        found.append(float(loss.detach()))
    return loss


def _rates(bench: Bench, tokens: int, flops: float, seconds: float) -> Figures:
    peak = device_peak(torch.cuda.get_device_name(), "bfloat16") if bench.on_gpu else None
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "tflops": flops / seconds / 1e12,
        **({"mfu": flops / seconds / peak} if peak else {}),
    }


def _memory(bench: Bench, before: int) -> Figures:
    if not bench.on_gpu:
        return {}
    return {"gb_beyond_weights": (torch.cuda.max_memory_allocated() - before) / 1e9}


@contextmanager
def _unfused() -> Iterator[None]:
    fuses = kernels._fuses
    kernels._fuses = lambda x: False
    try:
        yield
    finally:
        kernels._fuses = fuses


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _padded(bench: Bench, sequences: Sequence[TokenSequence]) -> dict[str, torch.Tensor]:
    """A batch as people make it: padded to the longest, with labels."""
    longest = max(len(s.input_ids) for s in sequences) + 1
    ids = torch.full((len(sequences), longest), 2)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for n, each in enumerate(sequences):
        tokens = [*each.input_ids, each.targets[-1]]
        ids[n, : len(tokens)], mask[n, : len(tokens)] = torch.tensor(tokens), 1
        at = torch.tensor(each.positions) + 1
        labels[n, at] = torch.tensor(each.targets)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: tensor.to(bench.device) for name, tensor in batch.items()}


def padded_loop(bench: Bench, tokens: int, share: float) -> Figures:
    """The same sequences, padded, with full logits, in a plain loop around a peft model."""
    with bench.large.engine():  # the adapter as it begins
        model = rival(bench, bench.large)
    sequences = bench.large.sequences(bench.tokens(tokens), share)
    batch, first = _padded(bench, sequences), []
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)
    before = torch.cuda.memory_allocated() if bench.on_gpu else 0
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()

    def step() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        if not first:
            first.extend((float(loss.detach()), float(norm)))
        optimizer.step()
        optimizer.zero_grad()

    seconds = steps(bench, step)
    row = build_row(sequences, range(len(sequences)))
    found = model_flops(bench.large.model)
    flops = 0.0 if found is None else found.of_row(row)
    memory = _memory(bench, before)
    names = ("loss", "gradient_norm")
    return {
        **dict(zip(names, first, strict=True)),
        **_rates(bench, row.tokens, flops, seconds),
        **memory,
    }


def hf_trainer(bench: Bench, tokens: int, share: float, by_length: bool) -> Figures:
    """The same work in transformers' Trainer, batches drawn at random or by length."""
    try:
        import accelerate  # noqa: F401  # pyright: ignore[reportUnusedImport]
        from transformers import Trainer, TrainerCallback, TrainingArguments
    except ImportError as error:
        raise NotHereError(f"accelerate cannot be imported ({error})") from error
    import tempfile

    with bench.large.engine():
        model = rival(bench, bench.large)
    one = bench.large.sequences(bench.tokens(tokens), share)
    count, rounds = len(one), 10
    many = [
        s
        for seed in range(rounds)
        for s in bench.large.sequences(bench.tokens(tokens), share, seed)
    ]
    data = [{"input_ids": [*s.input_ids, s.targets[-1]], "at": n} for n, s in enumerate(many)]
    ends: list[float] = []
    useful: list[int] = []

    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        chosen = [many[item["at"]] for item in items]
        useful.append(sum(len(s.input_ids) for s in chosen))
        return {k: v.cpu() for k, v in _padded(bench, chosen).items()}

    class Watch(TrainerCallback):
        def on_step_end(self, *args: Any, **more: Any) -> None:
            bench.synchronize()
            ends.append(time.perf_counter())

    quiet = {"report_to": [], "logging_strategy": "no", "save_strategy": "no"}
    with tempfile.TemporaryDirectory() as folder:
        arguments: Any = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=count,
            max_steps=rounds - 1,
            bf16=True,
            learning_rate=1e-6,
            remove_unused_columns=False,
            use_cpu=not bench.on_gpu,
            **quiet,  # pyright: ignore[reportArgumentType]
            train_sampling_strategy="group_by_length" if by_length else "random",
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=data,  # pyright: ignore[reportArgumentType]
            data_collator=collate,
            callbacks=[Watch()],
        )
        trainer.train()
    del model, trainer
    bench.free()
    if len(ends) < _WARM_UP + 2:
        raise NotHereError(f"it took {len(ends)} steps only")
    seconds = ends[-1] - ends[_WARM_UP]
    tokens_read = sum(useful[_WARM_UP + 1 : len(ends)])
    return {"tokens_per_second": tokens_read / seconds, "steps": len(ends) - _WARM_UP - 1}


def scoring(bench: Bench) -> Figures:
    """2,000 sequences, four choices a question, in packed rows and in batches padded by length."""
    subject = bench.large
    questions = 500 if not bench.rehearsal else 5
    sequences = _questions(bench, questions)
    reading = ForwardPass("bfloat16", bench.tokens(8192))
    score_sequences(subject.model, sequences[:8], reading)
    started = time.perf_counter()
    ours = score_sequences(subject.model, sequences, reading)
    bench.synchronize()
    took = time.perf_counter() - started
    theirs, padded = _score_padded(bench, sequences)
    right = [max(range(4), key=lambda c: ours[4 * q + c][0]) for q in range(questions)]
    other = [max(range(4), key=lambda c: theirs[4 * q + c]) for q in range(questions)]
    differ = sum(a != b for a, b in zip(right, other, strict=True))
    return {
        "sequences_per_second": len(sequences) / took,
        "padded_sequences_per_second": len(sequences) / padded,
        "ratio": padded / took,
        "answers_that_differ": differ,
    }


def _questions(bench: Bench, questions: int) -> list[TokenSequence]:
    """Four choices of a few tokens after the same context."""
    found, subject = [], bench.large
    for number in range(questions):
        [context, *_] = subject.sequences(bench.tokens(20_000), 0.01, seed=100 + number)
        for choice in range(4):
            answer = [10 + choice, 20 + choice, 30 + choice]
            ids = (*context.input_ids, *answer)
            begin = len(context.input_ids) - 1
            found.append(
                TokenSequence(ids[:-1], tuple(range(begin, begin + 3)), tuple(answer), (0,) * 3)
            )
    return found


def _score_padded(bench: Bench, sequences: Sequence[TokenSequence]) -> tuple[list[float], float]:
    model, scores = bench.large.model, [0.0] * len(sequences)
    lengths = [len(s.input_ids) + 1 for s in sequences]
    batches = batches_by_length(lengths, 0, bench.tokens(8192))
    kind = bench.large.base.config._attn_implementation
    bench.large.base.set_attn_implementation("sdpa")
    started = time.perf_counter()
    try:
        with torch.inference_mode(), torch.autocast(bench.device.type, torch.bfloat16):
            for members in batches:
                batch = _padded(bench, [sequences[n] for n in members])
                labels = batch.pop("labels")[:, 1:]
                logits = model(**batch, use_cache=False).logits[:, :-1].float()
                at = labels != -100
                chosen = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
                for n, total in zip(members, (chosen * at).sum(1).tolist(), strict=True):
                    scores[n] = total
        bench.synchronize()
    finally:
        bench.large.base.set_attn_implementation(kind)
    return scores, time.perf_counter() - started


def generation(bench: Bench) -> Figures:
    """Free-text answers of 32 tokens, as evaluation writes them."""
    subject, new = bench.large, 32 if not bench.rehearsal else 4
    count = 256 if not bench.rehearsal else 4
    tokens = [list(s.input_ids) for s in subject.sequences(bench.tokens(300) * count, 0.1)][:count]
    with subject.engine("sdpa"), inference(subject.model, "bfloat16"):
        started = time.perf_counter()
        continue_texts(subject.model, _tokenizer(subject.shape.vocabulary), tokens, new)
        bench.synchronize()
        took = time.perf_counter() - started
    return {"texts": len(tokens), "new_tokens": new, "answers_per_second": len(tokens) / took}


def _tokenizer(vocabulary: int) -> Any:
    """A tokenizer whose tokens are numbers."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({str(number): number for number in range(vocabulary)}, "0"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="0", eos_token="1", pad_token="2"
    )


def _call(product: Callable[[], torch.Tensor]) -> None:
    product()


def head(bench: Bench) -> Figures:
    """Products of the output head: fp32, TF32, and bf16 with a result in fp32."""
    shape, found = bench.shape(EIGHT_B), {}
    answers = 2048 if not bench.rehearsal else 16
    generator = torch.Generator(bench.device).manual_seed(0)
    hidden = torch.randn(answers, shape.hidden, device=bench.device, generator=generator)
    weight = torch.randn(shape.vocabulary, shape.hidden, device=bench.device, generator=generator)
    hidden, weight = hidden.bfloat16(), (weight / shape.hidden**0.5).bfloat16()
    exact = hidden[:64].double() @ weight.double().T
    wide, wide_hidden = weight.float(), hidden.float()

    def fp32() -> torch.Tensor:
        torch.backends.cuda.matmul.allow_tf32 = False
        return wide_hidden @ wide.T

    def tf32() -> torch.Tensor:
        torch.backends.cuda.matmul.allow_tf32 = True
        return wide_hidden @ wide.T

    def narrow() -> torch.Tensor:
        if not bench.on_gpu:
            return (hidden @ weight.T).float()
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)

    try:
        for name, product in {"fp32": fp32, "tf32": tf32, "bf16": narrow}.items():
            found[f"{name}_ms"] = 1000 * steps(bench, partial(_call, product))
            found[f"{name}_error"] = float((product()[:64].double() - exact).abs().max())
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    return found
