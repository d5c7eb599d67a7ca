"""One trial: a Ray Train run inside a Tune function, scored on its way, stopped when asked to.

Runs in an actor of Ray Tune. What it finds stands on storage before it is reported, and a trial
that is over only reports what stands there: so a search is continued by running it again.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from paft_ray.cluster.control import BoardHandle
from paft_ray.cluster.remote import own_errors
from paft_ray.config import PaftVariant, Training, TuningConfig, total_steps
from paft_ray.config.errors import PaftError, WorkersLostError
from paft_ray.runs.context import RUN_KEY, RunContext
from paft_ray.storage.artifacts import load_manifest
from paft_ray.tasks import Example
from paft_ray.training.distributed.trainer import Orders, train_until, training_folder
from paft_ray.training.distributed.worker import Record
from paft_ray.training.state.retries import retry_storage
from paft_ray.training.validation import ValidationPlan, read_results, report_steps
from paft_ray.tuning.goal import TrialRecord, reached, read_record, trial_label, write_record
from paft_ray.tuning.pools import SearchPools, generation_key
from paft_ray.tuning.space import Sample, apply

logger = logging.getLogger(__name__)

GOAL = "goal"
"""Name of the figure that Tune sees."""
REPORT = "report"
"""Name of the time that Tune sees: how many reports there were."""


@dataclass(frozen=True)
class TrialSetup:
    """What all trials of a search have in common; travels to them."""

    context: RunContext
    """The search's, with a task and pools that have no test split."""
    tuning: TuningConfig
    pools: SearchPools
    board: BoardHandle
    """Where a trial is told to stop."""
    cpus: float
    """CPUs of each worker of a trial, where none are configured."""
    set_aside: float
    """Of these, what the trial's own process takes."""


def trial_key(number: int) -> str:
    """Key of a trial's tracked run."""
    return f"trial/{number:03d}"


def stop_key(number: int) -> str:
    """What the board holds for a trial that is to stop."""
    return f"stop/{number}"


def trial_session(context: RunContext, sample: Sample) -> RunContext:
    """A search's context as one trial sees it."""
    return context.of_config(apply(context.config, sample))


def trial_training(context: RunContext, number: int) -> Training:
    """The training of a trial."""
    return Training(PaftVariant(type="paft", name=trial_label(number)), context.config.seed)


def validation_examples(context: RunContext, tuning: TuningConfig) -> tuple[Example, ...]:
    """The examples that trials are scored on."""
    return context.task.validation[: tuning.examples]


def run_trial(config: Mapping[str, Any], setup: TrialSetup) -> None:
    """What Tune calls: train, report, and leave the record of it."""
    from ray import tune

    number, sample = int(config["number"]), config["sample"]
    context = trial_session(setup.context, sample)
    training = trial_training(context, number)
    folder = training_folder(context, training)
    run = setup.context.run_folder
    record = read_record(run, number) or TrialRecord(number, sample)
    steps = report_steps(
        total_steps(context.config.train, len(context.task.train)), setup.tuning.reports
    )
    told: set[int] = set()

    def report() -> None:
        """Tell Tune of what is new on storage."""
        found = retry_storage(lambda: read_results(folder), "reading results", folder.path())
        for index, step in enumerate(steps):
            if step in found and step not in told:
                told.add(step)
                figure = reached(setup.tuning.goal, found[step])
                tune.report({GOAL: figure, REPORT: index + 1, "step": step})

    report()
    if record.over:
        return
    started = time.perf_counter()
    try:
        finished = _train(context, training, steps, record, setup, report)
        manifest = load_manifest(folder) if finished else None
        about = {} if manifest is None else manifest.about
        record = replace(record, state="finished" if finished else "stopped", about=about)
    except WorkersLostError:
        raise  # no fault of the sample: Tune begins the trial anew, or the next command does
    except PaftError as error:
        logger.exception("trial %d failed", number)
        record = replace(record, state="failed", reason=str(error))
    write_record(run, replace(record, seconds=time.perf_counter() - started))
    report()


def _train(
    context: RunContext,
    training: Training,
    steps: tuple[int, ...],
    record: TrialRecord,
    setup: TrialSetup,
    report: Callable[[], None],
) -> bool:
    """Train in a thread, and report from this one, which Tune knows; whether it came to its end."""
    pool = setup.pools.of(record.sample, context.config.prompts.pool_size)
    prompts = pool.validation[: setup.tuning.prompts]
    news = threading.Event()
    orders = Orders(
        validation=ValidationPlan(
            tuple((prompt.id, prompt.text) for prompt in prompts),
            validation_examples(context, setup.tuning),
            frozenset(steps),
        ),
        validated=news.set,
        stopped=lambda: bool(setup.board.held(stop_key(record.number))),
        cpus=context.config.train.workers.cpus or setup.cpus,
        set_aside=setup.set_aside,
        record=Record(trial_key(record.number), record.label, RUN_KEY),
        pool=setup.pools.registered[generation_key(record.sample)],
    )
    with ThreadPoolExecutor(1, "train") as executor, own_errors():
        training_over = executor.submit(train_until, context, pool.train, training, pool, orders)
        training_over.add_done_callback(lambda _: news.set())
        while not training_over.done():
            news.wait()
            news.clear()
            report()
        return training_over.result() is not None
