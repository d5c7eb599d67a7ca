"""The typed configuration: one frozen tree, a docstring under every field, no ML import.

Covered: types, ranges and combinations. Not covered: reading it from YAML (`loading`), and
anything that needs a look at the world (files, models, clusters), which is `preflight`'s part.
"""

from paft_ray.config.base import Section, WorkersConfig, WorkerShare
from paft_ray.config.llms import (
    FakeLLM,
    LLMConfig,
    OpenAILLM,
    TokenPrice,
    TransformersLLM,
    VLLMEngine,
)
from paft_ray.config.prompts import (
    GenerationConfig,
    LintConfig,
    PoolSplitConfig,
    ProbeConfig,
    PromptsConfig,
)
from paft_ray.config.root import Config
from paft_ray.config.task import PUBLISHED_TASKS, BuiltinTaskConfig, CustomTaskConfig
from paft_ray.config.train import (
    Consistency,
    CrossEntropy,
    CVaR,
    GroupDRO,
    ObjectiveConfig,
    SamplingConfig,
    ScheduleConfig,
    TrainConfig,
    TrainWorkersConfig,
    total_steps,
)
from paft_ray.config.variants import (
    BASE,
    BoundPromptsVariant,
    HumanPromptVariant,
    PaftVariant,
    SinglePromptVariant,
    Training,
    VariantConfig,
)

__all__ = [
    "BASE",
    "PUBLISHED_TASKS",
    "BoundPromptsVariant",
    "BuiltinTaskConfig",
    "CVaR",
    "Config",
    "Consistency",
    "CrossEntropy",
    "CustomTaskConfig",
    "FakeLLM",
    "GenerationConfig",
    "GroupDRO",
    "HumanPromptVariant",
    "LLMConfig",
    "LintConfig",
    "ObjectiveConfig",
    "OpenAILLM",
    "PaftVariant",
    "PoolSplitConfig",
    "ProbeConfig",
    "PromptsConfig",
    "SamplingConfig",
    "ScheduleConfig",
    "Section",
    "SinglePromptVariant",
    "TokenPrice",
    "TrainConfig",
    "TrainWorkersConfig",
    "Training",
    "TransformersLLM",
    "VLLMEngine",
    "VariantConfig",
    "WorkerShare",
    "WorkersConfig",
    "total_steps",
]
