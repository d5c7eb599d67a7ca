"""`evaluation.subjects` by label, and the identity of their files."""

from paft_ray.config import AdapterSubject, Config, EndpointSubject, ModelConfig, ModelSubject
from paft_ray.config.affects import affecting, take
from paft_ray.models.warm_start import StoredAdapter, read_adapter
from paft_ray.runs.context import RunContext
from paft_ray.storage.fingerprint import fingerprint


def adapters_of(config: Config) -> dict[str, StoredAdapter]:
    """The adapters among `evaluation.subjects`, by label.

    Raises:
        ConfigError: There is none where one is named.
    """
    return {
        subject.label: read_adapter(subject.path, f"evaluation.subjects.{index}.path")
        for index, subject in enumerate(config.evaluation.subjects)
        if isinstance(subject, AdapterSubject)
    }


def models_of(config: Config) -> dict[str, ModelConfig]:
    """The models among `evaluation.subjects`, by label."""
    return {
        subject.label: subject.model()
        for subject in config.evaluation.subjects
        if isinstance(subject, ModelSubject)
    }


def endpoints_of(config: Config) -> dict[str, EndpointSubject]:
    """The endpoints among `evaluation.subjects`, by field."""
    return {
        f"evaluation.subjects.{index}": subject
        for index, subject in enumerate(config.evaluation.subjects)
        if isinstance(subject, EndpointSubject)
    }


def content_of(context: RunContext) -> dict[str, str]:
    """Fingerprints of the subjects' files, by label.

    Raises:
        ConfigError: See `adapters_of`.
    """
    adapters, models = adapters_of(context.config), models_of(context.config)
    found = {label: adapter_identity(adapter) for label, adapter in adapters.items()}
    return found | {label: context.of_model(m).model_identity for label, m in models.items()}


def adapter_identity(adapter: StoredAdapter) -> str:
    """Fingerprint of an adapter's settings and weights."""
    return fingerprint("subject", adapter.identity, adapter.config)


def endpoint_identity(subject: EndpointSubject) -> str:
    """Fingerprint of an endpoint's address, model, and whatever changes what it answers."""
    (_, *_), fields = take(affecting(subject, "run"), "name")
    return fingerprint("endpoint", fields)
