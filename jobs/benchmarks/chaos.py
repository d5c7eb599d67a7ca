"""Kills of one training on two nodes, and whether it ends as the undisturbed one did.

A small training runs through the real command on a cluster of a head and one node per worker, each
in network namespaces of its own: once undisturbed, and once while at random moments a worker
process, the driver, or a whole node is killed. Afterwards every step's examples, prompts and losses
and the adapter's tensors are compared with the undisturbed run's: bit for bit, or, where the number
of workers changed on the way, the tensors to a relative 1e-3. Needs root, util-linux and iproute2.

python jobs/benchmarks/chaos.py [--kills 20] [--seed 0] [--change-workers] [--json]
"""

import argparse
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from comparing import Comparison, compare
from nodes import Lan, Node, NodesUnavailable, is_running, lan, processes_of
from records import print_record
from tiny import training_settings
from watched import LostRunError, Training

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("worker", "driver", "node", "cable")
"""SIGKILL of a training worker; of the driver, whose command is then run again; of all processes of
a node; a node's cable pulled, so that its processes live on until Ray has given the node up."""
EVERY_STEPS = 5
TOLERANCE = 1e-3
WORKER_TITLE = "RayTrainWorker"


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill and what came of it."""

    kill: int
    kind: str
    workers: int
    """Of the training that went on afterwards."""
    at_step: int
    """The newest checkpoint when the training had ended."""
    resumed_from: int
    """The step that it went on from."""
    seconds: float
    """From the kill to the first checkpoint of a step that was not trained before."""
    went_on: bool
    """Whether no earlier checkpoint was used, and no command failed."""


def ranks(cluster: Lan) -> set[int]:
    """Processes of all training workers that can be reached."""
    return {pid for node in cluster.workers for pid in processes_of(node, WORKER_TITLE)}


def schedule(kills: int, steps: int, rng: random.Random) -> Iterator[tuple[str, int]]:
    """What is killed, and from which step on: every kind equally often, spread over the training.

    Yields:
        Kind and step.
    """
    kinds = [KINDS[number % len(KINDS)] for number in range(kills)]
    rng.shuffle(kinds)
    for number, kind in enumerate(kinds):
        yield kind, int((number + rng.random()) * steps / (kills + 1))


def disturb(
    cluster: Lan, training: Training, options: argparse.Namespace, rng: random.Random
) -> Iterator[Kill]:
    """Run a training and kill parts of it, each when it trains again after the one before.

    Yields:
        Every kill, as soon as training has gone on.

    Raises:
        LostRunError: It did not go on, although the command was run once more.
    """
    workers, trained = options.workers, 0
    training.start(workers)
    for number, (kind, step) in enumerate(schedule(options.kills, options.steps, rng), 1):
        moment = max(step, trained + EVERY_STEPS)
        training.wait(lambda moment=moment: training.newest() >= moment, f"step {moment}")
        time.sleep(rng.uniform(0.0, 0.5))  # between two checkpoints, or while one is written
        struck, old = time.time(), ranks(cluster)
        cut_off = strike(cluster, training, kind, rng)
        if kind == "driver":
            if options.change_workers:
                workers = change_workers(cluster, workers, options.workers, rng)
            training.start(workers)
        if cut_off is not None:
            old -= set(processes_of(cut_off, WORKER_TITLE))
        lived = go_on(training, workers, lambda old=old: not any(map(is_running, old)))
        ended, at_step = time.time(), training.newest()
        if kind in ("node", "cable"):
            cluster.start(cpus=1)
        lived &= go_on(training, workers, lambda at=at_step: training.newest() > at)
        seconds, trained = round(time.time() - struck, 1), training.newest()
        resumed = training.resumed_from(ended)
        if cut_off is not None:
            cluster.kill(cut_off)
        yield Kill(number, kind, workers, at_step, resumed, seconds, lived and resumed >= at_step)
    training.finish()


def strike(cluster: Lan, training: Training, kind: str, rng: random.Random) -> Node | None:
    """Kill something; returns the node that still runs, if one was cut off."""
    if kind == "worker":
        os.kill(rng.choice(sorted(ranks(cluster))), signal.SIGKILL)
    elif kind == "driver":
        training.kill_driver()
    elif kind == "node":
        cluster.kill(rng.choice(cluster.workers))
    else:
        node = rng.choice(cluster.workers)
        cluster.cut(node)
        return node
    return None


def change_workers(cluster: Lan, workers: int, most: int, rng: random.Random) -> int:
    """The other number of workers, with a node for each: one is lost, or a fresh one comes."""
    if workers == most:
        cluster.kill(rng.choice(cluster.workers))
        return most - 1
    cluster.start(cpus=1)
    return most


def go_on(training: Training, workers: int, until: Callable[[], bool]) -> bool:
    """Wait for something; where the command fails, run it once more. Whether it did not fail.

    Raises:
        LostRunError: It failed twice, or nothing happened.
    """
    try:
        training.wait(until, "going on after a kill")
    except LostRunError as error:
        assert training.driver is not None
        if training.driver.poll() is None:
            raise
        print(error, flush=True)
        training.start(workers)
        training.wait(until, "going on after a kill and a failure")
        return False
    return True


@contextmanager
def scratch(given: str | None) -> Iterator[Path]:
    """The folder for everything: a given one, which stays, or a temporary one."""
    if given is not None:
        Path(given).mkdir(parents=True, exist_ok=True)
        yield Path(given).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="paft-chaos-") as folder:
        yield Path(folder)


def measure(folder: Path, options: argparse.Namespace) -> tuple[list[Kill], Comparison]:
    """Run both trainings; returns the kills, and how the two differ."""
    for left in ("lan", "disturbed"):
        shutil.rmtree(folder / left, ignore_errors=True)
    inputs = folder / "inputs"
    settings = training_settings(
        inputs, "chaos", options.seed, options.steps, EVERY_STEPS, options.model
    )
    environment = {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "RAY_worker_niceness": "0",
        "GOMP_SPINCOUNT": "50000",
        # a rank waits in `report` until Ray Train looks, every 2 s by default: steps as short as
        # these would spend their time there, and nearly every kill would hit them there
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    }
    with lan(folder / "lan", environment) as cluster:
        cluster.start(cpus=0)
        for _ in range(options.workers):
            cluster.start(cpus=1)
        started = time.monotonic()
        plain = Training(cluster, folder / f"undisturbed-{options.steps}-{options.seed}", settings)
        plain.start(options.workers)
        plain.finish()
        print(f"undisturbed in {time.monotonic() - started:.0f} s", flush=True)
        disturbed = Training(cluster, folder / "disturbed", settings)
        kills = []
        for kill in disturb(cluster, disturbed, options, random.Random(options.seed)):
            kills.append(kill)
            print(
                f"kill {kill.kill:>2}: {kill.kind:<6} at step {kill.at_step:>5}, "
                f"from {kill.resumed_from:>5} on with {kill.workers} workers "
                f"after {kill.seconds:>5.1f} s{'' if kill.went_on else ', NOT as promised'}",
                flush=True,
            )
    return kills, compare(disturbed.folder, plain.folder)


def main() -> None:
    """Measure, print a table, and with --json one line for machines at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the training and of the kills")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, help="100 for every kill by default")
    parser.add_argument("--change-workers", action="store_true", help="at every kill of the driver")
    parser.add_argument("--model", help="a base model in place of a tiny one with random weights")
    parser.add_argument("--folder", help="keep everything here; an undisturbed run is used again")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.steps = options.steps or 100 * options.kills
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with scratch(options.folder) as folder:
            kills, comparison = measure(folder, options)
    except NodesUnavailable as error:
        sys.exit(f"not measured: {error}")
    except LostRunError as error:
        sys.exit(f"the training was lost: {error}")
    ratios = report(kills, comparison)
    if options.json:
        rows = [asdict(kill) for kill in kills]
        packages = ("ray", "torch", "deepspeed", "peft")
        print_record("chaos", options, packages, rows, ratios, comparison=asdict(comparison))
    if not _as_promised(ratios, options.change_workers):
        sys.exit("the disturbed training is not the undisturbed one")


