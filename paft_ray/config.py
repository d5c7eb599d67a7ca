"""The typed configuration: one frozen tree, a docstring under every field, no ML import.

Covered: types, ranges and combinations. Not covered: reading it from YAML (`loading`), and
anything that needs a look at the world (files, models, clusters), which is `preflight`'s part.
"""

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
PUBLISHED_TASKS = ("boolq", "gsm8k", "hellaswag", "piqa", "race", "sst2", "winogrande")


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, docstrings become descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class BuiltinTask(Section):
    """One of the tasks that `paft_ray` describes as data, see `paft_ray.tasks.builtin`."""

    type: Literal["builtin"] = "builtin"
    name: Literal[PUBLISHED_TASKS]  # pyright: ignore[reportInvalidTypeForm]
    """Which task."""
    path: str | None = None
    """A local copy (file or saved Hugging Face data set; `pkg:NAME/inner/path` looks inside an
    installed Python package); without it the Hugging Face hub is read."""


class CustomTask(Section):
    """A user's own data: a file or saved data set whose columns are mapped to slots."""

    type: Literal["custom"]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """A short name, for reports."""
    description: str = Field(min_length=10)
    """What is asked of the model, in one or two sentences; LLMs that write prompts read it."""
    path: str
    """JSONL, Parquet, CSV, or a folder saved by Hugging Face `datasets`."""
    fields: dict[str, str] = Field(min_length=1)
    """Slot name to column name; each slot may be used in templates as `{slot}`."""
    answer: str
    """The column that holds the answer."""
    choices: tuple[str, ...] | None = Field(default=None, min_length=2)
    """All allowed answers, in the words the model should say; without them the answer is free
    text."""
    labels: dict[str, str] | None = None
    """Value of the answer column, as text, to one of `choices`, where the two differ."""
    instructions: tuple[str, ...] = ()
    """A few instructions written by hand, which few-shot requests show to LLMs."""
    test_path: str | None = None
    """A separate file with the test examples; without it they are split off `path`."""

    @field_validator("fields")
    @classmethod
    def _slots_are_words(cls, fields: dict[str, str]) -> dict[str, str]:
        for slot in fields:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", slot):
                raise ValueError(f"slot {slot!r} is not a word: use letters, digits and _")
        return fields

    @model_validator(mode="after")
    def _labels_name_choices(self) -> Self:
        for label, choice in (self.labels or {}).items():
            if choice not in (self.choices or ()):
                raise ValueError(f"labels.{label} is {choice!r}, which is not one of choices")
        return self


class TaskOptions(Section):
    """How a task's examples are split and turned into tokens."""

    max_length: int = Field(default=512, ge=16)
    """Longest example, in tokens of prompt and answer."""
    overlong: Literal["refuse", "trim"] = "refuse"
    """What happens to a longer one: the run stops, or its longest field is cut and counted."""
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the examples kept for choosing (single prompt, Tune)."""
    test_share: float = Field(default=0.2, gt=0, lt=1)
    """Share kept for the final figure, unless the source has a test split of its own."""
    max_train_examples: int | None = Field(default=None, ge=1)
    """Use at most this many training examples (in an order given by id and seed)."""

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share + test_share leave nothing to train on: lower them")
        return self


class BuiltinTaskConfig(BuiltinTask, TaskOptions):
    """`task:` with `type: builtin`."""


class CustomTaskConfig(CustomTask, TaskOptions):
    """`task:` with `type: custom`."""


TaskConfig = Annotated[BuiltinTaskConfig | CustomTaskConfig, Field(discriminator="type")]


class TokenPrice(Section):
    """What an LLM costs, per million tokens, in one currency for all LLMs."""

    prompt: float = Field(default=0.0, ge=0)
    """A million tokens read."""
    completion: float = Field(default=0.0, ge=0)
    """A million tokens written."""


class Author(Section):
    """What all LLMs have in common."""

    temperatures: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
        default=None, min_length=1
    )
    """Decoding temperatures, which requests take in turn; by default
    `prompts.generation.temperature`."""
    price: TokenPrice | None = None
    """For `paft plan` and the funnel; without it no cost is shown."""


class TransformersLLM(Author):
    """A model that runs inside our own Ray actors, batched."""

    type: Literal["transformers"]
    path: str
    """Model folder, `pkg:NAME/file.gguf`, or hub name."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights while generating; auto is bf16 where the processor has it."""
    batch_size: int = Field(default=32, ge=1)
    """Requests generated together; part of what determines the answers."""
    max_tokens: int = Field(default=96, ge=1)
    """Longest answer, in tokens."""
    actors: int = Field(default=1, ge=1)
    """Copies of the model."""
    cpus: float = Field(default=1, ge=1)
    """CPUs per actor, which are its torch threads; they also determine the answers bit by bit."""
    gpus: float = Field(default=0, ge=0)
    """GPUs per actor."""


