"""How a training reads its examples: the planner, and what the model was found to keep apart."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from paft_ray.config.errors import TrainingError
from paft_ray.models.kept import KeptBase
from paft_ray.models.load import virtual_tokens
from paft_ray.models.packing import BATCHES, MIXES, PACKED
from paft_ray.models.row_check import (
    Together,
    check_batches,
    check_padded,
    check_rows,
    may_pad,
    read_apart,
    use_blocks,
)
from paft_ray.models.row_probes import base_model
from paft_ray.training.batch_plan import Planner
from paft_ray.training.job import Job

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Reading:
    """How the model of a training reads its examples."""

    planner: Planner
    together: Together

    @property
    def packing(self) -> str:
        """Describe the rows, for the record."""
        if self.together.rows:
            return f"{MIXES}{self.together.reading}, as {self.together.rows}"
        if self.planner.padded:
            return f"unpacked, {BATCHES}"
        return PACKED if self.planner.packing else "unpacked"


def check_reading(
    job: Job, model: "PeftModel | PreTrainedModel", planner: Planner, kept: KeptBase
) -> Reading:
    """Check what the model keeps apart; where one rank finds that rows mix, none packs them.

    Under a base model that is kept, adapters of the same settings are checked once: the check draws
    its texts itself, and adds noise to the adapter's weights.

    Raises:
        TrainingError: The objective or the adapter needs rows that mix.
    """
    rows = batches = ""
    longest = job.config.task.max_length
    row_tokens = max(planner.row_tokens, job.config.evaluation.row_tokens)
    if planner.packing:
        question = (repr(job.config.model.peft), row_tokens, longest)
        rows, attention = kept.once(question, lambda: _check_rows(model, row_tokens, longest))
        if attention != base_model(model).config._attn_implementation:
            base_model(model).set_attn_implementation(attention)
        _refuse_mixing_adapter(job, model, rows)
    else:
        use_blocks(model)
    if job.validation and job.task.generates and not virtual_tokens(model):
        batches = check_batches(model, planner.encoder.tokenizer)
    rows, batches = (max(reasons) for reasons in zip(*_from_all((rows, batches)), strict=True))
    objective = job.config.train.objective
    if rows and objective.compares:
        raise TrainingError(
            f"train.objective: {objective.type} reads {objective.compares} in one row, which this "
            f"model mixes ({rows}): choose another objective or model"
        )
    if rows:
        read_apart(model)
    apart = rows or (job.config.train.packing and not planner.packing)
    padded = bool(apart) and may_pad(model) and not check_padded(model, row_tokens, longest)
    together = Together(rows, batches, padded=all(_from_all(padded)))
    packing = planner.packing and not rows
    return Reading(replace(planner, packing=packing, padded=together.padded), together)


def _check_rows(
    model: "PeftModel | PreTrainedModel", row_tokens: int, longest: int
) -> tuple[str, str]:
    """Return why rows mix, if they do, and the attention that the check left the model with."""
    reason = check_rows(model, row_tokens, longest)
    return reason, base_model(model).config._attn_implementation


def _from_all(mine: Any) -> list[Any]:
    """Return every rank's value; collective."""
    found: list[Any] = [mine] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def _refuse_mixing_adapter(job: Job, model: "PeftModel | PreTrainedModel", rows: str) -> None:
    """Raise where rows mix under an adapter and not without: its scores would be packed."""
    from peft import PeftModel

    if not rows or not isinstance(model, PeftModel) or not job.config.model.peft:
        return
    with model.disable_adapter():
        alone = check_rows(model, job.config.train.row_tokens, job.config.task.max_length)
    if not alone:
        raise TrainingError(
            f"packed rows mix under peft's {job.config.model.peft['peft_type']} ({rows}): set "
            "train.packing: false"
        )
