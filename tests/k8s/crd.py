"""What an API server would say to a custom resource, from the CustomResourceDefinition alone.

Covered: the structural schema with unknown fields refused, keys of list maps, CEL rules. Not
covered: rules about a change (`oldSelf`), the metadata, and the pod templates inside, which the
server takes as they are; `kuberay.py` renders those as pods.
"""

import copy
import functools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cel
import jsonschema
import pytest
import yaml
from manifests import ROOT, Document, title

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in Python alone it takes seconds
FILES = {"RayJob": "ray.io_rayjobs.yaml", "RayCluster": "ray.io_rayclusters.yaml"}


def crd_folder() -> Path:
    """The folder with the operator's definitions, which are no part of this repository."""
    folder = Path(os.environ.get("PAFT_KUBERAY_CRDS") or ROOT.parent / "shared" / "kuberay")
    if missing := [name for name in FILES.values() if not (folder / name).exists()]:
        pytest.skip(f"no {missing[0]} in {folder}: name KubeRay's CRDs in PAFT_KUBERAY_CRDS")
    return folder


@functools.cache
def _schema(kind: str, version: str) -> Document:
    definition = yaml.load((crd_folder() / FILES[kind]).read_bytes(), _LOADER)
    versions = {entry["name"]: entry for entry in definition["spec"]["versions"]}
    assert versions[version]["served"]
    return versions[version]["schema"]["openAPIV3Schema"]


@functools.cache
def _validator(kind: str, version: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(strict(_schema(kind, version)))


def strict(schema: Document) -> Document:
    """A structural schema as a JSON schema that refuses unknown fields."""
    out = {
        name: copy.deepcopy(schema[name])
        for name in ("type", "enum", "minimum", "maximum", "pattern", "minLength", "maxLength")
        if name in schema
    }
    for name in ("minItems", "maxItems"):
        if name in schema:
            out[name] = schema[name]
    if "properties" in schema:
        out["properties"] = {
            name: strict(child) for name, child in schema["properties"].items()
        } | _object_fields(schema)
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            out["additionalProperties"] = False
        defaulted = {name for name, child in schema["properties"].items() if "default" in child}
        out["required"] = sorted(set(schema.get("required", ())) - defaulted)
    elif isinstance(schema.get("additionalProperties"), dict):
        out["additionalProperties"] = strict(schema["additionalProperties"])
    if "items" in schema:
        out["items"] = strict(schema["items"])
    if schema.get("x-kubernetes-int-or-string"):
        out["type"] = ["integer", "string"]
    if schema.get("nullable") and isinstance(out.get("type"), str):
        out["type"] = [out["type"], "null"]
    return out


def _object_fields(schema: Document) -> Document:
    """Of the outermost object, `metadata` is the API server's own affair."""
    return {"metadata": {"type": "object"}} if "apiVersion" in schema["properties"] else {}


def with_defaults(value: Any, schema: Document) -> Any:
    """A value as the API server would fill it in before it asks its rules."""
    if isinstance(value, dict) and "properties" in schema:
        value = dict(value)
        for name, child in schema["properties"].items():
            if name not in value and "default" in child:
                value[name] = copy.deepcopy(child["default"])
            if name in value:
                value[name] = with_defaults(value[name], child)
    elif isinstance(value, dict) and isinstance(schema.get("additionalProperties"), dict):
        value = {k: with_defaults(v, schema["additionalProperties"]) for k, v in value.items()}
    elif isinstance(value, list) and "items" in schema:
        value = [with_defaults(entry, schema["items"]) for entry in value]
    return value


def complaints(document: Document) -> list[str]:
    """What the server would refuse in a RayJob or RayCluster."""
    kind, version = document["kind"], document["apiVersion"].removeprefix("ray.io/")
    found = [
        f"{title(document)}: {error.json_path}: {error.message}"
        for error in _validator(kind, version).iter_errors(document)
    ]
    schema = _schema(kind, version)
    filled = with_defaults(document, schema)
    return found + [f"{title(document)}: {line}" for line in _rules(filled, schema, "$")]


def _rules(value: Any, schema: Document, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        if (
            "oldSelf" not in rule["rule"]
            and cel.evaluate(rule["rule"], {"self": value}) is not True
        ):
            yield f"{path}: {rule['message']}"
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name in value:
                yield from _rules(value[name], child, f"{path}.{name}")
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        if keys := schema.get("x-kubernetes-list-map-keys"):
            seen = Counter(tuple(entry.get(key) for key in keys) for entry in value)
            for key, times in seen.items():
                if times > 1:
                    yield f"{path}: {times} entries with {dict(zip(keys, key, strict=True))}"
        for index, entry in enumerate(value):
            yield from _rules(entry, schema["items"], f"{path}[{index}]")
