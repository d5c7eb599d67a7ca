"""`evaluation` and `tracking`: what is measured, and where runs are recorded."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from paft_ray.config.backend import TRANSFORMERS, BackendConfig
from paft_ray.config.base import Section, WorkersConfig, affects, folder_name
from paft_ray.config.subjects import SubjectConfig
from paft_ray.config.variation import OFF, VariationConfig


class EstimateConfig(Section, affects="run"):
    """Score a part of the prompts x examples, and estimate the figures of the whole grid."""

    share: float = Field(gt=0, lt=1)
    """Part of the pairs that is scored of every model: half of it evenly over prompts and examples,
    the rest under the prompts that may be among its weakest."""


class EvaluationConfig(Section, affects="run"):
    """Prompts x examples, on prompts that were never trained on."""

    name: Annotated[str | None, affects("nothing", neutral=None)] = None
    """A further evaluation of a run that was trained before, with settings of its own about
    evaluation: `paft evaluate` keeps it below the run's folder, beside the run's own results."""
    examples: int | None = Field(default=None, ge=1)
    """Test examples to use; all by default."""
    prompts: int | None = Field(default=None, ge=1)
    """Test prompts to use; all by default."""
    prompt_files: Annotated[tuple[str, ...], affects("run", neutral=())] = ()
    """Files of prompts, as in `prompts.files`, that a further evaluation asks through in place of
    the pool's test prompts. Figures of each file stand apart where there are several, and how many
    of the prompts are like training prompts stands beside."""
    subjects: Annotated[tuple[SubjectConfig, ...], affects("run", neutral=())] = ()
    """Models to measure beside the base model and the variants."""
    variation: Annotated[VariationConfig, affects("run", neutral=OFF, whole=True)] = OFF
    """Axes besides instruction and layout along which answers are measured too: each by itself,
    under every prompt and on every example, compared with the question as it is."""
    trained_prompts: Annotated[bool, affects("run", neutral=False)] = False
    """Measure models also under the prompts of variants that were trained on one (`single_prompt`,
    `human_prompt`): what those know of their own prompt, and what the others know of it. Subjects
    that ask through prompts of their own are left out."""
    estimate: EstimateConfig | None = None
    """Save most of the work on many prompts or examples; see `evaluation.estimate` and
    `evaluation.estimate_cells`."""
    top_thresholds: tuple[float, ...] | None = Field(default=None, min_length=1)
    """Top@t is the share of prompts with at least accuracy t; by default the paper's t of the
    task."""
    selection_examples: int = Field(default=100, ge=1)
    """Validation examples, at most, on which a prompt is chosen: that of `single_prompt`, and of
    `best_prompt`."""
    selection_prompts: int | None = Field(default=None, ge=1)
    """Training prompts that are candidates for the single prompt, from the beginning of the pool,
    which covers the whole; all by default."""
    row_tokens: Annotated[int, affects("scores")] = Field(default=2048, ge=16)
    """Most tokens in one packed row."""
    max_new_tokens: Annotated[int, affects("scores")] = Field(default=128, ge=1)
    """Longest generated answer of a free-text task, in tokens."""
    generation_tokens: Annotated[
        Annotated[int, Field(ge=16)] | Literal["auto"], affects("scores")
    ] = 16384
    """Most tokens, read and written, that are kept for one batch of generated answers; an example
    that needs more is a batch of its own. `auto` is what the GPU's memory takes beside the model;
    other batches round otherwise, so that texts then depend on the kind of GPU."""
    backend: Annotated[BackendConfig, affects("scores", neutral=TRANSFORMERS)] = TRANSFORMERS
    """What computes scores: `{type: transformers}`, or `{type: vllm}`."""
    workers: WorkersConfig = WorkersConfig()
    """Actors that score; their `gpus` are by default those of `train.workers`."""

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, name: str | None) -> str | None:
        return None if name is None else folder_name(name)

    @model_validator(mode="after")
    def _own_prompts_are_further(self) -> Self:
        if self.prompt_files and self.name is None:
            raise ValueError(
                "prompt_files are for a further evaluation, since a run's own results are on the "
                "pool's test prompts: give it a name (evaluation.name), or name the files in "
                "prompts.files"
            )
        return self

    @model_validator(mode="after")
    def _whole_grids_vary(self) -> Self:
        if self.estimate is not None and not self.variation.is_off:
            raise ValueError(
                "variation compares whole grids, and estimate scores a part of one: leave one of "
                "them out, or lower prompts and examples"
            )
        return self

    @model_validator(mode="after")
    def _whole_grids_of_trained_prompts(self) -> Self:
        if self.estimate is not None and self.trained_prompts:
            raise ValueError(
                "trained_prompts are measured on all examples, and estimate scores a part of them: "
                "leave one of them out"
            )
        return self

    @field_validator("top_thresholds")
    @classmethod
    def _thresholds_are_shares(
        cls, thresholds: tuple[float, ...] | None
    ) -> tuple[float, ...] | None:
        if not all(0 <= t <= 1 for t in thresholds or ()):
            raise ValueError("each threshold is an accuracy between 0 and 1")
        return thresholds


class TrackingConfig(Section, affects="nothing"):
    """The place where runs are recorded."""

    type: Literal["mlflow", "none"] = "mlflow"
    """MLflow, or nothing beyond the files under `storage`."""
    uri: str | None = None
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI, and where that is not set a sqlite file
    under `storage`. Credentials come from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""
    experiment: str | None = Field(default=None, min_length=1)
    """MLflow experiment; by default MLFLOW_EXPERIMENT_NAME, and where that is not set `paft`."""
