"""Prompt-agnostic fine-tuning (PAFT, arXiv 2502.12859) on Ray.

    from paft_ray import load_config, run
    summary = run(load_config("jobs/configs/demo.yaml", ["seed=1", "name=demo-1"])).data

The functions are the verbs of the command line (`pipeline.verbs` has all of them). Importing the
package imports neither Ray nor torch; the functions do when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paft_ray.config.loading import load_config
    from paft_ray.pipeline.perform import Options
    from paft_ray.pipeline.verbs import build_prompt_pool, evaluate, plan, run, train, tune

__all__ = [
    "Options",
    "build_prompt_pool",
    "evaluate",
    "load_config",
    "plan",
    "run",
    "train",
    "tune",
]

_ELSEWHERE = {"load_config": "paft_ray.config.loading", "Options": "paft_ray.pipeline.perform"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'paft_ray' has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, "paft_ray.pipeline.verbs")), name)
