"""Writes and tracks the results of a run: scores, summary, report and model cards."""

import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from paft_ray.config import BASE, Config, EndpointSubject
from paft_ray.config.affects import result_fields
from paft_ray.config.grade import ChoiceGrade
from paft_ray.config.subjects import COMPARATORS
from paft_ray.evaluation.axes import Wording, axes_of
from paft_ray.evaluation.components import components_of
from paft_ray.evaluation.cost_figures import (
    OPTIMIZED_PAIRS,
    PROMPTS_PER_ANSWER,
    REFLECTIONS,
    SECONDS_PER_EXAMPLE,
)
from paft_ray.evaluation.endpoint import Questions
from paft_ray.evaluation.grid import GridScores
from paft_ray.evaluation.summary import Unscored, pairs, scores_by_author, scores_under, summarise
from paft_ray.models.load import result_folder
from paft_ray.prompts.build import pool_fingerprint
from paft_ray.prompts.generate.llm import llm_key
from paft_ray.prompts.generate.results import cost
from paft_ray.prompts.leakage import first_like
from paft_ray.prompts.pool import Origin, Prompt, PromptPool, training_prompt
from paft_ray.prompts.rewrite import TRAINING_RECORD, asked_for
from paft_ray.prompts.tested import tested_pool
from paft_ray.report import card_figures
from paft_ray.report.files import MLFLOW_FILE
from paft_ray.report.flips import flip_lines
from paft_ray.report.page import write_pages
from paft_ray.report.recorded import track_results
from paft_ray.runs.context import RunContext
from paft_ray.runs.subjects import content_of, endpoints_of
from paft_ray.serving.card import CARD, Form, render_card
from paft_ray.serving.record import TrainedAdapter
from paft_ray.storage.artifacts import MANIFEST, ArtifactWriter
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.paths import to_json, to_parquet
from paft_ray.tasks import Example, Task
from paft_ray.tracking import Tracker, page_of


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a run whose models are scored."""

    pool: PromptPool
    """The pool whose held-out prompts were used."""
    trained: Sequence[TrainedAdapter]
    """The models that are compared with the base model."""
    scores: GridScores
    """Scores of all models."""
    seconds: Mapping[str, float]
    """Stage to wall-clock time."""
    configs: Mapping[str, Config] = field(default_factory=dict)
    """Label to the configuration of a variant, where it is not the run's own."""


def run_identity(context: RunContext) -> str:
    """Fingerprint of a run: configuration and content, since files behind a path may change."""
    content = [context.task_identity, context.model_identity, pool_fingerprint(context)]
    content += [*content_of(context).values(), *context.content.values()]
    asked = context.config.llms.items()
    content += [llm_key(llm) for field, llm in asked if not field.startswith("prompts.")]
    return fingerprint("run", result_fields(context.config), content)


def write_results(context: RunContext, results: Results, tracker: Tracker) -> dict[str, Any]:
    """Write scores, summary and report, and track them; returns the content of `summary.json`.

    The run is complete, and has a manifest, when all its variants are in the summary.
    """
    folder, evaluation = context.results_folder, context.config.evaluation
    table, tested = results.scores.by_split, tested_pool(context, results.pool)
    examples = context.task.test[: evaluation.examples]
    folder.delete(MANIFEST)  # its files are about to change
    summary = _summary(context, results, table, tested)
    folder.write_bytes("scores.parquet", to_parquet(table))
    folder.write_bytes("prompts.parquet", to_parquet(tested.to_table()))
    folder.write_bytes("examples.parquet", to_parquet(_examples_table(examples)))
    folder.write_bytes("summary.json", to_json(summary))
    if (page := page_of(context.tracking, context.tracked_run.key)) is not None:
        folder.write_json(MLFLOW_FILE, asdict(page))
    with context.screen.stage("report") as stage:
        run = write_pages(folder)
        stage.finish(folder.path("report.html"))
    for line in [] if run.partly_scored else flip_lines(run):
        context.screen.line(line)
    if evaluation.name is None:
        _write_cards(context, results, summary, tracker)
    track_results(context, summary, tracker)
    if len(results.trained) == len(context.config.trainings):
        writer = ArtifactWriter(folder)
        for name in ("summary.json", "scores.parquet"):
            writer.note(name)
        writer.commit(run_identity(context), {"pool": results.pool.fingerprint})
    return summary


