"""What recorded studies answer: each question in a sentence, with the comparisons behind it.

python jobs/benchmarks/questions.py jobs/benchmarks/results/study_*.json
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import hypot
from pathlib import Path
from statistics import fmean
from typing import Any

from asked import MOVED, QUESTIONS, Question, kind_of
from names import IN_COMPARISONS, author_of, model_of, name_of, task_of
from scipy.special import ndtr, ndtri
from study import holm, smallest_shown

from paft_ray.evaluation.figures import Figure
from paft_ray.evaluation.summary import of_figure
from paft_ray.report.axis_tables import AXIS_NAMES

Record = Mapping[str, Any]
LEVEL = 0.05
_TO_95 = float(ndtri(0.975))
"""Standard errors from the middle of a 95% interval to its end."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A paired difference of one study, or the mean over several."""

    study: str
    """Task and model, and the author of the prompts where it counts."""
    task: str
    model: str
    pair: tuple[str, str]
    value: float
    low: float
    high: float
    p: float
    """Adjusted for the number of comparisons of the question (Holm)."""
    among: int = 1
    """That number."""

    @property
    def in_points(self) -> str:
        """The difference and its interval."""
        return f"{points(self.value)} ({points(self.low)} to {points(self.high)})"

    @property
    def shown(self) -> bool:
        """Whether chance alone is unlikely to give such a difference."""
        return self.p < LEVEL

    @property
    def standard_error(self) -> float:
        """That of a normal distribution with this interval."""
        return (self.high - self.low) / (2 * _TO_95)

    @property
    def would_show(self) -> float:
        """The difference that it shows in 80 of 100 repetitions."""
        return smallest_shown(self.low, self.high, self.among)

    @property
    def name(self) -> str:
        """Both models in words."""
        return " - ".join(name_of(label, IN_COMPARISONS) for label in self.pair)


def points(share: float) -> str:
    """A difference between shares in percentage points."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"  # never -0.0


def comparisons(question: Question, records: Sequence[Record]) -> list[Comparison]:
    """The comparisons of every record that has both models, with adjusted p-values.

    Records of further evaluations answer the questions about these, and no others.

    Raises:
        KeyError: A record has both models and no difference between them.
    """
    found = []
    records = [record for record in records if kind_of(record) == question.on]
    for record in records:
        for pair in question.pairs:
            for name, summary in _parts(question, record, pair).items():
                if set(pair) <= summary["models"].keys():
                    of = task_of(record), model_of(record)
                    named = Comparison(name, *of, pair, 0.0, 0.0, 0.0, 1.0)
                    found.append(_measured(named, summary["differences"], question.figure))
    if question.figure is MOVED:
        return _adjusted_again(found, [each["axes"] for each in records if each.get("axes")])
    return [each for each in _adjusted(found) if question.of_model in ("", each.model)]


def _parts(question: Question, record: Record, pair: tuple[str, str]) -> dict[str, Any]:
    """The summaries of a record that a question is about, by what they are of."""
    study = f"{task_of(record)}, {model_of(record)}"
    if question.by_author:
        parts = record.get("by_author", {}).items()
        return {f"{study}, prompts by {author_of(a)}": summary for a, summary in parts}
    if question.figure is MOVED:
        axes = record.get("axes", {}).items()
        return {f"{study}, {AXIS_NAMES[axis]}": _moved(of_labels) for axis, of_labels in axes}
    if question.on_trained:
        own = record.get("on_trained_prompts", {}).get(pair[1])
        return {} if own is None else {study: own}
    return {study: record["summary"]}


def _moved(of_labels: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of an axis, in the shape of a summary."""
    differences = {
        f"{a} - {b}": {MOVED.key: entry}
        for a, own in of_labels.items()
        for b, entry in own.get("against", {}).items()
    }
    return {"models": of_labels, "differences": differences}


def _measured(named: Comparison, differences: Mapping[str, Any], figure: Figure) -> Comparison:
    """A comparison with its difference, which a record may keep the other way round."""
    a, b = named.pair
    if (entry := differences.get(f"{a} - {b}")) is not None:
        found = of_figure(entry, figure)
        value, low, high = found["value"], found["low"], found["high"]
    else:
        found = of_figure(differences[f"{b} - {a}"], figure)
        value, low, high = -found["value"], -found["high"], -found["low"]
    return replace(named, value=value, low=low, high=high, p=found["p"])


