"""Probe: how likely the base model makes the allowed and the right answers under a prompt.

The scores are kept with the pool. They do not narrow it unless configured: keeping only
what the base model already does well under made trained models less steady where it was measured.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from paft_ray.prompts.template import parse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from paft_ray.models.logprobs import ForwardPass
    from paft_ray.models.tokenization import TextEncoder
    from paft_ray.tasks.example import Task

MASS, ACCURACY, LIKELIHOOD = "probe_mass", "probe_accuracy", "probe_log_likelihood"


def probe_prompts(
    model: "PreTrainedModel",
    encoder: "TextEncoder",
    texts: Sequence[str],
    task: "Task",
    reading: "ForwardPass",
) -> list[Mapping[str, float]]:
    """Score every prompt on a task's training examples; several prompts share a row.

    Args:
        model: The base model.
        encoder: Its text encoder; what is too long is refused or trimmed as the task says.
        texts: Templates.
        task: Its training examples are scored under every prompt.
        reading: Arithmetic and rows.

    Returns:
        For each prompt the mean over examples of: `probe_log_likelihood` of the right answer in
        nats and, where the task has choices, `probe_mass`, the probability that the model says
        one of them, and `probe_accuracy`. Answers include their end token where the encoder adds
        one.

    Raises:
        DataError: An example does not fit under a prompt.
    """
    from paft_ray.models.logprobs import choice_logprobs

    per_pair = []
    for number, text in enumerate(texts):
        template = parse(text, task.slots)
        for example in task.train:
            answers = task.choices_of(example) or (example.answer,)
            what = example.under(str(number))
            per_pair.append(encoder.encode(template.render, example.fields, answers, what=what))
    logprobs = [each.whole for each in choice_logprobs(model, per_pair, reading)]
    count = len(task.train)
    return [
        _summary(logprobs[start : start + count], task) for start in range(0, len(logprobs), count)
    ]


def _summary(
    logprobs: Sequence[Sequence[float]],
    task: "Task",
) -> Mapping[str, float]:
    from paft_ray.tasks.grading import best_choice

    examples = task.train
    if not task.has_choices:
        return {LIKELIHOOD: sum(owned[0] for owned in logprobs) / len(examples)}
    mass = right = likelihood = 0.0
    for owned, example in zip(logprobs, examples, strict=True):
        answer = (task.choices_of(example) or ()).index(example.answer)
        mass += sum(map(math.exp, owned))
        right += best_choice(owned) == answer
        likelihood += owned[answer]
    return {
        MASS: mass / len(examples),
        ACCURACY: right / len(examples),
        LIKELIHOOD: likelihood / len(examples),
    }
