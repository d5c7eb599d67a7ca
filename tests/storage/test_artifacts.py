"""Storage, artifacts with a manifest, finished parts."""

import io
import json
import os
import pickle
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from fsspec import AbstractFileSystem
from hypothesis import given
from hypothesis import strategies as st

from paft_ray.config.errors import ArtifactError, ConfigError
from paft_ray.storage.artifacts import MANIFEST, ArtifactWriter, load_manifest
from paft_ray.storage.fingerprint import fingerprint, fingerprint_files
from paft_ray.storage.parts import Parts
from paft_ray.storage.paths import Storage


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage.open(str(tmp_path / "storage"))


def write_artifact(folder: Storage) -> ArtifactWriter:
    writer = ArtifactWriter(folder)
    writer.add("a.bin", b"first")
    writer.add("b.bin", b"second")
    return writer


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), json_values, max_size=5))
def test_fingerprint_does_not_depend_on_key_order(tree):
    assert fingerprint(tree) == fingerprint(dict(reversed(tree.items())))
    assert len(fingerprint(tree)) == 16


def test_fingerprint_of_different_content_differs():
    assert len({fingerprint(x) for x in ({}, [], "", None, "\ud800", {"a": 1}, {"a": "1"})}) == 7


def test_fingerprint_of_a_folder_counts_names_and_contents_and_not_where_it_lies(tmp_path):
    def make(folder: Path, files: dict[str, str]) -> str:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        return fingerprint_files(folder)

    base = make(tmp_path / "one", {"a": "x", "sub/b": "y"})
    assert make(tmp_path / "deep" / "two", {"sub/b": "y", "a": "x"}) == base
    assert make(tmp_path / "three", {"a": "x", "sub/b": "z"}) != base
    assert make(tmp_path / "four", {"a": "x", "sub/c": "y"}) != base


def test_fingerprint_of_a_large_file_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, size = tmp_path / "large", 65 << 20

    def make(change_at: int) -> str:
        with path.open("wb") as stream:
            stream.truncate(size)
            stream.seek(change_at)
            stream.write(b"x")
        return fingerprint_files(path)

    assert len({make(at) for at in (0, 12_345_678, size - 1)}) == 3
    again = fingerprint_files(path)
    status = path.stat()
    with path.open("r+b") as stream:
        stream.write(b"y")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint_files(path) == again, "read again, though nothing seems to have changed"
    assert len(list((tmp_path / "cache/paft_ray/digests").iterdir())) == 3


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_storage_opens_paths_and_uris_and_creates_nothing(tmp_path, prefix):
    storage = Storage.open(f"{prefix}{tmp_path}/new")
    assert storage.is_local
    assert storage.path("x") == f"{tmp_path}/new/x"
    assert not storage.exists()
    assert storage.names() == []
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("location", ["ftp://host/x", "nonsense://x"])
def test_storage_with_an_unknown_scheme_is_refused(location):
    with pytest.raises(ConfigError, match=rf"storage: '{location}' is no usable.*s3://"):
        Storage.open(location)


def test_storage_survives_pickling(storage):
    storage.child("a").write_bytes("x", b"data")
    assert pickle.loads(pickle.dumps(storage)).child("a").read_bytes("x") == b"data"


def test_storage_writes_replace_and_read_back(storage):
    storage.write_json("x.json", {"ü": [1, None]})
    storage.write_json("x.json", {"ü": [2]})
    assert storage.read_json("x.json") == {"ü": [2]}
    storage.child("sub").write_bytes("y", b"")
    assert storage.names() == ["sub", "x.json"]
    assert storage.exists("sub")
    storage.delete("sub")
    storage.delete("x.json")
    storage.delete("never there")
    assert storage.names() == []


def test_storage_on_another_file_system_reads_what_it_wrote(tmp_path):
    remote = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    remote.create_dir("bucket/a")
    storage = Storage(remote, "bucket").child("a")
    assert not storage.is_local
    write_artifact(storage).commit("id", {})
    assert storage.names() == ["a.bin", "b.bin", MANIFEST]
    assert load_manifest(storage, check=True) is not None


def test_storage_write_that_fails_leaves_the_old_file_and_no_rest(storage):
    storage.write_bytes("x", b"old")
    with pytest.raises(TypeError):
        storage.write_bytes("x", "not bytes")  # type: ignore[arg-type]
    assert storage.read_bytes("x") == b"old"
    assert [p.name for p in Path(storage.root).iterdir()] == ["x"]


@pytest.mark.parametrize(("content", "rule"), [(None, "no such file"), (b'{"a"', "not valid JSON")])
def test_storage_json_that_is_missing_or_torn_is_an_artifact_error(storage, content, rule):
    if content is not None:
        storage.write_bytes("x.json", content)
    with pytest.raises(ArtifactError, match=rf"x\.json: {rule}"):
        storage.read_json("x.json")


def test_storage_fetch_copies_a_folder(storage, tmp_path):
    write_artifact(storage)
    copy = storage.fetch(tmp_path / "copy")
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == {
        "a.bin": b"first",
        "b.bin": b"second",
    }


