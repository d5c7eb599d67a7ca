"""A whole run: pool, variants at equal steps, evaluation of the base model and of every variant.

Each stage finds what is complete and does the rest, so a run that was killed is finished by
calling it again, and a finished one only reads its summary.
"""

import json
import logging
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa

from paft_ray.artifacts import (
    MANIFEST,
    ArtifactWriter,
    Storage,
    fingerprint,
    load_manifest,
    to_json,
    to_parquet,
)
from paft_ray.card import CARD, Form, render_card
from paft_ray.comparators import prompts_by_variant
from paft_ray.config import (
    BASE,
    Config,
)
from paft_ray.errors import ConfigError
from paft_ray.evaluation.grid import GridModel, GridScores, score_grid, score_part
from paft_ray.evaluation.summary import Unscored, summarise
from paft_ray.lease import lease
from paft_ray.loading import dump_config, result_fields
from paft_ray.modeling.base import BaseSource, locate_base
from paft_ray.modeling.model import result_folder
from paft_ray.modeling.trial import refuse_overlong
from paft_ray.prompts.build import build_prompt_pool, pool_fingerprint
from paft_ray.prompts.pool import POOL_FILE, Prompt, PromptPool
from paft_ray.prompts.template import parse
from paft_ray.report import POOL_PAGE, card_figures, write_pool_page, write_report
from paft_ray.session import RUN_KEY, Session
from paft_ray.tasks import Example
from paft_ray.tasks.base import SPLITS
from paft_ray.tracking import (
    Metric,
    Tracker,
    end_open_runs,
    open_tracker,
    pool_version,
    prepare_tracking,
    replay,
    top_metric,
)
from paft_ray.training.trainer import (
    TrainedAdapter,
    find_trained,
    provenance,
    train,
)

logger = logging.getLogger(__name__)


