"""How a training reads its examples: the planner, and what the model was found to keep apart."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from paft_ray.config.errors import TrainingError
from paft_ray.models.kept import KeptBase
from paft_ray.models.load import virtual_tokens
from paft_ray.models.packing import MIXES, PACKED, ROWS
from paft_ray.models.row_check import Together, check_batches, check_rows, read_apart
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
            return f"{MIXES}{ROWS}, as {self.together.rows}"
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
    if planner.packing:
        row = max(planner.row_tokens, job.config.evaluation.row_tokens)
        longest = job.config.task.max_length
        question = (repr(job.config.model.peft), row, longest)
        rows = kept.once(question, lambda: check_rows(model, row, longest))
        _refuse_mixing_adapter(job, model, rows)
    if job.validation and job.task.choices is None and not virtual_tokens(model):
        batches = check_batches(model, planner.encoder.tokenizer)
    found: list[Any] = [(rows, batches)] * dist.get_world_size()
    dist.all_gather_object(found, (rows, batches))
    together = Together(*(max(reasons) for reasons in zip(*found, strict=True)))
    if not together.rows:
        return Reading(planner, together)
    if planner.views > 1:
        raise TrainingError(
            "train.objective: consistency reads two renderings in one row, which this model mixes "
            f"({together.rows}): choose another objective or model"
        )
    read_apart(model)
    return Reading(replace(planner, packing=False), together)


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
