"""What a run would do, from its configuration and the files alone: nothing is sent or written."""

from typing import Any

from paft_ray.config import SinglePromptVariant, total_steps
from paft_ray.prompts.build import within_budget
from paft_ray.prompts.generation import build_requests
from paft_ray.prompts.llm import llm_key, llm_label
from paft_ray.session import Session
from paft_ray.training.trainer import find_trained


def describe_plan(session: Session) -> dict[str, Any]:
    """Counts of everything that a run would do, in the order of its stages."""
    config, task = session.config, session.task
    prompts, evaluation, train = config.prompts, config.evaluation, config.train
    steps = total_steps(train, len(task.train))
    plan: dict[str, Any] = {
        "run": config.name,
        "storage": session.storage.path(),
        "task": task.name,
        "examples": {name: len(task.examples(name)) for name in ("train", "validation", "test")},
        "model": config.model.path,
        "arithmetic": {"train": session.training_dtype, "evaluate": session.scoring_dtype},
    }
    if prompts.generation is not None:
        llms = prompts.generation.llms
        keys = [llm_key(llm) for llm in llms]
        requests = within_budget(
            build_requests(task, prompts.generation, config.seed, keys),
            prompts.generation.budget_tokens,
        )
        plan["generation"] = {
            "llms": [llm_label(llm) for llm in llms],
            "requests": len(requests),
            "completion_tokens_at_most": sum(request.max_tokens for request in requests),
        }
    selecting = any(
        isinstance(variant, SinglePromptVariant) and variant.prompt is None
        for variant in config.variants
    )
    if selecting:
        plan["choose_single_prompt"] = {
            "prompts_at_most": evaluation.selection_prompts,
            "examples": min(evaluation.selection_examples, len(task.validation)),
        }
    plan["training"] = {
        variant.label: "complete" if find_trained(session, variant) else f"{steps} steps"
        for variant in config.variants
    }
    plan["sequences_per_training"] = steps * train.batch_size
    plan["workers"] = {"train": train.workers.num, "evaluate": evaluation.workers.num}
    test_prompts = min(prompts.split.test, evaluation.prompts or prompts.split.test)
    test_examples = min(len(task.test), evaluation.examples or len(task.test))
    plan["evaluation"] = {
        "models": 1 + len(config.variants),
        "prompts": test_prompts,
        "examples": test_examples,
        "answers": (1 + len(config.variants)) * test_prompts * test_examples,
    }
    return plan