def _summary(
    context: RunContext, results: Results, table: pa.Table, tested: PromptPool
) -> dict[str, Any]:
    """The content of `summary.json`, from the scores by split and the pool that was tested with."""
    trained, scores, evaluation = results.trained, results.scores, context.config.evaluation
    more = [subject.label for subject in evaluation.subjects]
    base = [BASE] * context.config.has_base
    labels = list(dict.fromkeys([*base, *(t.training.label for t in trained), *more]))
    seeds = list(dict.fromkeys(t.training.seed for t in trained))
    examples = context.task.test[: evaluation.examples]
    summarised = partial(
        summarise,
        variants=labels,
        thresholds=evaluation.top_thresholds or (context.task.top_threshold,),
        seeds=seeds,
        seconds=results.seconds,
        estimate=None
        if evaluation.estimate is None
        else Unscored({e.id: e.answer for e in examples}, context.task.choices is not None),
        subjects=more,
        grades=[grader.label for grader in context.task.graders[1:]],
    )
    summary = summarised(table)
    summary["trained"] = list(dict.fromkeys(t.training.label for t in trained))
    summary |= {**_grading(context), "task_rows": asdict(context.task.rows)}
    summary |= _of_files(context, results, tested.test)
    if (majority := _majority(context.task, examples)) is not None:
        summary["majority"] = majority
    if evaluation.estimate is None:
        authors = evaluation.prompt_files or context.config.prompts.split.held_out_authors
        parts = scores_by_author(table, tested.test, authors)
        if len(parts) > 1:
            summary["by_author"] = {author: summarised(part) for author, part in parts.items()}
        asked = [label for label in labels if label not in scores.prompts_per_answer]
        summary |= _by_axis(table, asked, tested, pairs(asked, more))
        summary |= _on_trained(scores, partial(summarised, variants=asked))
    _add_to_models(context, results, summary["models"])
    return summary | _circumstances(context, results)


def _of_files(context: RunContext, results: Results, tested: Sequence[Prompt]) -> dict[str, Any]:
    """Which files the prompts are of, and which of them are like prompts that were trained on."""
    if not (files := context.config.evaluation.prompt_files):
        return {}
    own = {t.record.prompt.text for t in results.trained if t.record.prompt is not None}
    slots, origin = context.task.slots, Origin(file="trained prompts")
    given = [training_prompt(text, slots, origin) for text in sorted(own)]
    seen = [*results.pool.train, *given] if results.trained else []
    limit = context.config.prompts.split.similarity
    like = [prompt.id for prompt in tested if first_like(prompt, seen, limit) is not None]
    return {"prompt_files": {"files": list(files), "like_trained": like}}


def _on_trained(
    scores: GridScores, summarised: Callable[[pa.Table], dict[str, Any]]
) -> dict[str, Any]:
    """The figures of every model under the one prompt of a variant, by its label."""
    table = scores.by_split
    found = {
        label: {"prompt": prompt.text, **summarised(scores_under(table, prompt))}
        for label, prompt in scores.trained_prompts.items()
    }
    return {"on_trained_prompts": found} if found else {}


