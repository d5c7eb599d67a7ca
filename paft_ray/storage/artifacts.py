"""The one way a result gets onto storage, is named, and is found again.

Covered: fingerprints; storage that is a path or a URI (through pyarrow.fs); artifacts whose
manifest, with sizes and checksums, is written last; finished parts of long work. Not covered:
training state, which is `training.checkpoint`; who may write where, which is `lease`.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paft_ray.config.errors import ArtifactError
from paft_ray.storage.paths import Storage

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a complete artifact consists of."""

    fingerprint: str
    files: Mapping[str, Mapping[str, Any]]
    """File name to its `size` in bytes and `sha256`."""
    about: Mapping[str, Any]
    """What the writer wanted to be known: counts, inputs, versions."""


@dataclass
class ArtifactWriter:
    """Files first, manifest last: until `commit` the artifact does not exist for a reader."""

    folder: Storage
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, data: bytes) -> None:
        """Write one file of the artifact."""
        self.folder.write_bytes(name, data)
        self.files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def note(self, name: str) -> None:
        """Make a file that is already on storage part of the artifact."""
        [size] = self.folder.sizes([name])
        self.files[name] = {"size": size, "sha256": self.folder.digest(name)}

    def add_folder(self, local: Path) -> None:
        """Write every file of a local folder."""
        for path in sorted(local.iterdir()):
            self.add(path.name, path.read_bytes())

    def commit(self, identity: str, about: Mapping[str, Any]) -> Manifest:
        """Make the artifact complete under its fingerprint."""
        manifest = Manifest(identity, self.files, about)
        self.folder.write_json(
            MANIFEST, {"fingerprint": identity, "files": self.files, "about": about}
        )
        return manifest


def load_manifest(folder: Storage, check: bool = False) -> Manifest | None:
    """The manifest of a complete artifact; None where it is absent or does not match its files.

    Args:
        folder: Where the artifact lies.
        check: Compare checksums too, not only presence and sizes.
    """
    if not folder.exists(MANIFEST):
        return None
    try:
        raw = folder.read_json(MANIFEST)
        files = {n: {"size": e["size"], "sha256": e["sha256"]} for n, e in raw["files"].items()}
        manifest = Manifest(raw["fingerprint"], files, raw["about"])
    except (ArtifactError, KeyError, TypeError, AttributeError):
        logger.warning("%s: torn manifest, passed over", folder.path())
        return None
    sizes = folder.sizes(manifest.files)
    for size, (name, entry) in zip(sizes, manifest.files.items(), strict=True):
        if size != entry["size"] or (check and folder.digest(name) != entry["sha256"]):
            logger.warning("%s: does not match its manifest, passed over", folder.path(name))
            return None
    return manifest
