"""`target_modules` where a configuration leaves it out: by the model's family, without torch.

peft's own table names the attention projections of a family; other families get `all-linear`, but
for a few. What is chosen becomes part of the configuration, and so of identities, before anything
is compared.
"""

import ast
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from paft_ray.config import Config
from paft_ray.config.errors import ConfigError
from paft_ray.config.hub import require_hub
from paft_ray.config.loading import resolve_path
from paft_ray.models.gguf_header import is_gguf, read_gguf

ALL_LINEAR = "all-linear"
_TABLE = "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING"
_OWN_TABLE = {
    "falcon_h1": ["q_proj", "v_proj"], "falcon_mamba": ["in_proj"], "mamba": ["in_proj"],
    "mamba2": ["in_proj"],
}  # fmt: skip
"""Families that peft does not know, and of which it refuses some linear layers."""
_GGUF_FAMILIES = {
    "gemma3": "gemma3_text", "gptneox": "gpt_neox", "phi2": "phi", "starcoder": "gpt_bigcode",
}  # fmt: skip
"""Architectures of GGUF files that transformers calls otherwise."""
_HUB_TIMEOUT_S = 5


def with_targets(config: Config) -> Config:
    """Return the configuration with `model.peft.target_modules` chosen, where it is left out.

    It is left to peft where the family is not known here, or where peft chooses the same and the
    field is not written down: trainings of earlier versions are then still found.
    """
    peft = config.model.peft
    if peft is None or peft.get("target_modules") is not None:
        return config
    table, methods = _peft_table()
    if peft["peft_type"] not in methods:
        return config
    family = model_family(config.model.path, config.model.revision)
    if family is None or ("target_modules" not in peft and family in table):
        return config
    targets = {**_OWN_TABLE, **table}.get(family, ALL_LINEAR)
    chosen = {**peft, "target_modules": targets}
    model = config.model.model_copy(update={"peft": chosen})
    return config.model_copy(update={"model": model})


def model_family(path: str, revision: str | None) -> str | None:
    """Return a model's `model_type`, or None where its files cannot be read here."""
    try:
        location = resolve_path(path)
        if location is None:
            location = _hub_config(path, revision)
        elif is_gguf(location):
            return _gguf_family(location)
        else:
            location = location / "config.json"
        found = json.loads(location.read_bytes()) if location else {}
    except (ConfigError, OSError, ValueError):  # the checks of the model say what is wrong
        return None
    family = found.get("model_type") if isinstance(found, dict) else None
    return family if isinstance(family, str) else None


def _hub_config(path: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(path, "config.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    require_hub("model.path", path)
    return Path(
        hf_hub_download(path, "config.json", revision=revision, etag_timeout=_HUB_TIMEOUT_S)
    )


def _gguf_family(path: Path) -> str:
    family = read_gguf(path).architecture
    return _GGUF_FAMILIES.get(family, family)


def _peft_table() -> tuple[dict[str, Any], set[str]]:
    """Return peft's table of families, and the methods that use it; peft itself imports torch."""
    spec = importlib.util.find_spec("peft")
    if spec is None or not spec.submodule_search_locations:
        return {}, set()
    file = Path(next(iter(spec.submodule_search_locations)), "utils", "constants.py")
    source = file.read_text("utf-8")
    alike = re.findall(rf"^TRANSFORMERS_MODELS_TO_(\w+)_TARGET_\w+ = {_TABLE}\b", source, re.M)
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(name, ast.Name) and name.id == _TABLE for name in node.targets
        ):
            return ast.literal_eval(node.value), {"LORA", *alike}
    return {}, set()
