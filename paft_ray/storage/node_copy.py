"""Local copies of what is on storage: one per node, for all its processes."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paft_ray.storage.fingerprint import user_cache
from paft_ray.storage.paths import Storage


@contextmanager
def node_lock(name: str) -> Iterator[None]:
    """Hold a lock among this user's processes on this node; it is released when a process dies."""
    locks = user_cache() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def local_copy(folder: Storage, identity: str, kind: str = "models") -> str:
    """Return a local path of a folder, which is fetched once per node if it is remote.

    Args:
        folder: Folder on storage.
        identity: Fingerprint of its content, which names the copy.
        kind: Folder of the user's cache for such copies.
    """
    if folder.is_local:
        return folder.path()
    copies = user_cache() / kind
    if not (copies / identity).exists():
        copies.mkdir(parents=True, exist_ok=True)
        with node_lock(f"fetch-{identity}"):
            if not (copies / identity).exists():
                for unfinished in copies.glob(f".writing-{identity}-*"):  # of a process that died
                    shutil.rmtree(unfinished)
                writing = Path(tempfile.mkdtemp(prefix=f".writing-{identity}-", dir=copies))
                folder.fetch(writing).rename(copies / identity)
    return str(copies / identity)
