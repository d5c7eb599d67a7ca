"""The meta-prompt: the message by which an LLM is requested to write a candidate prompt.

A zero-shot message describes the task and a style. A few-shot one also shows examples, composed of
generic instructions and the layouts of the grammar. The answer is to hold one candidate: a whole
template, or one instruction sentence.
"""

from collections.abc import Sequence
from typing import Literal, TypeVar

from paft_ray.config.task import CHOICES_SLOT
from paft_ray.prompts.layouts import Layout, compose
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.tasks.example import Task

Form = Literal["template", "instruction"]
_Place = tuple[int, str, str, int]
_Item = TypeVar("_Item")

_STYLES = (
    "Make it a question.",
    "Make it a direct command.",
    "Make it very short, at most ten words.",
    "Make it detailed: say what to look at before deciding.",
    "Make it formal and precise.",
    "Make it friendly and casual.",
    'Give the reader a role, beginning with "You are".',
    "Name the possible answers in it.",
    "Do not name the possible answers in it.",
    'Begin with "Given".',
    'Begin with "Based on".',
    'Begin with "Please".',
    'Begin with "Which" or "What".',
    'Begin with "Your task is to".',
    "Write it like a teacher's exam question.",
    "Write it in plain words for a child.",
    "Write it like the manual of a machine.",
    "Ask for careful thought before the answer.",
    "Write it like a message to a colleague.",
    "Use words that few others would choose.",
)
_OPENINGS = (
    "Decide whether the SLOT", "Read the SLOT and", "Tell whether the SLOT", "Is the SLOT",
    "Choose the", "Given the SLOT,", "Determine if the SLOT", "Please read the SLOT and",
    "Look at the SLOT and", "In your opinion, is the SLOT", "Judge whether the SLOT", "What is the",
    "Your task is to decide", "Based on the SLOT,", "Say if the SLOT", "After reading the SLOT,",
    "Which", "Would you say that the SLOT", "Consider the SLOT and", "Think about the SLOT and",
    "Identify the", "Find out whether the SLOT", "Does the SLOT", "Use your judgment to",
    "How would you", "Carefully", "Tell me", "Classify the", "Pick the", "Examine the SLOT and",
)  # fmt: skip
_ARRANGEMENTS = (
    "Put the instruction first and the fields below it.",
    "Put the fields first and the instruction below them.",
    "Weave the fields into the sentences of the instruction.",
    "Write a name and a colon in front of every field.",
    "Write no names in front of the fields.",
    "Separate the parts by blank lines.",
    "Keep everything on one line.",
    "Use headings or other markup.",
)
_SENTENCE_REQUESTS = (
    "Write one instruction that tells a reader to do a task.",
    "Write one sentence that asks a reader to do a task.",
)
_OPTION_EXAMPLES = (
    "Read what is given and pick the option that fits best.",
    "Which of the options below is right?",
    "Choose the correct option and reply with its letter.",
    "Only one of these options makes sense; say which.",
    "You are a careful examiner. Mark the option that should be accepted.",
    "Please compare the options and name the better founded one.",
    "Given the information here, which option would you select?",
    "Look closely at every option before you settle on an answer.",
    "Decide which option a sensible person would choose.",
    "Your task is to find the one option that answers correctly.",
)
_CHOICE_EXAMPLES = (
    "Read the text and answer with one of these: CHOICES.",
    "Would you call this CHOICES?",
    "Decide which it is: CHOICES.",
    "Please judge what you read and reply with a single answer.",
    "You are an experienced reader; say which answer applies.",
    "What is the right answer here, CHOICES?",
    "Given what is written, choose the answer that fits best.",
    "Look at the wording closely, then give your verdict (CHOICES).",
    "Your task is to assign the right label to what follows.",
    "In one word, how would you answer?",
)
_FREE_EXAMPLES = (
    "Read the question and give the answer.",
    "Work out the answer step by step.",
    "What is the answer to this?",
    "Please solve the following and state your result clearly.",
    "You are a patient tutor; explain how you arrive at the answer.",
    "Given what is known here, find what is asked for.",
    "Think it through carefully before you answer.",
    "Your task is to answer correctly and completely.",
    "Answer as briefly as the question allows.",
    "Show your reasoning, then give the final answer.",
)


