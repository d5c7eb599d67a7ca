"""Prompt-agnostic fine-tuning (PAFT, arXiv 2502.12859) on Ray.

    from paft_ray import load_config, run
    summary = run(load_config("jobs/configs/demo.yaml", ["seed=1", "name=demo-1"]))

Importing the package imports neither Ray nor torch; the functions below do when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paft_ray.config.loading import load_config
    from paft_ray.pipeline.verbs import build_prompt_pool, evaluate, run, train

__all__ = ["build_prompt_pool", "evaluate", "load_config", "run", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'paft_ray' has no attribute {name!r}")
    module = "paft_ray.config.loading" if name == "load_config" else "paft_ray.pipeline.verbs"
    return getattr(import_module(module), name)
