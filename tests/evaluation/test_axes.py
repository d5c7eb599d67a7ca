"""Which kind of change moves a model: planted models that one axis alone moves."""

import re
from collections.abc import Callable
from itertools import product

import pytest

from paft_ray.config.variation import (
    ChoicesVariation,
    DemonstrationsVariation,
    NoiseVariation,
    VariationConfig,
)
from paft_ray.evaluation.axes import Wording, axes_of, moving
from paft_ray.evaluation.components import components_of
from paft_ray.evaluation.scores import Asked, graded, scores_table
from paft_ray.models.logprobs import Likelihoods
from paft_ray.prompts.variation import conditions
from paft_ray.tasks.example import Example, Task, lettered, letters

INSTRUCTIONS = [
    "Please choose the best answer.", "Which of these is right?", "Now pick one of the options.",
    "The best answer is wanted.", "Read this and decide.", "What is the best answer here?",
]  # fmt: skip
LAYOUTS = ["{0}\n{{question}}\n{{choices}}\nAnswer:", "{{question}}\n{0}\n{{choices}}\nLetter:"]


def example(number: int) -> Example:
    options = (f"colour {number}", f"shape {number}", f"number {number}")
    fields = {"question": f"what is thing {number}", "choices": lettered(options)}
    return Example(f"{number:016x}", fields, letters(3)[number % 3], options=options)


EXAMPLES = [example(number) for number in range(40)]
TASK = Task(
    "own", "Answer.", ("question", "choices"), {}, letters(3), tuple(map(example, range(50, 90))),
    (), tuple(EXAMPLES), choices_as="letters",
)  # fmt: skip
RIGHT = {e.fields["question"]: e.options[letters(3).index(e.answer)] for e in EXAMPLES}
VARIATION = VariationConfig(
    choices=ChoicesVariation(order="shuffled", names=("letters", "digits")),
    noise=NoiseVariation(rate=0.5, kinds=("case",)),
    demonstrations=DemonstrationsVariation(shots=2, draws=3),
)


CROSSED = VARIATION.model_copy(update={"design": "crossed"})


def question(text: str) -> str:
    """The last part: the question itself, without demonstrations."""
    return text.split("\n\n")[-1]


def right_name(text: str) -> str:
    last = question(text)
    number = re.findall(r"thing (\d+)", last, re.IGNORECASE)[0]
    right = RIGHT[f"what is thing {number}"]
    return re.findall(rf"^(\w)[.)] {right}$", last, re.MULTILINE)[0]


def first_name(text: str) -> str:
    return re.findall(r"^(\w)[.)] ", question(text), re.MULTILINE)[0]


def by_letter(text: str) -> str:
    """Always says the first one, whatever it is."""
    return first_name(text)


def by_case(text: str) -> str:
    words = question(text).split("\n")
    return right_name(text) if any("what is thing" in line for line in words) else "?"


def by_demonstration(text: str) -> str:
    """Says what the last demonstration says, by its place, right or wrong."""
    shown = text.split("\n\n")[-2]
    names = re.findall(r"^(\w)[.)] ", shown, re.MULTILINE)
    place = names.index(shown.rsplit(" ", 1)[1])
    return re.findall(r"^(\w)[.)] ", question(text), re.MULTILINE)[place]


def by_instruction(text: str) -> str:
    return "?" if "best answer" in text.casefold() else right_name(text)


def by_layout(text: str) -> str:
    return "?" if text.endswith("Letter:") else right_name(text)


@pytest.mark.parametrize(
    ("model", "moved"),
    [
        (right_name, []),
        (by_letter, ["order"]),
        (by_case, ["noise"]),
        (by_demonstration, ["demonstrations", "order"]),
        (by_instruction, ["instruction"]),
        (by_layout, ["layout"]),
    ],
)
def test_report_names_the_axis_that_moves_a_model_and_no_other(
    model: Callable[[str], str], moved: list[str]
):
    prompts = {
        f"p{i}{j}": layout.format(instruction)
        for (i, instruction), (j, layout) in product(enumerate(INSTRUCTIONS), enumerate(LAYOUTS))
    }
    found = []
    for (id, text), condition in product(prompts.items(), conditions(TASK, CROSSED, 0, TASK.train)):
        asked = Asked(id, text, EXAMPLES, condition)
        said, put = [], asked.puts(TASK)
        for one in put:
            answer = model(one.render(one.example.fields))
            if answer == "?":  # wrong, whatever the order
                answer = next(name for name in one.choices or () if name != one.example.answer)
            own = tuple(0.0 if name == answer else -5.0 for name in one.choices or ())
            said.append(Likelihoods(own, own))
        found += graded(TASK, [(asked, put)], iter(said))[0]
    table = scores_table(found)
    rows = table.num_rows
    table = table.append_column("variant", [["base"] * rows]).append_column("seed", [[0] * rows])
    table = table.append_column("split", [["test"] * rows])
    wordings = {id: Wording(id[1], id[2]) for id in prompts}
    axes = axes_of(table, ["base"], wordings)
    assert set(axes) == {"instruction", "layout", "order", "names", "noise", "demonstrations"}
    names = moving(axes, "base")
    assert sorted(names) == moved
    for axis, entry in axes.items():
        low, high = entry["base"]["intervals"]["moved"]
        assert low <= entry["base"]["moved"] <= high
        assert (entry["base"]["moved"] > 0.05) == (axis in moved)
    shares = components_of(table, ["base"], wordings)["base"]["shares"]
    shown = {name.split(" by ")[0] for name, share in shares.items() if share["low"] > 0}
    assert shown - {"example", "rest"} == set(moved)
