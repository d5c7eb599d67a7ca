"""Checks of `evaluation.subjects`: files; whether model, adapter and texts go together."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from paft_ray.config import Config, ModelSubject
from paft_ray.config.errors import ConfigError
from paft_ray.config.hub import require_hub_model
from paft_ray.config.loading import resolve_path
from paft_ray.models.chat import describe_chat
from paft_ray.models.check_process import ModelCheckProcess
from paft_ray.models.files import inspect_model, refuse_beyond_context, refuse_quantized
from paft_ray.models.meta import check_base, check_stored_adapter
from paft_ray.models.vllm_limits import refuse_beyond_engine
from paft_ray.models.warm_start import check_base_of
from paft_ray.pipeline.backend import refuse_adapter
from paft_ray.runs.context import RunContext
from paft_ray.runs.subjects import adapters_of


def check_files(config: Config) -> Iterator[str]:
    """Check the files of subjects, without torch; yields warnings.

    Raises:
        ConfigError: A subject cannot be used.
    """
    for adapter in adapters_of(config).values():
        refuse_adapter(config, adapter)
        yield from check_base_of(adapter, config.model.path, config.model.revision)
    for field, subject in _models(config).items():
        files = inspect_model(subject.path, f"{field}.path")
        with _named(field):
            own = config.model_copy(update={"model": subject.model()})
            refuse_beyond_context(own, files.context_length)
            refuse_beyond_engine(own, files.context_length)
            refuse_quantized(subject.path, files.quantized)
        if not files.has_weights:
            raise ConfigError(f"{field}.path: {subject.path} has no weights; name another folder")
        if files.kind == "hub":
            require_hub_model(f"{field}.path", subject.path, subject.revision)
            if subject.revision is None:
                yield (
                    f"{field}.revision: none is given for {subject.path}, so that the run cannot "
                    "be repeated once the model changes; name a commit"
                )


def check_subjects(context: RunContext, checks: ModelCheckProcess) -> None:
    """Check, with transformers and peft, that adapters fit the base model, and other models.

    Raises:
        ConfigError: One does not, or cannot be used with this task.
    """
    config = context.config
    model = config.model
    for adapter in adapters_of(config).values():
        arguments = (model.path, model.revision, adapter, model.trust_remote_code)
        checks.begin(check_stored_adapter, *arguments)
        checks.finish()
    for field, subject in _models(config).items():
        own = context.of_model(subject.model()).config
        with _named(field):
            checks.begin(check_base, own, context.task.choices)
            if checks.finish():
                raise ConfigError(
                    f"model.path: {subject.path} has no embedding for tokens of its tokenizer; "
                    "fetch or save it again"
                )
            if subject.chat_template == "auto":
                local = resolve_path(subject.path)
                path = str(local or subject.path)
                checks.begin(describe_chat, path, subject.revision, own.model)
                checks.finish()


def _models(config: Config) -> Mapping[str, ModelSubject]:
    return {
        f"evaluation.subjects.{index}": subject
        for index, subject in enumerate(config.evaluation.subjects)
        if isinstance(subject, ModelSubject)
    }


@contextmanager
def _named(field: str) -> Iterator[None]:
    """Let messages about `model` name the subject."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        own = f"{field}.{text.removeprefix('model.')}"
        raise ConfigError(own if text.startswith("model.") else f"{field}: {text}") from error
