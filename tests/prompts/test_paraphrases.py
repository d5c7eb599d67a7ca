"""Examples in other words: what is asked for, and what of the answers is used."""

import pytest

from paft_ray.config import FakeLLM
from paft_ray.prompts.generate.asking import Writer
from paft_ray.prompts.generate.completions import Completion
from paft_ray.prompts.paraphrases import Paraphrases, Wanted, request, rewritable
from paft_ray.prompts.template import parse
from paft_ray.prompts.variation import PLAIN, paraphrased, put
from paft_ray.tasks.example import Example, Task, lettered

OPTIONS = ("copper wire", "dry wood")
ONE = Example(
    "e0",
    {"question": "Which of these 2 carries a current, dry wood?", "choices": lettered(OPTIONS)},
    "A",
    options=OPTIONS,
)
TASK = Task("t", "Answer.", ("question", "choices"), {}, None, (), (), (), choices_as="letters")
WRITER = Writer(FakeLLM(type="fake"), 1.0, 1.0)


def answer(text: str, **changes) -> Completion:
    return Completion("", text, None, 200, 1, 0.0, **changes)


def use(text: str, example: Example = ONE, task: Task = TASK, **changes) -> Paraphrases:
    found = Paraphrases(task, [example], 1)
    [one] = found.wanted()
    found.add(one, answer(text, **changes), 0)
    return found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no_text"),
        ("  ", "no_text"),
        ("Which of these 2 carries a current: dry wood?", "unchanged"),
        ("Which of them lets current through, dry wood?", "lost_number"),
        ("Which of those 2 lets current through?", "lost_choice"),
        ("Of these 2, is it copper wire or Dry Wood that lets current through?", "tells_choice"),
    ],
)
def test_answer_that_changes_the_question_is_refused_and_counted(text: str, reason: str):
    found = use(text)
    assert found.refused == {reason: 1}
    assert found.wanted() and found.complete() == [{}]


FREE = Task("t", "Answer.", ("context",), {}, None, (), (), ())


def free(text: str, said: str, right: str = "none") -> dict[str, int]:
    return dict(use(said, Example("e1", {"context": text}, right), FREE).refused)


@pytest.mark.parametrize(
    ("text", "said", "reason"),
    [
        ("It is 1,5 km away.", "The distance is 15 km.", "lost_number"),
        ("Add 1,23 to it.", "Put 123 on top.", "lost_number"),
        ("The price was 1.000,50 then.", "Then it cost 1.00050.", "lost_number"),
        ("What is -5 plus this?", "What do you get for 5 plus this?", "lost_number"),
        ("It rose by −5 then.", "Then it went up by 5.", "lost_number"),
        ("What is 5 plus this?", "What do you get for -5 plus this?", "lost_number"),
        ("It was 5% more.", "It rose by 5 more.", "lost_number"),
        ("It was 5 more.", "It rose by 5 percent.", "lost_number"),
        ("Here x² is small.", "The value x is small here.", "lost_number"),
        ("Here x^2 is small.", "The value x2 is small here.", "lost_number"),
        ("Take ½ of it.", "Take some of it, a part.", "lost_number"),
        ("Take 3/4 of it.", "Of it take 4/3.", "lost_number"),
        ("It costs 3 euros.", "The price is 3 or 4 or 5 euros.", "added_number"),
        ("It costs 3 euros.", "The price is 3 euros, 3 in all.", "added_number"),
        ("It is small.", "The value x² is small.", "added_number"),
    ],
)
def test_text_with_other_numbers_is_refused(text: str, said: str, reason: str):
    assert free(text, said) == {reason: 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("It was 5% more.", "It rose by 5 percent."),
        ("What is -5 plus $3.50?", "Add $3.50 to −5; what is it?"),
        ("In 1990-1995 he left at 10:30.", "He left at 10:30, in 1990-1995."),
        ("Add 1,000 to 2.5e3, x².", "To 2.5e3 and x² add 1,000."),
    ],
)
def test_text_with_the_same_numbers_is_used(text: str, said: str):
    assert free(text, said) == {}


@pytest.mark.parametrize(
    ("right", "said", "reason"),
    [
        ("1000", "How many are there, 1,000 of them?", "added_number"),
        ("18", "How many are there, for $18.00?", "added_number"),
        ("Paris.", "How many are there, in Paris of all?", "tells_choice"),
        ("The Paris", "How many are there, in paris of all?", "tells_choice"),
        ("U.S.", "How many are there in the US?", "tells_choice"),
        ("New York", "How many are there in New-York?", "tells_choice"),
        ("C++", "How many are there, in C++ of all?", "tells_choice"),
    ],
)
def test_text_that_tells_the_answer_in_another_notation_is_refused(
    right: str, said: str, reason: str
):
    assert free("How many do you see?", said, right) == {reason: 1}


