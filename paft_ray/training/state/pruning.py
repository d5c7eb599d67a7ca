"""Finding the newest valid checkpoint in a folder, and removing those that are not needed."""

import logging
from collections.abc import Callable

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


def _step_of(name: str) -> int:
    return int(name.removeprefix("step-"))


def find(folder: Storage, identity: str, name: str) -> dict[str, FileEntry] | None:
    """Files of a complete checkpoint, checked byte by byte; None where it cannot be used."""
    manifest = load_manifest(folder.child(name), check=True)
    return dict(manifest.files) if manifest and manifest.fingerprint == identity else None


def find_newest(
    folder: Storage, identity: str, needed: Callable[[int], int | None] = lambda step: step
) -> tuple[str, dict[str, FileEntry]] | None:
    """Name and files of the newest complete checkpoint, checked byte by byte.

    Removes unfinished checkpoints of earlier attempts, which would take the room that the next one
    needs: no process writes any when a training begins.

    Args:
        folder: Folder of one training's checkpoints.
        identity: Its fingerprint; checkpoints of another one are passed over.
        needed: Returns the step whose checkpoint must be complete too for that of a step to be
            used, or None where that one is to be passed over.
    """
    found = None
    for name in reversed(checkpoint_names(folder)):
        checkpoint = folder.child(name)
        if not checkpoint.exists(MANIFEST):
            logger.warning("checkpoint %s was never finished, removed", name)
            folder.delete(name)
            continue
        if found:
            continue
        files = find(folder, identity, name)
        if files is None:
            logger.warning("checkpoint %s is torn or another training's, passed over", name)
            continue
        besides = needed(_step_of(name))
        best = None if besides is None else checkpoint_name(besides)
        if best is None or (best != name and find(folder, identity, best) is None):
            logger.warning("checkpoint %s lacks the best one before it, passed over", name)
            continue
        checkpoint.prune({MANIFEST, *files})
        found = (name, files)
    return found


def prune(
    folder: Storage, identity: str, newest: str, keep: int, retained: int | None = None
) -> None:
    """Remove checkpoints that are not needed once `newest` is complete; later ones stay.

    Args:
        folder: Folder of one training's checkpoints.
        identity: Its fingerprint; checkpoints of another one stay.
        newest: The checkpoint just written.
        keep: How many complete ones stay, with `newest`; torn ones are removed.
        retained: Step of one that stays besides.
    """
    kept, best = 1, None if retained is None else checkpoint_name(retained)
    for name in reversed([name for name in checkpoint_names(folder) if name < newest]):
        manifest = load_manifest(folder.child(name))
        if manifest is None:
            folder.delete(name)
        elif manifest.fingerprint == identity:
            kept += 1
            if kept > keep and name != best:
                folder.delete(name)
