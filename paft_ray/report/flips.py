"""Examples whose answers flip: right under one wording and wrong under another.

An example flips by four times the variance of its grades over wordings, averaged over seeds: by 1
where it is right under half of them and wrong under the others. Two seeds that disagree flip
nothing.

Shapes: S seeds, P prompts, E examples.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paft_ray.evaluation.answers import Answers
from paft_ray.evaluation.summary import SINGLE_PROMPT
from paft_ray.prompts.dedup.similarity import shingles
from paft_ray.prompts.leakage import nearest
from paft_ray.report.accuracy import ranked_prompts
from paft_ray.report.files import RunFiles
from paft_ray.report.tables import display_name, main_label
from paft_ray.runs.progress import in_a_line

_SHOWN = 12
_MOST_BARS = 120
"""Most prompts in a strip; of more, some are drawn, evenly over the ranks."""
_MOST_COMPARED = 40
"""Most right and most wrong wordings among which the two most alike are found."""
_MOST_CHARACTERS = 700


@dataclass(frozen=True, slots=True)
class Bars:
    """One model's answers to one example, a bar per prompt."""

    label: str
    name: str
    right: str
    """SVG path in a box of one unit per prompt and height 1: full where the answer is right."""
    wrong: str
    """The rest of the box."""
    count: str
    """How many answers are right, as "9 of 12"."""


@dataclass(frozen=True, slots=True)
class ShownPrediction:
    """One model's prediction."""

    name: str
    text: str
    """Empty where no answer could be read."""
    right: bool


@dataclass(frozen=True, slots=True)
class Wording:
    """One prompt and the predictions under it."""

    prompt_id: str
    text: str
    predictions: tuple[ShownPrediction, ...]


@dataclass(frozen=True, slots=True)
class Flip:
    """One example whose answers flip."""

    example_id: str
    fields: tuple[tuple[str, str], ...]
    answer: str | None
    bars: tuple[Bars, ...]
    seed: str
    """Seed of the predictions; empty where there is only one."""
    wordings: tuple[Wording, Wording]
    """One under which the model is right, and a similar one under which it is wrong."""


@dataclass(frozen=True, slots=True)
class Flips:
    """The section of the page."""

    about: str
    """Name of the model whose flips are shown."""
    shares: tuple[tuple[str, str, float], ...]
    """Label, name, and share of the examples that are right and wrong, in percent over seeds."""
    prompts: int
    """Bars in a strip."""
    examples: tuple[Flip, ...]


def flip_lines(run: RunFiles) -> list[str]:
    """One example that flips, in lines for the screen, under the model that flips most."""
    shares = {label: share for label, _, share in flipping_examples(run).shares}
    label = max(shares, key=lambda label: shares[label])
    found = flipping_examples(run, label)
    if not found.examples:
        return []
    flip = found.examples[0]
    fields = "; ".join(in_a_line(text) for _, text in flip.fields) or flip.example_id
    answer = "" if flip.answer is None else f", right: {flip.answer}"
    lines = [f"    {found.about} flips on {shares[label]:.0f}% of the examples: {fields}{answer}"]
    for wording in flip.wordings:
        said = in_a_line(wording.predictions[0].text)
        lines.append(f"        {said} under {in_a_line(wording.text)}")
    return lines


