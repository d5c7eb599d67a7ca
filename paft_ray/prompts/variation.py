"""Ways to put a question besides instruction and layout: choices, demonstrations, noise; pure.

A `Condition` sets every axis. What it makes of an example under a prompt depends on these, and on a
position that the caller names: evaluation gives the ids of prompt and example, training step and
slot.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from paft_ray.config.task import CHOICES_SLOT
from paft_ray.config.variation import (
    Names,
    NoiseKind,
    VariationConfig,
)
from paft_ray.prompts.slips import noisy, noisy_template, words
from paft_ray.prompts.template import Template, parse
from paft_ray.tasks.demonstrations import demonstration_pool, draw_demonstrations, generator
from paft_ray.tasks.example import Example, Task, lettered, named

ORDER, NAMES, NOISE, DEMONSTRATIONS = "order", "names", "noise", "demonstrations"
CROSSED = "crossed"
"""Axis of answers for which a level of every axis was drawn; their level names all of them."""
AS_IT_IS = "as it is"
"""Level of the question that others are compared with."""
_COMBINATIONS = 2
"""How many are drawn for each pair of prompt and example."""
PARAPHRASES = "paraphrases"


@dataclass(frozen=True, slots=True)
class Condition:
    """A setting of every axis."""

    axis: str = ""
    """The axis that it is a level of; empty for the setting that all others are compared with."""
    level: str = ""
    """Its name among the levels of its axis."""
    shuffled: bool = False
    """Whether choices are in another order."""
    names: Names = "letters"
    """What choices are called."""
    noise_rate: float = 0.0
    noise_kinds: tuple[NoiseKind, ...] = ()
    demonstrations: tuple[Example, ...] = ()
    draw: int = 0
    """Number of the draw of demonstrations."""
    crossed: "tuple[tuple[Condition, ...], ...]" = ()
    """The levels of each axis, of which one is drawn for every prompt and example."""
    paraphrases: Mapping[str, Mapping[str, str]] | None = field(default=None, repr=False)
    """Example id to fields in other words. Other examples are not asked under this condition."""

    def covers(self, example_id: str) -> bool:
        """Return whether an example can be put so."""
        return self.paraphrases is None or example_id in self.paraphrases

    def rewritten(self, example_ids: Sequence[str]) -> list[Any]:
        """What further determines answers to these examples; empty without paraphrases."""
        if self.paraphrases is None:
            return []
        return [PARAPHRASES, [sorted(self.paraphrases[id].items()) for id in example_ids]]

    @property
    def is_plain(self) -> bool:
        """Return whether it leaves everything as it is."""
        return not (
            self.shuffled
            or self.names != "letters"
            or self.noise_rate
            or self.demonstrations
            or self.crossed
            or self.paraphrases is not None
        )

    @property
    def identity(self) -> list[Any]:
        """What of it determines an answer; empty where it is plain."""
        if self.is_plain:
            return []
        if self.crossed:
            levels = [[each.identity for each in axis] for axis in self.crossed]
            return [CROSSED, self.level, levels]
        shown = [example.id for example in self.demonstrations]
        return ["condition", self.shuffled, self.names, self.noise_rate, *self.noise_kinds, shown]


PLAIN = Condition()


@dataclass(frozen=True, slots=True)
class Put:
    """An example under a prompt, as a model is asked."""

    render: Callable[[Mapping[str, str]], str]
    """Renders its fields to the text before the answer."""
    example: Example
    """With the fields and the right answer as they are put."""
    choices: Sequence[str] | None
    """What may be answered; None for free text."""
    condition: Condition = PLAIN
    """The setting of every axis."""


def put(
    task: Task, template: Template, example: Example, condition: Condition, *position: int | str
) -> Put:
    """Put an example through a prompt under a condition; `position` determines what is drawn."""
    if condition.crossed:
        condition = drawn_level(condition, *position)
    if condition.is_plain:
        return Put(template.render, example, task.choices_of(example), condition)
    varied, choices = _with_choices(task, example, condition, position)
    if condition.paraphrases is not None:  # demonstrations have none
        other = condition.paraphrases.get(example.id, {})
        varied = replace(varied, fields={**varied.fields, **other})
    if condition.noise_rate:
        rng = generator("noise", *position)
        kept = frozenset(word for each in choices or () for word in words(each))
        varied = replace(
            varied,
            fields={
                slot: text if _holds_choices(task, slot) else noisy(text, condition, rng, kept)
                for slot, text in varied.fields.items()
            },
        )
        template = noisy_template(task.slots, template, condition, rng, kept)
    if not condition.demonstrations:
        return Put(template.render, varied, choices, condition)
    calm = replace(condition, noise_rate=0.0, demonstrations=())
    before, behind, through = _around_demonstrations(task, template)
    shown = [
        put(task, through, other, calm, *position, "demonstration", number)
        for number, other in enumerate(condition.demonstrations)
    ]
    solved = "\n\n".join(map(_answered, shown))
    return Put(
        lambda fields: before.render(fields) + solved + behind.render(fields),
        varied,
        choices,
        condition,
    )


def _around_demonstrations(task: Task, template: Template) -> tuple[Template, Template, Template]:
    """What stands before and behind demonstrations, and what they are put through themselves.

    With the slot that is what stands behind it, so that the instruction in front is said once; all
    of the prompt where fields stand in front. Without the slot demonstrations come first.
    """
    if template.halves is None:
        return parse("", ()), parse(f"\n\n{template.text}", task.slots), template
    before, behind = template.halves
    own = set(behind.slots) == set(task.slots)
    return before, behind, parse(behind.text.lstrip(), task.slots) if own else template


def conditions(
    task: Task, variation: VariationConfig, seed: int, source: Sequence[Example]
) -> list[Condition]:
    """The conditions of an evaluation: the main ones, and each axis by itself.

    Args:
        task: The task.
        variation: The axes.
        seed: Seed of the draws.
        source: Examples that demonstrations are drawn from.
    """
    main = [PLAIN]
    if (shown := variation.demonstrations) is not None:
        pool = demonstration_pool(task, shown, source)
        main = [
            replace(PLAIN, demonstrations=draw_demonstrations(pool, shown, None, seed, d), draw=d)
            for d in range(shown.draws)
        ]
    found, first = list(main), main[0]
    choices, noise = variation.choices, variation.noise
    if choices is not None and choices.order == "shuffled":
        found.append(replace(first, axis=ORDER, level="shuffled", shuffled=True))
    for names in choices.names if choices is not None else ():
        if names != "letters":
            found.append(replace(first, axis=NAMES, level=names, names=names))
    if noise is not None:
        found.append(
            replace(
                first, axis=NOISE, level=f"{100 * noise.rate:g}% of words",
                noise_rate=noise.rate, noise_kinds=noise.kinds,
            )
        )  # fmt: skip
    return found + (_crossed(found) if variation.design == "crossed" else [])


def _crossed(found: Sequence[Condition]) -> list[Condition]:
    """The conditions under which a level of every axis is drawn."""
    by_axis: dict[str, list[Condition]] = {}
    for condition in found:
        by_axis.setdefault(condition.axis or DEMONSTRATIONS, []).append(condition)
    main = by_axis.pop(DEMONSTRATIONS)
    axes = [main, *([main[0], *levels] for levels in by_axis.values())]
    levels = tuple(tuple(axis) for axis in axes if len(axis) > 1)
    return [
        replace(PLAIN, axis=CROSSED, level=str(number), crossed=levels)
        for number in range(_COMBINATIONS if levels else 0)
    ]


def drawn_level(condition: Condition, *position: int | str) -> Condition:
    """The combination of levels that is drawn at a position."""
    rng = generator(CROSSED, condition.level, *position)
    first = condition.crossed[0][0]
    changed: dict[str, Any] = {}
    names = {CROSSED: condition.level}
    for levels in condition.crossed:
        level = levels[int(rng.integers(len(levels)))]
        for each in fields(Condition):
            if each.name not in ("axis", "level") and getattr(level, each.name) != getattr(
                first, each.name
            ):
                changed[each.name] = getattr(level, each.name)
        axis = max(one.axis for one in levels) or DEMONSTRATIONS
        shown = f"draw {level.draw + 1}" if axis == DEMONSTRATIONS else AS_IT_IS
        names[axis] = level.level or shown
    return replace(first, axis=CROSSED, level=json.dumps(names), **changed)


def paraphrased(
    main: Condition, written: Sequence[Mapping[str, Mapping[str, str]]]
) -> list[Condition]:
    """The conditions under which examples are put in other words, one for each wording."""
    return [
        replace(main, axis=PARAPHRASES, level=f"paraphrase {number}", paraphrases=texts)
        for number, texts in enumerate(written, start=1)
    ]


@dataclass(frozen=True, slots=True)
class Varying:
    """The condition of every slot of a training: a function of position."""

    task: Task
    variation: VariationConfig
    seed: int
    pool: Sequence[Example] = field(default=(), repr=False)
    """Examples that demonstrations are drawn from."""
    paraphrases: Mapping[str, Mapping[int, Mapping[str, str]]] | None = field(
        default=None, repr=False
    )
    """Example id to its fields in other words, by number from 1; others keep their own text."""

    def put(self, template: Template, example: Example, *position: int | str) -> Put:
        """Put an example through a prompt at a position."""
        condition = self.condition(example, *position)
        return put(self.task, template, example, condition, self.seed, *position)

    def describe(self, template: Template, example: Example, *position: int | str) -> str:
        """What is drawn at a position, for the ledger, as JSON."""
        condition, wording = self.condition(example, *position), self.wording(example, *position)
        found = self.put(template, example, *position).example
        return json.dumps(
            {
                "answer": found.answer,
                **({"choices": list(found.options)} if found.options else {}),
                **({"names": condition.names} if condition.names != "letters" else {}),
                **({"noise": condition.noise_rate} if condition.noise_rate else {}),
                **(
                    {DEMONSTRATIONS: [each.id for each in condition.demonstrations]}
                    if condition.demonstrations
                    else {}
                ),
                **({"paraphrase": wording} if wording else {}),
            },
            ensure_ascii=False,
        )

    def wording(self, example: Example, *position: int | str) -> int:
        """The number of the wording that an example has at a position; 0 is its own text."""
        known = self.paraphrases.get(example.id) if self.paraphrases is not None else None
        if not known:
            return 0
        place = int(generator("paraphrase", self.seed, *position).integers(len(known) + 1))
        return (0, *sorted(known))[place]

    def condition(self, example: Example, *position: int | str) -> Condition:
        """The condition of an example at a position."""
        wording = self.wording(example, *position)
        other = self.paraphrases[example.id][wording] if self.paraphrases and wording else None
        choices, noise = self.variation.choices, self.variation.noise
        shown, names = self.variation.demonstrations, ("letters",)
        if choices is not None:
            names = choices.names
        rng = generator("names", self.seed, *position)
        return Condition(
            shuffled=choices is not None and choices.order == "shuffled",
            names=names[int(rng.integers(len(names)))],  # pyright: ignore[reportArgumentType]
            noise_rate=0.0 if noise is None else noise.rate,
            noise_kinds=() if noise is None else noise.kinds,
            demonstrations=()
            if shown is None
            else draw_demonstrations(self.pool, shown, example, self.seed, *position),
            paraphrases=None if other is None else {example.id: other},
        )


def _with_choices(
    task: Task, example: Example, condition: Condition, position: tuple[int | str, ...]
) -> tuple[Example, Sequence[str] | None]:
    """The example with its choices in another order or under other names, and what may be said."""
    choices = task.choices_of(example)
    if task.option_slots and condition.shuffled and choices is not None:
        slots = list(task.option_slots)
        order = _order(len(slots), condition, position)
        fields = dict(example.fields)
        for slot, other in zip(slots, order, strict=True):
            fields[slot] = example.fields[slots[other]]
        right = [task.option_slots[slot] for slot in slots].index(example.answer)
        answer = task.option_slots[slots[order.index(right)]]
        return replace(example, fields=fields, answer=answer), choices
    if task.choices_as != "letters" or choices is None:
        return example, choices
    place = choices.index(example.answer) if example.answer else None
    order = list(range(len(choices)))
    if condition.shuffled:
        order = _order(len(choices), condition, position)
    options = tuple(example.options[old] for old in order)
    names = named(len(options), condition.names)
    fields = {**example.fields, CHOICES_SLOT: lettered(options, condition.names)}
    answer = "" if place is None else names[order.index(place)]
    return replace(example, fields=fields, answer=answer, options=options), names


def _order(count: int, condition: Condition, position: tuple[int | str, ...]) -> list[int]:
    """Which old choice stands at each place; as the level of an axis never the order as given."""
    rng = generator(ORDER, *position)
    order = rng.permutation(count).tolist()
    while condition.axis in (ORDER, CROSSED) and order == list(range(count)):
        order = rng.permutation(count).tolist()
    return order


def _answered(shown: Put) -> str:
    text = shown.render(shown.example.fields).rstrip(" ")
    return text + ("" if text.endswith("\n") else " ") + shown.example.answer


def _holds_choices(task: Task, slot: str) -> bool:
    return slot in task.option_slots or (task.choices_as == "letters" and slot == CHOICES_SLOT)
