"""`evaluation.subjects`: models that are measured beside the base model and the run's variants."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from paft_ray.config.base import NOTHING, affects
from paft_ray.config.llms import BaseUrl, Connection, ExtraBody, LLMConfig, OpenAILLM, Priced
from paft_ray.config.model import ModelConfig
from paft_ray.config.variants import VariantOptions


class AdapterSubject(VariantOptions, affects="run"):
    """An adapter of the run's base model, trained anywhere, of any method that peft loads."""

    type: Literal["adapter"]
    path: Annotated[str, NOTHING]
    """Folder (path, URI or `pkg:`) with adapter_config.json and adapter_model.safetensors."""


class ModelSubject(VariantOptions, affects="run"):
    """Another model: of another family, or one whose weights were all trained or merged."""

    type: Literal["model"]
    path: Annotated[str, NOTHING]
    """Model folder, GGUF file, `pkg:NAME/file.gguf`, or hub name."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    trust_remote_code: bool = False
    """Run Python files that lie beside the model's weights, as in `model`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic, as in `model`."""
    quantization: Literal["none", "nf4"] = "none"
    """Store linear weights in 4 bits."""
    chat_template: Literal["none", "auto"] = "none"
    """Whether prompts are wrapped in this model's chat template."""
    chat_template_kwargs: dict[str, Any] = Field(default={})
    """Variables of the chat template."""
    system: str | None = Field(default=None, min_length=1)
    """System message before every prompt."""

    def model(self) -> ModelConfig:
        """This model as a run's base model.

        Raises:
            ValidationError: Its settings contradict each other.
        """
        shared = type(self).model_fields.keys() & ModelConfig.model_fields.keys()
        return ModelConfig.model_validate({name: getattr(self, name) for name in shared})


