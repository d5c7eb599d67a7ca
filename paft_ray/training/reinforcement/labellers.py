"""The labeller of an objective that learns without answers."""

from collections.abc import Callable

from paft_ray.config import Consensus, ObjectiveConfig
from paft_ray.training.batch_plan import Planner
from paft_ray.training.engine import Engine
from paft_ray.training.reinforcement.consensus import Voter
from paft_ray.training.reinforcement.own_labels import Labeller


def open_labeller(
    objective: ObjectiveConfig,
    planner: Planner,
    engine: Engine,
    at: Callable[..., None] = lambda phase, step=None, row=0: None,
) -> Labeller | None:
    """What labels the examples of an objective; None where it reads the answers of the data."""
    if isinstance(objective, Consensus):
        return Voter(planner, engine, at, objective)
    return None
