"""A running search on the screen."""

from paft_ray.config import TuningConfig
from paft_ray.runs.progress import SilentScreen, Stage
from paft_ray.tuning.view import TrialView


def test_stage_of_a_search_counts_the_trials_that_are_over() -> None:
    stage = Stage("search")
    space = {"train.learning_rate": {"type": "choice", "values": [0.001, 0.01]}}
    tuning = TuningConfig.model_validate({"space": space, "trials": 3})
    view = TrialView(SilentScreen(), stage, tuning, 3, 2)
    assert (stage.done, stage.total) == (0, 3)
    for number in (0, 1):
        view.started(number, {"train.learning_rate": 0.01})
    view.ended(1, "finished")
    assert (stage.done, stage.total) == (1, 3)
