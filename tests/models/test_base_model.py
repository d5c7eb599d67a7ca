"""A base model at hand on every node: nothing to do, converted, fetched once by many processes."""

import multiprocessing
import os
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from fsspec.implementations.local import LocalFileSystem

from paft_ray.config.errors import ConfigError
from paft_ray.models.base_model import BaseSource, is_prepared, locate_base, prepare_base
from paft_ray.storage.artifacts import ArtifactWriter
from paft_ray.storage.paths import Storage


class CountingFiles(LocalFileSystem):
    """Stands for an object store: not local to pyarrow, and every read leaves a line."""

    cachable = False
    log: Path

    def _open(self, path, mode="rb", block_size=None, **options):
        if "r" in mode:
            with self.log.open("a") as log:
                log.write(f"{os.path.basename(path)}\n")  # noqa: PTH119
        return super()._open(path, mode, block_size, **options)


def object_store(root: str, log: Path) -> Storage:
    files = CountingFiles()
    files.log = log
    return Storage(pafs.PyFileSystem(pafs.FSSpecHandler(files)), root)


def fetch(root: str, log: Path, cache: str, ready, found) -> None:
    os.environ["XDG_CACHE_HOME"] = cache
    source = BaseSource("m.gguf", object_store(root, log), "0123")
    ready.wait()
    found.put(source.local())


def test_many_processes_of_a_node_fetch_a_converted_model_once(tmp_path):
    ArtifactWriter(Storage.open(str(tmp_path / "models"))).add("x", b"")  # makes the folder
    (tmp_path / "models/x").unlink()
    for name in ("config.json", "model.safetensors", "manifest.json"):
        (tmp_path / "models" / name).write_bytes(name.encode() * 1000)
    unfinished = tmp_path / "cache/paft_ray/models/.writing-0123-gone"
    unfinished.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    ready, found = context.Barrier(5), context.Queue()
    arguments = (str(tmp_path / "models"), tmp_path / "log", str(tmp_path / "cache"), ready, found)
    processes = [context.Process(target=fetch, args=arguments) for _ in range(5)]
    for process in processes:
        process.start()
    locations = {found.get(timeout=120) for _ in processes}
    for process in processes:
        process.join()
    [location] = locations
    assert (Path(location) / "config.json").read_bytes() == b"config.json" * 1000
    assert sorted((tmp_path / "log").read_text().split()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
    ]
    assert not unfinished.exists()


def test_folder_with_a_model_needs_no_preparation(tiny_model, tmp_path):
    storage = Storage.open(str(tmp_path / "storage"))
    assert prepare_base(str(tiny_model), None, storage) == str(tiny_model)
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize("name", ["m.gguf", "M.GGUF"])
def test_gguf_file_is_converted_whatever_its_ending_is_written_like(name, tmp_path):
    (tmp_path / name).write_bytes(b"no header")
    storage = Storage.open(str(tmp_path / "storage"))
    assert not is_prepared(str(tmp_path / name), storage)
    with pytest.raises(ValueError, match=f"{name}.* not a GGUF file"):
        locate_base(str(tmp_path / name), None, storage)


def test_relative_folder_is_found_from_another_working_directory(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    source = locate_base(f"./{tiny_model.name}", None, Storage.open(str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    assert Path(source.local()).samefile(tiny_model)


def test_node_without_the_folder_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=rf"model.path: .*/gone .*{os.uname().nodename}"):
        BaseSource(str(tmp_path / "gone")).local()
