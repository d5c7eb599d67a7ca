"""Which kind of change moves a model: planted models that one axis alone moves."""

import re
from collections.abc import Callable
from itertools import product

import numpy as np
import pyarrow as pa
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
from paft_ray.report.axis_tables import more_or_less
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


def along_noise(changed: dict[str, float], seeds: int = 3) -> pa.Table:
    """Scores of models of which slips change so large a part of the grades."""
    rng, rows = np.random.default_rng(1), []
    for (variant, part), seed, p, e in product(changed.items(), range(seeds), range(6), range(40)):
        right = bool(rng.random() < 0.7)
        slipped = right ^ bool(rng.random() < part)
        for axis, level, correct in ((None, None, right), ("noise", "5%", slipped)):
            rows.append(
                {
                    "variant": variant, "seed": seed, "split": "test", "prompt_id": f"p{p}",
                    "example_id": f"e{e:02d}", "prediction": "yes" if correct else "no",
                    "correct": correct, "axis": axis, "level": level,
                }
            )  # fmt: skip
    return pa.Table.from_pylist(rows)


def test_models_are_compared_by_how_much_an_axis_moves_them() -> None:
    table = along_noise({"single_prompt": 0.3, "paft": 0.1, "same": 0.1})
    labels, compared = (
        ["single_prompt", "paft", "same"],
        [("paft", "single_prompt"), ("paft", "same")],
    )
    noise = axes_of(table, labels, {}, compared)["noise"]
    against = noise["paft"]["against"]
    assert "against" not in noise["single_prompt"]
    for other, entry in against.items():
        assert entry["value"] == pytest.approx(noise["paft"]["moved"] - noise[other]["moved"])
        assert entry["low"] <= entry["value"] <= entry["high"]
    assert against["single_prompt"]["high"] < 0 and against["single_prompt"]["p"] < 0.05
    assert against["same"]["low"] < 0 < against["same"]["high"]
    summary = {"models": dict.fromkeys(labels), "axes": {"noise": noise}}
    [said] = more_or_less(summary)
    assert said.startswith("Slips in the text: fewer grades change for PAFT than for single prompt")
    turned = axes_of(table, labels, {}, [(b, a) for a, b in compared])
    assert more_or_less(summary | {"axes": turned}) == [said]
    against["single_prompt"]["p"] = 0.2  # few changed grades make no sure difference
    assert not more_or_less(summary)


def test_intervals_of_axes_are_wider_where_seeds_differ() -> None:
    alike = along_noise({"paft": 0.2}, seeds=1)
    rows = alike.to_pylist()
    apart_rows = [
        {**row, "seed": seed, "correct": row["correct"] ^ (seed > 0 and row["axis"] == "noise")}
        for row in rows
        for seed in (0, 1)
    ]
    [(low, high), (wide_low, wide_high)] = [
        axes_of(table, ["paft"], {})["noise"]["paft"]["intervals"]["moved"]
        for table in (alike, pa.Table.from_pylist(apart_rows))
    ]
    assert wide_high - wide_low > 2 * (high - low)


def test_intervals_do_not_depend_on_which_prompts_move_which_seeds() -> None:
    """Seen: with as many seeds as prompts both had the same weights in every resample."""
    widths = []
    for shift in range(4):
        rows = [
            {
                "variant": "paft", "seed": seed, "split": "test", "prompt_id": f"p{p}",
                "example_id": f"e{e}", "prediction": "yes", "axis": axis, "level": axis,
                "correct": axis is None or (seed - p) % 4 != shift,
            }
            for seed, p, e, axis in product(range(4), range(4), range(20), (None, "noise"))
        ]  # fmt: skip
        noise = axes_of(pa.Table.from_pylist(rows), ["paft"], {})["noise"]["paft"]
        low, high = noise["intervals"]["moved"]
        widths.append(high - low)
    assert max(widths) < 1.2 * min(widths)
