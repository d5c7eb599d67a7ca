"""The message by which an LLM is requested to improve a prompt, and what it wrote; pure."""

from collections.abc import Sequence

from paft_ray.config import LintConfig
from paft_ray.prompts.candidates import lint_candidate
from paft_ray.prompts.generate.completions import Completion, candidate_in
from paft_ray.prompts.pool import Candidate, Origin, Rejected
from paft_ray.tasks.example import Example, Task

REFLECTION = "reflection"
"""Kind of these requests."""
_LONGEST_FIELD = 600
"""Characters of a field or an answer that are shown."""
_OPTION = "{%s} is option %s: write each option's letter in front of it."


def reflection_message(
    task: Task, text: str, answered: Sequence[tuple[Example, str, float]]
) -> str:
    """The message about a prompt and some answers under it.

    Args:
        task: The task.
        text: The prompt.
        answered: Examples, what the model said to each, and what that is worth.
    """
    slots = ", ".join("{" + slot + "}" for slot in task.slots)
    lines = [
        f"Task: {task.description}",
        "",
        f"A model reads this prompt template, in which the data replaces {slots}:",
        "",
        "<template>",
        text,
        "</template>",
        "",
        "What it answered:",
    ]
    for number, (example, said, grade) in enumerate(answered, start=1):
        lines += ["", f"Example {number}"]
        lines += [f"- {slot}: {_short(example.fields[slot])}" for slot in task.slots]
        lines += [
            f"- the model's answer: {_short(said)}",
            f"- the right answer: {_short(example.answer)}",
            f"- grade, from 0 to 1: {grade:g}",
        ]
    lines += [
        "",
        "Find out what in the template makes answers wrong, and write a better one for all "
        f"examples of this task, not only for these. It contains each of {slots} exactly once, in "
        "braces.",
        *(_OPTION % (slot, task.option_slots[slot]) for slot in task.option_slots),
        "End where the answer is to follow and do not answer. Use no other braces or brackets. "
        "Reply with the template and nothing else.",
    ]
    return "\n".join(lines)


def better_prompt(
    answer: Completion, task: Task, config: LintConfig, author: str, max_tokens: int
) -> Candidate | Rejected:
    """The prompt in an LLM's answer, checked like every candidate; or why there is none."""
    origin = Origin(llm=author, strategy=REFLECTION)
    text, reason = candidate_in(answer, "template", max_tokens)
    if text is None:
        return Rejected(answer.text or "", "parse", reason, origin)
    return lint_candidate(Candidate(text, "template", origin), task, config)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_FIELD else f"{line[:_LONGEST_FIELD]} ..."
