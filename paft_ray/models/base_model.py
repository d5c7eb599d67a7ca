"""Where a base model lies, and how every node gets at it, once per node and not once per process.

Covered: folders, hub names, GGUF files converted once into storage. Not covered: loading, which is
`model.py`. Hub models are fetched by transformers, and huggingface_hub lets one process of a node
download each file while the others wait for it.
"""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import resolve_path
from paft_ray.models.files import model_identity
from paft_ray.storage.artifacts import ArtifactWriter, load_manifest
from paft_ray.storage.fingerprint import user_cache
from paft_ray.storage.paths import Storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BaseSource:
    """A prepared base model as every node can find it; pickles."""

    path: str
    """What the configuration names: a folder, `pkg:NAME/inner/path`, a GGUF file, a hub name."""
    converted: Storage | None = None
    """Where a GGUF file lies converted; None for anything else."""
    identity: str = ""
    """Fingerprint of what was converted."""

    def local(self) -> str:
        """The location on this node that `load_base` takes, fetched first where it must be.

        Raises:
            ConfigError: This node does not have the folder.
        """
        if self.converted is not None:
            location = local_copy(self.converted, self.identity)
        elif (found := resolve_path(self.path)) is not None:
            location = str(found)
        else:
            return self.path
        if not Path(location).exists():
            raise ConfigError(
                f"model.path: {location} does not exist on node {os.uname().nodename}: put model "
                "and storage where every node sees them, use storage: s3://bucket/folder, or a "
                "hub name"
            )
        return location


def locate_base(path: str, revision: str | None, storage: Storage) -> BaseSource:
    """Make a base model loadable on every node.

    A GGUF file is converted once into `models/<fingerprint>/` under `storage`; folders and hub
    names are left as they are.
    """
    local = resolve_path(path)
    if local is None or (path.startswith("pkg:") and local.suffix != ".gguf"):
        return BaseSource(path)
    if local.suffix != ".gguf":
        return BaseSource(str(local.absolute()))  # workers have another working directory
    identity = model_identity(path, revision)
    folder = storage.child("models", identity)
    if load_manifest(folder) is None:
        with node_lock(f"convert-{identity}"):
            if load_manifest(folder) is None:
                _convert_gguf(local, folder, identity)
    return BaseSource(path, folder, identity)


def prepare_base(path: str, revision: str | None, storage: Storage) -> str:
    """Make a base model loadable and return the location on this node that `load_base` takes."""
    return locate_base(path, revision, storage).local()


@contextmanager
def node_lock(name: str) -> Iterator[None]:
    """Hold a lock among this user's processes on this node; it ends with the process."""
    locks = user_cache() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert_gguf(source: Path, folder: Storage, identity: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    logger.info("converting %s", source.name)
    model = AutoModelForCausalLM.from_pretrained(
        str(source.parent),
        gguf_file=source.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        writer = ArtifactWriter(folder)
        writer.add_folder(Path(temporary))
    writer.commit(identity, {"converted_from": source.name})


def local_copy(folder: Storage, identity: str) -> str:
    """The folder itself, or its copy on this node, fetched once where storage is elsewhere.

    Args:
        folder: Of a model or adapter.
        identity: Fingerprint of its content.
    """
    if folder.is_local:
        return folder.path()
    models = user_cache() / "models"
    if not (models / identity).exists():
        models.mkdir(parents=True, exist_ok=True)
        with node_lock(f"fetch-{identity}"):
            if not (models / identity).exists():
                for torn in models.glob(f".writing-{identity}-*"):  # left by a process that died
                    shutil.rmtree(torn)
                writing = Path(tempfile.mkdtemp(prefix=f".writing-{identity}-", dir=models))
                folder.fetch(writing).rename(models / identity)
    return str(models / identity)
