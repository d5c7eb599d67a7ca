"""Whether the main model is better, by how much, and how sure that is, in words.

Screens and pages begin with these sentences; the tables follow them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paft_ray.config import BASE
from paft_ray.evaluation.figures import BEST, MEAN, STD, WORST, Figure
from paft_ray.evaluation.summary import differences_of, of_figure
from paft_ray.report.tables import all_held_out, display_name, main_label, minus, trained_labels

_WITH_ARTICLE = (BASE, "single_prompt", "human_prompt")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to the question of a run."""

    sentence: str
    """Better or not, by how much, with the interval."""
    more: tuple[str, ...]
    """The same for the spread over prompts and the worst prompt, and what the base model does."""


def verdict(summary: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Verdict:
    """The answer that a summary gives.

    The main model is compared with the best of the other trained models and subjects; with the base
    model where there is no other.

    Args:
        summary: Content of `summary.json`.
        names: Label to name, where it is not made of the label's words.
    """
    main = main_label(summary)
    entries = {b: entry for a, b, entry in differences_of(summary) if a == main}
    rivals = [label for label in entries if label != BASE] or list(entries)
    if not rivals:
        return _alone(summary, main, names)
    rival = max(rivals, key=lambda label: MEAN.read(summary["models"][label]))
    entry, name = entries[rival], display_name(main, names)
    rival_name = ("the " if rival in _WITH_ARTICLE else "") + display_name(rival, names)
    other = rival_name + (", the best of the others" if len(rivals) > 1 else "")
    model, against = (summary["models"][label] for label in (main, rival))
    sentence = (
        f"{name} is {_compared(entry)} than {other}: {_points(MEAN, entry)}, "
        f"{_percent(MEAN, model)} right on average over {_prompts(summary)}, against "
        f"{_percent(MEAN, against)}."
    )
    more = [*_spread(name, rival_name, entry, model, against)]
    if BASE in summary["models"] and rival != BASE:
        base = summary["models"][BASE]
        before = ", before any training" if trained_labels(summary) else ""
        more.append(
            f"The base model{before}: {_percent(MEAN, base)} on average, "
            f"{_percent(WORST, base)} under its worst prompt."
        )
    return Verdict(sentence, tuple(more))


def verdict_lines(
    summary: Mapping[str, Any], names: Mapping[str, str] | None = None
) -> Sequence[str]:
    """The verdict as lines of text."""
    found = verdict(summary, names)
    return [line.replace("−", "-") for line in (found.sentence, *found.more)]


def _compared(entry: Mapping[str, float]) -> str:
    """The comparison that an interval allows."""
    if entry["low"] > 0:
        return "better"
    return "worse" if entry["high"] < 0 else "not shown to be better"


def _prompts(summary: Mapping[str, Any]) -> str:
    unseen = " that no training saw" if all_held_out(summary) else ""
    return f"{summary['prompts']} prompts{unseen}"


def _spread(
    name: str,
    rival: str,
    entry: Mapping[str, Any],
    model: Mapping[str, Any],
    against: Mapping[str, Any],
) -> Sequence[str]:
    """What is shown of the spread over prompts, and the worst prompt.

    A model under a prompt of its own has no spread.
    """
    if (spread := of_figure(entry, STD)) is None or "optimized_prompts" in {**model, **against}:
        return []
    depends = "is not shown to depend less"
    if spread["high"] < 0 or spread["low"] > 0:
        depends = "depends less" if spread["high"] < 0 else "depends more"
    return [
        f"Its accuracy {depends} on the wording: the standard deviation over prompts is "
        f"{STD.show(STD.read(model))} points, against {STD.show(STD.read(against))}: "
        f"{_points(STD, entry)}.",
        f"Under its worst prompt {name} is right for {_percent(WORST, model)}, {rival} for "
        f"{_percent(WORST, against)}.",
    ]


def _alone(summary: Mapping[str, Any], label: str, names: Mapping[str, str] | None) -> Verdict:
    """What is known of one model."""
    model = summary["models"][label]
    interval = MEAN.read(model.get("intervals", {}))
    share, sure = summary.get("scored_share"), []
    if share is not None:
        sure.append(f"estimated from {share:.0%} of the answers")
    if interval is not None:
        of_all = "" if share is None else " for all of them"
        sure.append(f"95% interval {' to '.join(map(MEAN.show, interval))}{of_all}")
    certainty = f" ({'; '.join(sure)})" if sure else ""
    # an estimate says little about the one best prompt (`evaluation.estimate`)
    known = BEST.read(model) is not None and share is None
    best = f" and {_percent(BEST, model)} under the best one" if known else ""
    return Verdict(
        f"{display_name(label, names)} is right for {_percent(MEAN, model)} of "
        f"{summary['examples']} examples{certainty}, on average over {_prompts(summary)}: "
        f"{_percent(WORST, model)} under the worst one{best}.",
        (),
    )


def _percent(figure: Figure, model: Mapping[str, Any]) -> str:
    return f"{figure.show(figure.read(model))}%"


def _points(figure: Figure, entry: Mapping[str, Any]) -> str:
    part = of_figure(entry, figure)
    value, low, high = (minus(figure.show_change(part[key])) for key in ("value", "low", "high"))
    return f"{value} points (95% interval {low} to {high})"
