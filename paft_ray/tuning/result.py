"""What came of a search: its trials ranked, the finalists, the content of `search.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paft_ray.config import PaftVariant, TuningConfig
from paft_ray.config.errors import TrainingError
from paft_ray.evaluation.answers import read_answers, require_paired
from paft_ray.evaluation.figures import validation_metrics
from paft_ray.runs.context import RunContext
from paft_ray.training.distributed.trainer import training_folder
from paft_ray.training.validation import read_results
from paft_ray.tuning.goal import TrialRecord, goal_intervals, goal_name, reached, read_records
from paft_ray.tuning.space import describe
from paft_ray.tuning.trial import trial_training


@dataclass(frozen=True)
class Finalist:
    """One of the best trials, trained again with other seeds; called by the trial's number."""

    trial: TrialRecord
    validation: float
    """The goal's figure of its trial."""

    @property
    def variant(self) -> PaftVariant:
        """Its way to train, by name."""
        return PaftVariant(type="paft", name=f"finalist_{self.trial.number}")

    @property
    def label(self) -> str:
        """Of its variant."""
        return self.variant.label


def results_of(context: RunContext, record: TrialRecord) -> dict[int, NDArray[np.bool_]]:
    """What a trial found on its way: steps to [P, E], whether each answer is right."""
    return read_results(training_folder(context, trial_training(context, record.number)))


def choose_finalists(context: RunContext, tuning: TuningConfig) -> list[Finalist]:
    """The best of the trials that came to their end, the best first.

    Where two are equal, the higher mean accuracy comes first, then the earlier trial.

    Raises:
        TrainingError: None came to its end.
    """
    ranked = []
    records = read_records(context.run_folder)
    for record in records:
        results = results_of(context, record)
        if record.state == "finished" and results:
            last_PE = results[max(results)]
            finalist = Finalist(record, reached(tuning.goal, last_PE))
            order = (-finalist.validation, -float(last_PE.mean()), record.number)
            ranked.append((order, finalist))
    if not ranked:
        reasons = [record.reason for record in records if record.state == "failed"]
        raise TrainingError(
            "no trial came to its end"
            + (f", {len(reasons)} failed; the first: {reasons[0]}" if reasons else "")
        )
    ranked.sort(key=lambda entry: entry[0])
    return [finalist for _, finalist in ranked[: tuning.finalists]]


def search_result(
    context: RunContext,
    tuning: TuningConfig,
    finalists: Sequence[Finalist],
    seeds: Sequence[int],
    scores: pa.Table,
) -> dict[str, Any]:
    """The content of `search.json`.

    `goal` (its name), `space`, `validation` (`prompts`, `examples`), `trials` (`number, sample,
    state, reason, seconds, tokens, interval, reports` with `step, goal, mean, std, worst_prompt,
    p05`) and `finalists` (`label, trial, sample, settings, seeds, validation, test, test_interval,
    gap`), the best first.

    Args:
        context: The search.
        tuning: What was searched.
        finalists: The best first.
        seeds: Of their trainings.
        scores: Of the finalists on test prompts: see `evaluation.grid`, with `split`.
    """
    records = read_records(context.run_folder)
    results = {record.number: results_of(context, record) for record in records}
    last = {str(number): found[max(found)] for number, found in results.items() if found}
    intervals = goal_intervals(tuning.goal, last) if last else {}
    prompts, examples = next(iter(last.values())).shape if last else (0, 0)
    return {
        "goal": goal_name(tuning.goal),
        "space": {path: d.model_dump(mode="json") for path, d in tuning.space.items()},
        "validation": {"prompts": prompts, "examples": examples},
        "trials": [
            _trial(tuning, record, results[record.number], intervals.get(str(record.number)))
            for record in records
        ],
        "finalists": _tested(tuning, finalists, seeds, scores),
    }


def _trial(
    tuning: TuningConfig,
    record: TrialRecord,
    results: Mapping[int, NDArray[np.bool_]],
    interval: tuple[float, float] | None,
) -> dict[str, Any]:
    return {
        "number": record.number,
        "sample": dict(record.sample),
        "state": record.state,
        "reason": record.reason,
        "seconds": record.seconds,
        "tokens": record.about.get("tokens"),
        "interval": interval and list(interval),
        "reports": [
            {"step": step, "goal": reached(tuning.goal, correct_PE), **_named(correct_PE)}
            for step, correct_PE in sorted(results.items())
        ],
    }


def _named(correct_PE: NDArray[np.bool_]) -> dict[str, float]:
    known = validation_metrics(correct_PE)
    return {name.rpartition("/")[2]: value for name, value in known.items()}


def _tested(
    tuning: TuningConfig, finalists: Sequence[Finalist], seeds: Sequence[int], scores: pa.Table
) -> list[dict[str, Any]]:
    labels = [finalist.label for finalist in finalists]
    answers = read_answers(scores, labels)
    require_paired(answers, labels)
    grids = {
        label: np.stack([answers.right_MPE[answers.models.index((label, s))] == 1 for s in seeds])
        for label in labels
    }
    intervals = goal_intervals(tuning.goal, grids)
    entries = []
    for finalist in finalists:
        test = float(np.mean([reached(tuning.goal, grid) for grid in grids[finalist.label]]))
        entries.append(
            {
                "label": finalist.label,
                "trial": finalist.trial.number,
                "sample": dict(finalist.trial.sample),
                "settings": describe(finalist.trial.sample),
                "seeds": list(seeds),
                "validation": finalist.validation,
                "test": test,
                "test_interval": list(intervals[finalist.label]),
                "gap": finalist.validation - test,
            }
        )
    return entries
