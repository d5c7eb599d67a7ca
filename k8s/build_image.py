"""Build the image with buildah, then start `paft plan` inside as a pod would.

That is as uid 1000, on a read-only root, with folders of its own where a pod has volumes.

    python k8s/build_image.py --tag registry.example.com/paft:0.2.0
    python k8s/build_image.py --local-base --host-pip    # where no image registry is reached

Needs root, buildah, and for --local-base debootstrap. It builds without user namespaces and leaves
nothing behind but images; push one with `buildah push`.
"""

import argparse
import configparser
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCAL_BASE = "localhost/paft-base:bookworm"
# what the Dockerfile expects of its base, as Debian packages
BASE_PACKAGES = "ca-certificates,python3-distutils,python3.11,python3.11-venv"
PLAN = "paft plan /opt/paft/jobs/configs/demo.yaml storage=/storage"
WRITABLE = ("tmp", "home/paft", "storage", "models")


def run(*command: str, env: Mapping[str, str] | None = None) -> str:
    """Run a command, show it, and return what it printed; its errors go to the screen."""
    print("+", shlex.join(command), file=sys.stderr, flush=True)
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, env=env).stdout


def show(*command: str) -> None:
    """Run a command whose output is for the screen."""
    print("+", shlex.join(command), file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=sys.stderr)


def make_local_base(mirror: str | None) -> None:
    """Import a Debian with Python as an image."""
    with tempfile.TemporaryDirectory(prefix="paft-base-") as folder:
        root = Path(folder, "root")
        show(
            *("debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}"),
            *("bookworm", str(root), *([mirror] if mirror else [])),
        )
        for cached in (root / "var/cache/apt/archives").glob("*.deb"):
            cached.unlink()
        container = run("buildah", "from", "scratch").strip()
        try:
            run("buildah", "add", "--quiet", container, str(root), "/")
            run("buildah", "config", "--cmd", "/bin/bash", container)
            run("buildah", "commit", "--quiet", container, LOCAL_BASE)
        finally:
            run("buildah", "rm", container)


@contextmanager
def host_pip() -> Iterator[list[str]]:
    """Arguments of `buildah build` that lend it this machine's pip settings for that time."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.add_section("global")
    volumes = set()
    for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, quoted = line.partition("=")
        value = quoted.strip("'")
        settings.set("global", name.split(".", 1)[1], value)
        volumes |= {word for word in re.sub("file://", "", value).split() if word.startswith("/")}
    with tempfile.NamedTemporaryFile("w", prefix="paft-pip-", suffix=".conf") as file:
        settings.write(file)
        file.flush()
        Path(file.name).chmod(0o644)
        # an index in a folder may name wheels in a folder beside it
        folders = {re.sub("/simple/?$", "", volume) for volume in volumes}
        mounted = [f"{path}:{path}:ro" for path in sorted(folders) if Path(path).exists()]
        yield [f"--volume={volume}" for volume in (f"{file.name}:/etc/pip.conf:ro", *mounted)]


def build(target: str, tag: str, base: str | None, torch_index: str, extra: Sequence[str]) -> None:
    """Build one target of the Dockerfile."""
    arguments = [f"--build-arg=BASE={base}"] if base else []
    if torch_index:
        arguments.append(f"--build-arg=TORCH_INDEX_URL={torch_index}")
    show(
        *("buildah", "build", "--isolation", "chroot", "--file", str(ROOT / "k8s/Dockerfile")),
        *("--target", target, "--tag", tag, *arguments, *extra, str(ROOT)),
    )


def start_inside(tag: str, command: str) -> str:
    """Run a command in the image as a pod would: uid 1000, read-only root, folders of its own."""
    image = json.loads(run("buildah", "inspect", "--type", "image", tag))["OCIv1"]["config"]
    container = run("buildah", "from", "--pull-never", tag).strip()
    try:
        mounted = run("buildah", "mount", container).strip()
        folders = " ".join(shlex.quote(f"{mounted}/{name}") for name in WRITABLE)
        script = f"""
            set -e
            mount --make-rprivate /
            mount --bind {mounted} {mounted}
            for folder in {folders}; do mount -t tmpfs -o mode=1777 tmpfs "$folder"; done
            mount -t proc proc {mounted}/proc
            mount --rbind /dev {mounted}/dev
            mount -o remount,bind,ro {mounted}
            exec chroot --userspec={image["User"]} {mounted} /bin/bash -c '
                if touch /probe 2> /dev/null; then echo "the root can be written to"; exit 1; fi
                cd {image["WorkingDir"]} && exec "$@"' - {command}"""
        return run(
            *("unshare", "--mount", "--pid", "--fork", "bash", "-c", script),
            env=dict(entry.split("=", 1) for entry in image["Env"]),
        )
    finally:
        run("buildah", "rm", container)


def size_gib(tag: str) -> float:
    """Size of an image with all its layers, unpacked."""
    container = run("buildah", "from", "--pull-never", tag).strip()
    try:
        mounted = run("buildah", "mount", container).strip()
        return int(run("du", "-sx", "--block-size=1", mounted).split()[0]) / 2**30
    finally:
        run("buildah", "rm", container)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, start, and say how long it took and how large it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", choices=["runtime", "demo"], default="demo")
    parser.add_argument("--tag", default="localhost/paft:dev")
    parser.add_argument("--base", help="base image instead of the Dockerfile's, best by digest")
    parser.add_argument("--torch-index", default="", help="index of the torch that you want")
    parser.add_argument("--local-base", action="store_true", help="base made by debootstrap")
    parser.add_argument("--mirror", help="Debian mirror for --local-base")
    parser.add_argument("--host-pip", action="store_true", help="lend it this machine's pip config")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        parser.error("buildah without user namespaces and the read-only start need root: use sudo")
    seconds = {}
    started = time.monotonic()
    if options.local_base:
        make_local_base(options.mirror)
        seconds["base"] = round(time.monotonic() - started)
    base = LOCAL_BASE if options.local_base else options.base
    started = time.monotonic()
    if options.host_pip:
        with host_pip() as lent:
            build(options.target, options.tag, base, options.torch_index, lent)
    else:
        build(options.target, options.tag, base, options.torch_index, [])
    seconds["build"] = round(time.monotonic() - started)
    started = time.monotonic()
    print(start_inside(options.tag, PLAN if options.target == "demo" else "paft --help"), end="")
    seconds["start"] = round(time.monotonic() - started)
    print(json.dumps({"image": options.tag, "gib": round(size_gib(options.tag), 2), "s": seconds}))


if __name__ == "__main__":
    main()
