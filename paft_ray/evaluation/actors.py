"""Actors that score units of a grid and keep what they found; `grid` starts them with Ray Data.

They hold a base model and its adapters, in the backend of the configuration.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from paft_ray.config import Config, VLLMBackend
from paft_ray.config.launchers import clear_launchers
from paft_ray.evaluation.parity import answer_logprobs
from paft_ray.evaluation.units import Subject, Unit
from paft_ray.models.base_model import BaseSource
from paft_ray.models.gpu import prepare_gpu
from paft_ray.prompts.variation import Condition
from paft_ray.runs.examples import StoredExamples
from paft_ray.storage.node_copy import local_copy
from paft_ray.storage.parts import Parts
from paft_ray.tasks import Task

if TYPE_CHECKING:
    from paft_ray.evaluation.predictors import ModelPredictor
    from paft_ray.evaluation.scores import Asked
    from paft_ray.evaluation.served import ServedPredictor

SECONDS = b"seconds"
"""Key in a part's metadata of the seconds that its scoring took."""
PACKING = b"packing"
"""Key of what `ModelPredictor.describe_rows` returned."""
_WRITE_S = 10.0
"""Work of this many seconds is lost with an actor at most."""


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """The data that every actor receives."""

    config: Config
    task: Task
    """Without its examples."""
    examples: StoredExamples
    base: BaseSource
    dtype: str
    threads: int
    subjects: Sequence[Subject]
    conditions: Sequence[Condition]
    parts: Parts
    number: int = 0
    """Of the base model, see `Subject.base`."""

    def open(self, base: str) -> "ModelPredictor | ServedPredictor":
        """Load the base model, from its place on this node, as the backend does."""
        from paft_ray.evaluation.predictors import ModelPredictor

        config = self.config
        if isinstance(config.evaluation.backend, VLLMBackend):
            from paft_ray.evaluation.served import ServedPredictor

            stored = {s.identity: s.weights for s in self.subjects if s.base == self.number}
            adapters = [
                local_copy(folder, id) for id, folder in stored.items() if folder is not None
            ]
            return ServedPredictor(config, self.task, base, self.dtype, self.threads, adapters)
        device = "cuda" if config.evaluation.workers.gpus > 0 else "cpu"
        if device == "cuda":
            prepare_gpu()
        return ModelPredictor(config, self.task, base, self.dtype, device)


class ScoreActor:
    """Scores units and writes each as a part; holds the base model and adapters."""

    def __init__(self, job: ScoreJob) -> None:
        import torch

        clear_launchers()
        torch.set_num_threads(job.threads)  # results depend on it bit by bit
        self._base = job.base.local()
        self._predictor = job.open(self._base)
        self._examples = {example.id: example for example in job.examples.open()}
        self._subjects, self._parts = job.subjects, job.parts
        self._conditions, self._seed = job.conditions, job.config.seed

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        [units] = batch["units"]
        finished: dict[str, pa.Table] = {}
        written_s = time.monotonic()
        for _, group in groupby(units, key=itemgetter("group")):
            finished |= self._score(list(group))
            if time.monotonic() - written_s >= _WRITE_S:
                self._parts.write(finished)
                finished, written_s = {}, time.monotonic()
        self._parts.write(finished)
        return {"done": [sum(len(unit["examples"]) for unit in units)]}

    def _score(self, units: Sequence[Unit]) -> dict[str, pa.Table]:
        """Score units of one subject together; return their keys and tables."""
        from paft_ray.evaluation.scores import scores_table

        weights, asked = self._load(units)
        started = time.perf_counter()
        scores = self._predictor.score_together(weights, asked)
        each_s = (time.perf_counter() - started) / sum(map(len, scores))
        packing = self._predictor.describe_rows(weights is not None)
        return {
            unit["key"]: scores_table(own).replace_schema_metadata(
                {SECONDS: str(each_s * len(own)), PACKING: packing}
            )
            for unit, own in zip(units, scores, strict=True)
        }

    def _load(self, units: Sequence[Unit]) -> "tuple[str | None, list[Asked]]":
        """Load the subject of units; return its weights on this node, and what is asked."""
        from paft_ray.evaluation.scores import Asked

        asked = [
            Asked(
                unit["prompt_id"],
                unit["text"],
                [self._examples[id] for id in unit["examples"]],
                self._conditions[unit["condition"]],
                self._seed,
            )
            for unit in units
        ]
        subject = self._subjects[units[0]["subject"]]
        weights = subject.weights and local_copy(subject.weights, subject.identity)
        self._predictor.load(weights)
        return weights, asked


class LogprobsActor(ScoreActor):
    """Keeps the log-likelihoods of units' answers, by which backends are compared."""

    def __init__(self, job: ScoreJob) -> None:
        from paft_ray.models.load import load_tokenizer
        from paft_ray.models.tokenization import TextEncoder

        super().__init__(job)
        model, self._task = job.config.model, job.task
        tokenizer = load_tokenizer(self._base, model.revision, model.trust_remote_code)
        self._encoder = TextEncoder.from_config(tokenizer, job.config)

    def _score(self, units: Sequence[Unit]) -> dict[str, pa.Table]:
        weights, asked = self._load(units)
        with self._predictor.using(weights) as (predictor, model):
            reading = (predictor, model, self._encoder, self._task)
            return {
                unit["key"]: answer_logprobs(*reading, each, weights is not None)
                for unit, each in zip(units, asked, strict=True)
            }
