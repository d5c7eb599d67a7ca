"""Prompt-agnostic fine-tuning (PAFT, arXiv 2502.12859) on Ray.

    import paft_ray

    result = paft_ray.run("jobs/configs/demo.yaml", overrides=["seed=1", "name=demo-1"])
    print(result)      # the table; result.table and result.scores (every answer) are DataFrames

    run                the pool, all trainings, their evaluation and the report
    plan               what a run would take; starts nothing
    robustness         how much a model's answers depend on the wording, without a configuration
    build_prompt_pool  the pool alone
    train              the trainings
    evaluate           the base model, what was trained, and other models, in one table
    tune               a search for the settings of the most robust model
    export_model       an adapter or a merged model in a folder of its own
    write_report       the report of a run again
    list_runs          what is on a storage
    compare_runs       models of several runs in one table
    prompt_dataset     examples under drawn prompts, for Trainer and SFTTrainer

Ask for one at a time: `help(paft_ray.run)`. The functions are the verbs of the command line. They
take the path of a YAML file, a dict or a loaded `Config`, and start or join Ray by themselves; the
same call again continues what was interrupted. Importing the package imports neither Ray nor torch;
the functions do when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paft_ray.config import Config
    from paft_ray.config.errors import ConfigError, PaftError
    from paft_ray.config.loading import load_config
    from paft_ray.pipeline.api import (
        build_prompt_pool,
        compare_runs,
        evaluate,
        export_model,
        list_runs,
        plan,
        robustness,
        run,
        train,
        tune,
        write_report,
    )
    from paft_ray.pipeline.perform import Options, Result
    from paft_ray.pipeline.prompt_data import prompt_dataset
    from paft_ray.pipeline.results import PoolResult, RunResult
    from paft_ray.prompts.pool import PromptPool
    from paft_ray.tasks.guessing import Said
    from paft_ray.training.prompt_dataset import PromptDataset

    __version__: str

__all__ = [
    "Config",
    "ConfigError",
    "Options",
    "PaftError",
    "PoolResult",
    "PromptDataset",
    "PromptPool",
    "Result",
    "RunResult",
    "Said",
    "__version__",
    "build_prompt_pool",
    "compare_runs",
    "evaluate",
    "export_model",
    "list_runs",
    "load_config",
    "plan",
    "prompt_dataset",
    "robustness",
    "run",
    "train",
    "tune",
    "write_report",
]

_ELSEWHERE = {
    "Config": "config",
    "ConfigError": "config.errors",
    "Options": "pipeline.perform",
    "PaftError": "config.errors",
    "PoolResult": "pipeline.results",
    "PromptDataset": "training.prompt_dataset",
    "PromptPool": "prompts.pool",
    "Result": "pipeline.perform",
    "RunResult": "pipeline.results",
    "Said": "tasks.guessing",
    "load_config": "config.loading",
    "prompt_dataset": "pipeline.prompt_data",
}
"""Where names are that are not in `pipeline.api`."""


if not TYPE_CHECKING:  # else a type checker takes every name for a known one

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return import_module("importlib.metadata").version(__name__)
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_ELSEWHERE.get(name, 'pipeline.api')}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__"]
