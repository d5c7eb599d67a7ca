"""Whether `model.peft` fits the installed peft and the model's modules, without importing either.

Covered: the method's name, the names of its arguments, and what `target_modules` and
`modules_to_save` match. Not covered: the arguments' values, which peft itself checks.
"""

import ast
import difflib
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from paft_ray.config.errors import ConfigError
from paft_ray.models.files import ModelFiles

_ANY_MODULE = ("ADAPTION_PROMPT", "BEFT", "LN_TUNING", "SHADOW")
"""Methods of peft that adapt norms, biases or whole blocks; all others want a weight matrix."""

_REFUSED_METHODS = {
    "LILY": "it is loaded wrongly beside another adapter, which is how variants are compared",
    "MULTITASK_PROMPT_TUNING": "it wants a task id with every example",
    "POLY": "it wants a task id with every example",
    "SHADOW": "it replaces the model's hidden states by objects of its own",
    "TINYLORA": "a saved adapter computes something else once it is loaded",
    "UNILORA": "peft saves it without a part that loading asks for",
    "VBLORA": "peft saves it without the vector bank that loading asks for",
    "XLORA": "it mixes adapters that were trained before",
}
"""Tried with the installed peft: trained, saved, loaded alone and beside a second adapter."""
_PLAIN_INITS = (True, False, "gaussian", "orthogonal", "mica", "eva", "lora_ga")
"""Initialisations of LoRA that leave the base model's weights alone."""


def check_peft(peft: Mapping[str, Any], files: ModelFiles) -> None:
    """Check `model.peft` against the installed peft and, where they are known, the model's modules.

    Raises:
        ConfigError: peft has no such method, the method has no such argument, or an entry of
            `target_modules` matches no module.
    """
    method = str(peft.get("peft_type", "")).upper()
    methods = peft_methods()
    if method not in methods:
        raise ConfigError(
            f"model.peft.peft_type: the installed peft has no method {method!r}; "
            f"{_nearest(method, methods)}"
        )
    _refuse_what_cannot_be_compared(method, peft)
    known = peft_arguments(method)
    for name in peft:
        if known and name not in known:
            raise ConfigError(
                f"model.peft.{name}: peft's {method} has no such argument; {_nearest(name, known)}"
            )
    for name in ("target_modules", "modules_to_save"):
        _check_targets(name, peft.get(name), method, files)


