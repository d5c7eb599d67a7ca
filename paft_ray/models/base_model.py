"""Makes a base model available on every node: folders, hub names, GGUF files converted once.

A node fetches a model once for all its processes; huggingface_hub does the same for hub models.
"""

import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import resolve_path
from paft_ray.models.files import model_identity
from paft_ray.models.gguf_header import is_gguf, parsed_once
from paft_ray.models.pretrained import read_model, read_tokenizer
from paft_ray.storage.artifacts import ArtifactWriter, load_manifest
from paft_ray.storage.node_copy import local_copy, node_lock
from paft_ray.storage.paths import Storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BaseSource:
    """Location of a base model that every node can resolve; it can be pickled."""

    path: str
    """Path of the configuration: a folder, `pkg:NAME/inner/path`, a GGUF file or a hub name."""
    converted: Storage | None = None
    """Folder of the converted GGUF file; None for anything else."""
    identity: str = ""
    """Fingerprint of the GGUF file."""

    def local(self) -> str:
        """Return the location on this node that `load_base` takes, and fetch it if necessary.

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
    if local is None or (path.startswith("pkg:") and not is_gguf(local)):
        return BaseSource(path)
    if not is_gguf(local):
        return BaseSource(str(local.absolute()))  # workers have another working directory
    identity = model_identity(path, revision)
    folder = storage.child("models", identity)
    if load_manifest(folder) is None:
        with node_lock(f"convert-{identity}"):
            if load_manifest(folder) is None:
                _convert_gguf(local, folder, identity)
    return BaseSource(path, folder, identity)


def is_prepared(path: str, storage: Storage) -> bool:
    """Return whether a base model can be located without converting it."""
    local = resolve_path(path)
    if local is None or not is_gguf(local):
        return True
    return load_manifest(storage.child("models", model_identity(path))) is not None


def prepare_base(path: str, revision: str | None, storage: Storage) -> str:
    """Make a base model loadable and return the location on this node that `load_base` takes."""
    return locate_base(path, revision, storage).local()


def _convert_gguf(source: Path, folder: Storage, identity: str) -> None:
    import torch
    from transformers import GgufConfig

    logger.info("converting %s", source.name)
    with parsed_once():
        model = read_model(
            str(source.parent),
            gguf_file=source.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = read_tokenizer(str(source.parent), gguf_file=source.name)
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        writer = ArtifactWriter(folder)
        writer.add_folder(Path(temporary))
    writer.commit(identity, {"converted_from": source.name})
