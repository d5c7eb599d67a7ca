"""The best trials of a search, the run that compares them, and the content of `search.json`."""

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
from paft_ray.evaluation.goal import goal_intervals, goal_name, reached
from paft_ray.runs.context import RunContext
from paft_ray.tasks import load_task
from paft_ray.tuning.space import describe
from paft_ray.tuning.trial import State, TrialRecord, read_records, results_of


@dataclass(frozen=True)
class Finalist:
    """One of the best trials, trained again with other seeds; named by the trial's number."""

    trial: TrialRecord
    validation: float
    """The goal's figure of its trial."""
    seeds: tuple[int, ...]
    """Seeds of its trainings."""

    @property
    def variant(self) -> PaftVariant:
        """The variant that is trained."""
        return PaftVariant(type="paft", name=f"finalist_{self.trial.number}")

    @property
    def label(self) -> str:
        """The label of its variant."""
        return self.variant.label


def choose_finalists(context: RunContext, tuning: TuningConfig) -> list[Finalist]:
    """The best of the finished trials, the best first.

    Where two are equal, the higher mean accuracy comes first, then the earlier trial.

    Raises:
        TrainingError: No trial is finished.
    """
    seeds = tuning.final_seeds(context.config.seed)
    ranked = []
    records = read_records(context.run_folder)
    for record in records:
        results = results_of(context, record.number)
        if record.state == "finished" and results:
            last_PE = results[max(results)]
            finalist = Finalist(record, reached(tuning.goal, last_PE), seeds)
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


def final_context(context: RunContext, finalists: Sequence[Finalist]) -> RunContext:
    """The search as a run that compares its finalists, with test examples."""
    config = context.config
    variants = tuple(finalist.variant for finalist in finalists)
    final = config.model_copy(update={"variants": variants, "seeds": finalists[0].seeds})
    task = load_task(config.task, config.seed, unlabelled=config.reads_unlabelled)
    return context.of_task(task).of_config(final, context.screen)


@dataclass(frozen=True, slots=True)
class TrialResult:
    """One trial."""

    number: int
    sample: Mapping[str, Any]
    state: State
    reason: str
    """The error of a failed trial, else empty."""
    seconds: float
    tokens: int | None
    """Tokens that it was trained on, where it is finished."""
    interval: Sequence[float] | None
    """95% interval of the goal's figure at its last report."""
    reports: Sequence[Mapping[str, float]]
    """After each of its scored steps: `step`, `goal`, and the figures on validation prompts."""


@dataclass(frozen=True, slots=True)
class FinalistResult:
    """One finalist on test prompts."""

    label: str
    trial: int
    """The trial's number."""
    sample: Mapping[str, Any]
    settings: str
    """The sample for people."""
    seeds: Sequence[int]
    validation: float
    """The goal's figure of its trial, on validation prompts."""
    test: float
    """The goal's figure on test prompts, the mean over seeds."""
    test_interval: Sequence[float]
    gap: float
    """Validation minus test."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A whole search; as a dict the content of `search.json`."""

    goal: str
    """Its name for people."""
    space: Mapping[str, Any]
    validation: Mapping[str, int]
    """Numbers of `prompts` and `examples` that trials were scored on."""
    trials: Sequence[TrialResult]
    finalists: Sequence[FinalistResult]
    """The best first."""
    made_from: str
    """Fingerprint of the settings and data that it depends on."""


def search_result(
    context: RunContext,
    tuning: TuningConfig,
    finalists: Sequence[Finalist],
    scores: pa.Table,
    made_from: str,
) -> SearchResult:
    """The result of a search whose trials and finalists are over.

    `scores` holds the finalists' answers to test prompts: see `evaluation.grid`, with `split`.
    """
    records = read_records(context.run_folder)
    results = {record.number: results_of(context, record.number) for record in records}
    last = {str(number): found[max(found)] for number, found in results.items() if found}
    intervals = goal_intervals(tuning.goal, last) if last else {}
    prompts, examples = next(iter(last.values())).shape if last else (0, 0)
    return SearchResult(
        goal=goal_name(tuning.goal),
        space={path: d.model_dump(mode="json") for path, d in tuning.space.items()},
        validation={"prompts": prompts, "examples": examples},
        trials=[
            _trial(tuning, record, results[record.number], intervals.get(str(record.number)))
            for record in records
        ],
        finalists=_tested(tuning, finalists, scores),
        made_from=made_from,
    )


def _trial(
    tuning: TuningConfig,
    record: TrialRecord,
    results: Mapping[int, NDArray[np.float64]],
    interval: tuple[float, float] | None,
) -> TrialResult:
    return TrialResult(
        record.number,
        record.sample,
        record.state,
        record.reason,
        record.seconds,
        record.about and record.about.tokens,
        interval and list(interval),
        [_report(tuning, step, grade_PE) for step, grade_PE in sorted(results.items())],
    )


def _report(tuning: TuningConfig, step: int, grade_PE: NDArray[np.float64]) -> dict[str, float]:
    known = validation_metrics(grade_PE)
    figures = {name.rpartition("/")[2]: value for name, value in known.items()}
    return {"step": step, "goal": reached(tuning.goal, grade_PE), **figures}


def _tested(
    tuning: TuningConfig, finalists: Sequence[Finalist], scores: pa.Table
) -> list[FinalistResult]:
    labels = [finalist.label for finalist in finalists]
    answers = read_answers(scores, labels)
    require_paired(answers, labels)
    grids = {f.label: answers.grades(f.label) for f in finalists}
    intervals = goal_intervals(tuning.goal, grids, 1 + max(answers.draws))
    entries = []
    for finalist in finalists:
        sample, label = finalist.trial.sample, finalist.label
        test = float(np.mean([reached(tuning.goal, grid) for grid in grids[label]]))
        entries.append(
            FinalistResult(
                label=label,
                trial=finalist.trial.number,
                sample=sample,
                settings=describe(sample),
                seeds=list(finalist.seeds),
                validation=finalist.validation,
                test=test,
                test_interval=list(intervals[label]),
                gap=finalist.validation - test,
            )
        )
    return entries