def complete_peft(peft: Mapping[str, Any] | None, steps: int) -> dict[str, Any] | None:
    """`model.peft` with what follows from the training's length, for methods that have a schedule.

    AdaLoRA trains a tenth of the steps at full rank (`tinit`), prunes, and trains the last three
    tenths at the ranks that are left (`tfinal`), unless the configuration says otherwise.

    Args:
        peft: As configured; None for full fine-tuning.
        steps: Optimizer steps of the training.

    Raises:
        ConfigError: AdaLoRA would have nothing to prune, or would not come to its end.
    """
    if peft is None or peft.get("peft_type") != "ADALORA":
        return None if peft is None else dict(peft)
    total = peft.get("total_step") or steps
    complete = {"tinit": steps // 10, "tfinal": steps * 3 // 10, **peft, "total_step": total}
    first, last = complete.get("init_r", 12), complete.get("target_r", 8)
    if total > steps:
        raise ConfigError(
            f"model.peft.total_step: {total} is more than the training's {steps} steps, which "
            "would end while ranks are pruned; leave it out"
        )
    if last >= first:
        raise ConfigError(
            f"model.peft.target_r: {last} is not less than init_r ({first}), so that there is "
            "nothing to prune; lower it, or use LORA"
        )
    return complete


def _refuse_what_cannot_be_compared(method: str, peft: Mapping[str, Any]) -> None:
    """Refuse what could be trained, but not saved, or not scored on a base that variants share."""
    if method in _REFUSED_METHODS:
        raise ConfigError(
            f"model.peft.peft_type: {method} is not supported: {_REFUSED_METHODS[method]}; use "
            "LORA, or another method"
        )
    init = peft.get("init_lora_weights", True)
    if method == "LORA" and init not in _PLAIN_INITS:
        raise ConfigError(
            f"model.peft.init_lora_weights: {init!r} changes the base model's weights, which all "
            f"variants share in evaluation; use one of {', '.join(map(str, _PLAIN_INITS))}"
        )
    if peft.get("bias", "none") != "none":
        raise ConfigError(
            f"model.peft.bias: {peft['bias']!r} trains biases of the base model, which all "
            "variants share in evaluation; use none"
        )
    if peft.get("layer_replication"):
        raise ConfigError(
            "model.peft.layer_replication: it changes the base model's layers, which all variants "
            "share in evaluation; leave it out"
        )


def peft_methods() -> tuple[str, ...]:
    """Names of the methods that the installed peft knows, read from its source, sorted."""
    for node in _parse(_peft_folder() / "utils" / "peft_types.py").body:
        if isinstance(node, ast.ClassDef) and node.name == "PeftType":
            values = (n.value for n in node.body if isinstance(n, ast.Assign))
            return tuple(sorted(str(v.value) for v in values if isinstance(v, ast.Constant)))
    raise ConfigError("model.peft: the installed peft names no methods; install peft anew")


def puts_tokens_before(method: str) -> bool:
    """Whether a method learns virtual tokens that stand before the text and changes no weight."""
    return "num_virtual_tokens" in peft_arguments(method)


def peft_arguments(method: str) -> frozenset[str]:
    """Arguments of a peft method's configuration class, read from its source; empty if unknown."""
    tuners = _peft_folder() / "tuners"
    for package in sorted(tuners.glob("*/__init__.py")):
        for node in ast.walk(_parse(package)):
            if not (isinstance(node, ast.Call) and _name(node.func) == "register_peft_method"):
                continue
            given = {k.arg: k.value for k in node.keywords}
            name, config = given.get("name"), given.get("config_cls")
            if isinstance(name, ast.Constant) and str(name.value).upper() == method:
                return frozenset(_class_fields(_name(config), tuners, set()))
    return frozenset()


def _check_targets(name: str, targets: Any, method: str, files: ModelFiles) -> None:
    if targets is None or files.parameters is None or files.modules is None:
        return
    whole_blocks = name == "modules_to_save" or method in _ANY_MODULE
    modules = _with_parents(files.modules) if whole_blocks else _matrices(files)
    if targets == "all-linear":
        if not files.linear_modules:
            raise ConfigError(
                f"model.peft.{name}: {files.location} has no linear modules for 'all-linear'; "
                "list the modules by name"
            )
    elif isinstance(targets, str):
        try:
            matches = re.compile(targets).fullmatch
        except re.error as error:
            raise ConfigError(
                f"model.peft.{name}: {targets!r} is no regular expression ({error}); mend it, or "
                "give a list of names"
            ) from error
        hint = f"a text is matched against full names; [{targets}] is a list of last parts; "
        _require_match(name, targets, matches, modules, hint)
    elif isinstance(targets, list | tuple) and all(isinstance(t, str) for t in targets):
        for target in targets:
            _require_match(name, target, partial(_ends_with, target), modules)
    else:
        raise ConfigError(
            f"model.peft.{name}: {targets!r} is neither a list of names nor a text; "
            "write it as [q_proj, v_proj]"
        )


def _ends_with(target: str, module: str) -> bool:
    """How peft matches an entry of a list, in `tuners_utils.check_target_module_exists`."""
    return module == target or module.endswith(f".{target}")


def _require_match(
    name: str,
    target: str,
    matches: Callable[[str], Any],
    modules: Iterable[str],
    hint: str = "",
) -> None:
    modules = list(modules)
    if any(matches(module) for module in modules):
        return
    last_parts = dict.fromkeys(module.rpartition(".")[2] for module in modules)
    raise ConfigError(
        f"model.peft.{name}: {target!r} matches none of the model's {len(modules)} modules; "
        f"{hint}{_nearest(target.rpartition('.')[2], last_parts)}"
    )


def _matrices(files: ModelFiles) -> list[str]:
    shapes = files.parameters or {}
    matrices = {n.rpartition(".")[0] for n, shape in shapes.items() if len(shape) > 1}
    return [m for m in files.modules or () if m in matrices or f"{m}.weight" not in shapes]


def _with_parents(modules: Iterable[str]) -> list[str]:
    names: dict[str, None] = {}
    for module in modules:
        parts = module.split(".")
        names.update(dict.fromkeys(".".join(parts[:n]) for n in range(len(parts), 0, -1)))
    return list(names)


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    listed = near or sorted(known)[:12]
    more = f" and {len(known) - len(listed)} more" if not near and len(known) > 12 else ""
    return f"{'nearest' if near else 'there are'}: {', '.join(listed)}{more}"


def _peft_folder() -> Path:
    spec = importlib.util.find_spec("peft")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("model.peft: the package peft is not installed: pip install peft")
    return Path(next(iter(spec.submodule_search_locations)))


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _name(node: ast.expr | None) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _class_fields(name: str, tuners: Path, seen: set[str]) -> set[str]:
    """Fields of a dataclass of peft and of its bases, wherever in peft they are defined."""
    if not name or name in seen:
        return set()
    seen.add(name)
    files = [tuners.parent / "config.py", *sorted(tuners.glob("*/config.py")), *tuners.glob("*.py")]
    for path in files:
        if f"class {name}" not in path.read_text(encoding="utf-8"):
            continue
        for node in _parse(path).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                own = {
                    n.target.id
                    for n in node.body
                    if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
                }
                return own.union(*(_class_fields(_name(b), tuners, seen) for b in node.bases))
    return set()
