"""Storage that is a local path or a URI, through pyarrow's file systems."""

import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from paft_ray.config.errors import ArtifactError, ConfigError, one_line
from paft_ray.config.loading import local_path
from paft_ray.storage.full_disk import naming_full_disk

CONNECTIONS = 64
"""Requests that an object store gets at a time from one process."""
_CHUNK = 1 << 24  # bytes that are read at a time for a digest
_ALMOST_A_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[/\\]")
"""How s3:/bucket begins, and a drive of Windows; what follows `://` is looked at before."""


def refuse_relative(location: str) -> None:
    """Refuse storage inside a job's working directory.

    Raises:
        ConfigError: It is a relative path.
    """
    if "://" not in location and not Path(location).expanduser().is_absolute():
        raise ConfigError(
            f"storage: {location!r} would lie in the job's working directory, which is deleted "
            "with the cluster: name a path that all nodes share, or a URI, such as storage=/storage"
        )


def is_inner_name(name: str) -> bool:
    """Return whether a name, whoever wrote it, names something inside of the folder it is for."""
    return not ("\0" in name or "\\" in name or {"", ".", ".."} & set(name.split("/")))


def inner_name(name: str) -> str:
    """A name of a file or folder, of which slashes may separate parts.

    Raises:
        ArtifactError: It leads out of the folder, or could elsewhere.
    """
    if not is_inner_name(name):
        raise ArtifactError(
            f"{name!r} is no name of a file inside of its folder: what names it is damaged or "
            "from a stranger; delete that, and make it again"
        )
    return name


def require_writable(folder: Path, field: str) -> None:
    """Refuse a folder that can be neither written nor created.

    Raises:
        ConfigError: It is no folder, or may not be written; the message begins with `field`.
    """
    existing = next(p for p in (folder, *folder.parents) if p.exists() or p.is_symlink())
    if not existing.exists():
        raise ConfigError(f"{field}: {existing} is a link to nothing; name a folder")
    if not existing.is_dir():
        raise ConfigError(f"{field}: {existing} is a file, not a folder; name a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{field}: {existing} is not writable for this user; change its permissions, or name "
            "another folder"
        )


def _local(location: str, field: str) -> Path:
    if _ALMOST_A_URI.match(location):
        raise ConfigError(
            f"{field}: {location!r} is neither a path of this machine nor a URI: write "
            "scheme://bucket/folder, or ./ before a folder of this name"
        )
    try:
        return local_path(location)
    except ConfigError as error:
        raise ConfigError(f"{field}: {error}") from error


