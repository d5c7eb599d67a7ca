"""The texts that `paft init` writes: a configuration with comments, and wordings one a line."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from paft_ray.config.errors import ConfigError

_HEAD = """\
# Written by `paft init`; yours to change. Check it:  paft plan {file}
# Do it:  paft run {file}   (the same command again continues what was interrupted)
# Change a value on the way:  paft run {file} storage=/data/paft train.steps=300
# Everything that is kept goes below the folder `storage`, or where storage= says."""
_ABOVE = {
    "name": "# The run's name: its folder under storage, and its name in MLflow.",
    "task": """\
# The data, and what the model has to do. Of an example with more than max_length tokens the longest
# field is cut.""",
    "prompts": """\
# The wordings of the question: {wordings}, one a line; \\n ends a line, {{...}} is a field.
# Some of them are never trained on: `validation` to choose by, `test` for the figures.""",
    "model": "# The base model, and how it is adapted (LoRA by default).",
    "train": "# Every variant is trained for the same steps, each of batch_size examples.",
    "variants": """\
# What is compared with the base model: training on one fixed wording, and PAFT, which draws a
# wording for every example.""",
    "evaluation": """\
# Test examples that are asked under every test wording; the fixed wording is chosen on
# selection_examples of the validation examples.""",
}
"""What stands above a section."""
_BELOW = {
    "task": """\
# grade: f1                 # what a free text is worth: exact, f1, contains, number, ...
# group: user               # a column whose rows stay together in one split""",
    "prompts": """\
# generation:               # an LLM writes more; hundreds of wordings help most
#   per_llm: 100
#   llms:
#     - {type: openai, base_url: "http://localhost:8000/v1", model: my-model}""",
    "model": """\
# chat_template: auto       # ask as in a chat, where the model was trained on chats
# peft: {peft_type: LORA, r: 16, target_modules: [q_proj, v_proj]}""",
    "train": "# workers: {num: 4, gpus: 1}",
}
"""What stands below a section's fields: further ones, switched off."""
_NO_MODEL = "path:                       # needed: a model folder, a GGUF file or a hub name"


def config_text(tree: Mapping[str, Any], file: str, wordings: int) -> str:
    """A configuration as YAML with a comment above each section and hints below.

    Args:
        tree: The configuration; without `model.path` where the user is to write it.
        file: Where it goes, for the commands in its head.
        wordings: How many wordings go with it.
    """
    return "\n".join([_HEAD.format(file=file), *_sections(tree, wordings)]) + "\n"


def _sections(tree: Mapping[str, Any], wordings: int) -> Iterator[str]:
    for name, section in tree.items():
        yield ""
        if name in _ABOVE:
            yield _ABOVE[name].format(wordings=wordings)
        if not isinstance(section, Mapping):
            yield _dump({name: section}).rstrip()
            continue
        fields = _dump(section).splitlines() if section else []
        if name == "model" and "path" not in section:
            fields = [_NO_MODEL, *fields]
        hints = [hint for hint in _BELOW.get(name, "").splitlines() if _is_new(hint, section)]
        yield f"{name}:"
        yield from (f"  {line}" for line in [*fields, *hints])


def _is_new(hint: str, section: Mapping[str, Any]) -> bool:
    """Whether a hint names a field that the section does not have already."""
    return hint.removeprefix("# ").partition(":")[0] not in section


def _dump(tree: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=100)


def wordings_text(wordings: Sequence[str]) -> str:
    r"""Templates as `.txt`: one a line, with `\n` for the line ends inside."""
    return "".join(text.replace("\n", "\\n") + "\n" for text in wordings)


def write_new(files: Mapping[str, str]) -> None:
    """Write files that are not there; on an error none of them is left.

    Raises:
        ConfigError: One is there, or cannot be written.
    """
    written: list[Path] = []
    for name, text in files.items():
        try:
            with Path(name).open("x", encoding="utf-8") as stream:
                written.append(Path(name))
                stream.write(text)
        except OSError as error:
            for path in written:
                with suppress(OSError):
                    path.unlink()
            raise ConfigError(
                f"{name} cannot be written ({error.strerror}): name another file by --config "
                "NAME.yaml"
            ) from error