def _by_axis(
    scores: pa.Table,
    labels: Sequence[str],
    pool: PromptPool,
    compared: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """What each axis of variation moves and spreads, where some were measured."""
    wordings = {p.id: Wording(p.instruction, p.layout) for p in pool.test}
    found = {
        "axes": axes_of(scores, labels, wordings, compared),
        "components": components_of(scores, labels, wordings),
    }
    return {name: part for name, part in found.items() if part}


def _add_to_models(context: RunContext, results: Results, models: dict[str, Any]) -> None:
    """Add what the answers do not say: how models were scored and trained, and what it cost."""
    trained, scores = results.trained, results.scores
    for key, of_labels in (
        (SECONDS_PER_EXAMPLE.key, scores.seconds_per_example),
        (PROMPTS_PER_ANSWER.key, scores.prompts_per_answer),
        ("packing", scores.packing),
    ):
        for label, value in of_labels.items():
            models[label][key] = value
    for label, searches in scores.under_one.items():
        models[label]["optimized_prompts"] = list(searches)
        models[label][OPTIMIZED_PAIRS.key] = statistics.fmean(s["pairs"] for s in searches)
        if asked := [s["asked"]["requests"] for s in searches if "asked" in s]:
            models[label][REFLECTIONS.key] = statistics.fmean(asked)
    served = {subject.label: subject for subject in endpoints_of(context.config).values()}
    for subject in context.config.evaluation.subjects:
        of = subject.of if isinstance(subject, COMPARATORS) else subject.label
        if of in served:
            counts = scores.endpoints[subject.label]
            models[subject.label]["endpoint"] = _served(context, served[of], counts)
    for label in dict.fromkeys(t.training.label for t in trained):
        models[label] |= _spent([t for t in trained if t.training.label == label])


def _served(
    context: RunContext, subject: EndpointSubject, counts: Mapping[str, int]
) -> dict[str, Any]:
    """How a model behind an endpoint was asked, counts of its answers, and what they cost."""
    tokens = counts["prompt_tokens"], counts["completion_tokens"]
    asked = Questions.of(context, subject).describe()
    return {**asked, **counts, "cost": subject.price and cost(subject.price, *tokens)}


def _grading(context: RunContext) -> dict[str, Any]:
    """What of an answer counts, and how it is graded."""
    config, task = context.config.task, context.task
    grades = [
        {"label": grade.label, **grade.model_dump(mode="json", exclude={"timeout_s", "path"})}
        for grade in config.grade
        if config.grade != (ChoiceGrade(type="choice"),)  # what counts anyway
    ]
    code, shown = context.grading_code, context.config.evaluation.variation.demonstrations
    return {
        **({"answer_end": config.answer_end} if task.ranks else {}),
        **({"stop": list(config.stop)} if task.generates else {}),
        **({"grades": grades} if grades else {}),
        **({"grading_code": code} if code else {}),
        **({} if shown is None else {"demonstrations": shown.model_dump(mode="json")}),
    }


def _circumstances(context: RunContext, results: Results) -> dict[str, Any]:
    """How questions were put to the models, where that is not as usual."""
    scores, found = results.scores, dict[str, Any]()
    if scores.paraphrases is not None:
        found["paraphrases"] = dict(scores.paraphrases)
    if asked_for(context, "train") is not None and context.run_folder.exists(TRAINING_RECORD):
        found["training_paraphrases"] = context.run_folder.read_json(TRAINING_RECORD)
    if scores.parity is not None:
        found["parity"] = {"backend": context.config.evaluation.backend.type, **scores.parity}
    if context.notes:
        found["chat_template"] = list(context.notes)
    return found


def _majority(task: Task, examples: Sequence[Example]) -> dict[str, Any] | None:
    """The most frequent answer of the scored examples and its share; None without choices."""
    if not examples or not (task.choices or task.choices_as == "letters"):
        return None
    [(answer, count)] = Counter(example.answer for example in examples).most_common(1)
    return {"answer": answer, "share": count / len(examples)}


def _examples_table(examples: Sequence[Example]) -> pa.Table:
    """The test examples that were scored, for readers of the scores."""
    return pa.table(
        {
            "example_id": [e.id for e in examples],
            "fields": [json.dumps(dict(e.fields), ensure_ascii=False) for e in examples],
            "answer": [e.answer for e in examples],
        }
    )


def _spent(trained: Sequence[TrainedAdapter]) -> dict[str, Any]:
    """Steps, mean tokens and seconds, and rows of one variant's trainings."""
    mean = {
        kind: statistics.fmean(getattr(t.record, kind) for t in trained)
        for kind in ("tokens", "answer_tokens", "seconds")
    }
    if wrote := statistics.fmean(t.record.rollout_tokens or 0 for t in trained):
        mean["rollout_tokens"] = wrote
    packing = {} if trained[0].record.packing is None else {"packing": trained[0].record.packing}
    spent = {**mean, **packing}
    return {**_steps(trained), **{f"trained_{k}": v for k, v in spent.items()}}


def _steps(trained: Sequence[TrainedAdapter]) -> dict[str, Any]:
    """Steps of one variant's trainings; where they were scored on the way, of every seed.

    `steps` is then the mean over seeds. `planned_steps` is what all variants were to have,
    `steps_by_seed` what each training had, `saved_steps` the one whose weights it saved.
    """
    records = [t.record for t in trained]
    if (validated := records[0].validated) is None:
        return {"steps": records[0].steps}
    steps = [record.steps for record in records]
    return {
        "steps": steps[0] if len(set(steps)) == 1 else statistics.fmean(steps),
        "planned_steps": validated.planned,
        "steps_by_seed": steps,
        "saved_steps": [record.saved_step for record in records],
        "chosen_by": f"{validated.goal} of {validated.prompts} validation prompts x "
        f"{validated.examples} examples",
    }


def _write_cards(
    context: RunContext, results: Results, summary: Mapping[str, Any], tracker: Tracker
) -> None:
    """Write the models' cards again, with figures."""
    figures = card_figures(summary)
    form: Form = "model" if context.config.model.peft is None else "adapter"
    folder = result_folder(context.config.model.peft)
    for model in results.trained:
        if model.record.prompt is None:  # trained before there were cards
            continue
        config = results.configs.get(model.training.label, context.config)
        text = render_card(
            config, context.task, model.fingerprint, model.record, figures, form
        ).encode()
        model.folder.write_bytes(f"{folder}/{CARD}", text)
        tracker.log_artifact(f"adapters/{context.config.called(model.training)}/{CARD}", text)
