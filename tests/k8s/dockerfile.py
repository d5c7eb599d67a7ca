"""What we promise of the Dockerfile, beside what hadolint says of any."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from manifests import K8S

from paft_ray.cluster.session import _ENVIRONMENT

TEXT = (K8S / "Dockerfile").read_text(encoding="utf-8")


def complaints(text: str) -> Iterator[str]:
    """What is wrong with a Dockerfile."""
    yield from _lint(text)
    logical = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    base = re.search(r"^ARG BASE=(\S+)$", logical, re.MULTILINE)
    if base is None or not re.search(r":\d+\.\d+\.\d+-[\w-]+(@sha256:[0-9a-f]{64})?$", base[1]):
        yield "BASE is not pinned to a full version"
    stages = dict(re.findall(r"^FROM (\S+) AS (\S+)$", logical, re.MULTILINE))
    if set(stages) - {"${BASE}", "build", "runtime"}:
        yield "a stage begins with another image than BASE"
    for command in re.findall(r"pip install[^&;\n]*", logical):
        if "-c constraints.txt" not in command:
            yield f"`{' '.join(command.split())}` is not held to constraints.txt"
    runtime = logical.partition(" AS runtime\n")[2].partition("\nFROM ")[0]
    users = re.findall(r"^USER (\S+)$", runtime, re.MULTILINE)
    if users[-1:] != ["1000:1000"]:
        yield "the image does not run as 1000:1000"
    if "\nRUN" in runtime:
        yield "something is installed into the stage that is shipped"
    environment = dict(
        re.findall(r"(\w+)=(\S+)", " ".join(re.findall(r"^ENV (.*)$", runtime, re.M)))
    )
    for name, value in _ENVIRONMENT.items():
        if environment.get(name) != value:
            yield f"{name} is {environment.get(name)}, and {value} in paft_ray.cluster.session"
    if environment.get("RAY_AUTH_MODE") != "token":
        yield "Ray would start without a token"


def _lint(text: str) -> Iterator[str]:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or "hadolint"
    done = subprocess.run(
        [linter, "--no-color", "-"], input=text, text=True, capture_output=True, check=False
    )
    yield from (f"hadolint: {line}" for line in (done.stdout + done.stderr).splitlines())
