"""A run that never happened but could have: its files, of any models and seeds."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from paft_ray.evaluation.summary import summarise
from paft_ray.storage.paths import Storage, to_parquet

INSTRUCTIONS = (
    "Is the sentiment of this review positive or negative?",
    "Decide how the writer felt about the film.",
    "Read the following sentence and label its tone.",
    "Classify the review below.",
    "What does the critic think? Answer with one word.",
    "Tell whether the opinion expressed here is favourable.",
)
LAYOUTS = (
    "{instruction}\n\nReview: {sentence}\nAnswer:",
    "{sentence}\n\n{instruction}\nSentiment:",
)
SENTENCES = (
    "it 's a charming and often affecting journey .",
    "unflinchingly bleak and desperate",
    "the acting , costumes , music , cinematography and sound are all astounding",
    "it 's slow -- very , very slow .",
)
HOSTILE = "<script>alert('prompt')</script> & <img src=x> {sentence}"
ACCURACY = {"base": (0.66, 0.11), "single_prompt": (0.75, 0.12), "paft": (0.81, 0.07)}
SIX = {
    "base": (0.61, 0.1),
    "single_prompt": (0.74, 0.12),
    "human_prompt": (0.72, 0.11),
    "bound_prompts": (0.79, 0.08),
    "paft": (0.83, 0.05),
    "paft_t1": (0.82, 0.06),
}


def held_out_prompts() -> list[str]:
    texts = [
        layout.replace("{instruction}", instruction)
        for instruction in INSTRUCTIONS
        for layout in LAYOUTS
    ]
    return [*texts[:-1], HOSTILE]


def scores(
    seed: int,
    accuracy: Mapping[str, tuple[float, float]],
    examples: int,
    seeds: Sequence[int] = (0,),
    prompts: int = 12,
) -> pa.Table:
    rng = np.random.default_rng(seed)
    rows = []
    for variant, (mean, std) in accuracy.items():
        of_prompts = rng.normal(mean, std, prompts)
        hard = rng.permutation(np.linspace(0, 1, examples))
        for training in seeds if variant != "base" else seeds[:1]:
            moved = of_prompts + (0 if training == seeds[0] else rng.normal(0, 0.03, prompts))
            for p, chance in enumerate(moved):
                for e in range(examples):
                    right = bool(chance > hard[e] + rng.normal(0, 0.08))
                    rows.append(
                        {
                            "variant": variant,
                            "seed": training,
                            "split": "test",
                            "prompt_id": f"test{p:02d}",
                            "example_id": f"e{e:03d}",
                            "prediction": "positive" if right else "negative",
                            "correct": right,
                            "choice_logprobs": [-0.1, -2.0],
                            "generated_text": None,
                            "generated_tokens": None,
                        }
                    )
    return pa.Table.from_pylist(rows)


def ledger(variant: str, steps: int, seed: int = 7) -> list[pa.Table]:
    """Two parts that overlap by ten steps, as a resumed training may leave them."""
    rng = np.random.default_rng(seed)
    prompts = {"single_prompt": 1, "human_prompt": 1, "bound_prompts": 12}.get(variant, 84)
    floor = 0.05 + 0.02 * len(variant)
    rows = [
        {
            "step": step,
            "slot": slot,
            "example_id": f"t{rng.integers(600)}",
            "prompt_id": f"train{rng.integers(prompts):02d}",
            "loss": float(floor + 0.9 * np.exp(-step / 25) + 0.2 * rng.random()),
            "answer_tokens": 1,
        }
        for step in range(steps)
        for slot in range(8)
    ]
    return [pa.Table.from_pylist(part) for part in (rows[: 8 * 80], rows[8 * 70 :])]


def make_run(
    folder: Storage,
    accuracy: Mapping[str, tuple[float, float]] = ACCURACY,
    examples: int = 60,
    extras: bool = True,
    seeds: Sequence[int] = (0,),
    prompts: int = 12,
    trained: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Write the files of a run; the summary is returned.

    All models but the base model are trained ones, where `trained` does not name them.
    """
    table = scores(4, accuracy, examples, seeds, prompts)
    seconds = {"prompts": 74.2, "training": 301.8, "evaluation": 88}
    if trained == []:
        del seconds["training"]
    summary = summarise(table, list(accuracy), (0.75,), seeds, seconds)
    if trained is not None:
        summary |= {"trained": list(trained), "seeds": list(seeds) if trained else []}
    for label in summary["models"]:
        if label != "base" and (trained is None or label in trained):
            summary["models"][label] |= {
                "steps": 150,
                "trained_tokens": 58_312.0,
                "trained_answer_tokens": 1_200.0,
                "seconds_per_example": 0.0123,
            }
    config = {"name": "demo", "task": {"name": "sst2"}, "model": {"path": "some/smollm2-135m"}}
    if trained == []:
        config |= {"variants": [], "train": {"steps": 1}}
    folder.write_json("config.json", {"config": config, "versions": {"paft_ray": "0.1.0"}})
    folder.write_json("summary.json", summary)
    folder.write_bytes("scores.parquet", to_parquet(table))
    if not extras:
        return summary
    folder.write_bytes("prompts.parquet", to_parquet(prompts_table(prompts)))
    folder.write_bytes("examples.parquet", to_parquet(examples_table(examples)))
    for variant in sorted(set(accuracy) - {"base"} if trained is None else trained):
        for seed in seeds:
            own = folder.child("training", f"{variant}-s{seed}")
            about = {"steps": 150, "tokens": 58_312, "answer_tokens": 1200, "seconds": 147.31}
            own.write_json("manifest.json", {"fingerprint": "0", "files": {}, "about": about})
            for i, part in enumerate(ledger(variant, 150, 7 + seed)):
                own.child("ledger").write_bytes(f"part-{i}.parquet", to_parquet(part))
    return summary