class EndpointSubject(Priced, Connection, VariantOptions, affects="run"):
    """A model behind an OpenAI-compatible endpoint: vLLM, Ray Serve LLM, hosted ones.

    It decodes greedily (temperature 0) where it takes a temperature. No example is trimmed for it,
    and `evaluation.workers` do nothing for it: requests are sent from the command's own process.
    """

    type: Literal["endpoint"]
    base_url: BaseUrl
    """Root of the API, usually ending in /v1."""
    model: str = Field(min_length=1)
    """The model's name at that endpoint; of a server with adapters, the adapter's."""
    api: Literal["completions", "chat"] = "chat"
    """`chat` sends a prompt as a user's message; `completions` has it continued as it stands."""
    choices_by: Literal["logprobs", "text"] = "logprobs"
    """How the model chooses where choices are graded. `logprobs`: by their log-likelihoods, which
    servers give for `api: completions` only (vLLM: `echo` with `logprobs`). `text`: by what it
    writes, which is right where it is the answer and nothing else, but for capitals and blanks
    around it (`exact` with normalisation `case`); results say which models were graded so."""
    end_token: str | None = Field(default=None, min_length=1)
    """The server's end token as text, such as `</s>`, which is scored after a choice where
    `task.answer_end` is `scored`. Without it the choices of this model are scored without their
    end, and results say so."""
    system: str | None = Field(default=None, min_length=1)
    """System message before every prompt."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest answer that it writes, in tokens; by default `evaluation.max_new_tokens`."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """Longest answer with its reasoning, for endpoints that take this parameter instead of
    `max_tokens`; takes its place."""
    omit: tuple[Literal["temperature", "seed", "max_tokens"], ...] = ()
    """Parameters that are not sent. Those that an endpoint refuses as unknown are left out by
    themselves."""
    extra_body: ExtraBody = Field(default={})
    """Parameters that are sent besides, as they stand."""
    budget_tokens: Annotated[int | None, affects("nothing")] = Field(default=None, ge=1)
    """Most completion tokens of this evaluation, reasoning included; a choice's log-likelihood
    takes one. Where they could be exceeded the evaluation stops, and goes on with a larger
    budget."""

    @model_validator(mode="after")
    def _fields_fit_the_api(self) -> Self:
        chat = ("system", "max_completion_tokens")
        other = ("end_token",) if self.api == "chat" else chat
        if wrong := [name for name in other if getattr(self, name) is not None]:
            needed = "completions" if self.api == "chat" else "chat"
            raise ValueError(f"{wrong[0]} is for api: {needed}: leave it out, or change api")
        if set_by_us := {"prompt", "echo", "logprobs", "stop"} & self.extra_body.keys():
            raise ValueError(f"extra_body: {min(set_by_us)} is set by what is asked: take it out")
        if self.budget_tokens and "max_tokens" in self.omit:
            raise ValueError(
                "budget_tokens cannot be kept where max_tokens is omitted: an answer of any length "
                "could come; take one of them out"
            )
        return self

    def client(self, max_new_tokens: int) -> OpenAILLM:
        """This endpoint as its client takes it.

        Args:
            max_new_tokens: `evaluation.max_new_tokens`.
        """
        shared = type(self).model_fields.keys() & OpenAILLM.model_fields.keys()
        own = {
            "type": "openai",
            "max_tokens": self.max_tokens or max_new_tokens,
            "omit": (*self.omit, "top_p"),
        }
        return OpenAILLM.model_validate({**{k: getattr(self, k) for k in shared}, **own})


class _MadeOf(VariantOptions, affects="run"):
    """What a user could do with a model instead of training it."""

    of: str
    """The model that answers: `base`, the name of a variant, or of another subject."""


class _OfSubject(_MadeOf, affects="run"):
    """Several prompts for one answer."""

    prompts: int = Field(ge=2)
    """How many training prompts it is asked through, from the beginning of the pool; an answer
    costs as many passes."""


class EnsembleSubject(_OfSubject, affects="run"):
    """Every question through several prompts; the choice with the highest mean probability."""

    type: Literal["ensemble"]


class InferencePromptSubject(_OfSubject, affects="run"):
    """Every question through several prompts; the answer of the one under which it is surest."""

    type: Literal["inference_prompt"]


class BestPromptSubject(_MadeOf, affects="run"):
    """Every question through one training prompt: the best for this model on
    `evaluation.selection_examples` validation examples. Of the base model, scored by transformers,
    it is the prompt of a `single_prompt` variant with as many candidates, without its training."""

    type: Literal["best_prompt"]
    prompts: int = Field(ge=2)
    """How many training prompts are candidates, from the beginning of the pool."""


class OptimizedPromptSubject(_MadeOf, affects="run"):
    """Every question through one prompt, which an LLM improves by what the model answers to
    validation examples (GEPA, arXiv 2507.19457; extra `optimize`). The search begins with the first
    training prompt; it reads neither test prompts nor test examples."""

    type: Literal["optimized_prompt"]
    budget: int = Field(ge=10)
    """Most pairs of prompt and validation example that are scored to find the prompt, for each seed
    of a variant. A tenth of them are spent on every prompt that may be the best."""
    llm: Annotated[LLMConfig | None, affects("run", whole=True)] = None
    """The LLM that writes better prompts; by default the first of `prompts.generation.llms`."""
    budget_tokens: int | None = Field(default=None, ge=1)
    """Most completion tokens of the LLM, reasoning included; the search ends where they could be
    exceeded. It is asked once for every three pairs at most."""


SubjectConfig = Annotated[
    AdapterSubject
    | ModelSubject
    | EndpointSubject
    | EnsembleSubject
    | InferencePromptSubject
    | BestPromptSubject
    | OptimizedPromptSubject,
    Field(discriminator="type"),
]
OF_CHOICES = (EnsembleSubject, InferencePromptSubject)
"""Subjects that are made of the log-likelihoods of another model."""
OF_SEVERAL = (*OF_CHOICES, BestPromptSubject)
"""Subjects for which another model is asked through so many training prompts."""
UNDER_ONE = (BestPromptSubject, OptimizedPromptSubject)
"""Subjects that answer through one prompt, found for another model."""
COMPARATORS = (*OF_CHOICES, *UNDER_ONE)
"""Subjects that are made of another model."""
