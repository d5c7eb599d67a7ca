"""The results as text: the table on the screen, and sentences about its limits."""

from collections.abc import Mapping, Sequence
from typing import Any

from paft_ray.config import BASE
from paft_ray.evaluation.axes import moving
from paft_ray.evaluation.components import BY_EXAMPLE
from paft_ray.evaluation.cost_figures import PROMPTS_PER_ANSWER
from paft_ray.evaluation.figures import MEAN, STD, STD_BY_CHANCE, Figure, figures_of
from paft_ray.evaluation.summary import SINGLE_PROMPT, differences_of, of_figure
from paft_ray.models.packing import MIXES
from paft_ray.report.axis_tables import AXIS_NAMES, axes, components, more_or_less
from paft_ray.report.lengths import chosen_steps, trained_otherwise
from paft_ray.report.tables import (
    Table,
    all_held_out,
    backends_agree,
    by_author,
    display_name,
    how_answers_end,
    on_trained_prompts,
    results,
    trained_labels,
)
from paft_ray.report.verdict import verdict_lines
from paft_ray.report.written import optimized_prompts, paraphrases, prompts_of_files
from paft_ray.tasks.example import RowCounts

ILLUSTRATION = (
    "one seed is an illustration, not a measurement: give `seeds: [0, 1, 2]`, which trains every "
    "variant with each on the same pool"
)

_WIDTH = 100
"""Width in characters above which the table leaves out columns."""
_FEW_SEEDS = 10
_ONE_PROMPT = (SINGLE_PROMPT, "human_prompt")
"""Labels of variants that are trained with one prompt."""
_UNDECIDED = {
    (MEAN, STD): "both intervals include zero, so neither difference is shown",
    (MEAN,): "the interval of the mean includes zero, so a difference in mean is not shown",
    (STD,): "the interval of the std includes zero, so a difference in spread is not shown",
}


def results_table(summary: Mapping[str, Any], names: Mapping[str, str] | None = None) -> str:
    """The verdict, the results as aligned plain text, then differences and cautions.

    Of the figures that make it wide, the first ones are shown that still fit.

    Args:
        summary: Content of `summary.json`.
        names: Label to name, where it is not made of the label's words.
    """
    wide = [figure for figure in figures_of(summary) if figure.table == "wide"]
    while len((table := _lines(summary, names, wide))[0]) > _WIDTH and wide:
        wide.pop()
    of_files = "prompt_files" in summary
    kinds = "prompts of each file" if of_files else "held-out prompts of each author"
    authors = _aligned(by_author(summary, names), kinds)
    own = _aligned(on_trained_prompts(summary, names), "prompts that models were trained on")
    moved = _aligned(axes(summary, names), "percent of the grades that change with the")
    parts = _aligned(components(summary, names), "percent of the variance of grades from the")
    blocks = [line for block in (authors, own, moved, parts) if block for line in ("", *block)]
    said = [*differences(summary, names), *more_or_less(summary, names), *cautions(summary, names)]
    return "\n".join([*verdict_lines(summary, names), "", *table, *blocks, "", *said])


def differences(summary: Mapping[str, Any], names: Mapping[str, str] | None = None) -> list[str]:
    """The main differences between models, a sentence each."""
    paired = "" if "scored_share" in summary else "paired "
    return [
        f"{name}: {MEAN.heading} {_points(MEAN, entry)}, {STD.heading} {_points(STD, entry)}; "
        f"points, {paired}95% intervals."
        for name, entry in _main_differences(summary, names)
    ]


def _lines(
    summary: Mapping[str, Any], names: Mapping[str, str] | None, wide: Sequence[Figure]
) -> list[str]:
    """The results as aligned lines."""
    table = results(summary, names, wide)
    short = {figure.heading: figure.short for figure in figures_of(summary) if figure.short}
    prompts = "held-out prompts" if all_held_out(summary) else "prompts"
    heading = f"{prompts} ({summary['prompts']} x {summary['examples']} examples)"
    lines = [(heading, *(short.get(column, column) for column in table.columns))]
    return _padded(
        [*lines, *((row.name, *(cell.text for cell in row.cells)) for row in table.rows)]
    )


def _aligned(table: Table, heading: str) -> list[str]:
    """A table with intervals as aligned lines; nothing where it has no rows."""
    lines = [(heading, *table.columns)]
    lines += [
        (row.name, *(f"{c.text} ({c.below})" if c.below else c.text for c in row.cells))
        for row in table.rows
    ]
    return _padded(lines) if table.rows else []


