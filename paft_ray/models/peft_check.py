"""Checks of `model.peft`: against a table, the installed peft, and the modules of the model.

`check_peft` imports nothing; the other checks run in the process of `meta.py`. peft itself refuses
what they do not cover.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from paft_ray.config.errors import ConfigError

if TYPE_CHECKING:
    from torch.nn import Module

_REFUSED_METHODS = {
    "ADALORA": "it prunes by local gradients and weights, of which ZeRO holds other copies",
    "LILY": "it is loaded wrongly beside another adapter, which is how variants are compared",
    "MULTITASK_PROMPT_TUNING": "it wants a task id with every example",
    "POLY": "it wants a task id with every example",
    "SHADOW": "it replaces the model's hidden states by objects of its own",
    "TINYLORA": "a saved adapter computes something else once it is loaded",
    "UNILORA": "peft saves it without a part that loading asks for",
    "VBLORA": "peft saves it without the vector bank that loading asks for",
    "XLORA": "it mixes adapters that were trained before",
}
"""Reasons, found by training, saving and loading with the installed peft."""
_PLAIN_INITS = (True, False, "gaussian", "orthogonal", "mica", "eva", "lora_ga")
"""Initialisations of LoRA that do not change the base model's weights."""
_VIRTUAL_TOKENS = ("CARTRIDGE", "CPT", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING")


def check_peft(peft: Mapping[str, Any]) -> None:
    """Refuse adapters that cannot be saved, or not evaluated on a base that variants share.

    Raises:
        ConfigError: The method or one of its arguments is not supported.
    """
    method, shared = peft["peft_type"], "which all variants share in evaluation"
    if method in _REFUSED_METHODS:
        raise ConfigError(
            f"model.peft.peft_type: {method} is not supported: {_REFUSED_METHODS[method]}; use "
            "LORA, or another method"
        )
    init = peft.get("init_lora_weights", True)
    if method == "LORA" and init not in _PLAIN_INITS:
        raise ConfigError(
            f"model.peft.init_lora_weights: {init!r} changes the base model's weights, {shared}; "
            f"use one of {', '.join(map(str, _PLAIN_INITS))}"
        )
    if peft.get("bias", "none") != "none":
        raise ConfigError(
            f"model.peft.bias: {peft['bias']!r} trains biases of the base model, {shared}; use none"
        )
    if peft.get("layer_replication"):
        raise ConfigError(
            f"model.peft.layer_replication: it changes the base model's layers, {shared}; leave it "
            "out"
        )


def puts_tokens_before(method: str) -> bool:
    """Return whether a method learns virtual tokens instead of changing weights."""
    return method in _VIRTUAL_TOKENS


def check_arguments(peft: Mapping[str, Any]) -> None:
    """Check method and arguments against the installed peft.

    Raises:
        ConfigError: peft has no such method, or the method no such argument.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    configs: Mapping[str, Any] = {m.value: c for m, c in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    method = peft["peft_type"]
    if method not in configs:
        raise ConfigError(
            f"model.peft.peft_type: the installed peft has no method {method!r}; "
            f"{_nearest(method, configs)}"
        )
    known = {field.name: field.type for field in dataclasses.fields(configs[method])}
    for name, value in peft.items():
        if name not in known:
            raise ConfigError(
                f"model.peft.{name}: peft's {method} has no such argument; {_nearest(name, known)}"
            )
        if known[name] in (int, float, "int", "float") and isinstance(value, str | bool):
            raise ConfigError(f"model.peft.{name}: {value!r} is no number")


def check_targets(peft: Mapping[str, Any], model: "Module") -> None:
    """Check that each listed module exists: peft accepts a list if one of it does.

    Raises:
        ConfigError: An entry of `target_modules` or `modules_to_save` matches no module.
    """
    modules = [name for name, _ in model.named_modules()]
    for field in ("target_modules", "modules_to_save"):
        targets = peft.get(field) or []
        if field == "target_modules" and isinstance(targets, str):
            continue  # peft matches it against full names, and refuses it where none matches
        if not isinstance(targets, list | tuple) or not all(isinstance(t, str) for t in targets):
            raise ConfigError(
                f"model.peft.{field}: {targets!r} is no list of names; write it as [q_proj, v_proj]"
            )
        for target in targets:
            # as in peft's tuners_utils.check_target_module_exists
            if not any(f".{module}".endswith(f".{target}") for module in modules):
                last_parts = {module.rpartition(".")[2] for module in modules}
                raise ConfigError(
                    f"model.peft.{field}: {target!r} matches none of the model's {len(modules)} "
                    f"modules; {_nearest(target.rpartition('.')[2], last_parts)}"
                )


def _nearest(word: str, known: Iterable[str]) -> str:
    known = sorted(name for name in known if name and not name.isdigit())
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"nearest: {', '.join(near)}" if near else f"there are: {', '.join(known)}"
