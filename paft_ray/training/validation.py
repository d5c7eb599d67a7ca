"""Validation: scores of a model while it is trained, by its own workers, on prompts x examples.

Results of a step are written to storage before the step's checkpoint, so that a training that
continues has the results of all its steps.

Shapes: P prompts, E examples.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from paft_ray.cluster.control import At
from paft_ray.config import Config
from paft_ray.config.errors import ConfigError, PaftError, TrainingError
from paft_ray.prompts.pool import Prompt, PromptPool
from paft_ray.storage.paths import Storage
from paft_ray.tasks import Example, Task
from paft_ray.training.state.retries import retry_storage

if TYPE_CHECKING:
    from paft_ray.evaluation.predictors import Predictor
    from paft_ray.training.engine import Engine

FOLDER = "validation"


@dataclass(frozen=True)
class ValidationPlan:
    """Prompts and examples to score, and the steps after which to score; pickles."""

    prompts: tuple[tuple[str, str], ...]
    """Ids and texts."""
    examples: tuple[Example, ...]
    steps: frozenset[int]
    """Numbers of optimizer steps; one result each."""

    @classmethod
    def of(
        cls, prompts: Sequence[Prompt], examples: Sequence[Example], steps: Iterable[int]
    ) -> Self:
        """The plan for these prompts of a pool."""
        texts = tuple((prompt.id, prompt.text) for prompt in prompts)
        return cls(texts, tuple(examples), frozenset(steps))


def report_steps(total: int, reports: int) -> tuple[int, ...]:
    """Evenly spaced steps of a training of `total` steps, the last among them.

    There are fewer than `reports` where there are fewer steps.
    """
    return tuple(sorted({max(1, round(total * (k + 1) / reports)) for k in range(reports)}))


def held_out(
    config: Config, pool: PromptPool, task: Task
) -> tuple[Sequence[Prompt], Sequence[Example]]:
    """The prompts and examples of `train.validation`; none where it is not given.

    Raises:
        ConfigError: The pool has too few validation prompts.
    """
    validation = config.train.validation
    if validation is None:
        return (), ()
    try:
        validation.check_prompts(len(pool.validation))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return pool.validation[: validation.prompts], task.validation[: validation.examples]


class Validation:
    """Scores the model while it is trained; every rank has one."""

    def __init__(
        self,
        plan: ValidationPlan,
        engine: "Engine",
        predictor: "Predictor",
        folder: Storage,
        at: At,
    ) -> None:
        """Prepare for scoring.

        Args:
            plan: What to score, and when.
            engine: The engine of the model.
            predictor: Makes predictions for examples under prompts.
            folder: The training's folder.
            at: See `loop.LoopHooks`.
        """
        self._plan, self._engine, self._predictor, self._at = plan, engine, predictor, at
        self._training = folder

    @property
    def stores(self) -> bool:
        """Return whether this rank writes results to storage."""
        return self._engine.rank == 0

    def after(self, step: int) -> NDArray[np.float64] | None:
        """Score the model, if the plan has this step; collective.

        Returns:
            The result, [P, E], the same on every rank, on rank 0 once it is on storage; None where
            the step is not scored.
        """
        if step not in self._plan.steps:
            return None
        grade_PE = np.asarray(self._score()).reshape(-1, len(self._plan.examples))
        if self.stores:
            retry_storage(
                lambda: write_result(self._training, step, grade_PE),
                "writing validation results",
                self._training.path(),
            )
        return grade_PE

    def _score(self) -> Sequence[float]:
        """Grade every prompt and example on all ranks; flat.

        Ranks take prompts in turn. Where weights are spread over ranks (ZeRO 3), all score the same
        prompt at the same time, and rank 0's scores count.
        """
        import torch

        engine, plan = self._engine, self._plan
        together = engine.stage == 3
        grades_PE = torch.zeros(
            len(plan.prompts), len(plan.examples), dtype=torch.float64, device=engine.device
        )
        failed: PaftError | None = None
        self._at("validation")
        with engine.evaluating() as model:
            for index, (id, text) in enumerate(plan.prompts):
                if not together and index % engine.ranks != engine.rank:
                    continue
                self._at("validation", row=index)
                try:
                    scores = self._predictor.score(model, id, text, plan.examples, engine.adapted)
                except PaftError as error:
                    failed = error  # raised below, as the other ranks wait for this one
                    break
                if not together or engine.rank == 0:
                    grades_PE[index] = torch.tensor([score.value for score in scores])
        failures = grades_PE.new_tensor([float(failed is not None)])
        *grades, failures = engine.all_reduce(torch.cat([grades_PE.flatten(), failures]))
        if failures:
            raise failed or TrainingError("another rank could not score validation prompts")
        return grades


def _file(step: int) -> str:
    return f"step-{step:08d}.json"


def write_result(training: Storage, step: int, grade_PE: NDArray[np.float64]) -> None:
    """Write the result of a step into a training's folder."""
    record = {"step": step, "correct": grade_PE.tolist()}
    training.child(FOLDER).write_json(_file(step), record)


def forget_results(training: Storage, after: int) -> None:
    """Remove the results of steps that are trained again, which may turn out otherwise."""
    folder = training.child(FOLDER)
    for name in folder.names() if folder.exists() else []:
        if name > _file(after):
            folder.delete(name)


def read_results(training: Storage) -> dict[int, NDArray[np.float64]]:
    """Results of a training's validation: steps to grades, [P, E]."""
    folder = training.child(FOLDER)
    found: dict[int, NDArray[np.float64]] = {}
    for name in sorted(folder.names()) if folder.exists() else []:
        record: Mapping[str, Any] = folder.read_json(name)
        found[int(record["step"])] = np.asarray(record["correct"], float)
    return found
