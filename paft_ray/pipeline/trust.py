"""Models whose own Python files may run, and what is demanded of them."""

import re

from paft_ray.config import Config, ModelSubject, TransformersLLM, VLLMEngine
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import resolve_path

_COMMIT = re.compile(r"[0-9a-f]{40}")


def trusted_models(config: Config) -> list[tuple[str, str, str | None]]:
    """The models whose Python files may run: the section that names each, path and revision."""
    model, coverage = config.model, config.prompts.coverage
    found = [("model", model.path, model.revision)] if model.trust_remote_code else []
    for index, subject in enumerate(config.evaluation.subjects):
        if isinstance(subject, ModelSubject) and subject.trust_remote_code:
            found.append((f"evaluation.subjects.{index}", subject.path, subject.revision))
    for field, llm in config.llms.items():
        if isinstance(llm, TransformersLLM | VLLMEngine) and llm.trust_remote_code:
            found.append((field, llm.path, llm.revision))
    if coverage.trust_remote_code and coverage.path is not None:
        found.append(("prompts.coverage", coverage.path, coverage.revision))
    return found


def check_trusted(config: Config) -> None:
    """Refuse to trust a hub model of which no commit is pinned: its code could change.

    Raises:
        ConfigError: One is not pinned.
    """
    for field, path, revision in trusted_models(config):
        if resolve_path(path) is None and not _COMMIT.fullmatch(revision or ""):
            raise ConfigError(
                f"{field}.revision: {revision or 'none is given'}, but {field}.trust_remote_code "
                f"runs Python files of {path}, of which a commit must be pinned: give the 40 hex "
                "digits of the one you read"
            )