@dataclass(frozen=True)
class Storage:
    """A folder on a pyarrow file system; picklable, so that Ray workers can use it."""

    filesystem: pafs.FileSystem
    root: str

    @classmethod
    def open(cls, location: str, field: str = "storage") -> "Storage":
        """Storage for a path or URI; nothing is created.

        Args:
            location: The path or URI.
            field: Where it was given, with which messages begin.

        Raises:
            ConfigError: The scheme is unknown or the URI malformed.
        """
        if "://" not in location:
            return cls(pafs.LocalFileSystem(), str(_local(location, field).absolute()))
        # as many connections may be open at a time, 8 threads by default; threads begin when needed
        pa.set_io_thread_count(max(pa.io_thread_count(), CONNECTIONS))
        try:
            filesystem, root = pafs.FileSystem.from_uri(location)
            if not root.strip("/"):
                raise ValueError("it names no bucket and folder")
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ConfigError(
                f"{field}: {location!r} is no usable path or URI ({one_line(error)}); "
                "use a local path, s3://bucket/folder or gs://bucket/folder"
            ) from error
        return cls(filesystem, root.rstrip("/"))

    @property
    def is_local(self) -> bool:
        """Return whether the files lie in this machine's file system."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def child(self, *names: str) -> "Storage":
        """The storage of a subfolder.

        Raises:
            ArtifactError: It would lie outside of this one.
        """
        return replace(self, root="/".join([self.root, *map(inner_name, names)]))

    def path(self, name: str = "") -> str:
        """The full path of a file, as the file system names it.

        Raises:
            ArtifactError: It would lie outside of this folder.
        """
        return f"{self.root}/{inner_name(name)}" if name else self.root

    def holds(self, path: str) -> bool:
        """Return whether a full path lies in this folder."""
        inside = path.removeprefix(f"{self.root}/")
        return inside != path and is_inner_name(inside)

    def exists(self, name: str = "") -> bool:
        """Return whether there is a file or folder of that name."""
        info = self.filesystem.get_file_info(self.path(name))
        return info.type != pafs.FileType.NotFound

    def names(self) -> list[str]:
        """Names of the entries directly in this folder, sorted; none where it does not exist.

        Names that begin with a point are left out: files being written, locks.
        """
        selector = pafs.FileSelector(self.root, allow_not_found=True)
        names = (info.base_name for info in self.filesystem.get_file_info(selector))
        return sorted(name for name in names if not name.startswith("."))

    def read_bytes(self, name: str) -> bytes:
        """A file's content.

        Raises:
            ArtifactError: There is no such file.
        """
        with self._reading(name) as stream:
            return stream.read()

    def digest(self, name: str) -> str:
        """SHA-256 of a file, which is read in chunks.

        Raises:
            ArtifactError: There is no such file.
        """
        digest = hashlib.sha256()
        with self._reading(name) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    @contextmanager
    def _reading(self, name: str) -> Iterator[pa.NativeFile]:
        try:
            with self.filesystem.open_input_stream(self.path(name)) as stream:
                yield stream
        except FileNotFoundError as error:
            raise ArtifactError(f"{self.path(name)}: no such file in storage") from error
        except OSError as error:
            if self.filesystem.get_file_info(self.path(name)).type != pafs.FileType.Directory:
                raise
            raise ArtifactError(
                f"{self.path(name)}: a folder, where a file belongs; remove it and rerun"
            ) from error

    def sizes(self, names: Iterable[str]) -> list[int | None]:
        """Sizes of files in bytes, by one request; None for what is no file."""
        paths = [self.path(name) for name in names]
        return [info.size for info in self.filesystem.get_file_info(paths)]

    def changed(self, names: Iterable[str]) -> str:
        """When the newest of some files was written, as a date and time in UTC; empty for none."""
        infos = self.filesystem.get_file_info([self.path(name) for name in names])
        times = [info.mtime for info in infos if info.mtime is not None]
        return f"{max(times):%Y-%m-%d %H:%M}" if times else ""

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file; readers see all of it or nothing.

        Raises:
            DiskFullError: A local disk has no space left.
        """
        target = self.path(name)
        if not self.is_local:
            # In a thread: an object appears when its stream is closed, and a signal that came
            # between opening and writing would leave an empty one in place of the old content.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(self._upload, target, data).result()
            return
        path = Path(target)
        writing = path.with_name(f".writing-{uuid.uuid4().hex[:8]}-{path.name}")
        with naming_full_disk(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _write_whole(writing, data)
                writing.replace(path)
            except BaseException:
                writing.unlink(missing_ok=True)
                raise

    def _upload(self, target: str, data: bytes) -> None:
        with self.filesystem.open_output_stream(target) as stream:
            stream.write(data)

    def read_json(self, name: str) -> Any:
        """A JSON file's content.

        Raises:
            ArtifactError: There is no such file, or it is not JSON.
        """
        try:
            return json.loads(self.read_bytes(name))
        except (ValueError, RecursionError) as error:
            raise ArtifactError(
                f"{self.path(name)}: not valid JSON; delete it and rerun"
            ) from error

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as indented JSON."""
        self.write_bytes(name, to_json(value))

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A Parquet file's content, or only some of its columns.

        Raises:
            ArtifactError: There is no such file, or it is not Parquet.
        """
        data = self.read_bytes(name)
        try:
            return pq.read_table(pa.BufferReader(data), columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise ArtifactError(
                f"{self.path(name)}: no readable Parquet file ({one_line(error)}); delete it and "
                "rerun"
            ) from error

    def delete(self, name: str = "") -> None:
        """Remove a file, or a folder with its content, if it exists; of a link the link alone."""
        path = self.path(name)
        if self.is_local and Path(path).is_symlink():  # what it points at is not this folder's
            Path(path).unlink()
            return
        info = self.filesystem.get_file_info(path)
        if info.type == pafs.FileType.Directory:
            if self.is_local:
                shutil.rmtree(path)  # does not follow symbolic links
            else:
                self.filesystem.delete_dir(path)
        elif info.type == pafs.FileType.File:
            self.filesystem.delete_file(path)

    def prune(self, keep: Collection[str]) -> None:
        """Remove all files of this folder but these, unfinished ones too."""
        selector = pafs.FileSelector(self.root, allow_not_found=True)
        for info in self.filesystem.get_file_info(selector):
            if info.type == pafs.FileType.File and info.base_name not in keep:
                self.filesystem.delete_file(info.path)

    @contextmanager
    def local(self) -> Iterator[str]:
        """A local folder with these files: this one, or a copy that exists during the block."""
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


def _write_whole(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def to_json(value: Any) -> bytes:
    """A value as indented UTF-8 JSON, the format of all JSON files on storage."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
