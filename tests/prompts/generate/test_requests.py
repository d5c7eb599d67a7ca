"""Generation: requests are functions of position, answers are stripped to the candidate."""

import re
import time
from collections import Counter
from dataclasses import replace

import pytest

from factories import candidate_of
from paft_ray.config import GenerationConfig, LintConfig
from paft_ray.prompts.generate.completions import Completion, candidate_in
from paft_ray.prompts.generate.requests import Request, RequestBook
from paft_ray.prompts.lint import lint
from paft_ray.tasks.example import Task

PIQA = Task(
    name="physical",
    description="Given a goal and two solutions, say which one works.",
    slots=("goal", "sol1", "sol2"),
    option_slots={"sol1": "A", "sol2": "B"},
    choices=("A", "B"),
    train=(),
    validation=(),
    test=(),
)
TONE = Task("tone", "Say how rude {a} mail is.", ("mail",), {}, ("rude", "polite"), (), (), ())
MATHS = Task("sums", "Solve the sum.", ("problem",), {}, None, (), (), ())


def make_config(**changes):
    llms = [{"type": "fake"}, {"type": "openai", "base_url": "http://x", "model": "m"}]
    return GenerationConfig.model_validate({"llms": llms, "per_llm": 25, **changes})


def build_requests(task, config, seed, llm_keys) -> tuple[Request, ...]:
    book = RequestBook(task, config, seed, tuple(llm_keys))
    units = (unit for llm in range(len(config.llms)) for unit in book.units(llm, config.per_llm))
    return tuple(request for unit in units for request in book.requests(unit))


def contents(requests):
    """All that the LLM is given, the beginning of its answer included."""
    return ["\n".join([*(text for _, text in r.messages), r.prefill]) for r in requests]


def test_requests_are_per_llm_and_strategy_with_ids_of_their_own():
    requests = build_requests(TONE, make_config(), 0, ["one", "two"])
    assert len(requests) == 2 * 2 * 25
    assert len({request.id for request in requests}) == len(requests)
    assert [r.llm for r in requests] == [0] * 50 + [1] * 50
    assert {r.max_tokens for r in requests if r.llm == 0} == {96}
    assert {r.max_tokens for r in requests if r.llm == 1} == {256}
    assert all(0 <= request.seed < 2**31 for request in requests)


@pytest.mark.parametrize("form", ["template", "instruction"])
def test_requests_more_or_other_llms_leave_the_first_ones_as_they_are(form):
    few = build_requests(TONE, make_config(per_llm=5, form=form), 0, ["one", "two"])
    many = build_requests(TONE, make_config(per_llm=9, form=form), 0, ["one", "other"])
    mine = {(r.strategy, r.id) for r in few if r.llm == 0}
    assert mine <= {(r.strategy, r.id) for r in many if r.llm == 0}
    assert {r.id for r in few if r.llm == 1}.isdisjoint(r.id for r in many if r.llm == 1)


@pytest.mark.parametrize("change", [{"seed": 1}, {"key": "new"}, {"temperature": 0.5}])
def test_requests_seed_key_and_temperature_change_every_id(change):
    def ids(seed=0, key="one", temperature=1.0):
        config = make_config(llms=[{"type": "fake"}], temperature=temperature)
        return {request.id for request in build_requests(TONE, config, seed, [key])}

    assert ids().isdisjoint(ids(**change))


def test_requests_as_many_keys_as_llms_are_needed():
    with pytest.raises(ValueError, match="1 keys for 2 LLMs"):
        build_requests(TONE, make_config(), 0, ["one"])


def test_temperatures_share_the_requests_and_more_of_them_or_of_requests_change_no_id():
    def book(per_llm, *temperatures):
        llms = [{"type": "fake", "temperatures": temperatures}]
        config = GenerationConfig.model_validate({"llms": llms, "per_llm": per_llm})
        return RequestBook(TONE, config, 0, ("key",))

    def requested(book, size=4):
        units = book.units(0, size)
        assert all(unit.start % size == 0 and 1 <= len(unit) <= size for unit in units)
        return {r.id: r.temperature for unit in units for r in book.requests(unit)}

    two = requested(book(9, 0.5, 1.0))
    assert Counter(two.values()) == {0.5: 10, 1.0: 8}
    assert requested(book(9, 0.5, 1.0), size=3) == two
    assert two.items() <= requested(book(30, 0.5, 1.0)).items()
    assert two.items() <= requested(book(15, 0.5, 1.0, 1.5)).items()


def test_template_requests_name_every_slot_in_braces_and_the_letters():
    for text in contents(build_requests(PIQA, make_config(form="template"), 0, ["1", "2"])):
        assert PIQA.description in text
        assert all("{" + slot + "}" in text for slot in PIQA.slots)
        assert "{sol1} is option A" in text