def prompts_table(test: int) -> pa.Table:
    """Held-out prompts, repeated with a number where there are more than were written."""
    texts = [
        f"Number {i}: {text}" if i >= 12 else text
        for i, text in zip(range(test), held_out_prompts() * (test // 12 + 1), strict=False)
    ]
    verbs = ("Say", "Tell me", "Judge", "Find out", "Note", "Work out", "State")
    things = ("review", "comment", "quote", "remark", "opinion", "line")
    rows = [("test", f"test{i:02d}", text) for i, text in enumerate(texts)]
    rows += [
        (
            "train",
            f"train{i:02d}",
            f"{verbs[i % 7]} what the {things[i % 6]} says, way {i}: {{sentence}}",
        )
        for i in range(84)
    ]
    rows += [("validation", f"val{i}", f"Is this {thing} kind? {{sentence}}")
             for i, thing in enumerate(things[:4])]  # fmt: skip
    return pa.Table.from_pylist(
        [
            {
                "prompt_id": prompt_id,
                "text": text,
                "instruction": text.replace("{sentence}", "").strip(),
                "layout": f"{split} {i % 5}",
                "split": split,
                "cluster": f"{split}{i % 9}",
            }
            for i, (split, prompt_id, text) in enumerate(rows)
        ]
    )


def examples_table(examples: int) -> pa.Table:
    return pa.table(
        {
            "example_id": [f"e{i:03d}" for i in range(examples)],
            "fields": [
                json.dumps({"sentence": f"{SENTENCES[i % 4]} <b>{i}</b>"}) for i in range(examples)
            ],
            "answer": ["positive"] * examples,
        }
    )


def add_shares(folder: Storage, training: str = "paft-s0") -> None:
    """What a training by loss leaves at its checkpoints: four prompts, the last one hard."""
    for step in (50, 100, 150):
        hard = step / 300
        table = pa.table(
            {
                "step": [step] * 4,
                "prompt_id": [f"train{i:02d}" for i in range(4)],
                "mean_loss": [0.2, 0.3, float("nan"), 1.0],
                "probability": [(1 - hard) / 3] * 3 + [hard],
                "weight": [1.0, 1.0, 1.0, 1.5],
            }
        )
        own = folder.child("training", training, "sampling")
        own.write_bytes(f"step-{step:09d}.parquet", to_parquet(table))


def make_search(samples: Sequence[Mapping[str, Any]], goals: Sequence[float]) -> dict[str, Any]:
    """What a search leaves whose trials ended with these figures; the best is the finalist."""
    best = max(range(len(goals)), key=lambda number: goals[number])
    trials = [
        {
            "number": number,
            "sample": dict(sample),
            "state": "finished",
            "reason": "",
            "seconds": 60.0 + number,
            "tokens": 40_000,
            "interval": [goal - 0.05, goal + 0.05],
            "reports": [{"step": 45, "goal": goal - 0.1}, {"step": 90, "goal": goal}],
        }
        for number, (sample, goal) in enumerate(zip(samples, goals, strict=True))
    ]
    path, value = next(iter(samples[best].items()))
    return {
        "goal": "5% quantile",
        "space": {path: {"type": "choice"} for path in samples[0]},
        "validation": {"prompts": 8, "examples": 24},
        "trials": trials,
        "finalists": [
            {
                "label": "finalist_1",
                "trial": best,
                "sample": dict(samples[best]),
                "settings": f"{path.rpartition('.')[2]} {value}",
                "seeds": [1, 2, 3],
                "validation": goals[best],
                "test": goals[best] - 0.05,
                "test_interval": [goals[best] - 0.1, goals[best] + 0.02],
                "gap": 0.05,
            }
        ],
    }
