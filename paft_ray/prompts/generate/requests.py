"""What LLMs are asked when they write candidate prompts, and what is made of their answers.

Requests are pure functions of (seed, LLM, strategy, index): the same configuration asks the same
questions, so that finished answers are found again. Zero-shot requests describe the task and a
style; few-shot ones also show examples, put together from a bank of generic instructions and the
layouts of the grammar. One answer holds one candidate: a whole template, or one instruction
sentence. Covered: `RequestBook`, `parse_completion`. Not covered: sending them (`prompts.llm`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

from paft_ray.config import FakeLLM, GenerationConfig
from paft_ray.config.affects import affecting, take
from paft_ray.prompts.layouts import Layout, compose, enumerate_layouts
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.tasks.example import Task

Form = Literal["template", "instruction"]
Strategy = Literal["zero_shot", "few_shot"]


@dataclass(frozen=True, slots=True)
class Request:
    """One question to one LLM."""

    id: str
    """Sixteen hex digits of all that determines the answer; finished answers are kept under it."""
    llm: int
    """Which of `prompts.generation.llms`."""
    strategy: str
    """`zero_shot` or `few_shot`."""
    messages: tuple[tuple[str, str], ...]
    """Role and content."""
    temperature: float
    """The LLM's decoding temperature."""
    top_p: float
    """Decode from the likeliest tokens that together have this probability."""
    seed: int
    """The LLM's decoding seed, of 31 bits."""
    max_tokens: int
    """Longest answer, in tokens."""
    prefill: str = ""
    """How the answer begins, for a model that can be made to continue; its last line is part of
    the answer. Small models need it, other LLMs are told the same in `messages`."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What came of a request: a text or an error, never neither."""

    request_id: str
    text: str | None
    """The answer; None where the request failed."""
    error: str | None
    """What went wrong, in a few words."""
    status: int | None
    """The HTTP status, where there was one."""
    attempts: int
    seconds: float
    """Wall time, retries included."""
    prompt_tokens: int
    completion_tokens: int


def failed_completion(
    request: Request, error: str, status: int | None, attempts: int, seconds: float
) -> Completion:
    """What came of a request that failed."""
    return Completion(
        request_id=request.id,
        text=None,
        error=error,
        status=status,
        attempts=attempts,
        seconds=seconds,
        prompt_tokens=0,
        completion_tokens=0,
    )


@dataclass(frozen=True, slots=True)
class Unit:
    """Requests that are worked on together: of one LLM, strategy and decoding temperature."""

    llm: int
    """Which of `prompts.generation.llms`."""
    strategy: Strategy
    temperature: float
    start: int
    """First index of the requests of this LLM, strategy and temperature."""
    stop: int
    """The index behind the last one."""

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class RequestBook:
    """Every request of a configuration, made when it is looked at: a million cost no memory."""

    task: Task
    """What the prompts are for; its examples are not needed."""
    config: GenerationConfig
    seed: int
    """The run's seed."""
    keys: tuple[str, ...]
    """For each LLM of `config.llms`, what identifies it and its weights; part of the requests'
    ids, and of what is asked."""

    def __post_init__(self) -> None:
        if len(self.keys) != len(self.config.llms):
            raise ValueError(f"{len(self.keys)} keys for {len(self.config.llms)} LLMs")

    @cached_property
    def _layouts(self) -> tuple[Layout, ...]:
        return tuple(enumerate_layouts(self.task)) if "few_shot" in self.config.strategies else ()

    @cached_property
    def _decoding(self) -> list[Any]:
        """What is decoded with besides a request's own temperature."""
        [_, top_p, _], later = take(
            affecting(self.config, "answers"), "temperature", "top_p", "llms"
        )
        return [top_p, *([later] if later else [])]

    def units(self, llm: int, size: int) -> list[Unit]:
        """All requests of one LLM, by strategy and temperature, in units of `size`.

        Units are cut before anything is known to be finished, and from the first index on: what is
        generated together never changes, and raising `per_llm` only adds units.
        """
        temperatures = self.config.llms[llm].temperatures or (self.config.temperature,)
        share, more = divmod(self.config.per_llm, len(temperatures))
        return [
            Unit(llm, strategy, temperature, start, min(start + size, count))
            for strategy in self.config.strategies
            for place, temperature in enumerate(temperatures)
            for count in [share + (place < more)]
            for start in range(0, count, size)
        ]

    def requests(self, unit: Unit) -> Iterator[Request]:
        """The requests of a unit, in order."""
        for index in range(unit.start, unit.stop):
            yield self.request(unit, index)

    def request(self, unit: Unit, index: int) -> Request:
        """The request with this index among those of the unit's LLM, strategy and temperature."""
        llm, config = self.config.llms[unit.llm], self.config
        max_tokens = 96 if isinstance(llm, FakeLLM) else llm.max_tokens
        place = (self.seed, self.keys[unit.llm], unit.strategy, index)
        content, prefill = _question(self.task, config.form, self._layouts, place)
        messages = (("user", content),)
        decoding_seed = int(fingerprint("decoding", *place)[:8], 16) & 0x7FFFFFFF
        return Request(
            id=fingerprint(
                self.keys[unit.llm],
                [messages, prefill],
                [unit.temperature, *self._decoding],
                decoding_seed,
                max_tokens,
            ),
            llm=unit.llm,
            strategy=unit.strategy,
            messages=messages,
            temperature=unit.temperature,
            top_p=config.top_p,
            seed=decoding_seed,
            max_tokens=max_tokens,
            prefill=prefill,
        )


