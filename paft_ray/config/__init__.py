"""The typed configuration: one frozen tree, a docstring under every field, no ML import.

Covered: types, ranges and combinations. Not covered: checks that need files, models or a cluster
(`pipeline.preflight`). The sections:

root.py       the whole; base.py what a section is
task.py, grade.py              the data, and how answers are graded
prompts.py, llms.py            the pool, and who writes for it
model.py, train.py, validation.py, variants.py  what is trained, and how
evaluation.py, subjects.py, backend.py          what is measured, and by what
variation.py                   further ways to put a question
tuning.py                      the search

Beside them:

objectives.py, rewards.py  what training minimises; objective_check.py what it asks of the rest
loading.py    YAML and overrides, validated once; yaml_text.py reads YAML of unknown origin
overrides.py  `section.field=value`, read by the type of its field
affects.py    what a field affects, from which identities are made
errors.py     the errors that a user meets
uris.py       passwords in URIs; visible.py shows texts from outside safely
hub.py        whether the Hugging Face hub can be reached
launchers.py  variables of MPI, Slurm, torchrun
"""

from paft_ray.config.backend import TransformersBackend, VLLMBackend
from paft_ray.config.base import Section, WorkersConfig
from paft_ray.config.evaluation import TrackingConfig
from paft_ray.config.llms import (
    Endpoint,
    FakeLLM,
    LLMConfig,
    OpenAILLM,
    TokenPrice,
    TransformersLLM,
    VLLMEngine,
)
from paft_ray.config.model import ModelConfig
from paft_ray.config.objectives import (
    GRPO,
    Consensus,
    Consistency,
    CrossEntropy,
    CVaR,
    ExpectedReward,
    GroupDRO,
    ObjectiveConfig,
    Prefix,
    VLLMRollouts,
)
from paft_ray.config.prompts import (
    GenerationConfig,
    LintConfig,
    PoolSplitConfig,
    ProbeConfig,
    PromptsConfig,
)
from paft_ray.config.root import Config
from paft_ray.config.subjects import (
    AdapterSubject,
    BestPromptSubject,
    EndpointSubject,
    EnsembleSubject,
    InferencePromptSubject,
    ModelSubject,
    OptimizedPromptSubject,
    SubjectConfig,
)
from paft_ray.config.task import PUBLISHED_TASKS, BuiltinTaskConfig, CustomTaskConfig
from paft_ray.config.train import (
    ProfileConfig,
    SamplingConfig,
    ScheduleConfig,
    TrainConfig,
    TrainWorkersConfig,
    total_steps,
)
from paft_ray.config.tuning import (
    ASHA,
    Choice,
    DimensionConfig,
    GridSearch,
    LogRandInt,
    LogUniform,
    MedianStopping,
    OptunaSearch,
    RandInt,
    TuningConfig,
)
from paft_ray.config.validation import (
    GoalConfig,
    LowQuantile,
    MeanAccuracy,
    MeanMinusStd,
    ValidationConfig,
    WorstPrompt,
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
    "ASHA",
    "BASE",
    "GRPO",
    "PUBLISHED_TASKS",
    "AdapterSubject",
    "BestPromptSubject",
    "BoundPromptsVariant",
    "BuiltinTaskConfig",
    "CVaR",
    "Choice",
    "Config",
    "Consensus",
    "Consistency",
    "CrossEntropy",
    "CustomTaskConfig",
    "DimensionConfig",
    "Endpoint",
    "EndpointSubject",
    "EnsembleSubject",
    "ExpectedReward",
    "FakeLLM",
    "GenerationConfig",
    "GoalConfig",
    "GridSearch",
    "GroupDRO",
    "HumanPromptVariant",
    "InferencePromptSubject",
    "LLMConfig",
    "LintConfig",
    "LogRandInt",
    "LogUniform",
    "LowQuantile",
    "MeanAccuracy",
    "MeanMinusStd",
    "MedianStopping",
    "ModelConfig",
    "ModelSubject",
    "ObjectiveConfig",
    "OpenAILLM",
    "OptimizedPromptSubject",
    "OptunaSearch",
    "PaftVariant",
    "PoolSplitConfig",
    "Prefix",
    "ProbeConfig",
    "ProfileConfig",
    "PromptsConfig",
    "RandInt",
    "SamplingConfig",
    "ScheduleConfig",
    "Section",
    "SinglePromptVariant",
    "SubjectConfig",
    "TokenPrice",
    "TrackingConfig",
    "TrainConfig",
    "TrainWorkersConfig",
    "Training",
    "TransformersBackend",
    "TransformersLLM",
    "TuningConfig",
    "VLLMBackend",
    "VLLMEngine",
    "VLLMRollouts",
    "ValidationConfig",
    "VariantConfig",
    "WorkersConfig",
    "WorstPrompt",
    "total_steps",
]
