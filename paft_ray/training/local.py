"""Training in this process, in plain torch: without Ray, DeepSpeed and storage.

For notebooks, and for machines that have torch, transformers and peft only. It is the loop of
`paft train`, with other work around it: nothing is tracked, written or resumed, and the trained
model stays where it is.

    model = make_trainable(load_base(folder, stored=Stored("bfloat16")), peft, seed=0)
    engine = Engine(model.to("cuda"), train, "bfloat16", deepspeed=False)
    train_locally(engine, planner, train, report=print)
    model.save_pretrained("adapter")

The ranks of a process group train together where each of them calls this.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence

from peft import PeftModel

from paft_ray.config import GRPO, TrainConfig, total_steps
from paft_ray.config.errors import ConfigError
from paft_ray.config.objective_check import check_sampling
from paft_ray.storage.paths import Storage
from paft_ray.tracking import NullTracker
from paft_ray.training.batch_plan import Planner, plans
from paft_ray.training.engine import Engine
from paft_ray.training.ledger import Ledger
from paft_ray.training.loop import LoopHooks, Recipe, fit
from paft_ray.training.objective import views
from paft_ray.training.prompt_weights import PromptWeights
from paft_ray.training.reinforcement.backends import Backend
from paft_ray.training.reinforcement.labellers import open_labeller
from paft_ray.training.reinforcement.own_labels import labelled_plans
from paft_ray.training.reinforcement.rewards import Rewards
from paft_ray.training.reinforcement.steps import Writer, rollout_plans
from paft_ray.training.schedule import learning_rate
from paft_ray.training.state.checkpoint import Checkpoints, Progress


def train_locally(
    engine: Engine,
    planner: Planner,
    train: TrainConfig,
    report: Callable[[Mapping[str, float]], None] = lambda metrics: None,
    rewards: Rewards | None = None,
    backend: Backend | None = None,
    stop: Sequence[str] = (),
) -> Progress:
    """Train the model of an engine in place, from its first step to its last.

    Args:
        engine: Of the model, made with the same `train`.
        planner: Makes the batches.
        train: The section `train`; where work runs and what is kept is not read.
        report: Called with the metrics of every step.
        rewards: What the model's texts are graded by; for the objective `grpo`.
        backend: What writes them, which the caller closes; by default the model itself.
        stop: Texts that end what the model writes, as `task.stop`.

    Raises:
        ConfigError: The planner makes other batches than `train` says, or the objective needs what
            is not there.
        TrainingError: The loss or the gradient of a step is not finite.
    """
    made, wanted = (planner.batch_size, planner.views), (train.batch_size, views(train.objective))
    if made != wanted:
        raise ConfigError(
            f"the planner makes batches of {made[0]} examples in {made[1]} views, train says "
            f"{wanted[0]} in {wanted[1]}: make it with batch_size and views of train"
        )
    steps = total_steps(train, len(planner.examples))
    weights, never = PromptWeights(len(planner.prompts), train.sampling, train.objective), steps + 1

    def rate(step: int) -> float:
        return learning_rate(train.learning_rate, train.schedule, step, steps)

    labeller = open_labeller(train.objective, planner, engine, stop=tuple(stop))
    if labeller is not None:
        of_steps = labelled_plans(labeller, 0, steps, weights.for_step)
    elif isinstance(train.objective, GRPO):
        given = _checked(train.objective, train.batch_size, rewards, engine)
        writer = Writer(planner, train.objective, given, engine, stop=tuple(stop), backend=backend)
        of_steps = rollout_plans(writer, 0, steps, weights.for_step)
    else:
        of_steps = plans(planner, 0, steps, engine.plan_ranks(), weights.for_step)
    with tempfile.TemporaryDirectory() as nowhere:  # nothing is written, as no step is the last
        storage = Storage.open(nowhere)
        checkpoints = Checkpoints(storage, "none", keep=1)
        return fit(
            engine,
            of_steps,
            Progress(),
            Recipe(never, rate, never, planner.seed, train.objective),
            LoopHooks(NullTracker(), checkpoints, Ledger(storage, 0), weights, report),
        )


def _checked(objective: GRPO, batch_size: int, rewards: Rewards | None, engine: Engine) -> Rewards:
    """The rewards, where the model can learn from them."""
    if rewards is None:
        raise ConfigError("train.objective: grpo needs rewards: pass open_rewards(...)")
    try:
        check_sampling(objective, batch_size, isinstance(engine.model, PeftModel))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return rewards