def test_template_requests_few_shot_examples_are_good_templates():
    config = make_config(form="template", strategies=["few_shot"], llms=[{"type": "fake"}])
    for text in contents(build_requests(PIQA, config, 0, ["1"])):
        _, *examples = text.split("\n\nExample ")
        assert len(examples) == 3
        for example in examples:
            shown = example.split(":\n", 1)[1].split("\n\nYours is")[0]
            verdict = lint(shown, PIQA, LintConfig())
            assert verdict.problem is None, (shown, verdict)


@pytest.mark.parametrize("task", [PIQA, MATHS])
def test_instruction_requests_describe_the_task_and_hold_no_slot(task):
    requests = build_requests(task, make_config(form="instruction"), 0, ["1", "2"])
    for text in contents(requests):
        assert "{" not in text
        assert task.description in text


@pytest.mark.parametrize("form", ["template", "instruction"])
def test_requests_vary_in_style_within_one_llm_and_strategy(form):
    requests = build_requests(PIQA, make_config(form=form), 0, ["1", "2"])
    for strategy in ("zero_shot", "few_shot"):
        texts = contents(r for r in requests if r.llm == 0 and r.strategy == strategy)
        assert len(set(texts)) >= 20


def test_few_shot_examples_name_the_choices_of_any_task():
    config = make_config(form="instruction", strategies=["few_shot"])
    text = "\n".join(contents(build_requests(TONE, config, 0, ["1", "2"])))
    assert "rude or polite" in text
    assert "CHOICES" not in text
    assert "Say how rude {a} mail is." in text


def test_few_shot_examples_are_the_task_s_own_where_it_has_some():
    own = tuple(f"Rate mail number {i}." for i in range(5))
    config = make_config(form="instruction", strategies=["few_shot"])
    for text in contents(build_requests(replace(TONE, instructions=own), config, 0, ["1", "2"])):
        assert sum(example in text for example in own) == 4
        assert "rude or polite" not in text


@pytest.mark.parametrize(
    ("answer", "instruction"),
    [
        ("Decide which is right.", "Decide which is right."),
        ('  "Decide which is right."\n\nIt is short.', "Decide which is right."),
        ("Sure! Here is the instruction:\n\nDecide which is right.", "Decide which is right."),
        ("Here's one: Decide which is right.", "Decide which is right."),
        ("1. Decide which is right.\n2. Tell me more.", "Decide which is right."),
        ("**Instruction:** Decide which is right", "Decide which is right"),
        ("## Instruction\n- Decide which is right!", "Decide which is right!"),
        ("```text\nDecide which is right?\n```", "Decide which is right?"),
        ("<think>Hm. I could</think>\nDecide which is right.", "Decide which is right."),
        ("Read what is given here. Then decide. Thank you.", "Read what is given here."),
        ("Read it. Then decide which is right. Thanks.", "Read it. Then decide which is right."),
        ("Answer, e.g. with A, what is right. More.", "Answer, e.g. with A, what is right."),
        ("“Which of ‘A’ and ‘B’ is right?”", "Which of ‘A’ and ‘B’ is right?"),
        ('Say "yes" or "no" to this.', 'Say "yes" or "no" to this.'),
        ("<think>never ends", None),
        ("Sure!\n\n", None),
        ("```\n```", None),
        ("", None),
    ],
)
def test_parse_instruction_keeps_the_first_sentence_only(answer, instruction):
    assert candidate_of(answer, "instruction") == instruction


TEMPLATE = "Question: {goal}\nA. {sol1}\nB. {sol2}\nAnswer:"


@pytest.mark.parametrize(
    ("answer", "template"),
    [
        (TEMPLATE, TEMPLATE),
        (f"Here is the template:\n\n{TEMPLATE}", TEMPLATE),
        (f"Sure, here's a prompt template you could use:\n```\n{TEMPLATE}\n```\nEnjoy!", TEMPLATE),
        (f"**Prompt Template:**\n\n{TEMPLATE}\n\nThis template asks for a letter.", TEMPLATE),
        (f'Template 1:\n"{TEMPLATE}"', TEMPLATE),
        ("1. Is {goal} done by {sol1}?\n2. Is {goal} fine?", "Is {goal} done by {sol1}?"),
        ("1. Is {goal} done by {sol1}?", "Is {goal} done by {sol1}?"),
        ("1. {sol1}\n2. {sol2}\nWhich for {goal}?", "1. {sol1}\n2. {sol2}\nWhich for {goal}?"),
        ("{goal}\r\n{sol1}", "{goal}\n{sol1}"),
        ("Note: {goal}\n\nNote that A is {sol1}", "Note: {goal}\n\nNote that A is {sol1}"),
        (" \n", None),
    ],
)  # fmt: skip
def test_parse_template_keeps_the_template_only(answer, template):
    assert candidate_of(answer, "template") == template


