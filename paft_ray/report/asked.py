"""What each model of a run was trained with, and what all are asked with: three prompts of each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paft_ray.report.files import RunFiles, Training
from paft_ray.report.tables import all_held_out, display_name

_SHOWN = 3
_WAYS = {
    "paft": "drawn afresh for every example from {count} prompts of the pool",
    "bound_prompts": "every example bound to one of {count} prompts of the pool",
    "human_prompt": "one prompt: an instruction of the task that a person wrote",
    "single_prompt": "one prompt: the one of the pool that the base model does best with",
    "given": "one prompt: the one that the configuration names",
}
"""Kind of a variant to how its examples were rendered."""


@dataclass(frozen=True, slots=True)
class ShownPrompt:
    """One prompt."""

    text: str
    odd: tuple[str, ...]
    """Unusual words, where it may be nonsense."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The prompts of one model, or those that all are asked with."""

    label: str
    """Empty for the held-out prompts."""
    name: str
    way: str
    """How the prompts are used, or who wrote them."""
    prompts: tuple[ShownPrompt, ...]
    """All, or the first three of many."""
    count: int
    """How many there are."""


def prompts_asked(run: RunFiles, odd: Mapping[str, Sequence[str]]) -> tuple[Asked, ...]:
    """The prompts of every model that has its own, then those that all are asked with.

    Args:
        run: The run.
        odd: See `odd_prompts`.
    """
    found = [*_trained(run, odd), *_optimized(run)]
    tests = [row for row in run.prompts if row.get("split") == "test"]
    if tests:
        shown = tuple(_shown(row, odd) for row in tests[:_SHOWN])
        held_out = all_held_out(run.summary)
        name = "held-out prompts" if held_out else "prompts asked with"
        way = f"{len(tests)}{' that no training saw' if held_out else ''}{_authors(tests)}"
        found.append(Asked("", name, way, shown, len(tests)))
    return tuple(found)


def _trained(run: RunFiles, odd: Mapping[str, Sequence[str]]) -> Iterator[Asked]:
    variants = run.about.get("config", {}).get("variants") or []
    types = {variant.get("name") or variant["type"]: variant for variant in variants}
    train = [row for row in run.prompts if row.get("split") == "train"]
    first: dict[str, Training] = {}
    for training in run.trainings:
        first.setdefault(training.label, training)
    for label, training in first.items():
        count = training.about.get("prompts", len(training.drawn))
        only = training.about.get("prompt")
        variant = types.get(label, {"type": ""})
        kind = "given" if variant.get("prompt") else variant["type"]
        way = _WAYS.get(kind, "drawn from {count} prompts" if count > 1 else "one prompt")
        if count > 1:
            shown = tuple(_shown(row, odd) for row in train[:_SHOWN])
        elif only is not None:
            shown = (ShownPrompt(only["text"], tuple(odd.get(only["id"], ()))),)
        else:
            continue
        yield Asked(label, display_name(label), way.format(count=count), shown, count)


def _optimized(run: RunFiles) -> Iterator[Asked]:
    for label, model in run.summary["models"].items():
        if searches := model.get("optimized_prompts", []):
            shown = tuple(ShownPrompt(search["prompt"], ()) for search in searches[:_SHOWN])
            found = (
                "was the best" if searches[0].get("type") == "best_prompt" else "a search improved"
            )
            way = f"a prompt that {found} on validation examples, asked with it alone"
            yield Asked(label, display_name(label), way, shown, len(searches))


def _shown(row: Mapping[str, Any], odd: Mapping[str, Sequence[str]]) -> ShownPrompt:
    return ShownPrompt(row["text"], tuple(odd.get(row["prompt_id"], ())))


def _authors(rows: Sequence[Mapping[str, Any]]) -> str:
    """Who wrote prompts, as far as the table says."""
    origins = [row.get("origin") or {} for row in rows]
    names = dict.fromkeys(o.get("llm") or o.get("file") or "" for o in origins)
    known = ", ".join(name for name in names if name)
    return f", from {known}" if known else ""
