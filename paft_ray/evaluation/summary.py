"""The content of `summary.json`, computed from the scores table.

Shapes: P prompts, E examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paft_ray.config import BASE
from paft_ray.evaluation.answers import Answers, read_answers, require_paired
from paft_ray.evaluation.bootstrap import Resamples, resample
from paft_ray.evaluation.estimate import Posterior, fit
from paft_ray.evaluation.figures import (
    BEGINS_RIGHT,
    CALIBRATION_ERROR,
    FURTHER,
    GENERATED_TOKENS,
    MEAN,
    UNENDED,
    Figure,
    all_figures,
    as_tree,
)
from paft_ray.evaluation.metrics import calibration_error
from paft_ray.prompts.pool import Prompt

SINGLE_PROMPT = "single_prompt"
"""Label of the variant that every other variant is compared with."""
PAFT = "paft"
"""Label of the variant that is compared with every other one."""
_FIGURES_OF_COLUMNS = {
    "generated_tokens": GENERATED_TOKENS,
    "unended": UNENDED,
    "begins_right": BEGINS_RIGHT,
}


@dataclass(frozen=True, slots=True)
class Unscored:
    """The examples of a grid of which only a part was scored."""

    answers: Mapping[str, str]
    """Example id to its right answer."""
    choices: bool
    """Whether answers are one of a few choices, some of which prompts may favour."""


def summarise(
    scores: pa.Table,
    variants: Sequence[str],
    thresholds: Sequence[float],
    seeds: Sequence[int],
    seconds: Mapping[str, float],
    estimate: Unscored | None = None,
    subjects: Sequence[str] = (),
    grades: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of `summary.json`.

    `models` holds, per label, the figures that are computed from answers (averaged over seeds; the
    keys of `top` are texts such as "0.75"), `intervals` (figure to its 95% interval,
    `top` by threshold) and the `seeds` they come from. `differences` compares each variant with the
    single prompt and with the base model, PAFT with all others, and the single prompt with the base
    model: `"paft - single_prompt": {"value", "low", "high", "p", "std": {...}, "min": {...}, ...}`,
    the outer four for the mean over prompts, the inner ones for other figures, `top` by threshold.
    `prompts` and `examples` are counts, `seeds` and `seconds` are as given.

    Where the whole grid is estimated, `scored_share` is the share that was scored, each model has
    its `accuracies` (prompt id to the mean over draws and seeds), figures about agreement
    between prompts are None, and differences are not paired and have no p.

    Args:
        scores: See `read_answers`.
        variants: Labels to report, `base` among them if the base model was evaluated.
        thresholds: Accuracies for Top@t.
        seeds: Seeds of this comparison.
        seconds: Stage to wall-clock time.
        estimate: Given where only a part was scored: figures of the whole grid are estimated.
        subjects: Labels of models that no variant trained, which are compared with all others.
        grades: Labels of the grades beside the one that decides.

    Raises:
        DataError: A grid has holes or duplicates, or two models saw different prompts or examples.
    """
    answers = read_answers(scores, variants, () if estimate is None else estimate.answers)
    require_paired(answers, variants, whole=estimate is None)
    figures = all_figures(thresholds, grades)
    found, more = _found(answers, variants, estimate, thresholds)
    models = {
        label: {
            **_figures(found, label, figures),
            **more.get(label, {}),
            "seeds": list(dict.fromkeys(answers.models[m][1] for m in answers.of(label))),
        }
        for label in variants
    }
    share = float(answers.scored_MPE[answers.of(variants[0])[0]].mean())
    return {
        "models": models,
        "differences": _differences(found, pairs(variants, subjects), figures),
        "prompts": len(answers.prompt_ids),
        "examples": len(answers.example_ids),
        "seeds": list(seeds),
        "seconds": dict(seconds),
        **({} if estimate is None else {"scored_share": share}),
    }


def scores_by_author(
    scores: pa.Table, prompts: Sequence[Prompt], authors: Sequence[str]
) -> dict[str, pa.Table]:
    """The scores under the prompts of each author, an LLM or a file, of whom some were scored."""
    parts = {}
    for author in authors:
        ids = [p.id for p in prompts if author in (p.origin.llm, p.origin.file)]
        part = scores.filter(pc.field("prompt_id").isin(pa.array(ids, pa.string())))
        if part.num_rows:
            parts[author] = part
    return parts


def scores_under(scores: pa.Table, prompt: Prompt) -> pa.Table:
    """The scores under one prompt that a variant was trained on, as under a test prompt."""
    part = scores.filter((pc.field("prompt_id") == prompt.id) & (pc.field("split") == "train"))
    place = part.schema.get_field_index("split")
    return part.set_column(place, "split", pa.array(["test"] * part.num_rows, pa.string()))


