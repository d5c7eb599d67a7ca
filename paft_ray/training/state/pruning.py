"""Finding the newest valid checkpoint in a folder, and removing those that are not needed."""

import logging
from collections.abc import Mapping
from typing import Any

from paft_ray.storage.artifacts import MANIFEST, FileEntry, load_manifest
from paft_ray.storage.paths import Storage

logger = logging.getLogger(__name__)


def checkpoint_name(step: int) -> str:
    """Folder of the checkpoint after so many steps; names sort by step."""
    return f"step-{step:09d}"


def checkpoint_names(folder: Storage) -> list[str]:
    """Folders of checkpoints, complete or not, oldest first."""
    return [name for name in folder.names() if name.startswith("step-")]


def count_complete(folder: Storage) -> int:
    """Count the checkpoints that were finished."""
    return sum(folder.child(name).exists(MANIFEST) for name in checkpoint_names(folder))


def find_newest(folder: Storage, identity: str) -> tuple[str, dict[str, FileEntry]] | None:
    """Name and files of the newest complete checkpoint, checked byte by byte.

    Removes unfinished checkpoints of earlier attempts, which would take the room that the next one
    needs: no process writes any when a training begins.

    Args:
        folder: Folder of one training's checkpoints.
        identity: Its fingerprint; checkpoints of another one are passed over.
    """
    found = None
    for name in reversed(checkpoint_names(folder)):
        checkpoint = folder.child(name)
        if not checkpoint.exists(MANIFEST):
            logger.warning("checkpoint %s was never finished, removed", name)
            folder.delete(name)
            continue
        manifest = None if found else load_manifest(checkpoint, check=True)
        if manifest is not None and manifest.fingerprint == identity:
            checkpoint.prune({MANIFEST, *manifest.files})
            found = (name, dict(manifest.files))
        elif not found:
            logger.warning("checkpoint %s is torn or another training's, passed over", name)
    return found


def prune(folder: Storage, identity: str, newest: str, files: Mapping[str, Any], keep: int) -> None:
    """Remove checkpoints that are not needed once `newest` is complete; later ones stay.

    Args:
        folder: Folder of one training's checkpoints.
        identity: Its fingerprint; checkpoints of another one stay.
        newest: The checkpoint just written.
        files: Files of `newest`.
        keep: How many complete ones stay, with `newest`; torn ones are removed.
    """
    folder.child(newest).prune({MANIFEST, *files})
    kept = 1
    for name in reversed([name for name in checkpoint_names(folder) if name < newest]):
        manifest = load_manifest(folder.child(name))
        if manifest is None:
            folder.delete(name)
        elif manifest.fingerprint == identity:
            kept += 1
            if kept > keep:
                folder.delete(name)