@pytest.mark.parametrize(
    "reasoning",
    [
        "Okay, the user wants a template with {goal}.\n</think>\n\n",
        "<think>\nHm, {goal}.</think>",
        "<thinking>Maybe\n\nthis.</thinking>\n",
        "<think>a<think>b</think>c</think>",
        "<reasoning>First {goal}</reasoning>\n\n",
        "<seed:think>Hm.</seed:think>",
        "<think >Hm.</think\n>",
        "<antThinking>Hm.</antThinking>",
        "<scratch_pad>Hm.</scratch_pad>",
        '<think lang="en">Hm.</think>',
        "<|channel>thought\nHm.<channel|>",
        "<unused94>thought\nHm.<unused95>",
        "[THINK]Let me plan: [a] {b}[/THINK]",
        "◁think▷Hm.◁/think▷",
        "<|START_THINKING|>Hm.<|END_THINKING|>",
        "<|begin_of_thought|>Hm.<|end_of_thought|>",
        "<|channel|>analysis<|message|>We need {goal}.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>",
        "analysisWe need a template with {goal}.assistantfinal",
    ],
)
def test_parse_what_an_llm_thought_is_no_part_of_the_prompt(reasoning):
    assert candidate_of(reasoning + TEMPLATE, "template") == TEMPLATE
    thought_only = reasoning.replace("</think>", "").replace("assistantfinal", "")
    if reasoning.startswith(("<", "[", "◁", "analysis")):
        opening = re.split(r"</|\[/|◁/|<\|END|<\|end|<channel|<unused95", thought_only)[0]
        assert candidate_of(opening, "template") is None
        assert candidate_of(f"{opening}{TEMPLATE}", "template") is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>user\nThanks."),
        ("", "<|eot_id|>"),
        ("", "</s>"),
        ("<|turn>model\n<|channel>thought\nHm.<channel|>", "<turn|>"),
        ("<think>Hm.</think><answer>", "</answer>"),
        ("<|begin_of_thought|>Hm.<|end_of_thought|><|begin_of_solution|>", "<|end_of_solution|>"),
        ("```\n<prompt>\n", "\n</prompt>\n```"),
    ],
)
@pytest.mark.parametrize("form", ["template", "instruction"])
def test_parse_marks_of_a_turn_are_no_part_of_the_prompt(before, after, form):
    text = TEMPLATE if form == "template" else "Say what is right here."
    assert candidate_of(before + text + after, form) == text


def test_parse_template_keeps_tags_that_are_its_own():
    text = "<prompt>Read {goal}</prompt>\n<answer>{sol1} or {sol2}</answer>"
    assert candidate_of(text, "template") == text


def test_parse_template_ends_with_the_mark_of_its_channel():
    answer = f"<|channel|>final<|message|>{TEMPLATE}<|return|>"
    assert candidate_of(answer, "template") == TEMPLATE


