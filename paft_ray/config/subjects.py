"""`evaluation.subjects`: models that are measured beside the base model and the run's variants."""

from typing import Annotated, Any, Literal

from pydantic import Field

from paft_ray.config.base import NOTHING
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


class _OfSubject(VariantOptions, affects="run"):
    """What a user could do with a model instead of training it."""

    of: str
    """The model that answers: `base`, the name of a variant, or of another subject."""
    prompts: int = Field(ge=2)
    """How many training prompts it is asked through, from the beginning of the pool; an answer
    costs as many passes."""


class EnsembleSubject(_OfSubject, affects="run"):
    """Every question through several prompts; the choice with the highest mean probability."""

    type: Literal["ensemble"]


class InferencePromptSubject(_OfSubject, affects="run"):
    """Every question through several prompts; the answer of the one under which it is surest."""

    type: Literal["inference_prompt"]


SubjectConfig = Annotated[
    AdapterSubject | ModelSubject | EnsembleSubject | InferencePromptSubject,
    Field(discriminator="type"),
]
COMPARATORS = (EnsembleSubject, InferencePromptSubject)
"""Subjects that are made of the answers of another model."""
