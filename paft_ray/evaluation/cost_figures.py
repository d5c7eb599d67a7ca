"""Figures of what an answer, a prompt and a training cost."""

from functools import partial

from paft_ray.evaluation.figure import Figure

_Count = partial(Figure, most=float("inf"), scale=1, format=",.0f")

SECONDS_PER_EXAMPLE = Figure(
    key="seconds_per_example",
    heading="s per example",
    meaning="seconds of scoring per example",
    definition="Wall-clock seconds of one actor for an example under a prompt, without loading.",
    metric="seconds_per_example",
    better="lower",
    most=float("inf"),
    scale=1,
    format=".3g",
)
PROMPTS_PER_ANSWER = _Count(
    key="prompts_per_answer",
    heading="passes per answer",
    meaning="prompts that the model reads for one answer; 1 where it is not said",
    better="lower",
)
OPTIMIZED_PAIRS = _Count(
    key="optimized_pairs",
    heading="pairs to find the prompt",
    meaning="pairs of prompt and validation example that were scored to find a model's prompt, "
    "averaged over seeds",
    metric="optimized_pairs",
    better="lower",
)
REFLECTIONS = _Count(
    key="reflections",
    heading="LLM answers to find it",
    meaning="answers of the LLM that improved the prompt, averaged over seeds",
    metric="reflections",
    better="lower",
)
TRAINED_TOKENS = _Count(
    key="trained_tokens",
    heading="trained tokens",
    meaning="tokens read in training, averaged over seeds",
)
TRAINED_ANSWER_TOKENS = _Count(
    key="trained_answer_tokens",
    heading="answer tokens",
    meaning="of these, tokens of answers, which alone have a loss",
)
TRAINED_ROLLOUT_TOKENS = _Count(
    key="trained_rollout_tokens",
    heading="rollout tokens",
    meaning="tokens that the model wrote itself to learn from, averaged over seeds",
)
TRAINED_SECONDS = _Count(
    key="trained_seconds",
    heading="seconds of training",
    meaning="of the training loop, with what the model wrote in it, averaged over seeds",
)
COSTS = (
    SECONDS_PER_EXAMPLE,
    PROMPTS_PER_ANSWER,
    OPTIMIZED_PAIRS,
    REFLECTIONS,
    TRAINED_TOKENS,
    TRAINED_ANSWER_TOKENS,
    TRAINED_ROLLOUT_TOKENS,
    TRAINED_SECONDS,
)
"""In the order of files and tables."""