class OpenAILLM(Author):
    """Any endpoint that speaks the OpenAI chat protocol: vLLM, Ray Serve LLM, hosted APIs."""

    type: Literal["openai"]
    base_url: str = Field(pattern=r"^https?://")
    """Root of the API, usually ending in /v1."""
    model: str
    """The model's name at that endpoint."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the key; never the key itself."""
    actors: int = Field(default=1, ge=1)
    """Client processes; one keeps thousands of requests in flight."""
    concurrency: int = Field(default=8, ge=1)
    """Requests in flight, over all actors."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Most requests a minute over all actors, retries included; without it as many as come."""
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """Most tokens a minute over all actors, read and written."""
    timeout_s: float = Field(default=60, gt=0)
    """Time limit of one request, in seconds."""
    max_attempts: int = Field(default=5, ge=1)
    """Tries of one request before it counts as failed."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest answer, in tokens."""


class VLLMEngine(Author):
    """vLLM inside our own Ray actors (extra `vllm`, needs a GPU); it batches as requests come."""

    type: Literal["vllm"]
    path: str
    """Model folder or hub name."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest answer, in tokens."""
    actors: int = Field(default=1, ge=1)
    """Copies of the model."""
    gpus: int = Field(default=1, ge=1)
    """GPUs per actor, over which the model is split."""


class FakeLLM(Author):
    """Writes plausible prompts without any model: for tests and dry runs."""

    type: Literal["fake"]
    fail_every: int = Field(default=0, ge=0)
    """Every n-th request fails, 0 for none."""
    seconds: float = Field(default=0, ge=0)
    """Time that one request takes."""


LLMConfig = Annotated[
    TransformersLLM | OpenAILLM | VLLMEngine | FakeLLM, Field(discriminator="type")
]


class StopConfig(Section):
    """When there is enough: new candidates repeat what others said."""

    new_share: float = Field(default=0.02, gt=0, lt=1)
    """Stop when a smaller share of a round's candidates is unlike all before."""
    round: int = Field(default=256, ge=16)
    """Requests per round and LLM."""


class GenerationConfig(Section):
    """How candidate prompts are written."""

    llms: tuple[LLMConfig, ...] = Field(min_length=1)
    """The authors; several different ones make a more varied pool."""
    strategies: tuple[Literal["zero_shot", "few_shot"], ...] = Field(
        default=("zero_shot", "few_shot"), min_length=1
    )
    """Ask with examples of prompts, without, or both."""
    form: Literal["template", "instruction"] = "template"
    """What one answer holds: whole templates (able models), or an instruction sentence that we
    place in layouts of a grammar (small models)."""
    per_llm: int = Field(default=20, ge=1)
    """Requests per LLM and strategy."""
    temperature: float = Field(default=1.0, ge=0)
    """The LLM's decoding temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Decode from the likeliest tokens that together have this probability; small models need
    less than 1 to stay on topic."""
    budget_tokens: int | None = Field(default=None, ge=1)
    """Stop asking once this many completion tokens could be spent."""
    max_error_rate: float = Field(default=0.5, ge=0, le=1)
    """Stop the stage when a larger share of the requests fails."""
    stop: StopConfig | None = None
    """Stop early; without it all `per_llm` requests are sent."""

    @field_validator("strategies")
    @classmethod
    def _no_strategy_twice(cls, strategies: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(strategies)) < len(strategies):
            raise ValueError("a strategy is named twice: remove one, or raise per_llm")
        return strategies

    @model_validator(mode="after")
    def _no_llm_twice(self) -> Self:
        seen = [llm.model_dump_json() for llm in self.llms]
        if len(set(seen)) < len(seen):
            raise ValueError("llms has the same entry twice: remove one, or raise per_llm")
        return self