def build_message(
    task: Task, form: Form, layouts: Sequence[Layout], place: _Place
) -> tuple[str, str]:
    """Return a request's message, and how the answer is made to begin.

    Args:
        task: Described by the message.
        form: What the answer is to hold.
        layouts: Those of the grammar, for examples of templates.
        place: Seed, key of the LLM, strategy and index of the request.
    """
    seed, key, strategy, index = place
    # every style comes up equally often; where the round begins differs by LLM and strategy
    turn = index + int(fingerprint("turn", seed, key, strategy), 16) % len(_STYLES)
    few_shot = strategy == "few_shot"
    if form == "instruction":
        opening = _OPENINGS[turn % len(_OPENINGS)]
        return _sentence_message(task, opening, few_shot, place)
    style = _STYLES[turn % len(_STYLES)]
    return _template_message(task, style, layouts if few_shot else (), place), ""


def _sentence_message(task: Task, opening: str, few_shot: bool, place: _Place) -> tuple[str, str]:
    """Few words and no rules beside the point: a small model follows nothing else."""
    opening = opening.replace("SLOT", _first_slot_in_words(task))
    if not few_shot:
        wanted = _pick(_SENTENCE_REQUESTS, 1, "ask", place)[0]
        return (
            f'{wanted} Begin with "{opening}". The task: {task.description}',
            f"Instruction: {opening}",
        )
    shown = [f"- {example}" for example in _examples(task, 4, place)]
    wanted = "Write a list of instructions that tell a reader to do this task."
    return f"{task.description}\n\n{wanted}", "\n".join([*shown, f"- {opening}"])


def _first_slot_in_words(task: Task) -> str:
    name = next(slot for slot in task.slots if slot not in task.option_slots).replace("_", " ")
    return name if len(name) > 3 else "text"


def _template_message(task: Task, style: str, layouts: Sequence[Layout], place: _Place) -> str:
    slots = ", ".join("{" + slot + "}" for slot in task.slots)
    letters = ", ".join(
        f"{{{slot}}} is option {task.option_slots[slot]}"
        for slot in task.slots
        if slot in task.option_slots
    )
    lines = [
        f"Task: {task.description}",
        "",
        f"Write a prompt template for this task. It contains each of {slots} exactly once, in "
        "braces; they will be replaced by the data.",
    ]
    if letters:
        lines.append(f"{letters}: write each option's letter in front of it.")
    elif task.choices_as == "letters":
        lines.append(
            f"{{{CHOICES_SLOT}}} will be a list of options, one per line, each after its letter. "
            "The answer will be the letter of one of them."
        )
    elif task.choices_as == "texts":
        lines.append("The answer will be a few words that follow the template directly.")
    elif task.choices:
        lines.append(f"The answer will be one of: {', '.join(task.choices)}.")
    lines += [
        f"The wording: {style}",
        f"The layout: {_pick(_ARRANGEMENTS, 1, 'arrangement', place)[0]}",
    ]
    if layouts:
        shown = _pick(layouts, 3, "layouts", place)
        for number, (example, layout) in enumerate(
            zip(_examples(task, 3, place), shown, strict=False), start=1
        ):
            lines += ["", f"Example {number}:", compose(example, layout)]
        lines += ["", "Yours is worded and laid out differently."]
    lines.append(
        "End where the answer is to follow and do not answer. Use no other braces or brackets. "
        "Reply with the template and nothing else."
    )
    return "\n".join(lines)


def _examples(task: Task, count: int, place: _Place) -> list[str]:
    if len(task.instructions) > 1:
        return _pick(task.instructions, count, "examples", place)
    if task.option_slots or task.choices_as == "letters":
        return _pick(_OPTION_EXAMPLES, count, "examples", place)
    if not task.choices:
        return _pick(_FREE_EXAMPLES, count, "examples", place)
    choices = f"{', '.join(task.choices[:-1])} or {task.choices[-1]}"
    bank = _pick(_CHOICE_EXAMPLES, count, "examples", place)
    return [example.replace("CHOICES", choices) for example in bank]


def _pick(items: Sequence[_Item], count: int, what: str, place: _Place) -> list[_Item]:
    """Different items, drawn by position."""
    start = int(fingerprint(what, *place), 16)
    chosen: list[int] = []
    for step in range(min(count, len(items))):
        free = [i for i in range(len(items)) if i not in chosen]
        chosen.append(free[(start >> (12 * step)) % len(free)])
    return [items[i] for i in chosen]
