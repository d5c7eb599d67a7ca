"""Sentences about models under one prompt of their own, and about paraphrases."""

from collections.abc import Mapping, Sequence
from typing import Any

from paft_ray.evaluation.figures import MEAN
from paft_ray.report.tables import display_name, trained_labels

_NAMED = 5
"""Examples that are named of those without paraphrases."""


def optimized_prompts(summary: Mapping[str, Any], names: Mapping[str, str] | None) -> list[str]:
    """What a reader of the figures of models under one prompt must know."""
    sentences = []
    for label, model in summary["models"].items():
        searches = model.get("optimized_prompts", [])
        name = display_name(label, names)
        if searches:
            of = display_name(searches[0]["of"], names)
            sentences.append(
                f"{name}: {of} under one prompt, the same for all test prompts, so that there "
                "is no spread over prompts to measure; an answer costs one pass. The prompt was "
                "chosen on validation examples."
            )
        many = len({search["seed"] for search in searches}) > 1
        sentences += [_search(name, search, many) for search in searches]
    return sentences


def paraphrases(summary: Mapping[str, Any]) -> list[str]:
    """What became of the paraphrases of examples."""
    sentences = []
    if (about := summary.get("paraphrases")) is not None:
        sentences.append(
            f"The wording of the example: {about['examples']} of {summary['examples']} examples in "
            f"{about['per_example']} other wordings each, {_written(about)}."
        )
        if without := about["without"]:
            sentences.append(
                f"{len(without)} examples without all of their paraphrases are left out of this "
                f"axis ({_named(without)})."
            )
    if (about := summary.get("training_paraphrases")) is not None:
        sentences.append(
            f"Models were trained on {about['rewritten']} of {about['examples']} training examples "
            f"in other words too, {about['wordings']} wordings in all, {_written(about)}."
        )
        if without := about["without"]:
            sentences.append(
                f"{len(without)} training examples of which no paraphrase could be used were "
                f"trained with their own text alone ({_named(without)})."
            )
    return sentences


def prompts_of_files(summary: Mapping[str, Any]) -> list[str]:
    """Where prompts are from that are not the pool's, and how many models may have learned."""
    if (about := summary.get("prompt_files")) is None:
        return []
    like, names = len(about["like_trained"]), ", ".join(about["files"])
    said = f"{like or 'none'} of them" if like != 1 else "one of them"
    has = "has" if like < 2 else "have"
    sentence = f"The {summary['prompts']} prompts are those of {names}."
    if not trained_labels(summary):
        return [sentence]
    return [f"{sentence[:-1]}; {said} {has} the wording or the layout of a training prompt."]


def _written(about: Mapping[str, Any]) -> str:
    """What was asked for paraphrases, and what could not be used."""
    refused = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in about["refused"].items())
    unusable = f"; answers that could not be used: {refused}" if refused else ""
    return f"{_asked(about['asked'])}{unusable}"


def _named(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_NAMED]) + (", ..." if len(ids) > _NAMED else "")


def _asked(asked: Mapping[str, Any]) -> str:
    """Answers of an LLM, tokens and cost."""
    cost = "" if asked["cost"] is None else f", cost {asked['cost']:.4g}"
    return (
        f"{asked['requests']} answers of {asked['llm']} ({asked['prompt_tokens']} tokens read, "
        f"{asked['completion_tokens']} written{cost})"
    )


def _search(name: str, search: Mapping[str, Any], many: bool) -> str:
    seed = f" for seed {search['seed']}" if many else ""
    like = search.get("like_held_out")
    alike = f" It is like test prompt {like}, which the search did not know." if like else ""
    if search.get("type") == "best_prompt":
        return (
            f"{name}{seed}: the best of {search['prompts']} training prompts, "
            f"{MEAN.heading} {100 * search['accuracy']:.1f} on {search['tracked']} validation "
            f"examples. The prompt: {search['prompt']!r}.{alike}"
        )
    asked, refused = search["asked"], sum(search["refused"].values())
    unusable = f", of which {refused} could not be used" if refused else ""
    first, best = (100 * search[key] for key in ("first_accuracy", "accuracy"))
    return (
        f"{name}{seed}: found with {search['pairs']} pairs of prompt and validation example "
        f"(budget {search['budget']}) and {_asked(asked)}{unusable}; "
        f"{MEAN.heading} on {search['tracked']} validation examples {first:.1f} before and "
        f"{best:.1f} after. The prompt: {search['prompt']!r}.{alike}"
    )
