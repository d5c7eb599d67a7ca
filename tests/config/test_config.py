"""The typed tree: defaults, ranges and combinations, one wrong value per section and variant."""

import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from paft_ray.config import Config, FakeLLM, Section, TrainConfig, total_steps
from paft_ray.config.affects import result_fields
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import dump_config, load_config

BASE = {
    "name": "try",
    "task": {"type": "builtin", "name": "sst2"},
    "prompts": {"files": ["prompts.txt"]},
    "model": {"path": "owner/model"},
    "train": {"steps": 10},
}
CUSTOM = {
    "type": "custom",
    "name": "mine",
    "description": "Say which colour it is.",
    "path": "rows.jsonl",
    "fields": {"thing": "col"},
    "answer": "colour",
    "choices": ["red", "blue"],
}


PAIRS = {"type": "consistency"}


def grpo(train: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    objective = {"type": "grpo", **settings}
    return {"train": {"steps": 1, "row_tokens": 2048, "objective": objective, **(train or {})}}


def own_labels(train: dict[str, Any] | None = None, **objective: Any) -> dict[str, Any]:
    return {"train": {"steps": 1, "objective": objective, **(train or {})}}


def load(**changes) -> Config:
    return load_config({**BASE, **changes})


def llms(*entries) -> dict:
    return {"generation": {"llms": list(entries)}}


def sections() -> Iterator[type[BaseModel]]:
    waiting = [Section]
    while waiting:
        found = [s for s in waiting.pop().__subclasses__() if s.__module__.startswith("paft_ray.")]
        waiting += found
        yield from found


ON_GPUS = {"train": {"steps": 10, "workers": {"num": 8, "gpus": 1}}}


def test_evaluation_and_probe_take_the_gpus_of_training_where_they_name_none():
    config = load(**ON_GPUS, prompts={**BASE["prompts"], "probe": {"examples": 4}})
    assert config.evaluation.workers.gpus == 1
    assert config.prompts.probe.gpus == 1
    assert dump_config(config)["evaluation"]["workers"] == {"cpus": None, "gpus": 1.0, "num": 1}
    assert load_config(dump_config(config)) == config
    own = load(
        **ON_GPUS,
        prompts={**BASE["prompts"], "probe": {"gpus": 0}},
        evaluation={"workers": {"num": 16, "gpus": 0.5}},
    )
    assert (own.evaluation.workers.gpus, own.prompts.probe.gpus) == (0.5, 0)
    assert load().evaluation.workers.gpus == 0
    assert load(**ON_GPUS).prompts.probe is None


def test_identities_do_not_know_how_many_gpus_compute():
    plain, on_gpus = load(), load(**ON_GPUS)
    assert result_fields(plain) == result_fields(on_gpus)


def test_smallest_configuration_has_the_paper_defaults():
    config = load()
    assert config.train.sampling.unit == "example"
    assert config.train.sampling.steps_per_prompt == 1
    assert [variant.type for variant in config.variants] == ["paft"]
    assert config.model.peft["peft_type"] == "LORA"
    assert config.tracking.type == "mlflow"


@pytest.mark.parametrize("section", list(sections()), ids=lambda section: section.__name__)
def test_every_field_of_every_section_says_what_it_means(section):
    plain = {"type"}  # the tag of a union
    for name, field in section.model_fields.items():
        nested = isinstance(field.default, Section) or name in ("task", "prompts", "model", "train")
        assert field.description or name in plain or nested, f"{section.__name__}.{name}"


FREE = {key: value for key, value in CUSTOM.items() if key not in ("choices", "labels")}
SPACE = {"train.steps": {"type": "choice", "values": [1, 2]}}
SERVED = {"type": "endpoint", "base_url": "http://localhost:8000/v1", "model": "m"}
WRONG = [
    # section or variant, changes, parts of the message: path, value, rule
    ("config", {"name": "Has Spaces"}, ["name: 'Has Spaces'", "a-z"]),
    ("config", {"name": "x" * 64}, ["name: 'xxx", "63"]),
    ("config", {"name": "../up"}, ["name: '../up'", "starts and ends"]),
    ("config", {"seed": -1}, ["seed: -1", "has to be at least 0"]),
    (
        "config",
        {"evaluation": {"subjects": [{"type": "adapter", "name": "paft", "path": "a"}]}},
        ["evaluation.subjects", "a name of its own"],
    ),
    (
        "evaluation",
        {"evaluation": {"name": "../other"}},
        ["evaluation.name: '../other'", "starts and ends"],
    ),
    (
        "adapter subject",
        {"evaluation": {"subjects": [{"type": "adapter"}]}},
        ["evaluation.subjects.0.path: missing"],
    ),
    (
        "model subject",
        {"evaluation": {"subjects": [{"type": "model", "path": "m", "dtype": "int8"}]}},
        ["evaluation.subjects.0.dtype: 'int8'"],
    ),
    (
        "endpoint subject",
        {"evaluation": {"subjects": [{**SERVED, "base_url": "localhost:8000"}]}},
        ["evaluation.subjects.0.base_url: 'localhost:8000'"],
    ),
    (
        "connection",
        {"evaluation": {"subjects": [{**SERVED, "concurrency": 0}]}},
        ["evaluation.subjects.0.concurrency: 0"],
    ),
    (
        "priced",
        {"evaluation": {"subjects": [{**SERVED, "price": {"completion": -1}}]}},
        ["evaluation.subjects.0.price.completion: -1"],
    ),
    (
        "endpoint subject",
        {"evaluation": {"subjects": [{**SERVED, "end_token": "</s>"}]}},
        ["evaluation.subjects.0", "end_token is for api: completions"],
    ),
    (
        "endpoint subject",
        {"evaluation": {"subjects": [{**SERVED, "api": "completions", "system": "Be brief."}]}},
        ["evaluation.subjects.0", "system is for api: chat"],
    ),
    (
        "endpoint subject",
        {"evaluation": {"subjects": [{**SERVED, "budget_tokens": 9, "omit": ["max_tokens"]}]}},
        ["evaluation.subjects.0", "budget_tokens cannot be kept"],
    ),
    (
        "endpoint subject",
        {"evaluation": {"subjects": [{**SERVED, "extra_body": {"echo": True}}]}},
        ["evaluation.subjects.0", "echo"],
    ),
    (
        "config",
        {"variants": [{"type": "paft"}, {"type": "paft"}]},
        ["variants", "named twice", "remove one"],
    ),
    ("task", {"task": "sst2"}, ["task: 'sst2'"]),
    ("builtin", {"task": {"type": "builtin", "name": "mnli"}}, ["task.name: 'mnli'", "'sst2'"]),
    ("custom", {"task": {**CUSTOM, "name": "My Task"}}, ["task.name: 'My Task'", "pattern"]),
    ("custom", {"task": {**CUSTOM, "description": "short"}}, ["task.description: 'short'", "10"]),
    (
        "custom",
        {"task": {**CUSTOM, "answer": None, "test_path": "test.jsonl"}},
        ["test_path holds rows to grade", "answer: null", "leave its cells empty"],
    ),
    (
        "custom",
        {"task": {**CUSTOM, "answer": None, "splits": {"train": "train", "validation": "dev"}}},
        ["splits.validation holds rows to grade"],
    ),
    (
        "combination",
        {"task": {**CUSTOM, "answer": None}},
        ["task.answer: null", "cross_entropy learns from", "consensus or prefix"],
    ),
    (
        "combination",
        {"task": {**CUSTOM, "answer": None}, "variants": []},
        ["task.answer: null", "variants: [] measures"],
    ),
    ("custom", {"task": {**CUSTOM, "fields": {}}}, ["task.fields", "at least 1"]),
    ("custom", {"task": {**CUSTOM, "fields": {"a b": "c"}}}, ["task.fields", "'a b'", "letters"]),
    (
        "variation",
        {"evaluation": {"variation": {"design": "crossed"}}},
        ["evaluation.variation", "design: crossed", "none is varied"],
    ),
    *(
        (
            "variation",
            {"evaluation": {"variation": {**axis, "design": "crossed"}}},
            ["evaluation.variation", "design: crossed", "no axis has two"],
        )
        for axis in (
            {"demonstrations": {"shots": 2, "draws": 1}},
            {"choices": {"names": ["letters"]}},
            {"choices": {}, "demonstrations": {"shots": 2, "draws": 1}},
        )
    ),
    (
        "train",
        {"train": {"steps": 1, "variation": {"design": "crossed", "noise": {"rate": 0.1}}}},
        ["train.variation", "design: crossed", "evaluation.variation"],
    ),
    (
        "custom",
        {"task": {**CUSTOM, "fields": {"demonstrations": "c"}}},
        ["task.fields", "demonstrations", "no field", "shown: c"],
    ),
    (
        "custom",
        {"task": {**CUSTOM, "choices": None, "examples_per_class": 4}},
        ["task", "examples_per_class", "max_train_examples"],
    ),
    ("custom", {"task": {**CUSTOM, "choices": ["red"]}}, ["task.choices: ['red']", "at least 2"]),
    ("custom", {"task": {**CUSTOM, "choices": [True, False]}}, ["choices.0: True", "quotes"]),
    ("custom", {"task": {**CUSTOM, "labels": {"0": "pink"}}}, ["labels.0", "'pink'", "choices"]),
    (
        "task options",
        {"task": {**CUSTOM, "validation_share": 0.5, "test_share": 0.5}},
        ["validation_share + test_share", "lower them"],
    ),
    ("custom", {"task": {**CUSTOM, "choices": ["a", "a"]}}, ["'a' and 'a' do not differ"]),
    ("custom", {"task": {**CUSTOM, "choices": ["a b", "a  b"]}}, ["do not differ", "remove one"]),
    ("custom", {"task": {**CUSTOM, "choices": ["\u00e9", "e\u0301"]}}, ["do not differ"]),
    ("custom", {"task": {**CUSTOM, "choices": ["a", " "]}}, ["' ' is an empty choice"]),
    ("task options", {"task": {**CUSTOM, "stop": ["."]}}, ["task: stop: ['.']", "ranked"]),
    (
        "ensemblesubject",
        {"evaluation": {"subjects": [{"type": "ensemble", "of": "other", "prompts": 2}]}},
        ["evaluation.subjects.0.of", "'other'", "name one of base, paft"],
    ),
    (
        "inferencepromptsubject",
        {"evaluation": {"subjects": [{"type": "inference_prompt", "of": "base", "prompts": 1}]}},
        ["evaluation.subjects.0.prompts", "1"],
    ),
    (
        "ensemblesubject",
        {
            "task": {**CUSTOM, "grade": ["choice", "exact"]},
            "evaluation": {"subjects": [{"type": "ensemble", "of": "base", "prompts": 2}]},
        },
        ["evaluation.subjects.0", "nothing else may be graded"],
    ),
    (
        "ensemblesubject",
        {
            "task": {**CUSTOM, "grade": [{"type": "choice", "length_normalised": True}]},
            "evaluation": {"subjects": [{"type": "ensemble", "of": "base", "prompts": 2}]},
        },
        ["evaluation.subjects.0", "divided by lengths"],
    ),
    (
        "ensemblesubject",
        {
            "evaluation": {
                "estimate": {"share": 0.5},
                "subjects": [{"type": "ensemble", "of": "base", "prompts": 2}],
            },
        },
        ["evaluation.subjects.0", "whole grids"],
    ),
    ("task options", {"task": {**FREE, "stop": [""]}}, ["task.stop.0"]),
    (
        "choicesvariation",
        {"evaluation": {"variation": {"choices": {"names": ["digits", "digits"]}}}},
        ["evaluation.variation.choices.names", "different names"],
    ),
    (
        "noisevariation",
        {"evaluation": {"variation": {"noise": {"rate": 1.5}}}},
        ["evaluation.variation.noise.rate", "1.5"],
    ),
    (
        "noisevariation",
        {"evaluation": {"variation": {"noise": {"rate": 0.1, "kinds": []}}}},
        ["evaluation.variation.noise.kinds", "at least one"],
    ),
    (
        "bestpromptsubject",
        {"evaluation": {"subjects": [{"type": "best_prompt", "of": "base", "prompts": 1}]}},
        ["evaluation.subjects.0", "prompts", "1"],
    ),
    (
        "optimizedpromptsubject",
        {"evaluation": {"subjects": [{"type": "optimized_prompt", "of": "base", "budget": 9}]}},
        ["evaluation.subjects.0", "budget", "9"],
    ),
    (
        "paraphrasesvariation",
        {"evaluation": {"variation": {"paraphrases": {"per_example": 0}}}},
        ["evaluation.variation.paraphrases.per_example", "0"],
    ),
    (
        "demonstrationsvariation",
        {"evaluation": {"variation": {"demonstrations": {"shots": 0}}}},
        ["evaluation.variation.demonstrations.shots", "0"],
    ),
    (
        "variation",
        {"evaluation": {"estimate": {"share": 0.5}, "variation": {"noise": {"rate": 0.1}}}},
        ["evaluation", "variation compares whole grids", "leave one of them out"],
    ),
    (
        "evaluation",
        {"variants": [{"type": "paft"}], "evaluation": {"trained_prompts": True}},
        ["evaluation.trained_prompts", "single_prompt or human_prompt", "leave it out"],
    ),
    (
        "evaluation",
        {
            "variants": [{"type": "single_prompt"}],
            "evaluation": {"trained_prompts": True, "estimate": {"share": 0.5}},
        },
        ["evaluation", "trained_prompts are measured on all examples", "leave one of them out"],
    ),
    (
        "evaluation",
        {
            "variants": [{"type": "single_prompt"}],
            "evaluation": {
                "trained_prompts": True,
                "subjects": [
                    {
                        "type": "endpoint",
                        "base_url": "http://localhost:1/v1",
                        "model": "m",
                        "budget_tokens": 9,
                    },
                ],
            },
        },
        ["evaluation.trained_prompts", "endpoint has budget_tokens", "leave one of them out"],
    ),
    (
        "rowchoices",
        {"task": {**CUSTOM, "choices": {"colum": "a"}}},
        ["task.choices.colum", "unknown key", "did you mean 'column'"],
    ),
    (
        "rowchoices",
        {"task": {**CUSTOM, "choices": {"column": "a", "first": 0, "labels": "b"}}},
        ["task.choices", "leave columns and first out"],
    ),
    (
        "choicegrade",
        {"task": {**FREE, "grade": "choice"}},
        ["grade: choice", "has none", "give choices"],
    ),
    (
        "task options",
        {"task": {**FREE, "grade": ["f1", {"type": "f1"}]}},
        ["grade", "twice", "remove one"],
    ),
    ("textgrade", {"task": {**FREE, "grade": "bleu"}}, ["task.grade.0.type", "'bleu'", "exact"]),
    (
        "exactgrade",
        {"task": {**FREE, "grade": {"type": "exact", "normalisation": "all"}}},
        ["task.grade.0.normalisation", "'all'"],
    ),
    (
        "containsgrade",
        {"task": {**FREE, "grade": {"type": "contains", "normalisation": 1}}},
        ["task.grade.0.normalisation"],
    ),
    (
        "numbergrade",
        {"task": {**FREE, "grade": {"type": "number", "tolerance": -1}}},
        ["task.grade.0.tolerance", "-1"],
    ),
    (
        "patterngrade",
        {"task": {**FREE, "grade": {"type": "pattern", "pattern": "is (\\w+) or (\\w+)"}}},
        ["task.grade.0.pattern", "2 groups", "(?:...)"],
    ),
    (
        "patterngrade",
        {"task": {**FREE, "grade": {"type": "pattern", "pattern": "is (\\w+"}}},
        ["task.grade.0.pattern", "no regular expression"],
    ),
    (
        "pythongrade",
        {"task": {**FREE, "grade": {"type": "python", "path": "grade.py"}}},
        ["task.grade.0.path", "'grade.py'", "grade.py:score"],
    ),
    (
        "pythongrade",
        {"task": {**FREE, "grade": {"type": "python", "path": "a.py:b", "timeout_s": 0}}},
        ["task.grade.0.timeout_s"],
    ),
    (
        "f1grade",
        {"task": {**FREE, "grade": "f1"}, "evaluation": {"estimate": {"share": 0.5}}},
        ["evaluation.estimate", "f1", "leave one of them out"],
    ),
    ("task options", {"task": {**FREE, "answer_end": "ignored"}}, ["is for choices", "leave it"]),
    ("task options", {"task": {**CUSTOM, "answer_end": "off"}}, ["'scored' or 'ignored'"]),
    ("task options", {"task": {**CUSTOM, "max_length": 8}}, ["task.max_length: 8", "16"]),
    ("task options", {"task": {**CUSTOM, "overlong": "drop"}}, ["'drop'", "'refuse' or 'trim'"]),
    ("prompts", {"prompts": {}}, ["prompts", "no source", "prompts.generation"]),
    ("prompts", {"prompts": {"files": ["a"], "pool_size": 0}}, ["prompts.pool_size: 0"]),
    ("generation", {"prompts": llms()}, ["prompts.generation.llms: []", "at least 1"]),
    (
        "generation",
        {"prompts": llms({"type": "fake"}, {"type": "fake"})},
        ["prompts.generation", "same entry twice", "per_llm"],
    ),
    (
        "generation",
        {"prompts": {"generation": {"llms": [{"type": "fake"}], "max_error_rate": 2}}},
        ["prompts.generation.max_error_rate: 2", "at most 1"],
    ),
    (
        "transformers",
        {"prompts": llms({"type": "transformers"})},
        ["prompts.generation.llms.0.path: missing"],
    ),
    (
        "transformers",
        {"prompts": llms({"type": "transformers", "path": "m", "batch_size": 0})},
        ["prompts.generation.llms.0.batch_size: 0"],
    ),
    (
        "author",
        {"prompts": llms({"type": "fake", "temperatures": []})},
        ["prompts.generation.llms.0.temperatures: []"],
    ),
    (
        "tokenprice",
        {"prompts": llms({"type": "fake", "price": {"prompt": -1}})},
        ["prompts.generation.llms.0.price.prompt: -1"],
    ),
    (
        "vllmengine",
        {"prompts": llms({"type": "vllm", "path": "m", "gpus": -1})},
        ["prompts.generation.llms.0.gpus: -1"],
    ),
    (
        "vllmbackend",
        {"evaluation": {"backend": {"type": "vllm", "memory": 2}}},
        ["evaluation.backend.memory: 2"],
    ),
    (
        "transformersbackend",
        {"evaluation": {"backend": {"type": "transformers", "memory": 0.5}}},
        ["evaluation.backend.memory"],
    ),
    (
        "stop",
        {"prompts": {"generation": {"llms": [{"type": "fake"}], "stop": {"new_share": 0}}}},
        ["prompts.generation.stop.new_share: 0"],
    ),
    (
        "generation",
        {"prompts": {"generation": {"llms": [{"type": "fake"}], "strategies": ["few_shot"] * 2}}},
        ["prompts.generation.strategies", "named twice"],
    ),
    (
        "coverage",
        {"prompts": {"files": ["a"], "coverage": {"type": "embeddings"}}},
        ["prompts.coverage", "need path"],
    ),
    (
        "probe",
        {"prompts": {"files": ["a"], "probe": {"min_mass": 2}}},
        ["prompts.probe.min_mass: 2"],
    ),
    (
        "openai",
        {"prompts": llms({"type": "openai", "base_url": "localhost", "model": "m"})},
        ["prompts.generation.llms.0.base_url: 'localhost'", "https?://"],
    ),
    (
        "openai",
        {
            "prompts": llms(
                {"type": "openai", "base_url": "http://x", "model": "m", "api_key_env": "a-b"}
            )
        },
        ["prompts.generation.llms.0.api_key_env: 'a-b'", "pattern"],
    ),
    (
        "fake",
        {"prompts": llms({"type": "fake", "fail_every": -1})},
        ["prompts.generation.llms.0.fail_every: -1"],
    ),
    (
        "lint",
        {"prompts": {"files": ["a"], "lint": {"max_characters": 1}}},
        ["prompts.lint.max_characters: 1"],
    ),
    (
        "dedup",
        {"prompts": {"files": ["a"], "dedup": {"similarity": 0}}},
        ["prompts.dedup.similarity: 0", "has to be greater than 0"],
    ),
    (
        "split",
        {"prompts": {"files": ["a"], "split": {"test": 0}}},
        ["prompts.split.test: 0", "has to be at least 1"],
    ),
    (
        "split",
        {"prompts": {"files": ["a", "b"], "split": {"held_out_file": "c"}}},
        ["prompts", "held_out_file 'c' is no entry of files"],
    ),
    (
        "split",
        {"prompts": {"files": ["a"], "split": {"held_out_file": "a"}}},
        ["prompts", "or all there is"],
    ),
    (
        "split",
        {
            "prompts": {
                "files": ["a", "b"],
                "split": {"held_out_file": "a", "held_out_llm": "m", "test": 1},
            }
        },
        ["prompts.split", "split.test (1) is less than one prompt of held_out_file and one"],
    ),
    ("model", {"model": {"path": "m", "dtype": "float16"}}, ["model.dtype: 'float16'"]),
    ("model", {"model": {"path": "m", "peft": {"r": 8}}}, ["model.peft", "peft_type", "LORA"]),
    ("train", {"train": {}}, ["train", "neither is given", "one of steps and epochs"]),
    (
        "train",
        {"train": {"steps": 1, "epochs": 1}},
        ["train", "both are given", "the other one to null"],
    ),
    ("train", {"train": {"steps": 1, "betas": [0.9, 1.0]}}, ["train.betas", "[0, 1)"]),
    ("train", {"train": {"steps": 1, "learning_rate": 0}}, ["train.learning_rate: 0"]),
    (
        "train",
        {"train": {"steps": 1, "learning_rate": float("nan")}},
        ["train.learning_rate: nan"],
    ),
    (
        "schedule",
        {"train": {"steps": 1, "schedule": {"type": "step"}}},
        ["train.schedule.type: 'step'", "'cosine'"],
    ),
    (
        "sampling",
        {"train": {"steps": 1, "sampling": {"unit": "batch"}}},
        ["train.sampling.unit: 'batch'", "'example', 'step' or 'bound'"],
    ),
    (
        "deepspeed",
        {"train": {"steps": 1, "deepspeed": {"stage": 4}}},
        ["train.deepspeed.stage: 4"],
    ),
    (
        "validation",
        {"train": {"steps": 1, "validation": {"every_steps": 0}}},
        ["train.validation.every_steps: 0", "has to be at least 1"],
    ),
    (
        "profile",
        {"train": {"steps": 9, "profile": {"steps": [3, 2]}}},
        ["train.profile.steps", "no less than the first: (3, 2)"],
    ),
    (
        "checkpoint",
        {"train": {"steps": 1, "checkpoint": {"keep": 0}}},
        ["train.checkpoint.keep: 0"],
    ),
    ("workers", {"train": {"steps": 1, "workers": {"num": 0}}}, ["train.workers.num: 0"]),
    ("workers", {"evaluation": {"workers": {"cpus": 0}}}, ["evaluation.workers.cpus: 0"]),
    (
        "paft",
        {"variants": [{"type": "paft", "prompt": "x"}]},
        ["variants.0.prompt: unknown key"],
    ),
    ("paft", {"variants": [{"type": "paft", "pool_size": 0}]}, ["variants.0.pool_size: 0"]),
    (
        "grpo",
        {
            **grpo(rollouts=8, prompts_per_question=8),
            "variants": [{"type": "paft", "pool_size": 4}],
        },
        ["variants.0", "prompts_per_question (8)", "pool_size of paft (4)"],
    ),
    (
        "single_prompt",
        {"variants": [{"type": "single_prompt", "prompt": 3}]},
        ["variants.0.prompt: 3", "a text"],
    ),
    (
        "bound_prompts",
        {"variants": [{"type": "bound_prompts", "prompts": 0}]},
        ["variants.0.prompts: 0"],
    ),
    (
        "human_prompt",
        {"variants": [{"type": "human_prompt", "prompt": "x"}]},
        ["variants.0.prompt: unknown key"],
    ),
    (
        "variant options",
        {"variants": [{"type": "paft", "name": "base"}]},
        ["variants.0.name: 'base'", "not 'base'"],
    ),
    (
        "variant options",
        {"variants": [{"type": "paft"}, {"type": "single_prompt", "name": "paft"}]},
        ["variants", "named twice"],
    ),
    (
        "sampling",
        {"train": {"steps": 1, "sampling": {"unit": "bound", "temperature": 2}}},
        ["temperature 2", "unit: bound cannot", "leave it out"],
    ),
    ("seeds", {"seeds": [1, 1]}, ["seeds", "named twice", "remove one"]),
    ("seeds", {"seeds": []}, ["seeds", "at least 1 item"]),
    ("evaluation", {"evaluation": {"top_thresholds": [2]}}, ["evaluation.top_thresholds", "0 and"]),
    ("evaluation", {"evaluation": {"prompts": 0}}, ["evaluation.prompts: 0"]),
    *(
        (section, {"tuning": {"space": SPACE, **tuning}}, parts)
        for section, tuning, parts in (
            ("tuning", {"reports": 0}, ["tuning.reports: 0"]),
            ("tuning", {"seeds": [1, 1]}, ["tuning.seeds", "named twice"]),
            ("randomsearch", {"search": {"type": "random", "x": 1}}, ["tuning.search.x: unknown"]),
            ("gridsearch", {"search": {"type": "grid", "x": 1}}, ["tuning.search.x: unknown"]),
            (
                "optunasearch",
                {"search": {"type": "optuna", "startup_trials": 0}},
                ["tuning.search.startup_trials: 0"],
            ),
            ("noscheduler", {"scheduler": {"type": "none", "x": 1}}, ["tuning.scheduler.x"]),
            (
                "asha",
                {"scheduler": {"type": "asha", "reduction_factor": 1}},
                ["tuning.scheduler.reduction_factor: 1"],
            ),
            (
                "medianstopping",
                {"scheduler": {"type": "median", "min_trials": 0}},
                ["tuning.scheduler.min_trials: 0"],
            ),
            ("meanaccuracy", {"goal": {"type": "mean", "x": 1}}, ["tuning.goal.x: unknown key"]),
            ("lowquantile", {"goal": {"type": "p05", "q": 1}}, ["tuning.goal.q: unknown key"]),
            ("worstprompt", {"goal": {"type": "worst", "x": 1}}, ["tuning.goal.x: unknown key"]),
            (
                "meanminusstd",
                {"goal": {"type": "mean_minus_std", "weight": -1}},
                ["tuning.goal.weight: -1"],
            ),
        )
    ),
    *(
        (section, {"tuning": {"space": {"train.steps": dimension}}}, parts)
        for section, dimension, parts in (
            ("choice", {"type": "choice", "values": []}, ["values", "at least 1"]),
            (
                "uniform",
                {"type": "uniform", "low": 1, "high": 1},
                ["low (1) is not below high (1)"],
            ),
            (
                "randint",
                {"type": "randint", "low": 2, "high": 1},
                ["low (2) is not below high (1)"],
            ),
            ("loguniform", {"type": "loguniform", "low": 0, "high": 1}, ["has no logarithm"]),
            ("lograndint", {"type": "lograndint", "low": 0, "high": 1}, ["has no logarithm"]),
        )
    ),
    ("estimate", {"evaluation": {"estimate": {"share": 1}}}, ["evaluation.estimate.share: 1"]),
    ("tracking", {"tracking": {"type": "wandb"}}, ["tracking.type: 'wandb'", "'mlflow'"]),
    (
        "combination",
        {
            "train": {"steps": 1, "deepspeed": {"stage": 0}},
            "model": {"path": "m", "dtype": "bfloat16"},
        },
        ["stage 0", "bfloat16", "use stage 1"],
    ),
    ("sampling", {"train": {"steps": 1, "sampling": {"temperature": 0}}}, ["temperature: 0"]),
    (
        "deepspeed",
        {"train": {"steps": 1, "deepspeed": {"stage": 2, "offload": "parameters"}}},
        ["train.deepspeed", "needs stage 3"],
    ),
    ("workershare", {"evaluation": {"workers": {"gpus": -1}}}, ["evaluation.workers.gpus: -1"]),
    ("workershare", {"evaluation": {"workers": {"gpus": 2}}}, ["workers.gpus: 2", "one GPU"]),
    ("workers", {"train": {"steps": 1, "workers": {"gpus": 0.5}}}, ["gpus: 0.5", "0 or 1"]),
    ("workers", {"train": {"steps": 1, "workers": {"gpus": 2}}}, ["gpus: 2", "one GPU"]),
    ("llm", {"prompts": llms({"type": "transformers", "path": "m", "gpus": 2})}, ["one GPU"]),
    ("probe", {"prompts": {"files": ["a"], "probe": {"gpus": 3}}}, ["probe.gpus: 3", "one GPU"]),
    (
        "trainworkers",
        {"train": {"steps": 1, "workers": {"min": 2}}},
        ["train.workers", "give both"],
    ),
    (
        "trainworkers",
        {"train": {"steps": 1, "workers": {"min": 2, "max": 4, "num": 3}}},
        ["train.workers", "give one of them"],
    ),
    (
        "trainworkers",
        {"train": {"steps": 1, "workers": {"min": 4, "max": 2}}},
        ["train.workers", "swap them"],
    ),
    (
        "crossentropy",
        {"train": {"steps": 1, "objective": {"type": "hinge"}}},
        ["train.objective.type: 'hinge'", "cross_entropy"],
    ),
    (
        "consistency",
        {"train": {"steps": 1, "objective": {"type": "consistency", "weight": 0}}},
        ["train.objective.weight: 0"],
    ),
    (
        "groupdro",
        {"train": {"steps": 1, "objective": {"type": "group_dro", "step_size": -1}}},
        ["train.objective.step_size: -1"],
    ),
    (
        "cvar",
        {"train": {"steps": 1, "objective": {"type": "cvar", "share": 2}}},
        ["train.objective.share: 2"],
    ),
    (
        "expectedreward",
        {"train": {"steps": 1, "objective": {"type": "expected_reward"}, "packing": False}},
        ["expected_reward reads all choices in one row", "train.packing: false"],
    ),
    (
        "expectedreward",
        {
            "train": {"steps": 1, "objective": {"type": "expected_reward"}},
            "task": {"type": "builtin", "name": "sst2", "grade": "exact"},
        },
        ["expected_reward", "graded by exact", "another objective"],
    ),
    ("consensus", own_labels(type="consensus", prompts=1), ["train.objective.prompts: 1"]),
    (
        "consensus",
        {**own_labels(type="consensus"), "task": {"type": "builtin", "name": "gsm8k"}},
        ["consensus counts votes", "free text", "prefix"],
    ),
    (
        "consensus",
        own_labels({"response_prefix_tokens": 4}, type="consensus"),
        ["reads no answers", "choose one"],
    ),
    (
        "consensus",
        own_labels({"deepspeed": {"stage": 3}}, type="consensus"),
        ["train.deepspeed.stage 3", "use stage 2"],
    ),
    ("prefix", own_labels(type="prefix", tokens=0), ["train.objective.tokens: 0"]),
    (
        "prefix",
        {**own_labels(type="prefix"), "model": {"path": "m", "peft": None}},
        ["without its adapter", "model.peft: null", "name a peft method"],
    ),
    (
        "prefix",
        own_labels({"row_tokens": 515}, type="prefix"),
        ["train.row_tokens (515)", "train.objective.tokens (8)", "raise it to 520"],
    ),
    (
        "prefix",
        own_labels({"response_prefix_tokens": 4}, type="prefix"),
        ["reads no answers", "choose one"],
    ),
    ("grpo", grpo(rollouts=1), ["train.objective.rollouts: 1"]),
    (
        "grpo",
        grpo(rollouts=8, prompts_per_question=3),
        ["prompts_per_question (3)"],
    ),
    ("grpo", grpo({"batch_size": 12}), ["train.batch_size (12)", "rollouts (8)"]),
    ("grpo", grpo({"row_tokens": 600}), ["train.row_tokens (600)", "raise it to 640"]),
    ("grpo", grpo({"deepspeed": {"stage": 3}}), ["train.deepspeed.stage 3", "use stage 2"]),
    ("grpo", grpo({"response_prefix_tokens": 4}), ["response_prefix_tokens", "choose one"]),
    (
        "grpo",
        {**grpo(kl=0.1), "model": {"path": "m", "peft": None}},
        ["train.objective.kl (0.1)", "model.peft: null", "kl: 0"],
    ),
    (
        "grpo",
        {**grpo(), "model": {"path": "m", "peft": {"peft_type": "LORA", "lora_dropout": 0.1}}},
        ["model.peft.lora_dropout (0.1)", "set it to 0"],
    ),
    (
        "grpo",
        grpo({"validation": {"every_steps": 3}}, updates=2),
        ["train.validation.every_steps (3)", "train.objective.updates (2)"],
    ),
    ("transformersrollouts", grpo(backend={"type": "jax"}), ["backend.type: 'jax'"]),
    (
        "vllmrollouts",
        grpo(backend={"type": "vllm", "memory": 1}),
        ["train.objective.backend.memory: 1"],
    ),
    ("vllmrollouts", grpo(backend={"type": "vllm", "ratio_cap": 0.5}), ["ratio_cap: 0.5"]),
    ("reward", grpo(rewards=[{"type": "exact", "weight": "much"}]), ["rewards.0.weight: 'much'"]),
    ("gradereward", grpo(rewards=[]), ["train.objective.rewards"]),
    (
        "exactreward",
        grpo(rewards=[{"type": "exact", "normalisation": "x"}]),
        ["normalisation"],
    ),
    ("f1reward", grpo(rewards=[{"type": "f1", "tolerance": 1}]), ["rewards.0.tolerance"]),
    ("containsreward", grpo(rewards=[{"type": "contains", "a": 1}]), ["rewards.0.a"]),
    ("numberreward", grpo(rewards=[{"type": "number", "tolerance": -1}]), ["tolerance: -1"]),
    ("patternreward", grpo(rewards=[{"type": "pattern", "pattern": "a"}]), ["parentheses"]),
    ("pythonreward", grpo(rewards=[{"type": "python", "path": "r"}]), ["grade.py:score"]),
    (
        "pythonreward",
        grpo(rewards=[{"type": "python", "path": "r.py:r", "timeout_s": 60}]),
        ["rewards.0: timeout_s (60)", "train.workers.heartbeat_timeout_s (60)"],
    ),
    (
        "gradereward",
        {
            **grpo(),
            "task": {
                "type": "builtin",
                "name": "gsm8k",
                "grade": {"type": "python", "path": "g.py:g", "timeout_s": 90},
            },
        },
        ["task.grade: timeout_s (90)", "train.workers.heartbeat_timeout_s (60)"],
    ),
    (
        "grpo",
        {
            **grpo(rollouts=8, prompts_per_question=8),
            "prompts": {"generation": {"llms": [{"type": "fake"}]}, "pool_size": 5},
        },
        ["variants.0", "prompts_per_question (8)", "prompts.pool_size (5)"],
    ),
    (
        "grpo",
        {
            **grpo(rollouts=8, prompts_per_question=8),
            "variants": [{"type": "bound_prompts", "prompts": 4}],
        },
        ["variants.0", "prompts_per_question (8)", "prompts of bound_prompts (4)"],
    ),
    (
        "owntrain",
        {"variants": [{"type": "paft", "train": {"row_tokens": 5}}]},
        ["variants.0.train.row_tokens"],
    ),
    (
        "trained",
        {"variants": [{"type": "paft", "train": {"objective": {"type": "grpo"}, "batch_size": 9}}]},
        ["variants.0", "train.batch_size (9)"],
    ),
    (
        "combination",
        {"train": {"steps": 1, "warm_start": "adapter"}, "model": {"path": "m", "peft": None}},
        ["model.peft: null", "train.warm_start"],
    ),
    (
        "combination",
        {"train": {"steps": 1, "objective": PAIRS, "packing": False}},
        ["train.objective", "train.packing: false"],
    ),
    (
        "combination",
        {"train": {"steps": 1, "objective": PAIRS, "response_prefix_tokens": 2}},
        ["train.objective", "response_prefix_tokens", "choose one"],
    ),
    (
        "combination",
        {"train": {"steps": 1, "objective": PAIRS, "row_tokens": 600}},
        ["train.row_tokens (600)", "twice task.max_length (512)", "raise it"],
    ),
    (
        "combination",
        {"train": {"steps": 1, "row_tokens": 256}},
        ["train.row_tokens (256)", "task.max_length (512)", "raise it"],
    ),
    (
        "combination",
        {"evaluation": {"row_tokens": 256}},
        ["evaluation.row_tokens (256)", "task.max_length (512)", "raise it"],
    ),
]


@pytest.mark.parametrize(("section", "changes", "parts"), WRONG)
def test_wrong_value_is_refused_with_path_value_and_rule(section, changes, parts):
    with pytest.raises(ConfigError) as caught:
        load(**changes)
    message = str(caught.value)
    assert all(part in message for part in parts), f"{section}: {message}"
    assert "\n" not in message


def test_all_sections_are_in_the_table_of_wrong_values():
    covered = {section for section, _, _ in WRONG}
    public = [s for s in sections() if not s.__name__.startswith("_")]
    names = {s.__name__.removesuffix("Config").removesuffix("Variant").lower() for s in public}
    aliases = {
        "builtintask": "builtin",
        "customtask": "custom",
        "taskoptions": "task options",
        "transformersllm": "transformers",
        "openaillm": "openai",
        "endpoint": "openai",
        "fakellm": "fake",
        "poolsplit": "split",
        "singleprompt": "single_prompt",
        "boundprompts": "bound_prompts",
        "humanprompt": "human_prompt",
        "variantoptions": "variant options",
        "adaptersubject": "adapter subject",
        "objective": "crossentropy",
        "modelsubject": "model subject",
        "endpointsubject": "endpoint subject",
        "": "config",
    }
    assert {aliases.get(name, name) for name in names} <= covered


def test_every_variant_is_trained_with_every_seed_under_its_own_sampling():
    config = load(
        seeds=[3, 5],
        variants=[
            {"type": "paft", "name": "paft_t1", "sampling": {"temperature": 1}},
            {"type": "bound_prompts"},
            {"type": "paft"},
        ],
    )
    assert [t.name for t in config.trainings] == [
        *("paft_t1-s3", "bound_prompts-s3", "paft-s3"),
        *("paft_t1-s5", "bound_prompts-s5", "paft-s5"),
    ]
    seen = [config.of_training(t) for t in config.trainings]
    assert [c.seed for c in seen] == [3, 3, 3, 5, 5, 5]
    assert [c.train.sampling.temperature for c in seen[:3]] == [1, math.inf, math.inf]
    assert [c.train.sampling.unit for c in seen[:3]] == ["example", "bound", "example"]
    assert all(load_config(dump_config(c)) == c for c in seen)  # a worker reads it again


def test_one_seed_is_the_default_and_is_left_out_of_names():
    config = load(seed=7)
    assert [t.name for t in config.trainings] == ["paft-s7"]
    assert [config.called(t) for t in config.trainings] == ["paft"]
    several = load(seeds=[0, 1])
    assert [several.called(t) for t in several.trainings] == ["paft-s0", "paft-s1"]


def test_method_name_is_read_in_any_case():
    assert load(model={"path": "m", "peft": {"peft_type": "ia3"}}).model.peft["peft_type"] == "IA3"


def test_sections_are_frozen_and_keep_tuples():
    config = load(prompts={"files": ["a", "b"]})
    assert config.prompts.files == ("a", "b")
    with pytest.raises(ValidationError, match="frozen"):
        config.prompts.pool_size = 3  # type: ignore[misc]


def test_entries_that_differ_in_one_value_are_two_llms():
    config = load(prompts=llms({"type": "fake"}, {"type": "fake", "fail_every": 2}))
    assert config.prompts.generation is not None
    assert [type(llm) for llm in config.prompts.generation.llms] == [FakeLLM, FakeLLM]


def test_total_steps_from_steps_do_not_look_at_the_examples():
    assert total_steps(TrainConfig(steps=7), train_examples=10**6) == 7


@given(st.floats(0.01, 20), st.integers(1, 10**5), st.integers(1, 512))
def test_total_steps_from_epochs_cover_the_passes_and_no_step_more(epochs, examples, batch):
    steps = total_steps(TrainConfig(epochs=epochs, batch_size=batch), examples)
    assert steps >= 1
    assert steps * batch >= epochs * examples * (1 - 1e-9)
    assert (steps - 1) * batch <= epochs * examples


def test_importing_the_configuration_imports_no_machine_learning():
    code = (
        "import sys, paft_ray.config\n"
        "heavy = {'torch', 'ray', 'transformers', 'peft', 'datasets', 'mlflow', 'numpy', 'pyarrow'}"
        "\nassert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
