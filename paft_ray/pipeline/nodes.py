"""The survey: checks on every node of a joined cluster, before any work.

Each node that can run workers, and the driver's, reads a file of the driver from storage and writes
its own, inspects the model, reaches the tracking server with its own credentials, and compares its
packages with the driver's. Not covered: nodes that join later, and the speed of network or storage.
"""

import importlib.metadata
import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from paft_ray.config import Config, Endpoint, PromptsConfig
from paft_ray.config.errors import ConfigError, PaftError, one_line
from paft_ray.config.loading import from_anywhere
from paft_ray.models.files import inspect_model
from paft_ray.models.gguf_header import is_gguf
from paft_ray.pipeline.gpus import gpu_memory_gb
from paft_ray.pipeline.preflight import configured_llms
from paft_ray.storage.paths import Storage
from paft_ray.tracking import reach_server, tracking_server

logger = logging.getLogger(__name__)

_PACKAGES = ("ray", "torch", "transformers", "peft", "deepspeed", "pyarrow", "tokenizers")
"""Packages whose versions must be the same, because results or messages differ with them."""
_SECRETS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_SECRETS += ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "GOOGLE_APPLICATION_CREDENTIALS")
_TIMEOUT_S = 90.0


@dataclass(frozen=True)
class Needs:
    """The requirements of a node; pickles."""

    storage: Storage
    probe: str
    """Folder under `storage` where the driver wrote a file `driver`."""
    model: str | None
    """None where it is converted, and so in storage."""
    revision: str | None
    tracking: str | None
    """URI of a tracking server."""
    keys: tuple[str, ...]
    """Environment variables that LLM actors read."""
    packages: Mapping[str, str]


@dataclass(frozen=True)
class Node:
    """One node, and what its checks found; as text, its name and address."""

    name: str
    address: str
    cpus: float
    gpus: float
    memory_gb: float
    """Memory that Ray manages, in 1e9 bytes."""
    gpu_memory_gb: float | None = None
    """Memory of its smallest GPU, in 1e9 bytes; None where it has none, or it is not known."""
    secrets: tuple[str, ...] = ()
    """Names of the variables with secrets that are set there."""
    missing: tuple[str, ...] = ()
    """Reasons why it cannot work, one line each."""
    notes: tuple[str, ...] = ()
    """Findings that do not prevent work but may not be meant."""
    id: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"node {self.name} ({self.address})"


def survey(config: Config, storage: Storage) -> list[Node]:
    """Check every node of the joined cluster that is alive; leaves nothing under `storage`."""
    probe = f".survey-{secrets.token_hex(4)}"
    try:
        storage.child(probe).write_bytes("driver", probe.encode())
        unread = is_gguf(config.model.path) or not config.has_base
        needs = Needs(
            storage,
            probe,
            None if unread else from_anywhere(config.model.path),
            config.model.revision,
            tracking_server(config.tracking),
            llm_keys(config.prompts),
            packages(),
        )
        return _check_all(needs)
    finally:
        storage.delete(probe)


def require_nodes(nodes: Sequence[Node]) -> None:
    """Refuse to begin where a node cannot work.

    Raises:
        ConfigError: A node lacks something.
    """
    for node in nodes:
        for note in node.notes:
            logger.warning("%s: %s", node, note)
    missing = [f"{node}: {text}" for node in nodes for text in node.missing]
    if missing:
        more = f" (and {len(missing) - 1} more: paft plan lists them)" if len(missing) > 1 else ""
        raise ConfigError(f"{missing[0]}{more}")


def llm_keys(config: PromptsConfig) -> tuple[str, ...]:
    """Environment variables from which LLM actors read their keys."""
    names = (llm.api_key_env for _, llm in configured_llms(config) if isinstance(llm, Endpoint))
    return tuple(dict.fromkeys(name for name in names if name))


def packages() -> dict[str, str]:
    """Versions of the packages that must be the same on all nodes, where installed here."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def check_node(needs: Needs) -> dict[str, Any]:
    """Return `missing`, `notes`, `secrets` and `gpu_memory_gb` of the node that this runs on."""
    missing = [*_check_packages(needs), *_check_storage(needs), *_check_model(needs)]
    notes = [f"{name} is not set" for name in needs.keys if not os.environ.get(name)]
    if needs.tracking is not None and (reason := reach_server(needs.tracking)):
        notes.append(reason)
    named = tuple(dict.fromkeys((*_SECRETS, *needs.keys)))
    return {
        "missing": tuple(missing),
        "notes": tuple(notes),
        "secrets": tuple(name for name in named if os.environ.get(name)),
        "gpu_memory_gb": gpu_memory_gb(),
    }


def _check_packages(needs: Needs) -> Iterator[str]:
    here = packages()
    for name, version in needs.packages.items():
        if here.get(name) != version:
            yield (
                f"{name} is {here.get(name) or 'missing'} here and {version} with the driver: "
                "install the same on all nodes (constraints.txt)"
            )


def _check_storage(needs: Needs) -> Iterator[str]:
    folder, mine = needs.storage.child(needs.probe), f"node-{secrets.token_hex(4)}"
    try:
        if not folder.exists("driver"):
            yield (
                f"storage: {needs.storage.path()} here is not what the driver sees: name a path "
                "that all nodes share, or a URI"
            )
            return
        folder.write_bytes(mine, mine.encode())
    except OSError as error:
        yield (
            f"storage: {needs.storage.path()} cannot be written from here ({one_line(error)}): see "
            "to permissions and credentials on every node"
        )


def _check_model(needs: Needs) -> Iterator[str]:
    if needs.model is None:
        return
    try:
        files = inspect_model(needs.model)
        if files.kind == "hub":
            from huggingface_hub import hf_hub_download

            hf_hub_download(needs.model, "config.json", revision=needs.revision)
    except PaftError as error:
        yield str(error)
    except OSError as error:
        yield (
            f"model.path: {needs.model} is neither in the cache here nor can it be fetched "
            f"({one_line(error)}): see to HF_TOKEN, HF_HOME and the network, or fetch it first"
        )


def _check_all(needs: Needs) -> list[Node]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [_node(raw) for raw in ray.nodes() if raw["Alive"]]
    remote: Any = ray.remote(num_cpus=0, max_retries=0)(check_node)
    places: dict[Any, int] = {}
    here = ray.get_runtime_context().get_node_id()
    for place, node in enumerate(nodes):
        if node.cpus or node.gpus or node.id == here:
            there = NodeAffinitySchedulingStrategy(node.id, soft=False)
            places[remote.options(scheduling_strategy=there).remote(needs)] = place
    done, late = ray.wait(list(places), num_returns=len(places), timeout=_TIMEOUT_S)
    found: dict[int, Mapping[str, Any]] = {}
    for reference in done:
        try:
            found[places[reference]] = ray.get(reference)
        except Exception as error:  # noqa: BLE001 - whatever a node has instead of our package
            found[places[reference]] = {"notes": (f"it could not look: {one_line(error)}",)}
    for reference in late:
        ray.cancel(reference, force=True)
        text = f"it did not answer in {_TIMEOUT_S:.0f} s: see to its network and storage"
        found[places[reference]] = {"notes": (text,)}
    return [replace(node, **found.get(place, {})) for place, node in enumerate(nodes)]


def _node(raw: Mapping[str, Any]) -> Node:
    resources = raw["Resources"]
    return Node(
        name=raw["NodeManagerHostname"],
        address=raw["NodeManagerAddress"],
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        memory_gb=round(resources.get("memory", 0.0) / 1e9, 1),
        id=raw["NodeID"],
    )