@pytest.mark.parametrize(
    ("form", "text", "finish", "tokens", "expected"),
    [
        ("template", TEMPLATE, "stop", 99, (TEMPLATE, "")),
        ("template", TEMPLATE, "length", 99, (None, "cut_off")),
        ("template", f"{TEMPLATE}\nYou are an expe", "length", 9, (None, "cut_off")),
        ("template", f"```\n{TEMPLATE}\n```\nThis temp", "length", 99, (TEMPLATE, "")),
        ("template", f"```\n{TEMPLATE}", "length", 99, (None, "cut_off")),
        ("instruction", "Say what is right here. And th", "length", 99,
         ("Say what is right here.", "")),
        ("instruction", "Say what is right here.\nOr sa", "length", 99,
         ("Say what is right here.", "")),
        ("instruction", "Say what is right here and wh", "length", 99, (None, "cut_off")),
        ("instruction", "Say what is right here.", "length", 99, (None, "cut_off")),
        ("instruction", "Say what is right here.", "", 30, (None, "cut_off")),  # kept earlier
        ("instruction", "Say what is right here.", "", 29, ("Say what is right here.", "")),
        ("instruction", "Say what is right here.", "", 0, ("Say what is right here.", "")),
        ("template", "<think>Hm, a tem", "length", 99, (None, "cut_off")),
        ("template", "", "length", 99, (None, "cut_off")),
        ("template", "<think>Hm.</think>", "stop", 9, (None, "only_reasoning")),
        ("template", " ", "stop", 9, (None, "no_text")),
        ("template", TEMPLATE, "content_filter", 9, (None, "filtered")),
        ("template", "", "refusal", 9, (None, "refused")),
        ("template", "Sure!\n", "stop", 9, (None, "no_prompt_found")),
        ("template", f"Okay, let me write a template.\n\n{TEMPLATE}", "stop", 9,
         (None, "untagged_reasoning")),
        ("template", f"<think>Hm.</think>We need to write a template: {TEMPLATE}", "stop", 9,
         (None, "untagged_reasoning")),
        ("instruction", "We need to write one instruction", "length", 99, (None, "cut_off")),
        ("template", "a" * 300_000, "stop", 9, (None, "too_long")),
    ],
)  # fmt: skip
def test_candidate_of_an_answer_is_whole_or_dropped_with_the_reason(
    form, text, finish, tokens, expected
):
    answer = Completion("a", text, None, 200, 1, 0.0, 9, tokens, finish)
    assert candidate_in(answer, form, max_tokens=30) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Okay, the user wants me to write a prompt template. It has {x} once.\n\n{x}:",
        "Let me think about this. I need a template with {x} exactly once.\n{x} Answer:",
        "Okay, let's tackle this. The user needs a prompt template. {x}",
        "We need to produce a template containing {x} exactly once. Style: question.",
        "Hmm, the user is asking for one instruction that tells a reader to do it.",
        "Hmm. It should be short. The template should use {x}.",
        "Alright, so I need to come up with a prompt that includes {x}.",
        "Here's a thinking process that leads to the template:\n\n1. **Analyze the Request:** {x}",
        "Thinking Process:\n\n1.  **Analyze the Request:**\n    *  Task: sentiment of {x}",
        "The task is to write a sentence that asks a reader to decide.",
        'First, I need to create an instruction that begins with "Decide whether".',
        "Got it, let's craft a template. {x}",
        "Let's see. We are given a film review. The placeholder is {x}.",
    ],
)
@pytest.mark.parametrize("form", ["template", "instruction"])
def test_thoughts_about_the_request_that_nothing_marks_are_no_candidate(form, text):
    answer = Completion("a", text, None, 200, 1, 0.0, 9, 9, "stop")
    assert candidate_in(answer, form, max_tokens=30) == (None, "untagged_reasoning")


@pytest.mark.parametrize(
    "text",
    [
        "The user wants to know how this review sounds: {x}\nAnswer:",
        "The user said: {x}. I need to know whether it is a complaint.",
        "Imagine that a user asks you: {x}\nAnswer:",
        "Let's think step by step about this review: {x}",
        "Okay then, let's see whether this review is positive: {x}",
        "Let me know whether this is positive: {x}",
        "Let me think: is {x} kind?",
        "Hmm, is this {x} kind or not?",
        "I need you to write one word for {x}",
        "I want you to read {x} and to follow the instructions below.",
        "I will give you an instruction and a text: {x}",
        "We follow these instructions: read {x}, then answer.",
        "Let's write the instructions for cooking {x}.",
        "First, read the review: {x}. Then answer.",
        "I need to label this template message: {x}",
        "So, how does {x} feel?",
    ],
)
def test_prompt_that_speaks_as_a_person_does_stays(text):
    answer = Completion("a", text, None, 200, 1, 0.0, 9, 9, "stop")
    found, reason = candidate_in(answer, "template", max_tokens=30)
    assert reason == ""
    assert found is not None and "{x}" in found


@pytest.mark.parametrize(
    "piece",
    [
        "okay ", "hmm ", "the user a ", "let me write a ", "so, ", "...", "first now ",
        "\n", "\n\n", "\n ", "\r\n", " ", "\t", "1. ", "\n1. ", "- ", "Sure! ", "sure, here is ",
        "template ", "\n\nnote ", "**", "prompt: ", "<think>", "</think>", "<|channel|>",
        "<|channel|>a<|message|>", "`", "```\n", "```a", "{", "{a", "A. ", 'a." ', "'", "<|",
        "(1) ", "Here is: ", "analysisA", "assistantfinal", "e.g. A", "“",
    ],
)  # fmt: skip
@pytest.mark.parametrize("frame", ["{}", "template{}x", "prompt{}x{{a}}", "sure, here is {}x"])
def test_parse_huge_repetitive_answer_is_parsed_in_linear_time(piece, frame):
    def seconds(size: int) -> float:
        text = frame.format(piece * (size // len(piece)))
        started = time.process_time()
        for form in ("template", "instruction"):
            candidate_of(text, form)
        return time.process_time() - started

    # quadratic work takes 256 times as long, here half a minute and more
    assert seconds(160_000) < 60 * max(0.02, seconds(10_000))
    assert candidate_of("a" * 10**6, "template") is None