class LintConfig(Section):
    """What a prompt may look like."""

    max_characters: int = Field(default=1500, ge=20)
    """Longest template, slots counted by their names."""
    min_instruction_words: int = Field(default=3, ge=0)
    """Fewest words of an instruction that an LLM wrote."""
    relevance: bool = True
    """Refuse what an LLM wrote without a word of the task, or for another kind of work."""


class DedupConfig(Section):
    """When two prompts count as the same."""

    similarity: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of the instructions' shingles at which one of them is dropped."""


class PoolSplitConfig(Section):
    """How prompts are dealt into training, validation and test."""

    similarity: float = Field(default=0.5, gt=0, le=1)
    """No test or validation instruction is this similar to one of another split."""
    validation: int = Field(default=4, ge=0)
    """Validation prompts."""
    test: int = Field(default=12, ge=1)
    """Test prompts."""
    held_out_llm: str | None = None
    """Name of an LLM (its `model`, or the last part of its `path`) that writes all test prompts
    and no other: the figure then holds for an author who never trained."""


class CoverageConfig(Section):
    """What "near" means when training prompts are put into an order that covers the whole."""

    type: Literal["tfidf", "embeddings"] = "tfidf"
    """Pieces of words in common, or the meaning as a model sees it."""
    path: str | None = None
    """Folder or hub name of a sentence-transformers model, for `embeddings`."""

    @model_validator(mode="after")
    def _embeddings_have_a_model(self) -> Self:
        if (self.type == "embeddings") != (self.path is not None):
            raise ValueError("embeddings need path, the model that makes them, and tfidf has none")
        return self


class ProbeConfig(Section):
    """The base model's own opinion of each prompt, kept with the pool."""

    examples: int = Field(default=8, ge=1)
    """Training examples that each prompt is tried on."""
    row_tokens: int = Field(default=2048, ge=16)
    """Most tokens in one packed row."""
    min_mass: float = Field(default=0.0, ge=0, le=1)
    """Drop training prompts with less probability on the allowed answers. Narrowing the pool made
    trained models less steady where it was measured."""
    min_accuracy: float = Field(default=0.0, ge=0, le=1)
    """Drop training prompts under which the base model is right less often."""
    actors: int = Field(default=1, ge=1)
    """Copies of the base model."""
    cpus: float = Field(default=1, ge=1)
    """CPUs per actor, which are its torch threads."""
    gpus: float = Field(default=0, ge=0)
    """GPUs per actor."""


class PromptsConfig(Section):
    """Where prompts come from and what becomes of them."""

    files: tuple[str, ...] = ()
    """JSONL (`text`), CSV or Parquet (column `text`), or plain text (one template a line)."""
    generation: GenerationConfig | None = None
    """Write candidates with LLMs; without it the pool consists of `files` alone."""
    layouts_per_instruction: int = Field(default=3, ge=1)
    """Layouts that each training instruction is placed in (`form: instruction`)."""
    lint: LintConfig = LintConfig()
    dedup: DedupConfig = DedupConfig()
    max_unique: int = Field(default=20_000, ge=100)
    """Most unique candidates that are split; of more, those whose hashes come first."""
    coverage: CoverageConfig = CoverageConfig()
    probe: ProbeConfig | None = None
    """Score prompts with the base model; off by default."""
    split: PoolSplitConfig = PoolSplitConfig()
    pool_size: int | None = Field(default=None, ge=1)
    """Train on this many of the training prompts; all of them by default."""

    @model_validator(mode="after")
    def _some_source(self) -> Self:
        if not self.files and self.generation is None:
            raise ValueError("no source of prompts: set prompts.files or prompts.generation")
        return self