class StageClock:
    """Seconds per stage, added up over the attempts of a run that was interrupted.

    What a process was at when it was killed outright is not in them.
    """

    _file = "seconds.json"

    def __init__(self, folder: Storage) -> None:
        self._folder = folder
        self.seconds: dict[str, float] = (
            folder.read_json(self._file) if folder.exists(self._file) else {}
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        except BaseException:
            with suppress(Exception):  # what stopped the stage is what the user has to read
                self._keep(name, started)
            raise
        self._keep(name, started)

    def _keep(self, name: str, started: float) -> None:
        spent = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self.seconds[name] = round(spent, 3)
        self._folder.write_json(self._file, self.seconds)


@contextmanager
def claimed(
    session: Session, overwrite: bool = False, made_from: Mapping[str, str] | None = None
) -> Iterator[Tracker]:
    """Hold the run's name, record its configuration, and track it until the block ends.

    Args:
        session: The run.
        overwrite: Delete what another configuration left under this name.
        made_from: What else must stay the same under this name, as fingerprints; `work` says what
            kind of thing it is.

    Raises:
        ConfigError: Another live process holds the name, or what lies under it was made from other
            data or weights.
    """
    folder = session.run_folder
    content = {
        "work": "run",
        "task": session.task_identity,
        "model": session.model_identity,
        **(made_from or {}),
    }
    if not overwrite:
        _refuse_other_content(folder, content)
    with lease(folder, f"run {session.config.name!r}", tell=session.screen.line):
        if folder.exists("config.json"):
            _end_earlier(session, overwrite)
        if overwrite:
            for name in set(folder.names()) - {"lease.json", "log.txt"}:
                folder.delete(name)
        record = {
            "config": dump_config(session.config),
            "results_from": result_fields(session.config),
            "content": content,
        }
        folder.write_json("config.json", record)
        tracker = open_tracker(session.tracking, RUN_KEY, session.config.name)
        tracker.log_params(record["config"])
        tracker.log_artifact("config.json", folder.path("config.json"))
        status = "FAILED"
        try:
            yield tracker
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            tracker.finish(status)
            if waiting := replay(session.tracking):
                session.screen.line(
                    f"tracking: {waiting} batches wait in {folder.path('spool')}; they are sent "
                    "when the same command runs again"
                )
            else:
                end_open_runs(session.tracking)


def _end_earlier(session: Session, overwrite: bool) -> None:
    """Close the books of the process that had this name before and may have died."""
    # a run that is overwritten is another one in tracking than what begins now
    target = prepare_tracking(session.config, session.storage) if overwrite else session.tracking
    if not replay(target):
        end_open_runs(target)


def _refuse_other_content(folder: Storage, content: Mapping[str, str]) -> None:
    """Places are no part of a configuration's identity, but what lies there is."""
    if not folder.exists("config.json"):
        return
    recorded = {"work": "run", **folder.read_json("config.json").get("content", content)}
    if recorded["work"] != content["work"]:
        raise ConfigError(
            f"name: {folder.path()} holds a {recorded['work']}, this is a {content['work']}: "
            "choose another name, or pass --overwrite"
        )
    if changed := [part for part in content if recorded.get(part) != content[part]]:
        raise ConfigError(
            f"name: {folder.path()} was made from another {' and another '.join(changed)}: files "
            "behind the same or another path differ; choose another name, or pass --overwrite"
        )


def run(session: Session, overwrite: bool = False) -> dict[str, Any]:
    """Do all stages, or read the summary of a run that is complete.

    Returns:
        The content of `summary.json`.
    """
    if not overwrite and (summary := finished_summary(session)) is not None:
        return summary
    with claimed(session, overwrite) as tracker:
        clock = StageClock(session.run_folder)
        with clock.stage("prompt_pool"):
            pool = prepare_pool(session)
            check_lengths(session, pool)
        with clock.stage("choose_prompts"):
            prompts = prompts_by_variant(session, pool)
        trained = []
        for training in session.config.trainings:
            with clock.stage(f"train_{training.label}"):
                trained.append(train(session, prompts[training.label], training, pool))
        with clock.stage("evaluation"):
            scores = evaluate_models(session, pool, trained)
        return conclude(session, pool, trained, scores, clock.seconds, tracker)


def finished_summary(session: Session) -> dict[str, Any] | None:
    """The summary of a run that is complete under this configuration; needs no Ray."""
    manifest = load_manifest(session.run_folder)
    if manifest is None or manifest.fingerprint != _identity(session):
        return None
    session.screen.line(f"run {session.config.name} is complete, nothing to do")
    replay(session.tracking)
    return session.run_folder.read_json("summary.json")


def _identity(session: Session) -> str:
    """Configuration and content: files behind the same paths may have changed."""
    content = [session.task_identity, session.model_identity, pool_fingerprint(session)]
    return fingerprint("run", result_fields(session.config), content)


def prepare_pool(session: Session) -> PromptPool:
    """Build the pool or find it built, write its page, and record both.

    In MLflow the pool is a table of a run of its own, and a version in the registry, which the
    trainings name.
    """
    pool = build_prompt_pool(session)
    folder = session.storage.child("pools", pool_fingerprint(session))
    if not folder.exists(POOL_PAGE):
        write_pool_page(folder)
    name, alias = pool_version(session.task.name, pool.fingerprint)
    tags = {"paft.pool": f"models:/{name}@{alias}"}
    tracker = open_tracker(
        session.tracking, f"pool/{pool.fingerprint}", f"{session.config.name}/pool", RUN_KEY, tags
    )
    rows = [
        [prompt.id, prompt.split, prompt.text, prompt.cluster, prompt.origin.llm or ""]
        for split in SPLITS
        for prompt in pool.prompts(split)
    ]
    table = {"columns": ["prompt_id", "split", "text", "cluster", "llm"], "data": rows}
    tracker.log_artifact("pool/pool.json", to_json(table))
    for file in (POOL_FILE, POOL_PAGE):
        tracker.log_artifact(f"pool/{file}", folder.path(file))
    shown = [{"path": "pool/pool.json", "type": "table"}]
    tracker.set_tags({"mlflow.loggedArtifacts": json.dumps(shown)})
    tracker.register(name, alias, "pool")
    tracker.finish("FINISHED")
    return pool


def check_lengths(
    session: Session,
    pool: PromptPool,
    validation: tuple[Sequence[Prompt], Sequence[Example]] = ((), ()),
) -> None:
    """Refuse what does not fit `task.max_length`, in training and on held-out prompts, at once.

    Args:
        session: The run.
        pool: Its prompts.
        validation: Prompts and examples that models are scored on while they are trained.

    Raises:
        DataError: An example is too long under a prompt, and `task.overlong` is `refuse`.
    """
    config, task = session.config, session.task
    try:
        if config.task.overlong == "trim":
            return
        base = locate_base(config.model.path, config.model.revision, session.storage)
        pairs = (
            (pool.train, task.train),
            (pool.test[: config.evaluation.prompts], task.test[: config.evaluation.examples]),
            validation,
        )
        texts = [
            ([(p.id, p.text) for p in prompts], examples)
            for prompts, examples in pairs
            if prompts and examples
        ]
        session.trial.begin(_read_longest, config, base, task.slots, task.choices, texts)
        session.trial.finish()
    finally:
        session.trial.close()


def _read_longest(
    config: Config,
    base: BaseSource,
    slots: Sequence[str],
    choices: Sequence[str] | None,
    texts: Sequence[tuple[Sequence[tuple[str, str]], Sequence[Example]]],
) -> None:
    """Runs in the trial process, which has a tokenizer."""
    from paft_ray.modeling.model import load_tokenizer
    from paft_ray.modeling.tokenization import TextEncoder

    tokenizer = load_tokenizer(base.local(), config.model.revision)
    encoder = TextEncoder(tokenizer, config.model.chat_template, config.task.max_length)
    for prompts, examples in texts:
        rendered = [(id, text, parse(text, slots).render) for id, text in prompts]
        refuse_overlong(encoder, rendered, examples, choices)


def train_all(session: Session, pool: PromptPool) -> list[TrainedAdapter]:
    """Train every variant with every seed, or find them trained."""
    prompts = prompts_by_variant(session, pool)
    return [train(session, prompts[t.label], t, pool) for t in session.config.trainings]


def find_all_trained(session: Session) -> list[TrainedAdapter]:
    """Every training of this run that is complete; needs no Ray.

    Raises:
        ConfigError: None is.
    """
    trained = [
        adapter
        for training in session.config.trainings
        if (adapter := find_trained(session, training)) is not None
    ]
    if not trained:
        raise ConfigError(
            f"name: run {session.config.name!r} has no trained variant in "
            f"{session.storage.path()}: run `paft train` or `paft run` with it first"
        )
    return trained


def evaluate(session: Session) -> dict[str, Any]:
    """Evaluate the base model and every variant whose training is complete.

    Raises:
        ConfigError: No variant of this run is trained.
    """
    trained = find_all_trained(session)
    with claimed(session) as tracker:
        clock = StageClock(session.run_folder)
        with clock.stage("prompt_pool"):
            pool = prepare_pool(session)
        for adapter in trained:
            if adapter.about.get("made_from") != provenance(session, pool):
                raise ConfigError(
                    f"{adapter.folder.path()} was trained on other data, prompts or weights than "
                    "the configuration names now: train again under another name"
                )
        with clock.stage("evaluation"):
            scores = evaluate_models(session, pool, trained)
        return conclude(session, pool, trained, scores, clock.seconds, tracker)


def evaluate_models(
    session: Session, pool: PromptPool, trained: Sequence[TrainedAdapter]
) -> GridScores:
    """Score the base model and the trained variants on held-out prompts and test examples."""
    evaluation = session.config.evaluation
    prompts = pool.test[: evaluation.prompts]
    examples = session.task.test[: evaluation.examples]
    weights = result_folder(session.config.model.peft)
    models = [
        GridModel(BASE, session.config.seed, ""),
        *(
            GridModel(t.training.label, t.training.seed, t.content, t.folder.child(weights))
            for t in trained
        ),
    ]
    with session.screen.stage("evaluate") as stage:
        part = ""
        if (estimate := evaluation.estimate) is None:
            scores = score_grid(session, models, prompts, examples, stage)
        else:
            scores = score_part(session, models, prompts, examples, stage, estimate.share)
            whole = len(models) * len(prompts) * len(examples)
            part = f", {scores.table.num_rows / whole:.0%} of them scored"
        stage.finish(
            f"{len(models)} models x {len(prompts)} held-out prompts x {len(examples)} examples"
            f"{part}"
        )
    return scores


def conclude(
    session: Session,
    pool: PromptPool,
    trained: Sequence[TrainedAdapter],
    scores: GridScores,
    seconds: Mapping[str, float],
    tracker: Tracker,
    configs: Mapping[str, Config] | None = None,
) -> dict[str, Any]:
    """Write scores, summary and report, and track them; returns the summary.

    The run is complete, and has a manifest, when all its variants are in the summary.

    Args:
        session: The run.
        pool: Whose held-out prompts were asked.
        trained: What was compared with the base model.
        scores: Of all of them.
        seconds: Stage to wall-clock time.
        tracker: The run's.
        configs: By label the configuration of a variant, where it is not the run's own.
    """
    folder, evaluation = session.run_folder, session.config.evaluation
    folder.delete(MANIFEST)  # what it vouched for is about to change
    labels = list(dict.fromkeys([BASE, *(t.training.label for t in trained)]))
    seeds = list(dict.fromkeys(t.training.seed for t in trained))
    examples = session.task.test[: evaluation.examples]
    split = pa.array(["test"] * scores.table.num_rows, pa.string())
    table = scores.table.append_column("split", split)
    summary = summarise(
        table,
        labels,
        evaluation.top_thresholds or (session.task.top_threshold,),
        seeds,
        seconds,
        estimate=None
        if evaluation.estimate is None
        else Unscored({e.id: e.answer for e in examples}, session.task.choices is not None),
    )
    for label, seconds_each in scores.seconds_per_example.items():
        summary["models"][label]["seconds_per_example"] = seconds_each
    for label in labels[1:]:
        summary["models"][label] |= _spent([t for t in trained if t.training.label == label])
    folder.write_bytes("scores.parquet", to_parquet(table))
    folder.write_bytes("prompts.parquet", to_parquet(pool.to_table()))
    folder.write_bytes("examples.parquet", to_parquet(_examples_table(session)))
    folder.write_bytes("summary.json", to_json(summary))
    with session.screen.stage("report") as stage:
        path = write_report(folder)
        stage.finish(path)
    _write_cards(session, trained, summary, tracker, configs or {})
    _track(session, summary, tracker)
    if len(trained) == len(session.config.trainings):
        writer = ArtifactWriter(folder)
        for name in ("config.json", "summary.json", "scores.parquet", "report.html"):
            writer.note(name)
        writer.commit(_identity(session), {"pool": pool.fingerprint})
    return summary


def _examples_table(session: Session) -> pa.Table:
    """The test examples that were asked, for whoever reads the scores."""
    examples = session.task.test[: session.config.evaluation.examples]
    return pa.table(
        {
            "example_id": [e.id for e in examples],
            "fields": [json.dumps(dict(e.fields), ensure_ascii=False) for e in examples],
            "answer": [e.answer for e in examples],
        }
    )


def _spent(trained: Sequence[TrainedAdapter]) -> dict[str, Any]:
    """What one variant's trainings took, on average: the same steps, about as many tokens."""
    mean = {
        kind: statistics.fmean(t.about[kind] for t in trained)
        for kind in ("tokens", "answer_tokens", "seconds")
        if all(kind in t.about for t in trained)
    }
    return {"steps": trained[0].about["steps"], **{f"trained_{k}": v for k, v in mean.items()}}


def _write_cards(
    session: Session,
    trained: Sequence[TrainedAdapter],
    summary: Mapping[str, Any],
    tracker: Tracker,
    configs: Mapping[str, Config],
) -> None:
    """The models' cards again, now that there are figures."""
    figures = card_figures(summary)
    form: Form = "model" if session.config.model.peft is None else "adapter"
    folder = result_folder(session.config.model.peft)
    for model in trained:
        if "prompt" not in model.about:  # trained before there were cards
            continue
        config = configs.get(model.training.label, session.config)
        text = render_card(
            config, session.task, model.fingerprint, model.about, figures, form
        ).encode()
        model.folder.write_bytes(f"{folder}/{CARD}", text)
        tracker.log_artifact(f"adapters/{session.config.called(model.training)}/{CARD}", text)


def _track(session: Session, summary: Mapping[str, Any], tracker: Tracker) -> None:
    folder = session.run_folder
    for label, figures in summary["models"].items():
        metrics = {
            Metric.EVAL_ACCURACY_MEAN: figures["mean"],
            Metric.EVAL_ACCURACY_STD: figures["std"],
            Metric.EVAL_ACCURACY_STD_BY_CHANCE: figures["std_by_chance"],
            Metric.EVAL_ACCURACY_WORST_PROMPT: figures["min"],
            Metric.EVAL_ACCURACY_P05: figures["p05"],
            Metric.EVAL_ACCURACY_BEST_PROMPT: figures["max"],
            Metric.EVAL_CONSISTENCY: figures["consistency"],
            Metric.EVAL_PAIRWISE_AGREEMENT: figures["pairwise_agreement"],
            Metric.EVAL_FLIP_RATE: figures["flip_rate"],
            Metric.EVAL_CALIBRATION_ERROR: figures["calibration_error"],
            Metric.EVAL_GENERATED_TOKENS: figures["generated_tokens"],
            Metric.EVAL_SECONDS_PER_EXAMPLE: figures.get("seconds_per_example"),
            **{top_metric(float(t)): share for t, share in figures["top"].items()},
        }
        known = {f"{label}/{k}": value for k, value in metrics.items() if value is not None}
        tracker.log_metrics(known, 0)
    for name in folder.names():
        if name.endswith((".parquet", ".html", ".png")) or name == "summary.json":
            tracker.log_artifact(name, folder.path(name))
