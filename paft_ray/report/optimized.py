"""Sentences about optimised prompts: how each was found, and what its figures cannot say."""

from collections.abc import Mapping
from typing import Any

from paft_ray.evaluation.figures import MEAN
from paft_ray.report.tables import display_name


def optimized_prompts(summary: Mapping[str, Any], names: Mapping[str, str] | None) -> list[str]:
    """What a reader of the figures of optimised prompts must know."""
    sentences = []
    for label, model in summary["models"].items():
        searches = model.get("optimized_prompts", [])
        name = display_name(label, names)
        if searches:
            of = display_name(searches[0]["of"], names)
            sentences.append(
                f"{name}: {of} under one prompt, the same for all held-out prompts, so that there "
                "is no spread over prompts to measure; an answer costs one pass. The prompt was "
                "chosen on validation examples."
            )
        many = len({search["seed"] for search in searches}) > 1
        sentences += [_search(name, search, many) for search in searches]
    return sentences


def _search(name: str, search: Mapping[str, Any], many: bool) -> str:
    seed = f" for seed {search['seed']}" if many else ""
    asked, refused = search["asked"], sum(search["refused"].values())
    cost = "" if asked["cost"] is None else f", cost {asked['cost']:.4g}"
    unusable = f", of which {refused} could not be used" if refused else ""
    first, best = (100 * search[key] for key in ("first_accuracy", "accuracy"))
    like = search.get("like_held_out")
    alike = f" It is like held-out prompt {like}, which the search did not know." if like else ""
    return (
        f"{name}{seed}: found with {search['pairs']} pairs of prompt and validation example "
        f"(budget {search['budget']}) and {asked['requests']} answers of {asked['llm']} "
        f"({asked['prompt_tokens']} tokens read, {asked['completion_tokens']} written{cost})"
        f"{unusable}; {MEAN.heading} on {search['tracked']} validation examples {first:.1f} before "
        f"and {best:.1f} after. The prompt: {search['prompt']!r}.{alike}"
    )
