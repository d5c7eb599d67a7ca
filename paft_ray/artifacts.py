"""The one way a result gets onto storage, is named, and is found again.

Covered: fingerprints; storage that is a path or a URI (through pyarrow.fs); artifacts whose
manifest, with sizes and checksums, is written last; finished parts of long work. Not covered:
training state, which is `training.checkpoint`; who may write where, which is `lease`.
"""

import hashlib
import io
import json
import logging
import os
import tempfile
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from paft_ray.errors import ArtifactError, ConfigError, one_line
from paft_ray.loading import local_path

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Part of every fingerprint: raise it when what is stored changes its meaning."""
MANIFEST = "manifest.json"
_DIGESTS_KEPT = 1 << 26  # bytes from which on a file's digest is remembered
_CHUNK = 1 << 24  # bytes of a file that are in memory while its digest is made


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits that name JSON-ready content; key order does not matter."""
    text = json.dumps([FORMAT_VERSION, *parts], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def fingerprint_files(root: Path) -> str:
    """Fingerprint of a local file by name and content, or of a folder's files; not of its name."""
    base = root.parent if root.is_file() else root
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    return fingerprint([[p.relative_to(base).as_posix(), _digest_file(p)] for p in files])


def user_cache() -> Path:
    """Where this user's machine keeps what can be made again."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "paft_ray"


def _digest_file(path: Path) -> str:
    """SHA-256 of a file; of a large one remembered as long as its size and time stay the same."""
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
    except OSError as error:  # a home that cannot be written: it is only read again
        logger.info("digest of %s not remembered: %s", path, error)
    return digest


def refuse_relative(location: str) -> None:
    """Refuse a storage that would lie in a job's working directory.

    Raises:
        ConfigError: It is a relative path.
    """
    if "://" not in location and not Path(location).expanduser().is_absolute():
        raise ConfigError(
            f"storage: {location!r} would lie in the job's working directory, which is deleted "
            "with the cluster: name a path that all nodes share, or a URI, such as storage=/storage"
        )


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
            return cls(pafs.LocalFileSystem(), str(local_path(location).absolute()))
        try:
            filesystem, root = pafs.FileSystem.from_uri(location)
            if not root.strip("/"):
                raise ValueError("it names no bucket and folder")
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ConfigError(
                f"storage: {location!r} is no usable path or URI ({one_line(error)}); "
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
        """Names of the entries directly in this folder, sorted; none where it does not exist.

        What begins with a point is ours and passing: files being written, locks.
        """
        selector = pafs.FileSelector(self.root, allow_not_found=True)
        names = (info.base_name for info in self.filesystem.get_file_info(selector))
        return sorted(name for name in names if not name.startswith("."))

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

    def digest(self, name: str) -> str:
        """SHA-256 of a file, of which a part at a time is in memory.

        Raises:
            ArtifactError: There is no such file.
        """
        digest = hashlib.sha256()
        try:
            with self.filesystem.open_input_stream(self.path(name)) as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
        except FileNotFoundError as error:
            raise ArtifactError(f"{self.path(name)}: no such file in storage") from error
        return digest.hexdigest()

    def sizes(self, names: Iterable[str]) -> list[int | None]:
        """Bytes of files, asked for at once; None for what is no file."""
        paths = [self.path(name) for name in names]
        return [info.size for info in self.filesystem.get_file_info(paths)]

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

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A Parquet file's content, or only some of its columns."""
        return pq.read_table(pa.BufferReader(self.read_bytes(name)), columns=columns)

    def delete(self, name: str = "") -> None:
        """Remove a file, or a folder with all that is in it; fine if it is not there."""
        info = self.filesystem.get_file_info(self.path(name))
        if info.type == pafs.FileType.Directory:
            self.filesystem.delete_dir(self.path(name))
        elif info.type == pafs.FileType.File:
            self.filesystem.delete_file(self.path(name))

    def sweep(self, keep: Collection[str]) -> None:
        """Remove all files of this folder but these, and what was left half-written."""
        selector = pafs.FileSelector(self.root, allow_not_found=True)
        for info in self.filesystem.get_file_info(selector):
            if info.type == pafs.FileType.File and info.base_name not in keep:
                self.filesystem.delete_file(info.path)

    @contextmanager
    def local(self) -> Iterator[str]:
        """A local folder with these files: this one, or a copy that lasts as long as the block."""
        if self.is_local:
            yield self.path()
            return
        with tempfile.TemporaryDirectory(prefix="paft-files-") as temporary:
            yield str(self.fetch(Path(temporary)))

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
