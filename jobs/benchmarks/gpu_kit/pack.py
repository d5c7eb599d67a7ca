"""Packs what a machine with torch alone lacks to run `paft run` and `gpu.py`, into small parts.

Wheels of the versions in constraints.txt, for another Python and Linux on x86_64, without torch and
what comes with it; from Ray, MLflow and others goes what one node never reads. The parts are of at
most 60 MiB; `unpack.sh` among them checks them and puts them together.

    python jobs/benchmarks/gpu_kit/pack.py FOLDER [--python 3.12] [--part-mib 60] [--there NAME ...]
    bash FOLDER/unpack.sh SITE && export PYTHONPATH=SITE
"""

import argparse
import fnmatch
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[3]
THERE = ("torch", "triton", "nvidia-*", "cuda-*", "sympy", "mpmath", "networkx", "setuptools")
"""What is not packed: torch, and what it needs alone."""
UNREAD = (
    "*/tests/*", "*/test/*", "*.pyi", "*.h", "*.a", "*.pxd", "*.jar", "*/__pycache__/*",
    "ray/rllib/*", "ray/serve/*", "ray/jars/*", "ray/dashboard/client/*", "ray/cpp/*",
    "ray/llm/*", "mlflow/server/js/*", "mlflow/R/*", "pyarrow/include/*", "pyarrow/src/*",
    "matplotlib/mpl-data/sample_data/*",
)  # fmt: skip
"""Files that training, scoring and tracking on one node never read."""
UNPACK = """#!/usr/bin/env bash
# Puts the parts beside this script together, below the folder that is named.
set -euo pipefail
site=$(realpath -m "$1")
cd "$(dirname "$0")"
sha256sum --quiet -c SHA256SUMS
mkdir -p "$site"
cat kit.tar.xz.* | tar -xJ -C "$site"
echo "export PYTHONPATH=$site"
"""


def resolve(python: str, there: Sequence[str]) -> list[str]:
    """`name==version` of all that the project's dependencies need, but for what is there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip(
            *("install", "-qq", "--dry-run", "--ignore-installed", "--report", str(report)),
            *("--target", folder, "--python-version", python, "--only-binary", ":all:"),
            *("--constraint", str(ROOT / "constraints.txt")),
            # deepspeed has no wheel; what it needs besides is among the others
            *(d for d in project["dependencies"] if not d.startswith("deepspeed")),
            *("einops", "hjson", "msgpack", "ninja", "packaging", "psutil", "py-cpuinfo", "tqdm"),
        )
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    names = [(each["metadata"]["name"].lower(), each["metadata"]["version"]) for each in found]
    return [
        f"{name}=={version}"
        for name, version in sorted(names)
        if not any(fnmatch.fnmatch(name, each) for each in there)
    ]


def fetch(wanted: Sequence[str], python: str, folder: Path) -> None:
    """Download wheels, and build that of deepspeed, which is pure Python without its kernels."""
    platforms = [
        w for p in ("manylinux_2_28", "manylinux2014") for w in ("--platform", f"{p}_x86_64")
    ]
    pip(
        *("download", "-qq", "--no-deps", "--dest", str(folder), "--only-binary", ":all:"),
        *("--python-version", python, *platforms, *wanted),
    )
    [deepspeed] = [
        line
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line.startswith("deepspeed==")
    ]
    pip("wheel", "-qq", "--no-deps", "--no-build-isolation", "-w", str(folder), deepspeed)


def pip(*words: str) -> None:
    """Run pip of this Python."""
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *words], check=True)


def pack(wheels: Path, out: Path, part_bytes: int) -> list[Path]:
    """Write the files of all wheels that are read, compressed, in parts."""
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "kit.tar.xz"
        with tarfile.open(whole, "w:xz", preset=6) as archive:
            for wheel in sorted(wheels.glob("*.whl")):
                with zipfile.ZipFile(wheel) as files:
                    for entry in files.infolist():
                        name = entry.filename.partition(".data/purelib/")[2] or entry.filename
                        name = name.partition(".data/platlib/")[2] or name
                        if entry.is_dir() or any(fnmatch.fnmatch(name, each) for each in UNREAD):
                            continue
                        about = tarfile.TarInfo(name)
                        about.size = entry.file_size
                        about.mode = 0o755 if entry.external_attr >> 16 & 0o100 else 0o644
                        with files.open(entry) as content:
                            archive.addfile(about, content)
        parts = []
        with whole.open("rb") as stream:
            while data := stream.read(part_bytes):
                parts.append(out / f"kit.tar.xz.{len(parts):02d}")
                parts[-1].write_bytes(data)
    return parts


def main() -> None:
    """Resolve, fetch, strip, compress, cut."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--part-mib", type=int, default=60)
    parser.add_argument(
        "--there", nargs="+", default=[], metavar="NAME", help="packages that machine has already"
    )
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"{options.folder} is there already: name another folder")
    print("resolving", flush=True)
    wanted = resolve(options.python, [*THERE, *options.there])
    with tempfile.TemporaryDirectory() as folder:
        print(f"fetching {len(wanted) + 1} packages", flush=True)
        fetch(wanted, options.python, Path(folder))
        print("packing", flush=True)
        parts = pack(Path(folder), options.folder, options.part_mib << 20)
    sums = [f"{hashlib.sha256(part.read_bytes()).hexdigest()}  {part.name}\n" for part in parts]
    (options.folder / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
    (options.folder / "unpack.sh").write_text(UNPACK, encoding="utf-8")
    size = sum(part.stat().st_size for part in parts) / (1 << 20)
    print(f"{len(parts)} parts, {size:.0f} MiB: {options.folder}")


if __name__ == "__main__":
    main()