class ModelConfig(Section):
    """The base model and how it is adapted."""

    path: str
    """Model folder, `pkg:NAME/file.gguf` inside an installed package, or hub name."""
    revision: str | None = None
    """Commit or tag of a hub model; name one, so that a run can be repeated."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic in training and scoring; auto is bf16 (autocast over fp32 weights) where the
    device has it."""
    chat_template: Literal["none", "auto"] = "none"
    """Whether a rendered prompt is wrapped in the model's chat template."""
    peft: dict[str, Any] = Field(
        default={
            "peft_type": "LORA",
            "r": 8,
            "lora_alpha": 16,
            "target_modules": ["q_proj", "v_proj"],
        }
    )
    """Handed to peft as it stands."""

    @field_validator("peft")
    @classmethod
    def _names_its_method(cls, peft: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(peft.get("peft_type"), str):
            raise ValueError("peft_type is missing: name peft's method, for example LORA")
        return {**peft, "peft_type": peft["peft_type"].upper()}


class ScheduleConfig(Section):
    """Learning rate over steps, as a share of `learning_rate`."""

    type: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up."""
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps in which the rate rises linearly from 0."""
    final_share: float = Field(default=0.0, ge=0, le=1)
    """Where the decay ends."""


class SamplingConfig(Section):
    """Which prompt an example is rendered through."""

    unit: Literal["example", "step"] = "example"
    """One draw per example of the batch, or one for the whole step."""
    steps_per_prompt: int = Field(default=1, ge=1)
    """How many steps a draw is kept: the paper's K."""


class DeepSpeedConfig(Section):
    """The part of DeepSpeed's configuration that is ours to choose."""

    stage: Literal[0, 1, 2, 3] = 1
    """ZeRO stage."""


class CheckpointConfig(Section):
    """When training state is saved."""

    every_steps: int = Field(default=50, ge=1)
    """Optimizer steps between two checkpoints."""
    keep: int = Field(default=2, ge=1)
    """How many of the newest are kept."""


class WorkersConfig(Section):
    """Ray workers of one stage."""

    num: int = Field(default=1, ge=1)
    """How many."""
    cpus: float | None = Field(default=None, gt=0)
    """CPUs per worker, which are also its torch threads; by default an equal share of the
    machine."""
    gpus: float = Field(default=0, ge=0)
    """GPUs per worker."""


class TrainConfig(Section):
    """The training loop."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; give this or `epochs`."""
    epochs: float | None = Field(default=None, gt=0, le=1_000_000)
    """Passes over the training examples; give this or `steps`."""
    batch_size: int = Field(default=8, ge=1)
    """Global batch, in sequences per optimizer step."""
    row_tokens: int = Field(default=2048, ge=16)
    """Most tokens in one packed row, which is one forward pass."""
    packing: bool = True
    """Several sequences in one row, here and in scoring; prompt-learning methods always run
    without."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak of AdamW's learning rate."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas."""
    gradient_clipping: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 leaves gradients as they are."""
    schedule: ScheduleConfig = ScheduleConfig()
    sampling: SamplingConfig = SamplingConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    workers: WorkersConfig = WorkersConfig()
    max_failures: int = Field(default=2, ge=0)
    """How often a lost worker is replaced before training gives up."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            given = "both are given" if self.steps else "neither is given"
            raise ValueError(f"{given}: set one of steps and epochs, and the other one to null")
        return self

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each beta lies in [0, 1)")
        return betas


class PaftVariant(Section):
    """Every example through a prompt drawn afresh from the pool."""

    type: Literal["paft"]

    @property
    def label(self) -> str:
        """Name of the variant in folders, tables and MLflow."""
        return "paft"


class SinglePromptVariant(Section):
    """Every example through one prompt: what people do otherwise."""

    type: Literal["single_prompt"]
    prompt: str | None = None
    """A template to use; by default the training prompt with the base model's best accuracy on
    validation examples."""

    @property
    def label(self) -> str:
        """Name of the variant in folders, tables and MLflow."""
        return "single_prompt"


VariantConfig = Annotated[PaftVariant | SinglePromptVariant, Field(discriminator="type")]


class EvaluationConfig(Section):
    """Prompts x examples, on prompts that were never trained on."""

    examples: int | None = Field(default=None, ge=1)
    """Test examples to use; all by default."""
    prompts: int | None = Field(default=None, ge=1)
    """Test prompts to use; all by default."""
    top_thresholds: tuple[float, ...] = (0.75,)
    """Top@t is the share of prompts with at least accuracy t."""
    selection_examples: int = Field(default=16, ge=1)
    """Validation examples on which the single prompt is chosen."""
    selection_prompts: int = Field(default=48, ge=1)
    """Training prompts that are candidates for the single prompt."""
    row_tokens: int = Field(default=2048, ge=16)
    """Most tokens in one packed row."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest generated answer of a free-text task, in tokens."""
    workers: WorkersConfig = WorkersConfig()

    @field_validator("top_thresholds")
    @classmethod
    def _thresholds_are_shares(cls, thresholds: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= t <= 1 for t in thresholds):
            raise ValueError("each threshold is an accuracy between 0 and 1")
        return thresholds


class TrackingConfig(Section):
    """Where runs are recorded."""

    type: Literal["mlflow", "none"] = "mlflow"
    """MLflow, or nothing beyond the files under `storage`."""
    uri: str | None = None
    """MLflow tracking URI; by default a sqlite file under `storage`. Credentials come from
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""
    experiment: str = Field(default="paft", min_length=1)
    """MLflow experiment."""


class Config(Section):
    """Everything that one run needs to know."""

    name: str
    """Name of the run: its folder, and its name in MLflow."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Root of all randomness."""
    storage: str = "storage"
    """Folder or URI (s3://, gs://) for everything that is kept."""
    task: TaskConfig
    prompts: PromptsConfig
    model: ModelConfig
    train: TrainConfig
    variants: tuple[VariantConfig, ...] = Field(default=(PaftVariant(type="paft"),), min_length=1)
    """The ways to train that are run and compared, at equal steps."""
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        if not NAME_PATTERN.fullmatch(name):
            raise ValueError(
                "a name has up to 63 of a-z, 0-9, '.', '_', '-' and starts and ends "
                "with a letter or digit"
            )
        return name

    @field_validator("variants")
    @classmethod
    def _variants_differ(cls, variants: tuple[VariantConfig, ...]) -> tuple[VariantConfig, ...]:
        labels = [variant.label for variant in variants]
        if len(set(labels)) < len(labels):
            raise ValueError(f"a variant is named twice in {labels}: remove one")
        return variants

    @model_validator(mode="after")
    def _combinations_work(self) -> Self:
        if self.train.deepspeed.stage == 0 and self.model.dtype == "bfloat16":
            raise ValueError(
                "train.deepspeed.stage 0 with model.dtype bfloat16 gives wrong losses: "
                "use stage 1, or model.dtype float32"
            )
        if self.train.row_tokens < self.task.max_length:
            raise ValueError(
                f"train.row_tokens ({self.train.row_tokens}) is less than task.max_length "
                f"({self.task.max_length}): a longest example would fit no row; raise it"
            )
        if self.evaluation.row_tokens < self.task.max_length:
            raise ValueError(
                f"evaluation.row_tokens ({self.evaluation.row_tokens}) is less than "
                f"task.max_length ({self.task.max_length}): raise it"
            )
        return self


def total_steps(train: TrainConfig, train_examples: int) -> int:
    """Optimizer steps of a training, from `steps` or from `epochs` over `train_examples`."""
    if train.steps is not None:
        return train.steps
    assert train.epochs is not None
    return max(1, math.ceil(train.epochs * train_examples / train.batch_size))