def report(kills: list[Kill], comparison: Comparison) -> dict[str, float]:
    """Print what came of each kind of kill and how the trainings differ; the shares thereof."""
    for kind in KINDS:
        seconds = sorted(kill.seconds for kill in kills if kill.kind == kind)
        on = sum(kill.went_on for kill in kills if kill.kind == kind)
        if seconds:
            print(
                f"{kind:<8} {on} of {len(seconds)} went on, after {seconds[0]:.1f} to "
                f"{seconds[-1]:.1f} s, in the median {statistics.median(seconds):.1f} s"
            )
    other = comparison.other_draws + comparison.other_losses
    print(
        f"rows     {comparison.rows - other} of {comparison.rows} equal "
        f"({comparison.other_draws} other draws, {comparison.other_losses} other losses)\n"
        f"tensors  {comparison.tensors - comparison.other_tensors} of {comparison.tensors} equal, "
        f"largest relative difference {comparison.relative:.1e}"
    )
    return {
        "went on / kills": sum(kill.went_on for kill in kills) / max(1, len(kills)),
        "equal draws / rows": 1 - comparison.other_draws / comparison.rows,
        "equal losses / rows": 1 - other / comparison.rows,
        "equal tensors / tensors": 1 - comparison.other_tensors / comparison.tensors,
        "adapter difference / adapter": comparison.relative,
    }


def _as_promised(ratios: dict[str, float], changed: bool) -> bool:
    exact = ["went on / kills", "equal draws / rows"]
    if not changed:
        exact += ["equal losses / rows", "equal tensors / tensors"]
    within = ratios["adapter difference / adapter"] <= TOLERANCE
    return within and all(ratios[name] == 1 for name in exact)


if __name__ == "__main__":
    main()
