"""Checks of a model before any work."""

import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from tokenizers.normalizers import Lowercase

from factories import run_config
from paft_ray.config.errors import ConfigError, DataError, PaftError
from paft_ray.config.loading import load_config
from paft_ray.models.check_process import ModelCheckProcess
from paft_ray.models.load import load_tokenizer
from paft_ray.models.meta import check_adapters, check_base, refuse_overlong
from paft_ray.models.tokenization import Question, TextEncoder
from paft_ray.prompts.template import parse
from paft_ray.tasks import Example

SHORT = [Example(f"{i:016x}", {"review": "a good film"}, "positive") for i in range(50)]
PROMPTS = [(f"p{i}", parse(f"{'Please ' * i}Judge: {{review}}", ("review",))) for i in range(40)]


def check(tiny_model, examples, max_length: int) -> None:
    encoder = TextEncoder(load_tokenizer(str(tiny_model)), "none", max_length)
    known = dict(PROMPTS)

    def ask(prompt: tuple[str, str], example: Example) -> Question:
        answers = ("positive", "negative")
        return Question(known[prompt[0]].render, example.fields, answers, example.under(prompt[0]))

    refuse_overlong(encoder, [(id, each.text) for id, each in PROMPTS], examples, ask)


def longest(tiny_model, examples) -> int:
    encoder = TextEncoder(load_tokenizer(str(tiny_model)), "none", 10**6)
    return max(
        encoded.length
        for _, template in PROMPTS
        for example in examples
        for encoded in encoder.encode(template.render, example.fields, ("positive", "negative"))
    )


def test_the_longest_example_under_the_longest_prompt_decides(tiny_model):
    examples = [*SHORT, Example("f" * 16, {"review": "good film and " * 9}, "negative"), *SHORT]
    limit = longest(tiny_model, examples)
    check(tiny_model, examples, limit)
    with pytest.raises(DataError, match=r"example f{16} under prompt p39 has \d+ tokens"):
        check(tiny_model, examples, limit - 1)


def test_nothing_to_read_is_no_error(tiny_model):
    check(tiny_model, [], 16)


@pytest.mark.parametrize(
    ("choices", "eos", "problem"),
    [
        (["good", "bad"], "<end>", None),
        (None, "<end>", None),
        (["good", "Good"], "<end>", "task.choices: answers 'good' and 'Good' are the same tokens"),
        (["good", "bad"], None, "model.path: the tokenizer has no end token"),
    ],
)
def test_choices_are_tried_on_the_models_tokenizer(choices, eos, problem, tiny_model, tmp_path):
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    tokenizer.eos_token = eos
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer.save_pretrained(folder)
    config = load_config(run_config(folder, "reviews", "st", task={"choices": choices}))
    expected = nullcontext() if problem is None else pytest.raises(ConfigError, match=problem)
    with expected:
        check_base(config, choices)


@pytest.mark.parametrize("method", ["LORA", "IA3", "HRA"])
def test_adapter_that_can_be_saved_is_accepted_without_reading_weights(
    method, tiny_model, monkeypatch
):
    more = {"IA3": {"feedforward_modules": []}}
    monkeypatch.setattr("safetensors.safe_open", None)
    peft = {"peft_type": method, "target_modules": ["q_proj"], **more.get(method, {})}
    assert check_adapters(str(tiny_model), None, [peft], 0) is None


def test_adapter_without_targets_is_refused(tiny_model):
    with pytest.raises(ConfigError, match=r"model\.peft"):
        check_adapters(str(tiny_model), None, [{"peft_type": "LORA", "target_modules": []}], 0)


@pytest.fixture
def process() -> Iterator[ModelCheckProcess]:
    with ModelCheckProcess() as process:
        yield process


def test_process_returns_results_in_order_and_raises_what_was_raised_there(process):
    process.begin(len, "four")
    process.begin(load_config, {"name": "Not A Name"})
    process.begin(os.getpid)
    assert process.finish() == 4
    with pytest.raises(ConfigError, match="Not A Name"):
        process.finish()
    pid = process.finish()
    assert pid != os.getpid()
    process.close()
    process.begin(os.getpid)
    assert process.finish() not in (pid, os.getpid())


def test_process_that_dies_is_an_error_with_its_code(process):
    process.begin(os._exit, 7)
    for _ in range(3):  # what it never read resets the connection, or finds it closed
        process.begin(len, "a" * 10_000_000)
    with pytest.raises(PaftError, match="code 7"):
        process.finish()


LORA = {"peft_type": "LORA", "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("peft", "message"),
    [
        ({**LORA, "r": "eight"}, "is no number"),
        ({**LORA, "lora_dropout": 7}, "peft refuses it"),
        ({**LORA, "peft_type": "VERA"}, "save_projection"),
    ],
)
def test_what_peft_refuses_is_refused_with_its_reason(peft, message, tiny_model):
    with pytest.raises(ConfigError, match=message):
        check_adapters(str(tiny_model), None, [peft], 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "the tokenizer of"),
        ("config.json", '{"model_type": "nonsense"}', "no causal language model"),
    ],
)
def test_model_folder_that_transformers_cannot_read_is_refused(
    name, content, message, tiny_model, tmp_path
):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        check_adapters(str(broken), None, [LORA], 0)
