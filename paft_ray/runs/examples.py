"""The examples of a stage on storage, for the processes of all nodes.

Each node copies them once, if they are remote, and its processes map the copy into memory: pickled,
an example is some 1.3 KB in each of them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paft_ray.config.errors import ArtifactError
from paft_ray.storage.node_copy import local_copy
from paft_ray.storage.paths import Storage
from paft_ray.tasks import Example
from paft_ray.tasks.example_table import ExampleTable, write_examples

_KIND = "examples"
_FILE = "examples.arrow"


@dataclass(frozen=True, slots=True)
class StoredExamples:
    """Examples on storage; pickles small."""

    folder: Storage
    identity: str
    """Fingerprint of the file."""

    def open(self) -> ExampleTable:
        """Return the examples, mapped into this process.

        Raises:
            ArtifactError: This node's copy is not what was written.
        """
        return ExampleTable(checked_copy(self.folder, self.identity, _KIND, _FILE))


def store_examples(storage: Storage, examples: Sequence[Example]) -> StoredExamples:
    """Write examples under `examples/`, where they are not there already."""
    return StoredExamples(*store_once(storage, write_examples(examples), _KIND, _FILE))


def store_once(storage: Storage, data: bytes, kind: str, file: str) -> tuple[Storage, str]:
    """Write a file under the fingerprint of its content, which is returned with its folder."""
    identity = hashlib.sha256(data).hexdigest()[:16]
    folder = storage.child(kind, identity)
    if not folder.exists(file):
        folder.write_bytes(file, data)
    return folder, identity


def checked_copy(folder: Storage, identity: str, kind: str, file: str) -> Path:
    """This node's copy of a file that `store_once` wrote.

    Raises:
        ArtifactError: It is not what was written.
    """
    path = Path(local_copy(folder, identity, kind)) / file
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found[: len(identity)] != identity:
        raise ArtifactError(
            f"{path} is not what was written: delete its folder, and run the command again"
        )
    return path
