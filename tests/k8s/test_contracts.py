"""What the k8s folder promises beyond its manifests: configurations, commands, documents."""

import re
import shlex
from typing import Any

import pytest
from manifests import K8S, OVERLAYS, ROOT, build, find, of_kind
from security import SECRETS

from paft_ray.cli.grammar import build_parser
from paft_ray.config.loading import dump_config, load_config

README = (K8S / "README.md").read_text(encoding="utf-8")


def _fields(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, list):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    out: dict[str, Any] = {}
    for name, child in tree.items():
        out |= _fields(child, f"{path}.{name}".lstrip("."))
    return out


@pytest.mark.parametrize(
    ("ours", "shipped", "differences"),
    [
        ("base/job/config.yaml", "demo.yaml", set()),
        (
            "overlays/gpu/config.yaml",
            "paper.yaml",
            {
                "prompts.generation.llms.0.base_url",
                "prompts.generation.llms.0.api_key_env",
            },
        ),
    ],
)
def test_configuration_of_an_overlay_is_a_shipped_one(
    ours: str, shipped: str, differences: set[str]
) -> None:
    one = _fields(dump_config(load_config(K8S / ours)))
    other = _fields(dump_config(load_config(ROOT / "jobs/configs" / shipped)))
    assert {name for name in one | other if one.get(name) != other.get(name)} == differences


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_entrypoint_is_a_command_of_ours(overlay: str) -> None:
    for job in of_kind(build(overlay), "RayJob"):
        program, *words = shlex.split(job["spec"]["entrypoint"])
        assert program == "paft"
        options = build_parser().parse_args(words)
        assert options.json
        folder = K8S / ("overlays/gpu" if overlay.endswith(("gpu", "kueue")) else "base/job")
        config = load_config(folder / "config.yaml", options.overrides)
        assert config.storage == "/storage"


@pytest.mark.parametrize("overlay", ["base", "overlays/cpu-smoke", "overlays/gpu"])
def test_generated_configuration_is_mounted_where_the_entrypoint_reads_it(overlay: str) -> None:
    documents = build(overlay)
    job = find(documents, "RayJob")["spec"]
    pod = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    name = next(v["configMap"]["name"] for v in pod["volumes"] if v["name"] == "config")
    config = shlex.split(job["entrypoint"])[3]
    mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    assert config == f"{mounts['config']}/config.yaml"
    assert set(find(documents, "ConfigMap", name)["data"]) == {"config.yaml"}


def test_readme_makes_every_secret_that_manifests_name() -> None:
    for name, keys in SECRETS.items():
        command = re.search(rf"create secret generic {name} ((?:[^\n]*\\\n)*[^\n]*)", README)
        assert command is not None, name
        assert keys == set(re.findall(r"--from-literal=([\w-]+)=", command[1]))


def test_readme_names_files_and_overlays_that_exist() -> None:
    for overlay in OVERLAYS:
        assert overlay in README
    for path in re.findall(r"(?<!/)\bk8s/[\w./-]+", README):
        assert (ROOT / path.rstrip(".")).exists(), path
