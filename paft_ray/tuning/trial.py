"""One trial: its record, and the Tune function that trains it, scores it and stops it early.

The function runs in an actor of Ray Tune and starts a Ray Train run. Results are on storage before
they are reported, and a trial that is over only reports stored results, so that running a search
again continues it.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from paft_ray.cluster.control import Control
from paft_ray.cluster.remote import own_errors
from paft_ray.config import PaftVariant, Training, TuningConfig, total_steps
from paft_ray.config.errors import DiskFullError, PaftError, WorkersLostError
from paft_ray.evaluation.goal import reached
from paft_ray.runs.context import RUN_KEY, RunContext
from paft_ray.serving.record import TrainingRecord
from paft_ray.storage.artifacts import load_manifest
from paft_ray.storage.paths import Storage
from paft_ray.tasks import Example, Task
from paft_ray.tracking import TrackedRun
from paft_ray.training.distributed.trainer import train_until
from paft_ray.training.identity import training_folder
from paft_ray.training.job import TrainingHooks
from paft_ray.training.state.retries import retry_storage
from paft_ray.training.validation import ValidationPlan, read_results, report_steps
from paft_ray.tuning.pools import SearchPools, generation_key
from paft_ray.tuning.space import apply

logger = logging.getLogger(__name__)

GOAL = "goal"
"""Name of the goal's figure in reports to Tune."""
REPORT = "report"
"""Name of the number of a report, which Tune uses as its time."""
TRIAL_CPUS = 0.01
"""CPUs that a trial's own process, which only waits, takes from its workers."""
State = Literal["begun", "finished", "stopped", "failed"]
_FOLDER = "trials"


@dataclass(frozen=True)
class TrialRecord:
    """One trial as it is stored; its results are in the folder of its training."""

    number: int
    """From 0."""
    sample: Mapping[str, Any]
    state: State = "begun"
    """Finished with all steps, stopped early by the scheduler, or failed for `reason`."""
    seconds: float = 0.0
    """Wall-clock time of the attempt that ended it, loading included."""
    reason: str = ""
    tracked: bool = False
    """Whether its tracked run has its final state."""
    about: TrainingRecord | None = None
    """The record of its training, where that is finished."""

    @property
    def label(self) -> str:
        """The label of its variant, which names its folder."""
        return trial_label(self.number)

    @property
    def over(self) -> bool:
        """Return whether there is nothing left to do."""
        return self.state != "begun"


def trial_label(number: int) -> str:
    """Label of a trial's variant."""
    return f"trial_{number:03d}"


def write_record(run: Storage, record: TrialRecord) -> None:
    """Write a trial's record into a search's folder."""
    about = {} if record.about is None else record.about.to_json()
    content = {**asdict(record), "about": about}
    run.child(_FOLDER).write_json(f"{record.number:03d}.json", content)


def read_record(run: Storage, number: int) -> TrialRecord | None:
    """One trial's record, if it has begun."""
    name, folder = f"{number:03d}.json", run.child(_FOLDER)
    return _from_json(folder.read_json(name)) if folder.exists(name) else None


def read_records(run: Storage) -> list[TrialRecord]:
    """All trials that have begun, by number."""
    folder = run.child(_FOLDER)
    records = [_from_json(folder.read_json(name)) for name in folder.names()]
    return sorted(records, key=lambda record: record.number)


def _from_json(content: dict[str, Any]) -> TrialRecord:
    about = content.pop("about", None)
    return TrialRecord(**content, about=TrainingRecord.from_json(about) if about else None)


@dataclass(frozen=True)
class TrialSetup:
    """Inputs that all trials of a search share; sent to their processes."""

    context: RunContext
    """The search's, with a task and pools that have no test split."""
    tuning: TuningConfig
    pools: SearchPools
    control: Control
    """Holds the requests to stop trials, by number."""
    cpus: float
    """CPUs of each worker of a trial, where none are configured."""
    set_aside: float
    """CPUs of the trial's own process, taken from its workers."""


def trial_key(number: int) -> str:
    """Key of a trial's tracked run."""
    return f"trial/{number:03d}"


def trial_training(number: int, seed: int) -> Training:
    """The training of a trial."""
    return Training(PaftVariant(type="paft", name=trial_label(number)), seed)


def results_of(context: RunContext, number: int) -> dict[int, NDArray[np.float64]]:
    """A trial's results so far: step to whether each answer is right, [P prompts, E examples]."""
    training = trial_training(number, context.config.seed)
    return read_results(training_folder(context.run_folder, training))


def validation_examples(task: Task, tuning: TuningConfig) -> tuple[Example, ...]:
    """The examples that trials are scored on."""
    return task.validation[: tuning.examples]


def run_trial(config: Mapping[str, Any], setup: TrialSetup) -> None:
    """Train, report and write the record of a trial; Tune runs this function."""
    from ray import tune

    number, sample = int(config["number"]), config["sample"]
    run = setup.context.run_folder
    context = setup.context.of_config(apply(setup.context.config, sample))
    folder = training_folder(context.run_folder, trial_training(number, context.config.seed))
    record = read_record(run, number) or TrialRecord(number, sample)
    train = context.config.train
    examples = context.task.learned_by(train.objective)
    steps = report_steps(total_steps(train, len(examples)), setup.tuning.reports)
    reported: set[int] = set()

    def report() -> None:
        """Report new results on storage to Tune."""
        found = retry_storage(lambda: read_results(folder), "reading results", folder.path())
        for index, step in enumerate(steps):
            if step in found and step not in reported:
                reported.add(step)
                figure = reached(setup.tuning.goal, found[step])
                tune.report({GOAL: figure, REPORT: index + 1, "step": step})

    report()
    if record.over:
        return
    started = time.perf_counter()
    try:
        finished = _train(context, setup, record, steps, report)
        manifest = load_manifest(folder) if finished else None
        about = None if manifest is None else TrainingRecord.from_json(manifest.about)
        record = replace(record, state="finished" if finished else "stopped", about=about)
    except (WorkersLostError, DiskFullError):
        raise  # not the sample's fault: Tune or the next command starts the trial again
    except PaftError as error:
        logger.exception("trial %d failed", number)
        record = replace(record, state="failed", reason=str(error))
    write_record(run, replace(record, seconds=time.perf_counter() - started))
    report()


def _train(
    context: RunContext,
    setup: TrialSetup,
    record: TrialRecord,
    steps: tuple[int, ...],
    report: Callable[[], None],
) -> bool:
    """Train in a thread and report from this one, as Tune requires.

    Returns:
        Whether the training is complete.
    """
    pool = setup.pools.of(record.sample, context.config.prompts.pool_size)
    prompts = pool.validation[: setup.tuning.prompts]
    training = trial_training(record.number, context.config.seed)
    changed = threading.Event()
    hooks = TrainingHooks(
        validation=ValidationPlan.of(
            prompts, validation_examples(context.task, setup.tuning), steps
        ),
        validated=changed.set,
        stopped=lambda: setup.control.stop_requested(record.number),
        cpus=context.config.train.workers.cpus or setup.cpus,
        set_aside=setup.set_aside,
        tracked=TrackedRun(trial_key(record.number), record.label, RUN_KEY),
        pool=setup.pools.registered[generation_key(record.sample)],
    )
    with ThreadPoolExecutor(1, "train") as executor, own_errors():
        training_over = executor.submit(train_until, context, pool.train, training, pool, hooks)
        training_over.add_done_callback(lambda _: changed.set())
        while not training_over.done():
            changed.wait()
            changed.clear()
            report()
        return training_over.result() is not None
