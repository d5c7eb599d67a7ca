"""Log-probabilities of prompts as servers give them, and where an answer begins among tokens."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paft_ray.config import OpenAILLM
from paft_ray.config.errors import LLMError
from paft_ray.prompts.generate.requests import Request
from paft_ray.prompts.generate.text_protocol import (
    ANSWER,
    LOGPROBS,
    PromptLogprobs,
    common_cut,
    continuing,
)

CONFIG = OpenAILLM(type="openai", base_url="http://x/v1", model="m", omit=("top_p",))


def asked(context: str, answer: str) -> Request:
    return Request("0", 0, "logprobs", (("user", context), (ANSWER, answer)), 0.0, 1.0, 0, 1)


def read(tokens: list[str], answer: str, new: str | None = " new") -> PromptLogprobs:
    """What is read of a server that says these tokens of a prompt, and writes one more."""
    every = tokens if new is None else [*tokens, new]
    logprobs: list[Any] = [None, *(-float(n) for n in range(1, len(every)))]
    choice = {
        "text": "".join(every), "finish_reason": "length",
        "logprobs": {"tokens": every, "token_logprobs": logprobs, "text_offset": []},
    }  # fmt: skip
    usage = {"prompt_tokens": len(tokens), "completion_tokens": len(every) - len(tokens)}
    reading = LOGPROBS.read({"choices": [choice], "usage": usage}, asked("", answer))
    assert (reading.prompt_tokens, reading.reported) == (len(tokens), True)
    return PromptLogprobs.read(reading.text or "")


def test_bodies_are_those_of_the_completions_protocol() -> None:
    body = LOGPROBS.body(CONFIG, asked("Is it so?", " yes"), ())
    assert body == {
        "model": "m", "prompt": "Is it so? yes", "temperature": 0.0, "seed": 0, "max_tokens": 1,
        "echo": True, "logprobs": 1,
    }  # fmt: skip
    request = Request("0", 0, "text", (("user", "Go on"),), 0.0, 1.0, 0, 9)
    text = continuing(("\n", "a", "b", "c", "d"))
    assert text.body(CONFIG, request, ())["stop"] == ["\n", "a", "b", "c"]
    assert "stop" not in text.body(CONFIG, request, ("stop",))


@pytest.mark.parametrize("new", [" new", None])
def test_answer_begins_at_its_first_token_and_the_written_one_is_left_out(new: str | None) -> None:
    answer = read(["<s>", "Is", " it", "?", " y", "es"], " yes", new)
    cut = common_cut([answer, read(["<s>", "Is", " it", "?", " no"], " no")])
    assert cut == 4
    assert answer.since(cut) == (-4.0, -5.0)


def test_token_of_context_and_answer_belongs_to_the_answer_for_all_choices() -> None:
    joined, apart = read(["a", "b", "(y", "es"], "yes"), read(["a", "b", "(", "no"], "no")
    assert common_cut([joined, apart]) == 2
    assert apart.since(2) == (-2.0, -3.0)


def test_context_that_is_other_tokens_before_one_choice_is_compared_from_there() -> None:
    one, other = read(["a", "b", "c", " yes"], " yes"), read(["a", "bc", " no"], " no")
    assert common_cut([one, other]) == 1


def test_only_the_end_of_a_long_context_is_kept_and_it_is_enough() -> None:
    context = [f"w{n}" for n in range(500)]
    answer = read([*context, " yes"], " yes")
    assert len(answer.tokens) < 20
    assert common_cut([answer, read([*context, " n", "o"], " no")]) == 500
    assert answer.since(500) == (-500.0,)
    with pytest.raises(LLMError, match="other tokens before each choice"):
        common_cut([answer, read([*context[:480], "x" * 30, " no"], " no")])


@pytest.mark.parametrize(
    ("tokens", "answer", "place"),
    [
        (["<s>", "Is", "it", "very", "good"], " very good", 3),  # blanks of single tokens are lost
        (["<s>", "▁Is", "▁it", "▁very", "▁good"], " very good", 3),
        (["<s>", "Is", "it", "▁", "1", "2"], " 12", 3),  # the delimiter is a token of its own
        (["Is", "it", "Ċ", "yes"], "yes", 3),
        (["Is", "it", "\n", "Ġyes"], " yes", 3),
    ],
)
def test_tokens_without_their_blanks_spell_the_answer_too(tokens, answer, place) -> None:
    assert common_cut([read(tokens, answer)]) == place


def test_tokens_that_do_not_spell_the_answer_are_refused() -> None:
    with pytest.raises(LLMError, match="does not spell the answer ' ja'"):
        read(["Is", " it", " n", "o"], " ja")


@given(st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=12), st.data())
def test_answer_of_whole_tokens_is_found_whatever_they_hold(tokens: list[str], data) -> None:
    place = data.draw(st.integers(1, len(tokens) - 1))
    answer = "".join(tokens[place:])
    assert common_cut([read(tokens, answer)]) == place


def test_first_token_of_a_text_has_no_log_probability() -> None:
    with pytest.raises(LLMError, match="first token"):
        read(["yes"], "yes").since(0)


@pytest.mark.parametrize(
    "logprobs",
    [
        None, {}, {"tokens": [" x"], "token_logprobs": [-1.0]}, {"tokens": "ab"},
        {"tokens": ["a", "b", "c"], "token_logprobs": [None, None, -1.0]},
        {"tokens": ["a", "b", "c"], "token_logprobs": [None, -1.0]},
    ],
)  # fmt: skip
def test_answer_without_log_probabilities_of_the_prompt_names_the_remedy(logprobs: Any) -> None:
    answer = {"choices": [{"text": "ab c", "finish_reason": "length", "logprobs": logprobs}]}
    with pytest.raises(LLMError, match="choices_by: text"):
        LOGPROBS.read(answer, asked("a", "b"))


@pytest.mark.parametrize("answer", [None, [], {}, {"choices": []}, {"choices": ["x"]}])
def test_what_is_no_answer_is_asked_for_again(answer: Any) -> None:
    assert LOGPROBS.read(answer, asked("a", "b")).text is None