def together(question: Question, found: Sequence[Comparison]) -> list[Comparison]:
    """The mean difference of each pair over its comparisons, where there are several.

    It is about these tasks and models alone. Tasks count alike and are taken as independent.
    Comparisons of one task share examples and prompts: their mean gets the mean of their standard
    errors, as if they varied together, which is the most that it can be.
    """
    if question.is_of_parts:
        return []
    means = []
    for pair in dict.fromkeys(each.pair for each in found):
        own = [each for each in found if each.pair == pair]
        if len(own) < 2:
            continue
        of_task = [
            [(each.value, each.standard_error) for each in own if each.task == task]
            for task in dict.fromkeys(each.task for each in own)
        ]
        tasks = [tuple(map(fmean, zip(*pairs, strict=True))) for pairs in of_task]
        value = fmean(value for value, _ in tasks)
        error = hypot(*(error for _, error in tasks)) / len(tasks)
        half = _TO_95 * error
        p = 2 * float(ndtr(-abs(value) / error)) if error else float(not value)
        name = f"mean of {len(own)}"
        means.append(Comparison(name, "", "", pair, value, value - half, value + half, p))
    return _adjusted(means)


def _adjusted(found: Sequence[Comparison]) -> list[Comparison]:
    adjusted = holm({str(number): each.p for number, each in enumerate(found)})
    return [
        replace(each, p=adjusted[str(number)], among=len(found))
        for number, each in enumerate(found)
    ]


def _adjusted_again(
    found: Sequence[Comparison], axes: Sequence[Mapping[str, Any]]
) -> list[Comparison]:
    """Comparisons whose p-values a record has adjusted over its axes and models: over records."""
    among = sum(
        len(own.get("against", ()))
        for of_record in axes
        for of_labels in of_record.values()
        for own in of_labels.values()
    )
    return [replace(each, p=min(1.0, each.p * len(axes)), among=among) for each in found]


def answer(question: Question, found: Sequence[Comparison]) -> str:
    """The question's answer in one sentence, from the comparisons alone."""
    better = -1 if question.figure.better == "lower" else 1
    ahead = [each for each in found if each.shown and better * each.value > 0]
    behind = [each for each in found if each.shown and better * each.value < 0]
    if not found:
        return "Not measured."
    if not ahead and not behind:
        least = f"{100 * max(each.would_show for each in found):.1f}"
        return (
            f"Not shown: in none of {len(found)} comparisons is a difference shown "
            f"({_span(found)}); each shows one of {least} points in 80 of 100 repetitions."
            f"{_on_average(question, found)}"
        )
    parts = []
    for some, word in ((ahead, "yes"), (behind, "no, the opposite")):
        if some:
            parts.append(f"{word} in {len(some)} of {len(found)} comparisons ({_span(some)})")
    if rest := [each for each in found if not each.shown]:
        parts.append(f"not shown in {len(rest)} ({_span(rest)})")
    said = "; ".join(parts)
    return f"{said[0].upper()}{said[1:]}.{_on_average(question, found)}"


def _on_average(question: Question, found: Sequence[Comparison]) -> str:
    said = [
        f"{each.name} {each.in_points}, {'shown' if each.shown else 'not shown'}"
        for each in together(question, found)
    ]
    return f" On average: {'; '.join(said)}." if said else ""


def _span(found: Sequence[Comparison]) -> str:
    values = sorted(each.value for each in found)
    low, high = points(values[0]), points(values[-1])
    return f"{low} points" if low == high else f"{low} to {high} points"


def block(key: str, records: Sequence[Record]) -> Iterator[str]:
    """A question as lines of Markdown: the answer, and a line for each comparison."""
    question = QUESTIONS[key]
    found = comparisons(question, records)
    yield f"**{answer(question, found)}**"
    if not found:
        return
    yield ""
    heading = question.figure.heading
    yield f"| study | compared | {heading}, difference in points | p (Holm) | would show |"
    yield "|---|---|---|---|---|"
    for each in [*found, *together(question, found)]:
        least = f"{100 * each.would_show:.1f}"
        p = f"{each.p:.3f}" if each.p >= 0.0005 else "below 0.001"
        yield f"| {each.study} | {each.name} | {each.in_points} | {p} | {least} |"


def main() -> None:
    """Print every question and its answer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("records", nargs="+", type=Path)
    records = [json.loads(p.read_text(encoding="utf-8")) for p in parser.parse_args().records]
    for key, question in QUESTIONS.items():
        print(f"## {question.text}", "", *block(key, records), sep="\n", end="\n\n")


if __name__ == "__main__":
    main()