def pairs(labels: Sequence[str], subjects: Sequence[str] = ()) -> list[tuple[str, str]]:
    """The models to compare: PAFT with all others, variants with the baselines, subjects with all.

    Where all variants have names of their own, so that none is known as PAFT or as the baseline,
    each is compared with those before it.

    Args:
        labels: All models.
        subjects: Those of them that no variant trained.
    """
    trained = [label for label in labels if label not in (BASE, SINGLE_PROMPT, *subjects)]
    wanted = [(PAFT, SINGLE_PROMPT), *((PAFT, label) for label in trained), (PAFT, BASE)]
    for label in trained:
        wanted += [(label, SINGLE_PROMPT), (label, BASE)]
    wanted.append((SINGLE_PROMPT, BASE))
    if not {PAFT, SINGLE_PROMPT} & set(labels):
        wanted += [(b, a) for place, b in enumerate(trained) for a in trained[:place]]
    for place, label in enumerate(subjects):
        wanted += [(other, label) for other in trained]
        wanted += [(label, other) for other in (SINGLE_PROMPT, BASE, *subjects[:place])]
    known = [(a, b) for a, b in wanted if a in labels and b in labels and a != b]
    return list(dict.fromkeys(known))


def differences_of(summary: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """The differences of a summary: label, label that is subtracted from it, and entry."""
    labels = summary["models"]
    known = {_versus(a, b): (a, b) for a in labels for b in labels}
    return [(*known[name], entry) for name, entry in summary["differences"].items()]


def of_figure(entry: Mapping[str, Any], figure: Figure) -> Any:
    """The part of a difference's entry about a figure, or None; the mean's is the entry itself."""
    return entry if figure is MEAN else figure.read(entry)


def _versus(a: str, b: str) -> str:
    return f"{a} - {b}"


def _figures(found: Resamples | Posterior, label: str, figures: Sequence[Figure]) -> dict[str, Any]:
    """Figures of one model, and their intervals."""
    values = as_tree({f: found.values[label].get(f.key) for f in figures if f.computed})
    known = [figure for figure in figures if figure.key in found.draws[label]]
    return values | {"intervals": as_tree({f: list(found.interval(label, f)) for f in known})}


def _differences(
    found: Resamples | Posterior, compared: Sequence[tuple[str, str]], figures: Sequence[Figure]
) -> dict[str, Any]:
    return {_versus(a, b): _difference(found, a, b, figures) for a, b in compared}


def _difference(
    found: Resamples | Posterior, a: str, b: str, figures: Sequence[Figure]
) -> dict[str, Any]:
    both = found.draws[a].keys() & found.draws[b].keys()
    tree = as_tree({f: asdict(found.difference(a, b, f)) for f in figures if f.key in both})
    return {**tree.pop(MEAN.key), **tree}


def _found(
    answers: Answers,
    labels: Sequence[str],
    estimate: Unscored | None,
    thresholds: Sequence[float],
) -> tuple[Resamples | Posterior, dict[str, dict[str, Any]]]:
    """Figures of all models, and further entries by label."""
    if estimate is None:
        return _measured(answers, labels, thresholds), {}
    return _estimated(answers, labels, estimate, thresholds)


def _measured(answers: Answers, labels: Sequence[str], thresholds: Sequence[float]) -> Resamples:
    """Figures of grids that were scored as a whole, averaged over seeds."""
    return resample(
        {label: answers.grades(label) for label in labels},
        thresholds=thresholds,
        answers={label: list(map(answers.grid, answers.of(label))) for label in labels},
        draws=1 + max(answers.draws),
    )


def _estimated(
    answers: Answers, labels: Sequence[str], estimate: Unscored, thresholds: Sequence[float]
) -> tuple[Posterior, dict[str, dict[str, Any]]]:
    """Figures of whole grids, estimated from their scored parts, and further entries by label."""
    right = [estimate.answers[id] for id in answers.example_ids] if estimate.choices else None
    fits = {
        label: [
            fit(
                answers.grade_MPE[model] == 1,
                answers.scored_MPE[model],
                right,
                seed=1000 * number + place,  # independent draws for every model
            )
            for place, model in enumerate(answers.of(label))
        ]
        for number, label in enumerate(labels)
    }
    more = {}
    for label, of_label in fits.items():
        accuracy_P = np.mean([accuracy_RP.mean(axis=0) for accuracy_RP in of_label], axis=0)
        by_prompt = dict(zip(answers.prompt_ids, accuracy_P.tolist(), strict=True))
        more[label] = {**_of_scored(answers, label), "accuracies": by_prompt}
    return Posterior(fits, thresholds), more


def _of_scored(answers: Answers, label: str) -> dict[str, float]:
    """The figures that need no whole grid, from the pairs that were spread evenly over it.

    The other pairs are biased: a prompt whose first answers were wrong by chance gets more of them.
    """
    values: dict[str, list[float]] = {}
    for model in answers.of(label):
        even_PE = answers.even_MPE[model] & answers.scored_MPE[model]
        confidence_MPE = answers.confidence_MPE
        if confidence_MPE is not None and answers.knows(confidence_MPE, model):
            confidence_PE, right_PE = confidence_MPE[model], answers.grade_MPE[model] == 1
            error = calibration_error(confidence_PE[even_PE], right_PE[even_PE])
            values.setdefault(CALIBRATION_ERROR.key, []).append(error)
        for column, number_MPE in answers.numbers_MPE.items():
            if not answers.knows(number_MPE, model):
                continue
            mean = float(number_MPE[model][even_PE].mean())
            key = column if column.startswith(FURTHER) else _FIGURES_OF_COLUMNS[column].key
            values.setdefault(key, []).append(mean)
    return {key: float(np.mean(of_seeds)) for key, of_seeds in values.items()}
