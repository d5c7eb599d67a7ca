"""`model`: the base model and how it is adapted."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from paft_ray.config.base import NOTHING, Section, affects

NO_MODEL = "endpoint://"
"""`model.path` where all that is measured is behind endpoints; nothing can be read from it."""


class ModelConfig(Section, affects="weights"):
    """The base model and how it is adapted."""

    path: Annotated[str, NOTHING]
    """Model folder, `pkg:NAME/file.gguf` inside an installed package, or hub name."""
    revision: Annotated[str | None, affects("run")] = None
    """Commit or tag of a hub model; name one, so that a run can be repeated."""
    trust_remote_code: Annotated[bool, affects("pool", "weights", "scores", neutral=False)] = False
    """Run Python files that lie beside the model's weights, on the driver and all nodes: read them
    first. A hub model then needs a commit as its `revision`."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], affects("weights", "scores")] = "auto"
    """Arithmetic in training and scoring; auto is bf16 where the device is faster with it:
    autocast over frozen matrices in bf16 and fp32 weights."""
    chat_template: Annotated[Literal["none", "auto"], affects("pool", "weights", "scores")] = "none"
    """Whether a rendered prompt is wrapped in the model's chat template. With `auto` thinking is
    switched off where the template can, and a date that it prints is pinned; the report says so."""
    chat_template_kwargs: Annotated[
        dict[str, Any], affects("pool", "weights", "scores", neutral={})
    ] = Field(default={})
    """Variables of the chat template, such as `enable_thinking: true`."""
    system: Annotated[str | None, affects("pool", "weights", "scores", neutral=None)] = Field(
        default=None, min_length=1
    )
    """System message before every prompt; it begins the user's text where the template takes none.
    Needs `chat_template: auto`."""
    attention: Annotated[
        Literal["auto", "varlen", "blocks", "sdpa", "flash_attention_2", "flex_attention"], NOTHING
    ] = "auto"
    """How a packed row is kept from mixing its sequences: auto is `varlen` on GPUs in bf16 (torch's
    kernel that reads where each begins), else `blocks` (the row is cut into its sequences), each
    where the model allows it, else `sdpa` with positions that restart; the others are transformers'
    kernels for GPUs. Only training uses this: scoring is always auto."""
    quantization: Literal["none", "nf4"] = "none"
    """Store frozen linear weights in 4 bits wherever the model is used: trained (QLoRA; extra
    `quantized`), probed, scored, served."""
    peft: dict[str, Any] | None = Field(
        default={
            "peft_type": "LORA",
            "r": 8,
            "lora_alpha": 16,
            "target_modules": None,
        }
    )
    """Passed to peft; null trains all weights of the model. Where it is left out, or names no
    `target_modules`, these are the attention projections that peft knows for the model's family, or
    else `all-linear`; `paft plan` shows them."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _values_are_json(cls, values: dict[str, Any]) -> dict[str, Any]:
        return json.loads(json.dumps(values, default=str))  # YAML makes dates of some texts

    @model_validator(mode="after")
    def _chat_settings_are_read(self) -> Self:
        for name in ("system", "chat_template_kwargs"):
            if getattr(self, name) and self.chat_template == "none":
                raise ValueError(f"{name} is read by a chat template: set chat_template: auto")
        return self

    @field_validator("peft")
    @classmethod
    def _names_its_method(cls, peft: dict[str, Any] | None) -> dict[str, Any] | None:
        if peft is None:
            return None
        if not isinstance(peft.get("peft_type"), str):
            raise ValueError("peft_type is missing: name peft's method, for example LORA")
        return {**peft, "peft_type": peft["peft_type"].upper()}
