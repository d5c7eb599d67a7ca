"""What an objective asks of the rest of the configuration."""

from paft_ray.config.grade import PythonGrade
from paft_ray.config.model import ModelConfig
from paft_ray.config.objectives import GRPO, Consensus, Prefix
from paft_ray.config.rewards import GradeReward
from paft_ray.config.task import TaskConfig
from paft_ray.config.train import TrainConfig
from paft_ray.config.variants import BoundPromptsVariant, PaftVariant, VariantConfig


def check_objective(train: TrainConfig, task: TaskConfig, model: ModelConfig) -> None:
    """Check the combination of `train.objective` with other fields.

    Raises:
        ValueError: It cannot work.
    """
    objective = train.objective
    if objective.compares:
        _check_comparison(train, task)
    if objective.type == "expected_reward":
        first = next(iter(task.grade), None)
        if not task.has_choices or (first is not None and first.type != "choice"):
            graded = f"graded by {first.type}" if first is not None else "free text"
            raise ValueError(
                "train.objective: expected_reward is the probability of the right choice among "
                f"all, and answers of this task are {graded}: choose another objective"
            )
    if objective.reads_unlabelled:
        _check_own_labels(train, task)
    if isinstance(objective, Prefix):
        _check_prefix(objective, train, task, model)
    if isinstance(objective, GRPO):
        check_sampling(objective, train.batch_size, adapted=model.peft is not None)
        _check_rollouts(objective, train, task)
        _check_policy(objective, train, model)


def check_prompts(train: TrainConfig, variant: VariantConfig, pool_size: int | None) -> None:
    """Check that a variant has as many prompts as its questions are asked under.

    Args:
        train: Its section `train`.
        variant: The variant.
        pool_size: `prompts.pool_size`.

    Raises:
        ValueError: It has fewer; one with a single prompt asks under that.
    """
    if not isinstance(train.objective, GRPO):
        return
    wanted, of_pool = train.objective.prompts_per_question, {"prompts.pool_size": pool_size}
    if isinstance(variant, BoundPromptsVariant):
        of_pool = {"prompts of bound_prompts": variant.prompts}
    elif not isinstance(variant, PaftVariant):
        return
    elif variant.pool_size is not None:
        of_pool = {"pool_size of paft": variant.pool_size}
    for field, there in of_pool.items():
        if there is not None and 1 < there < wanted:
            raise ValueError(
                f"train.objective.prompts_per_question ({wanted}) is more than {field} ({there}): "
                "raise that, or lower this"
            )


def _check_comparison(train: TrainConfig, task: TaskConfig) -> None:
    """Check what an objective needs that compares several sequences of an example."""
    objective = train.objective
    if not train.packing:
        raise ValueError(
            f"train.objective: {objective.type} reads {objective.compares} in one row, which "
            "train.packing: false forbids: leave that out"
        )
    if train.response_prefix_tokens is not None:
        raise ValueError(
            f"train.objective: {objective.type} compares whole answers, "
            "train.response_prefix_tokens trains on their beginnings: choose one"
        )
    if objective.type == "consistency" and train.row_tokens < 2 * task.max_length:
        raise ValueError(
            f"train.row_tokens ({train.row_tokens}) is less than twice task.max_length "
            f"({task.max_length}), but consistency reads two renderings in one row, each with "
            "every choice: raise it"
        )


def _check_own_labels(train: TrainConfig, task: TaskConfig) -> None:
    """Check that the model can say what is learned in the place of answers."""
    objective = train.objective
    if isinstance(objective, Consensus) and not task.has_choices:
        raise ValueError(
            "train.objective: consensus counts votes for choices, and answers of this task are "
            "free text: choose another objective, such as prefix"
        )
    if train.response_prefix_tokens is not None:
        raise ValueError(
            f"train.objective: {objective.type} reads no answers of the data, "
            "train.response_prefix_tokens trains on their beginnings: choose one"
        )
    if train.deepspeed.stage == 3:
        raise ValueError(
            f"train.objective: {objective.type} asks the model on every rank, and "
            "train.deepspeed.stage 3 divides it among ranks: use stage 2"
        )


def _check_rows(train: TrainConfig, task: TaskConfig, field: str, written: int) -> None:
    """Check that a question and the longest text that the model may write fit a row."""
    if train.row_tokens < (longest := task.max_length + written):
        raise ValueError(
            f"train.row_tokens ({train.row_tokens}) is less than task.max_length "
            f"({task.max_length}) and train.objective.{field} ({written}) together: raise it to "
            f"{longest}"
        )


def _check_prefix(
    objective: Prefix, train: TrainConfig, task: TaskConfig, model: ModelConfig
) -> None:
    """Check that the model as it was at the start can write, and that its texts fit rows."""
    if model.peft is None:
        raise ValueError(
            "train.objective: prefix learns what the model without its adapter writes, and "
            "model.peft: null has none: name a peft method"
        )
    _check_rows(train, task, "tokens", objective.tokens)


def check_sampling(objective: GRPO, batch_size: int, adapted: bool) -> None:
    """Check the numbers of a batch, and whether there is a model to measure the way from.

    Raises:
        ValueError: It cannot work.
    """
    if batch_size % objective.rollouts:
        raise ValueError(
            f"train.batch_size ({batch_size}) counts rollouts, and is no multiple of "
            f"train.objective.rollouts ({objective.rollouts}): change one of them"
        )
    if objective.kl and not adapted:
        raise ValueError(
            f"train.objective.kl ({objective.kl:g}) measures the way from the model without its "
            "adapter, and model.peft: null has none: set kl: 0, or name a peft method"
        )


def _check_rollouts(objective: GRPO, train: TrainConfig, task: TaskConfig) -> None:
    """Check whether rollouts fit rows, and what goes with them."""
    if train.response_prefix_tokens is not None:
        raise ValueError(
            "train.objective: grpo trains on whole texts of the model, "
            "train.response_prefix_tokens on beginnings of the data's: choose one"
        )
    _check_rows(train, task, "max_new_tokens", objective.max_new_tokens)
    longest_s = train.workers.heartbeat_timeout_s
    for number, reward in enumerate(objective.rewards):
        where, grade = f"train.objective.rewards.{number}", reward
        if isinstance(reward, GradeReward):
            where, grade = "task.grade", next(iter(task.grade), None)
        if isinstance(grade, PythonGrade) and grade.timeout_s >= longest_s:
            raise ValueError(
                f"{where}: timeout_s ({grade.timeout_s:g}) is not below "
                f"train.workers.heartbeat_timeout_s ({longest_s:g}), after which a rank is taken "
                "for one that hangs: lower it, or raise that"
            )
    validation = train.validation
    if validation is not None and validation.every_steps % objective.updates:
        raise ValueError(
            f"train.validation.every_steps ({validation.every_steps}) is no multiple of "
            f"train.objective.updates ({objective.updates}), between which nothing is kept: "
            "change one of them"
        )


def _check_policy(objective: GRPO, train: TrainConfig, model: ModelConfig) -> None:
    """Check that the model can write what it learns from."""
    if train.deepspeed.stage == 3:
        raise ValueError(
            "train.objective: grpo writes with the model on every rank, and train.deepspeed.stage "
            "3 divides it among ranks: use stage 2"
        )
    dropouts = {k: v for k, v in (model.peft or {}).items() if "dropout" in k and v}
    if dropouts:
        name, value = next(iter(dropouts.items()))
        raise ValueError(
            f"model.peft.{name} ({value}): grpo learns from what the model wrote without dropout: "
            "set it to 0"
        )