def build_requests(
    task: Task, config: GenerationConfig, seed: int, llm_keys: Sequence[str]
) -> tuple[Request, ...]:
    """All requests of a `RequestBook` at once: `per_llm` for every LLM and strategy."""
    book = RequestBook(task, config, seed, tuple(llm_keys))
    units = (unit for llm in range(len(config.llms)) for unit in book.units(llm, config.per_llm))
    return tuple(request for unit in units for request in book.requests(unit))


def parse_completion(text: str, form: Form) -> str | None:
    """The candidate in an LLM's answer, without what it said around it; None where there is none.

    Reasoning in tags, code fences, numbering, quotes and lead-ins such as "Here is ..." go. Of
    several templates the first counts; of an instruction, the first sentence.
    """
    text = re.sub(r"<think>.*?(?:</think>|\Z)", "", text, flags=re.DOTALL).strip()
    if fence := re.search(r"```[\w-]*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", text, re.DOTALL):
        text = fence[1]
    text = text.replace("\r\n", "\n").strip().strip("`").strip()
    found = _instruction_in(text) if form == "instruction" else _template_in(text)
    return found or None


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
_SENTENCE_ASKS = (
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


def _question(task: Task, form: Form, layouts: Sequence[Layout], place: _Place) -> tuple[str, str]:
    """What is asked, and how the answer is made to begin."""
    seed, key, strategy, index = place
    # every style comes up equally often; where the round begins differs by LLM and strategy
    turn = index + int(fingerprint("turn", seed, key, strategy), 16) % len(_STYLES)
    style = _STYLES[turn % len(_STYLES)]
    few_shot = strategy == "few_shot"
    if form == "instruction":
        opening = _OPENINGS[turn % len(_OPENINGS)]
        return _sentence_question(task, opening, few_shot, place)
    return _template_question(task, style, layouts if few_shot else (), place), ""


def _sentence_question(task: Task, opening: str, few_shot: bool, place: _Place) -> tuple[str, str]:
    """Few words and no rules beside the point: a small model follows nothing else."""
    opening = opening.replace("SLOT", _first_slot_in_words(task))
    if not few_shot:
        ask = _pick(_SENTENCE_ASKS, 1, "ask", place)[0]
        return (
            f'{ask} Begin with "{opening}". The task: {task.description}',
            f"Instruction: {opening}",
        )
    shown = [f"- {example}" for example in _examples(task, 4, place)]
    ask = "Write a list of instructions that tell a reader to do this task."
    return f"{task.description}\n\n{ask}", "\n".join([*shown, f"- {opening}"])


def _first_slot_in_words(task: Task) -> str:
    name = next(slot for slot in task.slots if slot not in task.option_slots).replace("_", " ")
    return name if len(name) > 3 else "text"


def _template_question(task: Task, style: str, layouts: Sequence[Layout], place: _Place) -> str:
    slots = ", ".join("{" + slot + "}" for slot in task.slots)
    letters = ", ".join(
        f"{{{slot}}} is option {task.option_slots[slot]}" for slot in _options(task)
    )
    lines = [
        f"Task: {task.description}",
        "",
        f"Write a prompt template for this task. It contains each of {slots} exactly once, in "
        "braces; they will be replaced by the data.",
    ]
    if letters:
        lines.append(f"{letters}: write each option's letter in front of it.")
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


def _options(task: Task) -> list[str]:
    return [slot for slot in task.slots if slot in task.option_slots]


def _examples(task: Task, count: int, place: _Place) -> list[str]:
    if len(task.instructions) > 1:
        return _pick(task.instructions, count, "examples", place)
    if task.option_slots:
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


_CHAT = re.compile(
    r"(?:(?:sure|certainly|of course|absolutely|okay|ok|great)\b[^\w\n]*)?"
    r"(?:here(?:'s|’s| is| are)\b[^:\n{]*:|(?:sure|certainly|of course|okay|ok)[!,.:]+)\s*",
    re.IGNORECASE,
)
_NUMBERING = re.compile(r"(?:[-*•]\s+|\(?\d{1,2}[.):]\s+|#{1,4}\s+)(?=\S)")
_NAMED = r"(?:\*\*|__)?(?:{})s?(?:\s+\d+)?\s*(?:\*\*|__)?\s*(?::|\n|\Z)\s*(?:\*\*|__)?\s*"
_NAMED_INSTRUCTION = re.compile(
    _NAMED.format(
        r"(?:(?:new|final|my|the|your|one)\s+)?"
        r"(?:instruction|sentence|prompt|question|answer|output|response|task|command)"
    ),
    re.IGNORECASE,
)
_NAMED_TEMPLATE = re.compile(
    _NAMED.format(r"(?:(?:new|final|my|the|your|prompt)\s+)?(?:template|prompt|example)"),
    re.IGNORECASE,
)
_AFTERWORD = re.compile(
    r"\n\s*\n(?:\*\*)?(?:(?:this|the above|that) (?:prompt|template)|note\b|explanation\b|i hope"
    r"|let me know|in this template|feel free)(?:(?!\{).)*\Z",
    re.IGNORECASE | re.DOTALL,
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "«": "»", "`": "`"}


def _instruction_in(text: str) -> str:
    """The first sentence that is not talk about the sentence."""
    for line in text.split("\n"):
        line = _peel(line.strip(), (_CHAT, _NUMBERING, _NAMED_INSTRUCTION))
        line = re.sub(r"\*\*|__", "", line).strip()
        if re.search(r"\w", line):
            return _unquote(_first_sentence(_unquote(line)))
    return ""


def _first_sentence(line: str) -> str:
    """Up to the first full stop that ends at least five words: "Read it." alone asks nothing."""
    for end in re.finditer(r"(?<!\be\.g)(?<!\bi\.e)[.!?][\"'”’)]*(?=\s+[\"'“(]?[A-Z])", line):
        if len(line[: end.end()].split()) >= 5:
            return line[: end.end()]
    return line


def _template_in(text: str) -> str:
    """The first template, without lead-in and afterword."""
    text = _peel(text, (_CHAT, _NAMED_TEMPLATE))
    numbered = list(re.finditer(r"^\(?[12][.)]\s+", text, re.MULTILINE))
    if numbered and numbered[0].start() == 0:
        end = numbered[1].start() if len(numbered) > 1 else len(text)
        first, others = text[numbered[0].end() : end], text[end:]
        repeats = set(re.findall(r"\{\w+\}", first)) & set(re.findall(r"\{\w+\}", others))
        if repeats or not others:  # a list of templates, not a template that holds a list
            text = first
    return _unquote(_AFTERWORD.sub("", text).strip())


def _peel(text: str, leads: Sequence[re.Pattern[str]]) -> str:
    """A text without any of these at its beginning, however often they come."""
    peeled = True
    while peeled:
        peeled = False
        for lead in leads:
            if found := lead.match(text):
                text, peeled = text[found.end() :].lstrip(), True
    return text


def _unquote(text: str) -> str:
    closing = _QUOTES.get(text[:1])
    if closing and len(text) > 1 and text[1:].find(closing) == len(text) - 2:
        return text[1:-1].strip()
    return text
