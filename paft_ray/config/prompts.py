"""`prompts`: where prompts come from and how the pool is made of them."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from paft_ray.config.base import NOTHING, OneGpu, Section, affects
from paft_ray.config.llms import LLMConfig


class StopConfig(Section, affects="pool"):
    """The early stop of generation: new candidates repeat earlier ones."""

    new_share: float = Field(default=0.02, gt=0, lt=1)
    """Stop when a smaller share of a round's candidates is unlike all before."""
    round: int = Field(default=256, ge=16)
    """Requests per round and LLM."""


class GenerationConfig(Section, affects="pool"):
    """The generation of candidate prompts."""

    llms: tuple[LLMConfig, ...] = Field(min_length=1)
    """The authors; several different ones make a more varied pool."""
    strategies: tuple[Literal["zero_shot", "few_shot"], ...] = Field(
        default=("zero_shot", "few_shot"), min_length=1
    )
    """Requests with examples of prompts, without, or both."""
    form: Literal["template", "instruction"] = "template"
    """What one answer holds: whole templates (able models), or an instruction sentence that is
    placed in layouts of a grammar (small models)."""
    per_llm: int = Field(default=20, ge=1)
    """Requests per LLM and strategy."""
    temperature: Annotated[float, affects("pool", "answers")] = Field(default=1.0, ge=0)
    """The LLM's decoding temperature."""
    top_p: Annotated[float, affects("pool", "answers")] = Field(default=1.0, gt=0, le=1)
    """Decode from the likeliest tokens that together have this probability; small models need
    less than 1 to stay on topic."""
    budget_tokens: int | None = Field(default=None, ge=1)
    """Send no more requests once this many completion tokens could be spent. Reasoning counts; so
    do the bytes of answers whose tokens an endpoint does not count."""
    max_error_rate: Annotated[float, NOTHING] = Field(default=0.5, ge=0, le=1)
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

    @model_validator(mode="after")
    def _budget_needs_bounded_answers(self) -> Self:
        for llm in self.llms:
            if self.budget_tokens and "max_tokens" in getattr(llm, "omit", ()):
                raise ValueError(
                    f"budget_tokens cannot be kept where {llm.label} omits max_tokens: an answer "
                    "of any length could come; take one of them out"
                )
        return self


class LintConfig(Section, affects="pool"):
    """The rules for a prompt's text."""

    max_characters: int = Field(default=1500, ge=20)
    """Longest template, slots counted by their names."""
    min_instruction_words: int = Field(default=3, ge=0)
    """Fewest words of an instruction that an LLM wrote."""
    relevance: bool = True
    """Refuse what an LLM wrote without a word of the task, or for another kind of work."""


class DedupConfig(Section, affects="pool"):
    """The similarity at which two prompts count as the same."""

    similarity: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of the instructions' shingles at which one of them is dropped."""


class PoolSplitConfig(Section, affects="pool"):
    """The split of prompts into training, validation and test."""

    similarity: float = Field(default=0.5, gt=0, le=1)
    """No test or validation instruction is this similar to one of another split."""
    validation: int = Field(default=4, ge=0)
    """Validation prompts."""
    test: int = Field(default=12, ge=1)
    """Test prompts."""
    held_out_llm: str | None = None
    """Name of an LLM (its `model`, or the last part of its `path`) that writes all test prompts
    and no other: figures then hold for an author whose prompts were never trained on."""
    held_out_file: Annotated[str | None, affects("pool", neutral=None)] = None
    """An entry of `prompts.files` that holds all test prompts, none of which is trained on: what
    people wrote, for example, beside training prompts that an LLM wrote. With `held_out_llm` too,
    each gives half of them, and results show both apart."""

    @property
    def held_out_authors(self) -> tuple[str, ...]:
        """The file and the LLM that all test prompts come from; empty for any."""
        return tuple(name for name in (self.held_out_file, self.held_out_llm) if name)

    @model_validator(mode="after")
    def _a_test_prompt_of_each_author(self) -> Self:
        if self.test < len(self.held_out_authors):
            raise ValueError(
                f"split.test ({self.test}) is less than one prompt of held_out_file and one of "
                "held_out_llm: raise it, or remove one of them"
            )
        return self


class CoverageConfig(Section, affects="pool"):
    """The distance between training prompts, by which they are ordered for coverage."""

    type: Literal["tfidf", "embeddings"] = "tfidf"
    """Character n-grams in common, or the embeddings of a model."""
    path: str | None = None
    """Folder or hub name of a sentence-transformers model, for `embeddings`."""
    revision: Annotated[str | None, affects("pool", neutral=None)] = None
    """Commit or tag of a hub model."""
    trust_remote_code: Annotated[bool, affects("pool", neutral=False)] = False
    """Run Python files that lie beside this model's weights; a hub model then needs a commit as its
    `revision`."""

    @model_validator(mode="after")
    def _embeddings_have_a_model(self) -> Self:
        if (self.type == "embeddings") != (self.path is not None):
            raise ValueError("embeddings need path, the model that makes them, and tfidf has none")
        return self


class ProbeConfig(Section, affects="pool"):
    """The base model's score of each prompt, which is kept with the pool."""

    examples: int = Field(default=8, ge=1)
    """Training examples that each prompt is tried on."""
    row_tokens: int = Field(default=2048, ge=16)
    """Most tokens in one packed row."""
    min_mass: float = Field(default=0.0, ge=0, le=1)
    """Drop training prompts with less probability on the allowed answers. Narrowing the pool made
    trained models less steady where it was measured."""
    min_accuracy: float = Field(default=0.0, ge=0, le=1)
    """Drop training prompts under which the base model is right less often."""
    actors: Annotated[int, NOTHING] = Field(default=1, ge=1)
    """Copies of the base model."""
    cpus: float = Field(default=1, ge=1)
    """CPUs per actor, which are its torch threads."""
    gpus: Annotated[OneGpu, NOTHING] = 0
    """GPUs per actor: 0, 1, or the share of one that several use; by default those of
    `train.workers`."""


class PromptsConfig(Section, affects="pool"):
    """The sources of prompts, and the making of the pool."""

    files: Annotated[tuple[str, ...], NOTHING] = ()
    """Files with templates, by ending: `.jsonl` with an object `{"text": ...}` a line, `.csv` and
    `.parquet` with a column `text`, `.txt` with a template a line, where alone `\\n` stands for a
    line end. A template holds each field of the task once, as `{slot}`; `{{name}}` writes `{name}`.
    Another single word in braces is taken for a slip, and the template is left out; other braces
    and brackets are text. `stock:KIND` are wordings that come with the package, each in a layout of
    its own; KIND is choices, letters, yesno, text, cloze, task, or a built-in task."""
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
    pool_size: Annotated[int | None, affects("run")] = Field(default=None, ge=1)
    """Train on this many of the training prompts; all of them by default."""

    @model_validator(mode="after")
    def _some_source(self) -> Self:
        if not self.files and self.generation is None:
            raise ValueError("no source of prompts: set prompts.files or prompts.generation")
        return self

    @model_validator(mode="after")
    def _held_out_file_is_one_of_several_sources(self) -> Self:
        file = self.split.held_out_file
        alone = self.generation is None and set(self.files) <= {file}
        if file is not None and (file not in self.files or alone):
            raise ValueError(
                f"split.held_out_file {file!r} is no entry of files, or all there is: name one of "
                "them, and give other files or generation to train on"
            )
        return self
