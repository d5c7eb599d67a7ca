"""The labeller of an objective that learns without answers."""

from collections.abc import Callable

from paft_ray.config import Consensus, ObjectiveConfig, Prefix
from paft_ray.training.batch_plan import Planner
from paft_ray.training.engine import Engine
from paft_ray.training.reinforcement.consensus import Voter
from paft_ray.training.reinforcement.own_labels import Labeller
from paft_ray.training.reinforcement.prefix import PrefixWriter


def open_labeller(
    objective: ObjectiveConfig,
    planner: Planner,
    engine: Engine,
    at: Callable[..., None] = lambda phase, step=None, row=0: None,
    stop: tuple[str, ...] = (),
) -> Labeller | None:
    """What labels the examples of an objective; None where it reads the answers of the data.

    Args:
        objective: `train.objective`.
        planner: Of the training.
        engine: Of the model that is trained.
        at: See `loop.LoopHooks`.
        stop: `task.stop`.
    """
    if isinstance(objective, Consensus):
        return Voter(planner, engine, at, objective)
    if isinstance(objective, Prefix):
        return PrefixWriter(planner, engine, at, objective, stop)
    return None
