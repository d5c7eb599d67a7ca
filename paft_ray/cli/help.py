"""What `paft --help` and `paft VERB --help` say beyond the options: examples, storage, resuming."""

import argparse
from collections.abc import Mapping

from paft_ray.pipeline.verbs import VERBS

RUNS, STATUS, COMPARE, DELETE = "runs", "status", "compare", "delete"
ON_STORAGE = {
    RUNS: "list the runs and searches on a storage",
    STATUS: "show the results of a run, or how far it is; also from another machine",
    COMPARE: "compare the models of several runs that share prompts and examples",
    DELETE: "remove runs from a storage, after a look at what goes",
}
"""Commands about what is on a storage, which take no configuration."""
EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "init": (
        "paft init reviews.csv",
        "paft init tickets.jsonl --field text --answer team --model HuggingFaceTB/SmolLM2-135M",
    ),
    "robustness": ("paft robustness ./my-model reviews.jsonl --field text --answer label",),
    "plan": ("paft plan reviews.yaml", "paft plan reviews.yaml --cluster 10.0.0.1:6379"),
    "run": ("paft run reviews.yaml", "paft run reviews.yaml name=longer train.steps=500"),
    "prompts": ("paft prompts reviews.yaml",),
    "train": ("paft train reviews.yaml train.learning_rate=1e-4",),
    "evaluate": (
        "paft evaluate reviews.yaml",
        "paft evaluate reviews.yaml evaluation.name=more evaluation.examples=500",
    ),
    "tune": ("paft tune search.yaml",),
    "report": ("paft report reviews.yaml",),
    "export": (
        "paft export reviews.yaml --out ./reviews-adapter",
        "paft export reviews.yaml --merge --variant paft --out ./reviews-model",
    ),
    "submit": (
        "paft submit reviews.yaml storage=/shared/paft --address http://10.0.0.1:8265",
        "paft submit reviews.yaml storage=/shared/paft --job plan",
    ),
    "runs": ("paft runs", "paft runs storage=/shared/paft"),
    "status": ("paft status reviews", "paft status reviews storage=s3://bucket/paft"),
    "compare": ("paft compare reviews longer",),
    "delete": ("paft delete longer", "paft delete longer reviews/more --yes"),
    "completion": ('eval "$(paft completion bash)"', "paft completion fish > paft.fish"),
}
"""Commands of each verb that can be copied."""
_STORAGE = """\
Everything that is kept goes below one folder or URI, storage=PLACE (default: the folder
`storage` here), such as storage=/shared/paft or storage=s3://bucket/folder."""
_AGAIN = """\
Giving the same command again continues what was interrupted, at any instant, and finds what is
done. What was changed by section.field=value has to be given again, too."""
_CHANGE = "Any value of the configuration can be changed on the way by section.field=value."
_START = """\
to begin with data of your own:
  paft init reviews.csv        writes a configuration and wordings to edit
  paft plan reviews.yaml       checks everything, changes nothing
  paft run reviews.yaml        does it
  paft status reviews          says how far it is, and the results

"""
FORMATTER = argparse.RawDescriptionHelpFormatter
"""Keeps the lines of what stands below the options."""


def epilog_of(verb: str) -> str:
    """What stands below the options of a verb."""
    parts = []
    if verb in VERBS or verb in ("robustness", "submit"):
        parts.append("\n".join([_CHANGE, _STORAGE]))
        if verb not in ("plan", "report"):
            parts.append(_AGAIN)
    elif verb in ON_STORAGE:
        parts.append(_STORAGE)
    examples = "\n".join(f"  {example}" for example in EXAMPLES[verb])
    return "\n\n".join([*parts, f"examples:\n{examples}"])


def main_epilog() -> str:
    """What stands below the list of verbs."""
    return f"{_START}{_STORAGE}\n{_AGAIN}\n\n`paft VERB --help` shows options and examples."