def test_artifact_does_not_exist_before_its_manifest(storage):
    writer = write_artifact(storage)
    assert load_manifest(storage) is None
    writer.commit("1234", {"rows": 2})
    manifest = load_manifest(storage, check=True)
    assert manifest is not None
    assert manifest.fingerprint == "1234"
    assert manifest.about == {"rows": 2}
    assert set(manifest.files) == {"a.bin", "b.bin"}


def test_artifact_made_of_a_local_folder_holds_its_files(storage, tmp_path):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "x").write_bytes(b"content")
    writer = ArtifactWriter(storage)
    writer.add_folder(tmp_path / "local")
    writer.commit("id", {})
    assert storage.read_bytes("x") == b"content"
    assert load_manifest(storage, check=True) is not None


@pytest.mark.parametrize(
    "harm",
    [
        lambda s: s.delete("a.bin"),
        lambda s: s.write_bytes("a.bin", b"firs"),
        lambda s: s.write_bytes(MANIFEST, s.read_bytes(MANIFEST)[:-20]),
        lambda s: s.write_bytes(MANIFEST, b""),
        lambda s: s.write_json(MANIFEST, []),
        lambda s: s.write_json(MANIFEST, {"fingerprint": "x"}),
        lambda s: s.write_json(MANIFEST, {"fingerprint": "x", "files": ["a.bin"], "about": {}}),
        lambda s: s.write_json(MANIFEST, {"fingerprint": "x", "files": {"a": {}}, "about": {}}),
    ],
)
def test_artifact_that_is_torn_is_passed_over(storage, harm):
    write_artifact(storage).commit("id", {})
    harm(storage)
    assert load_manifest(storage) is None


def test_artifact_of_the_right_size_and_wrong_content_is_found_out_by_checksum(storage):
    write_artifact(storage).commit("id", {})
    storage.write_bytes("a.bin", b"fIrst")
    assert load_manifest(storage) is not None
    assert load_manifest(storage, check=True) is None


def test_parts_know_what_is_finished_and_read_in_the_order_asked_for(storage):
    parts = Parts(storage.child("parts"))
    assert parts.finished() == set()
    for key in ("b", "a", "c.d"):
        parts.write({key: pa.table({"key": [key]})})
    (Path(storage.root) / "parts" / ".writing-1234-e.parquet").write_bytes(b"half")
    (Path(storage.root) / "parts" / "notes.txt").write_bytes(b"x")
    assert parts.finished() == {"a", "b", "c.d"}
    assert [t.to_pydict() for t in parts.read(["c.d", "a"])] == [{"key": ["c.d"]}, {"key": ["a"]}]


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "a//x", "..", ".", "a/./x", "a\\x", "a\0x", "a/"]
)
def test_name_that_leads_out_of_its_folder_is_refused_wherever_it_is_used(storage, name):
    uses = (storage.path, storage.child, storage.exists, storage.read_bytes, storage.delete)
    for use in (*uses, partial(ArtifactWriter(storage).add, data=b"")):
        with pytest.raises(ArtifactError, match="is no name of a file inside"):
            use(name)
    assert not storage.holds(f"{storage.root}/{name}") and not storage.holds(f"/x/{name}")
    assert storage.holds(f"{storage.root}/a/x")


def test_manifest_that_names_files_outside_of_its_folder_is_passed_over(storage):
    """Whoever copies the files that it lists would write outside of the copy."""
    writer = write_artifact(storage)
    Path(storage.root).with_name("outside").write_bytes(b"first")
    writer.files["../outside"] = writer.files["a.bin"]
    writer.commit("id", {})
    assert load_manifest(storage) is None


def test_deleting_a_folder_does_not_follow_links_out_of_it(storage, tmp_path):
    other = tmp_path / "other"
    (other / "inner").mkdir(parents=True)
    (other / "kept").write_text("x")
    storage.write_bytes("a/x", b"")
    for name in ("link", "a/link"):
        Path(storage.path(name)).symlink_to(other)
    Path(storage.path("a/file")).symlink_to(other / "kept")
    Path(storage.path("broken")).symlink_to(tmp_path / "nowhere")
    for name in ("a/file", "a", "link", "broken", "missing"):
        storage.delete(name)
    assert sorted(path.name for path in other.iterdir()) == ["inner", "kept"]
    assert list(Path(storage.root).iterdir()) == []


class Upload(io.BytesIO):
    """A stream of an object store: its object appears when it is closed."""

    def __init__(self, files: "Uploads", path: str) -> None:
        super().__init__()
        self._files, self._path = files, path

    def write(self, data: Any) -> int:
        signal.raise_signal(signal.SIGINT)
        return super().write(data)

    def close(self) -> None:
        if not self.closed:
            self._files.objects[self._path] = self.getvalue()
        super().close()


class Uploads(AbstractFileSystem):
    """An object store in which Ctrl-C comes whenever something is about to be written."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, bytes] = {}

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BytesIO:
        return Upload(self, path)


def test_interrupted_upload_leaves_the_new_object_and_no_empty_one() -> None:
    files = Uploads()
    storage = Storage(pafs.PyFileSystem(pafs.FSSpecHandler(files)), "bucket")
    with pytest.raises(KeyboardInterrupt):
        storage.write_json("config.json", {"name": "run"})
    assert json.loads(files.objects["bucket/config.json"]) == {"name": "run"}
