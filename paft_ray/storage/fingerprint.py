"""Names from content: fingerprints of JSON values and of files."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from paft_ray.storage.paths import Storage

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Part of every fingerprint: raise it when what is stored changes its meaning."""
_DIGESTS_KEPT = 1 << 26  # files of this many bytes or more have their digest cached


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits that name JSON-ready content; key order does not matter."""
    text = json.dumps([FORMAT_VERSION, *parts], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def fingerprint_files(root: Path) -> str:
    """Fingerprint of a local file, or of a folder's files, by their names and content."""
    base = root.parent if root.is_file() else root
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    return fingerprint([[p.relative_to(base).as_posix(), _digest_file(p)] for p in files])


def user_cache() -> Path:
    """Folder of this user's machine for files that can be made again."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "paft_ray"


def _digest_file(path: Path) -> str:
    """SHA-256 of a file; cached for large files while size and time of change stay the same."""
    status = path.stat()
    if status.st_size < _DIGESTS_KEPT:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    state = fingerprint(str(path.absolute()), status.st_size, status.st_mtime_ns)
    kept = user_cache() / "digests" / state
    if kept.is_file() and len(digest := kept.read_text()) == 64:
        return digest
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    try:
        Storage.open(str(kept.parent)).write_bytes(kept.name, digest.encode())
    except OSError as error:  # a home that cannot be written costs another read
        logger.info("digest of %s not remembered: %s", path, error)
    return digest