def _padded(lines: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "    ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]


def cautions(summary: Mapping[str, Any], names: Mapping[str, str] | None = None) -> list[str]:
    """Sentences about what the results measure, and what they do not show."""
    sentences = [how_answers_end(summary)]
    sentences += [
        f"{name}: {_UNDECIDED[undecided]}."
        for name, entry in _main_differences(summary, names)
        if (undecided := tuple(f for f in (MEAN, STD) if _includes_zero(of_figure(entry, f))))
    ]
    sentences += _not_better(summary, names)
    sentences += _spread_by_chance(summary, names)
    if (majority := summary.get("majority")) is not None:
        sentences.append(
            f"always answering {majority['answer']!r}, the most frequent answer, is right for "
            f"{100 * majority['share']:.1f}%."
        )
    sentences += [f"{text}." for text in RowCounts(**summary.get("task_rows", {})).sentences()]
    sentences += _what_moves(summary, names) + what_spreads(summary, names)
    sentences += _run_apart(summary, names)
    sentences += backends_agree(summary, names)
    sentences += chosen_steps(summary, names)
    sentences += trained_otherwise(summary, names)
    sentences += _served(summary, names)
    sentences += optimized_prompts(summary, names)
    sentences += paraphrases(summary) + prompts_of_files(summary)
    if (share := summary.get("scored_share")) is not None:
        sentences.append(
            f"{share:.0%} of the prompts x examples were scored, weak prompts more often; the "
            "figures of all are estimated from them, and the intervals say only what the rest "
            "leaves open; those of differences are not paired."
        )
    sentences += [f"chat template: {note}." for note in summary.get("chat_template", ())]
    seeds = _seeds(summary)
    if len(set(seeds.values())) > 1:
        listed = "; ".join(
            f"{display_name(label, names)}: {', '.join(map(str, each))}"
            for label, each in seeds.items()
        )
        sentences.append(f"models were trained with different seeds ({listed}).")
    counts = {len(each) for each in seeds.values()}
    if 1 in counts:
        sentences.append(f"{ILLUSTRATION}.")
    if counts != {1} and summary["differences"] and share is None:
        sentences.append(_what_intervals_hold(summary, min(counts - {1}, default=0)))
    return sentences


def _seeds(summary: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The seeds of every model that was trained."""
    models = {label: summary["models"][label] for label in trained_labels(summary)}
    return {label: tuple(model.get("seeds", summary["seeds"])) for label, model in models.items()}


def _what_intervals_hold(summary: Mapping[str, Any], seeds: int) -> str:
    """What the intervals hold of models with so many seeds; 0 where nothing was trained."""
    if not any("intervals" in model for model in summary["models"].values()):  # old summaries
        return "the intervals resample prompts and examples, not seeds."
    if not seeds:  # nothing was trained
        return "the intervals resample prompts and examples."
    if seeds >= _FEW_SEEDS:
        return f"the intervals resample prompts, examples and the {seeds} seeds."
    return (
        f"the intervals resample prompts, examples and the {seeds} seeds; {seeds} seeds are few, "
        f"and show {100 * (seeds - 1) / seeds:.0f}% of the variance between seeds, so that the "
        "intervals are somewhat too narrow."
    )


def _main_differences(
    summary: Mapping[str, Any], names: Mapping[str, str] | None
) -> list[tuple[str, Mapping[str, Any]]]:
    """Names and entries of the differences from a single prompt, or of all if there are none."""
    every = differences_of(summary)
    return [
        (f"{display_name(a, names)} - {display_name(b, names)}", entry)
        for a, b, entry in [each for each in every if each[1] in _ONE_PROMPT] or every
    ]


def _not_better(summary: Mapping[str, Any], names: Mapping[str, str] | None) -> list[str]:
    single = summary["models"].get(SINGLE_PROMPT)
    sentences = []
    for label, model in summary["models"].items():
        if single is None or label in (BASE, SINGLE_PROMPT):
            continue
        for figure, what in ((MEAN, "mean"), (STD, "spread over prompts")):
            change = figure.read(model) - figure.read(single)
            if change <= 0 if figure.better == "higher" else change >= 0:
                side = "above" if figure.better == "higher" else "below"
                name = display_name(label, names)
                sentences.append(f"{name}'s {what} is not {side} that of the single prompt.")
    return sentences


def _what_moves(summary: Mapping[str, Any], names: Mapping[str, str] | None) -> list[str]:
    """Sentences about the axes of variation along which a model's answers change."""
    if not (measured := summary.get("axes")):
        return []
    sentences = []
    for label in next(iter(measured.values())):
        name, found = display_name(label, names), moving(measured, label)
        if not found:
            sentences.append(
                f"{name}: along no axis is it shown that one in a hundred of its grades changes."
            )
            continue
        told = [f"{AXIS_NAMES[a]} ({100 * measured[a][label]['moved']:.0f}%)" for a in found]
        sentences.append(f"{name}: what changes its grades is the {', the '.join(told)}.")
    return sentences


def what_spreads(summary: Mapping[str, Any], names: Mapping[str, str] | None) -> list[str]:
    """Sentences about models of whose spread no axis is shown to make a part."""
    axes_shown = {
        label: [key for key, share in entry["shares"].items() if share["low"] > 0]
        for label, entry in summary.get("components", {}).items()
    }
    return [
        f"{display_name(label, names)}: of no axis it is shown that it makes a part of the spread "
        "of its grades."
        for label, shown in axes_shown.items()
        if not {key.removesuffix(BY_EXAMPLE) for key in shown} & AXIS_NAMES.keys()
    ]


def _spread_by_chance(summary: Mapping[str, Any], names: Mapping[str, str] | None) -> list[str]:
    """Sentences about spreads that answers which ignore the wording would have too."""
    return [
        f"{display_name(label, names)}'s spread over prompts, {STD.show(std)}, is no more "
        f"than the {STD_BY_CHANCE.show(chance)} that {summary['examples']} examples give by chance."
        for label, model in summary["models"].items()
        if (chance := STD_BY_CHANCE.read(model)) and (std := STD.read(model)) <= chance
    ]


def _run_apart(summary: Mapping[str, Any], names: Mapping[str, str] | None) -> list[str]:
    """Sentences about models whose sequences mix in packed rows, or whose texts do in batches."""
    by_reason: dict[str, list[str]] = {}
    for label, model in summary["models"].items():
        for key, what in (("packing", "scored"), ("trained_packing", "trained")):
            if (how := model.get(key, "")).startswith(MIXES):
                reason = f"{what} with {how.removeprefix(MIXES)}"
                by_reason.setdefault(reason, []).append(display_name(label, names))
    return [f"{', '.join(labels)}: {reason}." for reason, labels in by_reason.items()]


_KINDS = {
    "refused": "were refused by the model", "filtered": "were filtered by the endpoint",
    "only_reasoning": "hold only reasoning", "empty": "are empty",
}  # fmt: skip
"""Answers of endpoints that say nothing, see `evaluation.endpoint.UNANSWERED`."""


def _served(summary: Mapping[str, Any], names: Mapping[str, str] | None) -> list[str]:
    """Sentences about models behind endpoints: how they were asked, and what became of answers."""
    sentences = []
    served = {"endpoint", PROMPTS_PER_ANSWER.key}  # or made of answers of such
    loads = any(served.isdisjoint(model) for model in summary["models"].values())
    others = ", those of other models with it" if loads else ""
    if not loads:
        sentences.append(
            "All models are behind endpoints: questions are sent whole, and none was compared with "
            "task.max_length or trimmed."
        )
    for label, model in summary["models"].items():
        if (about := model.get("endpoint")) is None:
            continue
        name, said = display_name(label, names), [f"{about['model']} at {about['base_url']}"]
        if about.get("choices_by") == "text":
            said.append(
                "choices are graded by what it writes, right where that is the answer alone"
            )
        if "end_token" in about and summary.get("answer_end") == "scored":
            end = about["end_token"]
            said.append(
                f"choices are scored with its end token {end!r}"
                if end
                else f"its choices are scored without their end token{others}"
            )
        if refused := [k.removeprefix("without ") for k in about if k.startswith("without ")]:
            said.append(f"it refuses {', '.join(sorted(refused))}, which it is asked without")
        if "temperature" in refused:
            said.append("its answers are sampled, so that others would come another time")
        said.append(_paid(about))
        sentences.append(f"{name}: {'; '.join(said)}.")
        nothing = [f"{about[kind]} {what}" for kind, what in _KINDS.items() if about.get(kind)]
        counted = [f"{', '.join(nothing)}: these are graded 0"] if nothing else []
        if about["cut_off"]:
            counted.append(f"{about['cut_off']} were cut off at the most tokens")
        if about["reasoned"]:
            counted.append(f"{about['reasoned']} came with reasoning, which is not graded")
        if faults := about["attempts"] - about["requests"]:
            counted.append(f"{faults} further attempts were needed")
        if counted:
            sentences.append(f"{name}, of {about['requests']} answers: {'; '.join(counted)}.")
    return sentences


def _paid(about: Mapping[str, Any]) -> str:
    """What was read and written for the answers of an endpoint, and what that costs."""
    tokens = f"{about['prompt_tokens']:,} tokens read and {about['completion_tokens']:,} written"
    cost = "" if about.get("cost") is None else f", cost {about['cost']:.4g}"
    return f"{about['requests']:,} answers, {tokens}{cost}"


def _points(figure: Figure, entry: Mapping[str, Any]) -> str:
    part = of_figure(entry, figure)
    value, low, high = (figure.show_change(part[key]) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _includes_zero(part: Mapping[str, float]) -> bool:
    return part["low"] <= 0 <= part["high"]