TALK = [
    'Here is the new text:\n\n"{}"\n\nI hope this helps!',
    "Here is the new text: {} I hope this helps!",
    "Here is the new text\n{}",
    "Certainly - {}",
    "{}\n\nThis keeps the meaning.",
    "{}\nAnother way of saying so.",
    '"{} "So," he said."',
    "{} Let me know if it will do.",
]


@pytest.mark.parametrize("said", TALK)
def test_text_with_talk_around_it_is_refused(said: str):
    assert free("The seven dwarfs left.", said.format("All dwarfs went away.")) == {"chatter": 1}


@pytest.mark.parametrize("said", TALK[3:])
def test_what_looks_like_talk_may_stay_where_the_text_has_it(said: str):
    text, other = said.format("The seven dwarfs left."), said.format("All dwarfs went away.")
    assert free(text, other) == {}


def test_answer_that_was_cut_off_or_filtered_is_refused():
    text = "Of these 2, which one lets current through, dry wood?"
    assert use(text, finish_reason="length").refused == {"cut_off": 1}
    assert use(text, finish_reason="content_filter").refused == {"filtered": 1}


@pytest.mark.parametrize(
    "said",
    ["{}", '"{}"', "Here is the text: {}", "Rewritten text: {}", "<think>hm</think>{}", "{}\n"],
)
def test_usable_answer_is_used_without_the_talk_around_it(said: str):
    text = "Of these 2, which lets current through, dry wood?"
    found = use(said.format(text))
    assert found.complete() == [{"e0": {"question": text}}]
    assert not found.refused


def test_answer_may_stay_and_must_not_come_in_free_text():
    example = Example("e1", {"context": "Paris lies on the Seine."}, "Paris")
    assert use("The Seine flows through it.", example, FREE).refused == {"lost_choice": 1}
    assert not use("Through Paris flows the Seine.", example, FREE).refused
    other = Example("e1", {"context": "It lies on the Seine."}, "Paris")
    assert use("Through Paris flows the Seine.", other, FREE).refused == {"tells_choice": 1}


def test_fields_with_choices_and_without_letters_are_not_rewritten():
    assert rewritable(TASK, ONE) == ["question"]
    pairs = Task("t", "A.", ("goal", "a", "b"), {"a": "A", "b": "B"}, ("A", "B"), (), (), ())
    example = Example("e", {"goal": "Open a jar.", "a": "Twist.", "b": "Hit."}, "A")
    assert rewritable(pairs, example) == ["goal"]
    assert rewritable(TASK, Example("e", {"question": "2 + 2?", "choices": ""}, "A")) == []


def test_wordings_of_an_example_differ_and_those_without_all_are_left_out():
    found = Paraphrases(TASK, [ONE, Example("e1", {"question": "12", "choices": ""}, "A")], 2)
    first, second = found.wanted()
    text = "Of these 2, which lets current through, dry wood?"
    found.add(second, answer(text), 0)
    found.add(first, answer(text.upper()), 0)
    assert found.refused == {"repeated": 1} and found.wanted() == [first]
    assert found.complete() == [{}, {}]


def test_request_is_a_function_of_its_place_and_names_what_stays():
    one = Wanted(ONE, "question", 0)
    asked = request(TASK, one, WRITER, 0, 0)
    assert asked == request(TASK, one, WRITER, 0, 0)
    others = {
        request(TASK, one, WRITER, 1, 0).id,
        request(TASK, one, WRITER, 0, 1).id,
        request(TASK, Wanted(ONE, "question", 1), WRITER, 0, 0).id,
    }
    assert len(others) == 3 and asked.id not in others
    [(_, message)] = asked.messages
    assert '"dry wood"' in message and '"copper wire"' not in message


def test_example_is_put_with_its_own_text_in_other_words_and_its_choices_as_they_are():
    [condition] = paraphrased(PLAIN, [{"e0": {"question": "Other words"}}])
    assert (condition.axis, condition.level) == ("paraphrases", "paraphrase 1")
    assert condition.covers("e0") and not condition.covers("e1") and not condition.is_plain
    template = parse("{question}\n{choices}\nAnswer:", TASK.slots)
    found = put(TASK, template, ONE, condition, 0)
    assert found.render(found.example.fields) == f"Other words\n{lettered(OPTIONS)}\nAnswer:"
    assert found.example.answer == "A"
