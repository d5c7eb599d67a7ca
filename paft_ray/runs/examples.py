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
        path = Path(local_copy(self.folder, self.identity, "examples")) / _FILE
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found[: len(self.identity)] != self.identity:
            raise ArtifactError(
                f"{path} is not what was written: delete its folder, and run the command again"
            )
        return ExampleTable(path)


def store_examples(storage: Storage, examples: Sequence[Example]) -> StoredExamples:
    """Write examples under `examples/`, where they are not there already."""
    data = write_examples(examples)
    identity = hashlib.sha256(data).hexdigest()[:16]
    folder = storage.child("examples", identity)
    if not folder.exists(_FILE):
        folder.write_bytes(_FILE, data)
    return StoredExamples(folder, identity)
