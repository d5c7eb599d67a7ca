"""Artifacts: files on storage that are complete when their manifest is there, which comes last.

Not covered: training state (`training.state`), and who may write to a folder (`storage.lock`).
"""

import hashlib
import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from paft_ray.config.errors import ArtifactError
from paft_ray.storage.paths import Storage

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


class FileEntry(TypedDict):
    """A file's size in bytes, and its checksum."""

    size: int
    sha256: str


def file_entry(data: bytes) -> FileEntry:
    """The entry of a file with this content."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@dataclass(frozen=True, slots=True)
class Manifest:
    """The record of a complete artifact."""

    fingerprint: str
    files: Mapping[str, FileEntry]
    about: Mapping[str, Any]
    """Further facts from the writer: counts, inputs, versions."""


@dataclass
class ArtifactWriter:
    """Writes files first and the manifest last: readers see no artifact before `commit`."""

    folder: Storage
    files: dict[str, FileEntry] = field(default_factory=dict)

    def add(self, name: str, data: bytes) -> None:
        """Write one file of the artifact."""
        self.folder.write_bytes(name, data)
        self.files[name] = file_entry(data)

    def note(self, name: str) -> None:
        """Add a file that is already on storage."""
        [size], sha256 = self.folder.sizes([name]), self.folder.digest(name)
        assert size is not None  # a file with a digest has a size
        self.files[name] = {"size": size, "sha256": sha256}

    def add_folder(self, local: Path) -> None:
        """Write every file of a local folder."""
        for path in sorted(local.iterdir()):
            self.add(path.name, path.read_bytes())

    def commit(self, identity: str, about: Mapping[str, Any]) -> Manifest:
        """Write the manifest, which completes the artifact under its fingerprint."""
        manifest = Manifest(identity, self.files, about)
        self.folder.write_json(MANIFEST, asdict(manifest))
        return manifest


def load_manifest(
    folder: Storage, check: bool = False, rewritten: Collection[str] = ()
) -> Manifest | None:
    """The manifest of a complete artifact; None where it is absent or does not match its files.

    Args:
        folder: The artifact's folder.
        check: Compare checksums too, not only presence and sizes.
        rewritten: Files that it may name and that may have been written again since.
    """
    if not folder.exists(MANIFEST):
        return None
    try:
        raw = folder.read_json(MANIFEST)
        files = {n: FileEntry(size=e["size"], sha256=e["sha256"]) for n, e in raw["files"].items()}
        files = {name: entry for name, entry in files.items() if name not in rewritten}
        manifest = Manifest(raw["fingerprint"], files, raw["about"])
        sizes = folder.sizes(manifest.files)
    except (ArtifactError, KeyError, TypeError, AttributeError):
        logger.warning("%s: torn manifest, passed over", folder.path())
        return None
    for size, (name, entry) in zip(sizes, manifest.files.items(), strict=True):
        if size != entry["size"] or (check and folder.digest(name) != entry["sha256"]):
            logger.warning("%s: does not match its manifest, passed over", folder.path(name))
            return None
    return manifest
