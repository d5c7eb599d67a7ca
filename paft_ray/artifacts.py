"""The one way a result gets onto storage, is named, and is found again.

Covered: fingerprints; storage that is a path or a URI (through pyarrow.fs); artifacts whose
manifest, with sizes and checksums, is written last; finished parts of long work; the lease that
keeps two live runs from one name. Not covered: training state, which is `training.checkpoint`.
"""

import hashlib
import io
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from paft_ray.errors import ArtifactError, ConfigError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Part of every fingerprint: raise it when what is stored changes its meaning."""
MANIFEST = "manifest.json"
_LEASE_SECONDS = 60.0
_SAMPLED_BYTES = 1 << 20


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits that name JSON-ready content; key order does not matter."""
    text = json.dumps([FORMAT_VERSION, *parts], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def fingerprint_files(root: Path) -> str:
    """Fingerprint of a local file by name and content, or of a folder's files; not of its name.

    Files over 64 MiB count by size and by 64 evenly spaced blocks of 1 MiB: enough to tell models
    apart without reading all of a large one.
    """
    base = root.parent if root.is_file() else root
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    return fingerprint([[p.relative_to(base).as_posix(), _digest_file(p)] for p in files])


def _digest_file(path: Path) -> str:
    digest = hashlib.sha256()
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as stream:
        if size <= 64 * _SAMPLED_BYTES:
            digest.update(stream.read())
        else:
            for block in range(64):
                stream.seek(block * (size - _SAMPLED_BYTES) // 63)
                digest.update(stream.read(_SAMPLED_BYTES))
    return digest.hexdigest()


@dataclass(frozen=True)
class Storage:
    """A folder on a pyarrow file system; picklable, so that Ray workers can use it."""

    filesystem: pafs.FileSystem
    root: str

    @classmethod
    def open(cls, location: str) -> "Storage":
        """Storage for a path or URI; nothing is created.

        Raises:
            ConfigError: The scheme is unknown or the URI malformed.
        """
        if "://" not in location:
            return cls(pafs.LocalFileSystem(), str(Path(location).expanduser().absolute()))
        try:
            filesystem, root = pafs.FileSystem.from_uri(location)
        except (pa.ArrowInvalid, OSError, ValueError) as error:
            raise ConfigError(
                f"storage: {location!r} is no usable path or URI ({error}); "
                "use a local path, s3://bucket/folder or gs://bucket/folder"
            ) from error
        return cls(filesystem, root.rstrip("/"))

    @property
    def is_local(self) -> bool:
        """Whether the files lie in this machine's file system."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def child(self, *names: str) -> "Storage":
        """The storage of a folder below."""
        return replace(self, root="/".join([self.root, *names]))

    def path(self, name: str = "") -> str:
        """The full path of a file, as the file system names it."""
        return f"{self.root}/{name}" if name else self.root

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder of that name is there."""
        info = self.filesystem.get_file_info(self.path(name))
        return info.type != pafs.FileType.NotFound

    def names(self) -> list[str]:
        """Names of the entries directly in this folder, sorted; none where it does not exist."""
        selector = pafs.FileSelector(self.root, allow_not_found=True)
        names = (info.base_name for info in self.filesystem.get_file_info(selector))
        return sorted(name for name in names if not name.startswith(".writing-"))

    def read_bytes(self, name: str) -> bytes:
        """A file's content.

        Raises:
            ArtifactError: There is no such file.
        """
        try:
            with self.filesystem.open_input_stream(self.path(name)) as stream:
                return stream.read()
        except FileNotFoundError as error:
            raise ArtifactError(f"{self.path(name)}: no such file in storage") from error

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file so that no reader ever sees a part of it."""
        target = self.path(name)
        if not self.is_local:  # an object appears when its upload is complete
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(data)
            return
        path = Path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        writing = path.with_name(f".writing-{uuid.uuid4().hex[:8]}-{path.name}")
        try:
            with writing.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            writing.replace(path)
        except BaseException:
            writing.unlink(missing_ok=True)
            raise

    def read_json(self, name: str) -> Any:
        """A JSON file's content.

        Raises:
            ArtifactError: There is no such file, or it is not JSON.
        """
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:
            raise ArtifactError(
                f"{self.path(name)}: not valid JSON; delete it and rerun"
            ) from error

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as indented JSON."""
        self.write_bytes(name, to_json(value))

    def read_table(self, name: str) -> pa.Table:
        """A Parquet file's content."""
        return pq.read_table(pa.BufferReader(self.read_bytes(name)))

    def delete(self, name: str = "") -> None:
        """Remove a file, or a folder with all that is in it; fine if it is not there."""
        info = self.filesystem.get_file_info(self.path(name))
        if info.type == pafs.FileType.Directory:
            self.filesystem.delete_dir(self.path(name))
        elif info.type == pafs.FileType.File:
            self.filesystem.delete_file(self.path(name))

    def fetch(self, into: Path) -> Path:
        """Copy the files of this folder into a local one and return it."""
        into.mkdir(parents=True, exist_ok=True)
        for name in self.names():
            (into / name).write_bytes(self.read_bytes(name))
        return into


def to_json(value: Any) -> bytes:
    """A value as indented UTF-8 JSON, the way all our files hold it."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


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
        data = self.folder.read_bytes(name)
        self.files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

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
    for name, entry in manifest.files.items():
        info = folder.filesystem.get_file_info(folder.path(name))
        if info.size != entry["size"] or (
            check and hashlib.sha256(folder.read_bytes(name)).hexdigest() != entry["sha256"]
        ):
            logger.warning("%s: does not match its manifest, passed over", folder.path(name))
            return None
    return manifest


@dataclass(frozen=True)
class Parts:
    """Finished parts of a long piece of work, one Parquet file each, named by a key.

    A part is there whole or not at all, so work that was cut off goes on with the missing keys.
    """

    folder: Storage

    def finished(self) -> set[str]:
        """Keys of the parts that are there."""
        suffix = ".parquet"
        return {n.removesuffix(suffix) for n in self.folder.names() if n.endswith(suffix)}

    def write(self, key: str, table: pa.Table) -> None:
        """Keep one finished part."""
        self.folder.write_bytes(f"{key}.parquet", to_parquet(table))

    def read(self, keys: Iterable[str]) -> Iterator[pa.Table]:
        """The parts of these keys, in the order asked for."""
        for key in keys:
            yield self.folder.read_table(f"{key}.parquet")


@contextmanager
def lease(folder: Storage, what: str) -> Iterator[None]:
    """Hold a folder for this process as long as the block runs.

    A thread renews the lease. One whose process died on this host is taken over at once, one of
    another host after 60 s without renewal.

    Raises:
        ConfigError: Another live process holds it.
    """
    name = "lease.json"
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
    if folder.exists(name):
        _refuse_if_live(folder.read_json(name), mine, what)
    folder.write_json(name, {**mine, "renewed": time.time()})
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(_LEASE_SECONDS / 4):
            try:
                if _holder(folder, name) not in (None, mine["token"]):
                    logger.warning("%s was taken over while this process slept", what)
                    return
                folder.write_json(name, {**mine, "renewed": time.time()})
            except OSError as error:
                logger.warning("lease of %s not renewed: %s", what, error)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if _holder(folder, name) == mine["token"]:
            folder.delete(name)


def _holder(folder: Storage, name: str) -> str | None:
    """Token of whoever holds a lease now."""
    try:
        return folder.read_json(name).get("token")
    except ArtifactError:
        return None


def _refuse_if_live(held: Mapping[str, Any], mine: Mapping[str, Any], what: str) -> None:
    age = time.time() - float(held.get("renewed", 0))
    if held.get("host") == mine["host"]:
        live = held.get("pid") != mine["pid"] and _is_alive(int(held.get("pid", -1)))
        live = live and age < _LEASE_SECONDS  # a pid may have been given to another process
    else:
        live = age < _LEASE_SECONDS
    if live:
        raise ConfigError(
            f"{what} is in use by process {held.get('pid')} on {held.get('host')} "
            f"(seen {age:.0f} s ago): wait for it to end, or choose another name"
        )


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