def flipping_examples(run: RunFiles, about: str | None = None) -> Flips:
    """The examples that flip most under a model, by default the one that the run is about."""
    answers, labels = run.answers, list(run.summary["models"])
    about = about or main_label(run.summary)
    flipping = {label: _flipping(answers.grades(label)) for label in labels}
    flips_E = flipping[about].mean(axis=0)
    order = np.lexsort((np.arange(len(flips_E)), -flips_E))[:_SHOWN]
    ranked = ranked_prompts(run, about)
    bars = [ranked[i] for i in np.unique(np.linspace(0, len(ranked) - 1, _MOST_BARS).astype(int))]
    grams = [shingles(run.texts.get(prompt_id, "")) for prompt_id in answers.prompt_ids]
    several = len({answers.models[m][1] for m in answers.of(about)}) > 1
    examples = []
    for e in order[flips_E[order] > 0].tolist():
        known = run.examples.get(answers.example_ids[e], {})
        model = answers.of(about)[int(flipping[about][:, e].argmax())]
        examples.append(
            Flip(
                answers.example_ids[e],
                _fields(known.get("fields", "{}")),
                known.get("answer"),
                tuple(_bars(answers, label, e, bars) for label in labels),
                str(answers.models[model][1]) if several else "",
                _two_wordings(run, model, e, ranked, grams),
            )
        )
    return Flips(
        display_name(about),
        tuple(
            (label, display_name(label), 100 * float((flips_SE > 0).mean()))
            for label, flips_SE in flipping.items()
        ),
        len(bars),
        tuple(examples),
    )


def _flipping(grade_SPE: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much the grades of each example differ over prompts: shape [S, E]."""
    scored_SE = np.maximum((~np.isnan(grade_SPE)).sum(axis=1), 1)
    mean_SE = np.nansum(grade_SPE, axis=1) / scored_SE
    flips_SE = 4 * (np.nansum(grade_SPE**2, axis=1) / scored_SE - mean_SE**2)
    return np.where(flips_SE > 1e-9, flips_SE, 0.0)


def _fields(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, _clipped(str(value))) for name, value in json.loads(text).items())


def _clipped(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} ..."


def _bars(answers: Answers, label: str, example: int, prompts: Sequence[int]) -> Bars:
    """Draw bars; over several seeds one is as high as the mean of their grades."""
    all_SP = np.nan_to_num(answers.grade_MPE[answers.of(label), :, example])
    heights = all_SP[:, prompts].mean(axis=0).round(3).tolist()
    right = "".join(f"M{i} 1v-{h:g}h.82v{h:g}z" for i, h in enumerate(heights) if h > 0)
    wrong = "".join(f"M{i} 0v{1 - h:g}h.82v-{1 - h:g}z" for i, h in enumerate(heights) if h < 1)
    count = all_SP.sum() / len(all_SP)
    return Bars(label, display_name(label), right, wrong, f"{count:.3g} of {all_SP.shape[1]}")


def _two_wordings(
    run: RunFiles,
    model: int,
    example: int,
    ranked: Sequence[int],
    grams: Sequence[frozenset[str]],
) -> tuple[Wording, Wording]:
    """The most similar pair of a wording with a right answer and one with a wrong answer."""
    answers = run.answers
    about = answers.models[model][0]
    grade_P = answers.grade_MPE[model, :, example]
    middle = (np.nanmin(grade_P) + np.nanmax(grade_P)) / 2
    right = [p for p in ranked if grade_P[p] > middle][:_MOST_COMPARED]
    wrong = [p for p in ranked if grade_P[p] < middle][:_MOST_COMPARED]
    found = [(a, *nearest(grams[a], (grams[b] for b in wrong))) for a in right]
    own, place, _ = max(found, key=lambda alike: alike[2])
    beside = [about, *({SINGLE_PROMPT} & set(run.summary["models"]) - {about})]
    first, second = (
        Wording(
            answers.prompt_ids[p],
            run.texts.get(answers.prompt_ids[p], answers.prompt_ids[p]),
            tuple(_prediction(answers, label, model, p, example) for label in beside),
        )
        for p in (own, wrong[place])
    )
    return first, second


def _prediction(
    answers: Answers, label: str, like: int, prompt: int, example: int
) -> ShownPrediction:
    """The prediction of the label's model with the seed and draw of another, or as near to them."""
    seed, draw = answers.models[like][1], answers.draws[like]
    models = answers.of(label)
    model = max(models, key=lambda m: (answers.draws[m] == draw, answers.models[m][1] == seed, -m))
    index = answers.prediction_MPE[model, prompt, example]
    return ShownPrediction(
        display_name(label),
        _clipped(answers.predictions[index]) if index >= 0 else "",
        bool(answers.grade_MPE[model, prompt, example] > 0.5),
    )
