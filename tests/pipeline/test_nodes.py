"""What nodes find, each red line on its own; and what a plan makes of it."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from heads import write_config

from paft_ray.config import Config
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import load_config
from paft_ray.pipeline.nodes import Needs, Node, check_node, packages, require_nodes, survey
from paft_ray.pipeline.plan import plan_lines
from paft_ray.pipeline.plan_cluster import describe_cluster
from paft_ray.storage.paths import Storage


@pytest.fixture
def needs(tmp_path: Path, tiny_model: Path) -> Needs:
    storage = Storage.open(str(tmp_path))
    storage.child("probe").write_bytes("driver", b"probe")
    return Needs(storage, "probe", str(tiny_model), None, None, (), packages())


def test_node_that_has_everything_misses_nothing(needs: Needs) -> None:
    found = check_node(needs)
    assert (found["missing"], found["notes"]) == ((), ())


def test_folder_that_is_not_shared_is_found_out(needs: Needs, tmp_path: Path) -> None:
    other = replace(needs, storage=Storage.open(str(tmp_path / "of another node")))
    [line] = check_node(other)["missing"]
    assert "is not what the driver sees" in line


def test_folder_that_cannot_be_written_is_found_out(needs: Needs, monkeypatch) -> None:
    def refuse(self: Storage, name: str, data: bytes) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(Storage, "write_bytes", refuse)
    [line] = check_node(needs)["missing"]
    assert "cannot be written from here (read-only file system)" in line


def test_other_versions_and_missing_models_are_found_out(needs: Needs, tmp_path: Path) -> None:
    other = replace(needs, packages={**needs.packages, "torch": "1.0"}, model=str(tmp_path / "no"))
    version, model = check_node(other)["missing"]
    assert "torch is" in version and "and 1.0 with the driver" in version
    assert str(tmp_path / "no") in model


def test_keys_are_named_and_never_shown(needs: Needs, monkeypatch) -> None:
    monkeypatch.setenv("PAFT_KEY_THAT_IS_SET", "sk-value-of-the-key")
    found = check_node(replace(needs, keys=("PAFT_KEY_THAT_IS_SET", "PAFT_KEY_THAT_IS_NOT")))
    assert found["notes"] == ("PAFT_KEY_THAT_IS_NOT is not set",)
    assert "PAFT_KEY_THAT_IS_SET" in found["secrets"]
    assert "sk-value" not in str(found)


def test_server_that_is_away_is_not_called_a_wrong_password(needs: Needs, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    [note] = check_node(replace(needs, tracking="http://127.0.0.1:4010"))["notes"]
    assert "cannot be used from here" in note
    assert "password" not in note


def test_first_missing_thing_refuses_and_notes_do_not() -> None:
    well = Node("one", "10.0.0.1", 2, 0, 8.0, notes=("KEY is not set",))
    require_nodes([well])
    with pytest.raises(ConfigError, match=r"node two \(10\.0\.0\.2\): no disk \(and 1 more"):
        require_nodes([well, Node("two", "10.0.0.2", 2, 0, 8.0, missing=("no disk", "no net"))])


@pytest.fixture
def config(small_run: dict[str, Any]) -> Callable[..., Config]:
    def make(*overrides: str) -> Config:
        path = write_config(Path(small_run["storage"]).parent, small_run)
        return load_config(str(path), list(overrides))

    return make


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_survey_of_a_real_cluster_leaves_nothing_behind(
    config, tmp_path: Path, tiny_model: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)  # where no worker is
    storage = Storage.open(str(tmp_path / "storage"))
    [node] = survey(config(f"model.path=./{tiny_model.name}"), storage)
    assert (node.missing, node.notes) == ((), ())
    assert node.cpus >= 1
    assert storage.names() == [] and list((tmp_path / "storage").rglob("*")) == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_plan_names_what_finds_no_room(config) -> None:
    nodes = [Node("one", "10.0.0.1", os.cpu_count() or 1, 0, 4.0, notes=("KEY is not set",))]
    sizes = {"worker_memory_gb": {"all": 7.0}}

    def missing(*overrides: str) -> list[str]:
        context: Any = SimpleNamespace(config=config(*overrides))
        plan = describe_cluster(context, nodes, sizes)
        assert any("node" in line for line in plan_lines(plan))
        return plan["missing"]

    key, memory = missing()
    assert key == "node one (10.0.0.1): KEY is not set"
    assert "1 workers of about 7.0 GB each need more than its 4.0 GB" in memory
    lines = missing("train.workers.cpus=1000")
    assert any("its nodes have room for 0" in line for line in lines)
    llm = "prompts.generation.llms=[{type: transformers, path: x, cpus: 1000}]"
    lines = missing(llm)
    assert any("prompts.generation.llms.0: no node has room" in line for line in lines)
