"""The one place that reads models, tokenizers and configurations with transformers.

Python files that a model's author put beside the weights run only where a setting trusts them; else
transformers refuses such a model, and never asks on the terminal. Trusted code comes from the
model's own folder or pinned commit. Pickled weights, which hub models may have, are read by torch's
`weights_only` reader, which makes tensors and runs nothing.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paft_ray.config.errors import ConfigError
from paft_ray.models.gguf_header import is_gguf, parsed_once

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_WITH_CODE = ("config.json", "tokenizer_config.json")
"""Files in which a model names Python files, under `auto_map`."""


def read_config(
    location: str, revision: str | None = None, trust: bool = False, **arguments: Any
) -> "PreTrainedConfig":
    """Read a model's configuration; see `read_model`."""
    from transformers import AutoConfig

    return _read(AutoConfig, location, revision, trust, arguments)


def files_in_bf16(location: str, revision: str | None = None, trust: bool = False) -> bool:
    """Return whether a model's files hold its weights in bf16, by its configuration."""
    import torch

    if is_gguf(location):
        return False  # they are converted from fewer bits, to fp32
    return read_config(location, revision, trust).dtype == torch.bfloat16


def read_tokenizer(
    location: str, revision: str | None = None, trust: bool = False, **arguments: Any
) -> "PreTrainedTokenizerBase":
    """Read a tokenizer; see `read_model`."""
    from transformers import AutoTokenizer

    return _read(AutoTokenizer, location, revision, trust, arguments)


def read_model(
    location: str, revision: str | None = None, trust: bool = False, **arguments: Any
) -> "PreTrainedModel":
    """Read a causal language model with its weights.

    Args:
        location: Folder or hub name.
        revision: Commit or tag of a hub model.
        trust: Run the model's own Python files, if it has any.
        arguments: Passed to `from_pretrained`.

    Raises:
        ConfigError: The model needs Python files and is not trusted, or they are elsewhere.
    """
    from transformers import AutoModelForCausalLM

    return _read(AutoModelForCausalLM, location, revision, trust, {**_SAFELY, **arguments})


def read_encoder(location: str, revision: str | None = None, trust: bool = False) -> Any:
    """Read a model that embeds text; see `read_model`."""
    from transformers import AutoModel

    return _read(AutoModel, location, revision, trust, dict(_SAFELY))


_SAFELY = {"weights_only": True}


def build_model(config: "PreTrainedConfig", trust: bool = False) -> "PreTrainedModel":
    """Build a causal language model from what `read_config` read, without its weights."""
    from transformers import AutoModelForCausalLM

    with _named_refusal(str(config.name_or_path), trust):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust)


def _read(
    auto: Any, location: str, revision: str | None, trust: bool, arguments: dict[str, Any]
) -> Any:
    if trust:
        _refuse_code_elsewhere(location, revision)
        # code of the same commit as the weights
        arguments = {**arguments, "code_revision": revision}
    quick = parsed_once() if arguments.get("gguf_file") else nullcontext()
    with _named_refusal(location, trust), quick:
        return auto.from_pretrained(
            location, revision=revision, trust_remote_code=trust, **arguments
        )


@contextmanager
def _named_refusal(location: str, trust: bool) -> Iterator[None]:
    """Name our setting where transformers refuses a model because of its Python files."""
    try:
        yield
    except ValueError as error:
        # transformers has no exception of its own for it
        if trust or isinstance(error, ConfigError) or "trust_remote_code" not in str(error):
            raise
        raise ConfigError(
            f"{location} needs Python files of its own, which run only if trusted: read them and "
            "set trust_remote_code: true beside its path, or name another model"
        ) from error


def _refuse_code_elsewhere(location: str, revision: str | None) -> None:
    """Refuse code of another repository, of which no revision is pinned.

    Raises:
        ConfigError: A file of the model names such code.
    """
    for name, reference in _code_references(location, revision):
        if "--" in reference:
            raise ConfigError(
                f"{location}: {name} takes code from another repository ({reference}), of which no "
                "commit is pinned: put these files into a folder with the model, and name that"
            )
    from transformers.utils.peft_utils import find_adapter_config_file

    if not Path(location).is_dir() and find_adapter_config_file(location, revision=revision):
        raise ConfigError(
            f"{location} is an adapter, whose base model would be loaded from another repository: "
            "name the base model, and the adapter under train.warm_start"
        )


def _code_references(location: str, revision: str | None) -> Iterator[tuple[str, str]]:
    """Yield names of files and the classes that they name under `auto_map`."""
    from transformers.utils import cached_file

    for name in _WITH_CODE:
        path = cached_file(
            location,
            name,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if path is None:
            continue
        found = json.loads(Path(path).read_bytes())
        classes = found.get("auto_map") or {} if isinstance(found, dict) else {}
        entries = classes.values() if isinstance(classes, dict) else [classes]
        for entry in entries:
            for reference in entry if isinstance(entry, list | tuple) else [entry]:
                if isinstance(reference, str):
                    yield name, reference
