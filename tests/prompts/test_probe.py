"""The base model's own opinion of a prompt."""

import math
import random

import pytest
import torch

from paft_ray.models.load import load_base, load_tokenizer
from paft_ray.models.logprobs import ForwardPass
from paft_ray.models.tokenization import TextEncoder
from paft_ray.prompts.probe import ACCURACY, LIKELIHOOD, MASS, probe_prompts
from paft_ray.prompts.template import parse
from paft_ray.tasks import Example, Task

CHOICES = ("positive", "negative")
WORDS = ["good", "bad", "the", "film", "movie", "was", "is", "and", "very", "not", "story"]
RNG = random.Random(1)
EXAMPLES = tuple(
    Example(f"{n:016x}", {"review": " ".join(RNG.choices(WORDS, k=6))}, RNG.choice(CHOICES))
    for n in range(5)
)
TASK = Task("reviews", "Say how it feels.", ("review",), {}, CHOICES, EXAMPLES, (), ())
PROMPTS = ["Review: {review} Verdict:", "Is this good? {review}\n", "{review} It is"]


@pytest.mark.parametrize(("row_tokens", "end"), [(128, "scored"), (2048, "ignored")])
def test_probe_is_what_the_model_says_to_each_prompt_and_example_alone(tiny_model, row_tokens, end):
    model, tokenizer = load_base(str(tiny_model)), load_tokenizer(str(tiny_model))
    encoder = TextEncoder(tokenizer, "none", 128).ending(end, choices=True)
    reading = ForwardPass("float32", row_tokens)
    found = probe_prompts(model, encoder, PROMPTS, TASK, reading)
    for text, scores in zip(PROMPTS, found, strict=True):
        logs = []
        for example in EXAMPLES:
            rendered = parse(text, TASK.slots).render(example.fields)
            row = []
            for encoded in encoder.encode(lambda _, r=rendered: r, {}, CHOICES):
                ids = torch.tensor([[*encoded.context_ids, *encoded.answer_ids]])
                with torch.inference_mode():
                    steps = model(input_ids=ids).logits[0].log_softmax(-1)
                start = len(encoded.context_ids) - 1
                row.append(
                    sum(float(steps[start + k, id]) for k, id in enumerate(encoded.answer_ids))
                )
            logs.append(row)
        right = [CHOICES.index(example.answer) for example in EXAMPLES]
        mass = sum(math.exp(value) for row in logs for value in row) / len(EXAMPLES)
        likelihood = sum(row[k] for row, k in zip(logs, right, strict=True)) / len(EXAMPLES)
        accuracy = sum(row[k] == max(row) for row, k in zip(logs, right, strict=True)) / 5
        assert scores[MASS] == pytest.approx(mass, rel=1e-3)
        assert scores[LIKELIHOOD] == pytest.approx(likelihood, rel=1e-3)
        assert scores[ACCURACY] == accuracy


def test_probe_of_free_text_knows_the_right_answer_only(tiny_model):
    task = Task("texts", "Say it.", ("review",), {}, None, EXAMPLES, (), ())
    model, tokenizer = load_base(str(tiny_model)), load_tokenizer(str(tiny_model))
    encoder = TextEncoder(tokenizer, "none", 128)
    [found] = probe_prompts(model, encoder, PROMPTS[:1], task, ForwardPass("float32", 2048))
    assert found.keys() == {LIKELIHOOD}
    assert found[LIKELIHOOD] < 0
