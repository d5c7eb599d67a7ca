"""Surroundings of Ray's processes on this machine: modules that they find, folder of their sockets.

Ray puts the working directory, and the folder that a job was sent with, before installed packages,
so that a project's own `tokenizers.py` replaces a package in workers only; and it keeps sockets
below TMPDIR, whose paths may not exceed 107 bytes.
"""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paft_ray.config.errors import ConfigError

logger = logging.getLogger(__name__)

_LONGEST_SOCKET = 107
_BELOW_FOLDER = len("/session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store.99")
"""Bytes that Ray adds to its folder for the longest path of a socket."""
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def job_config() -> Any:
    """Ray's settings of this process's job, whose workers find modules where this process does.

    Of the folders that Ray would put first, the script's and the working directory, only one that
    holds this very package stays: Python runs a checkout that is not installed from there.
    """
    from ray.job_config import JobConfig

    class OwnPaths(JobConfig):
        def _get_proto_job_config(self) -> Any:
            kept = _folder_run_from()
            paths = [path for path in self._py_driver_sys_path if os.path.realpath(path) == kept]
            self._py_driver_sys_path = paths
            return super()._get_proto_job_config()

    return OwnPaths()


def own_paths_last() -> Callable[[], None]:
    """What a worker of a submitted job runs first: its folder comes after installed packages.

    As `jobs/own_paths.py` does for drivers. Ray sends a function that is defined in another by
    value, so that a worker imports nothing for it.
    """

    def move() -> None:
        here = os.path.realpath("")
        own = [path for path in sys.path if os.path.realpath(path) == here]
        sys.path[:] = [path for path in sys.path if path not in own] + own

    return move


def _folder_run_from() -> str | None:
    """The folder of this package, if only Python's first entry of `sys.path` leads to it."""
    root = os.path.realpath(Path(__file__).parents[2])
    return None if root in map(os.path.realpath, sys.path[1:]) else root


@contextmanager
def ray_folder() -> Iterator[str | None]:
    """A folder for Ray's session on this machine; None where Ray's own choice has short paths.

    Where TMPDIR or RAY_TMPDIR is too long, it is a link to Ray's folder there, so that large files
    lie where the user wants them. The link is removed at the end.

    Raises:
        ConfigError: No folder with a short path can be written.
    """
    variable = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    wanted = Path(os.environ.get(variable, "/tmp"), "ray").absolute()
    if len(os.fsencode(wanted)) + _BELOW_FOLDER <= _LONGEST_SOCKET:
        yield None
        return
    short = _short_folder(variable, wanted)
    try:
        link = short / "ray"
        wanted.mkdir(parents=True, exist_ok=True)
        link.symlink_to(wanted)
        logger.info("%s is too long for paths of sockets: Ray uses it as %s", variable, link)
        os.environ.setdefault("VLLM_RPC_BASE_PATH", str(short))  # vLLM's sockets
        yield str(link)
    finally:
        if os.environ.get("VLLM_RPC_BASE_PATH") == str(short):
            del os.environ["VLLM_RPC_BASE_PATH"]
        shutil.rmtree(short, ignore_errors=True)


def _short_folder(variable: str, wanted: Path) -> Path:
    for folder in _SHORT_FOLDERS:
        try:
            return Path(tempfile.mkdtemp(prefix="paft-", dir=folder))
        except OSError:
            continue
    raise ConfigError(
        f"{variable}: {wanted.parent} is too long for Ray's sockets (at most "
        f"{_LONGEST_SOCKET - _BELOW_FOLDER - 4} bytes), and {', '.join(_SHORT_FOLDERS)} cannot be "
        "written: set RAY_TMPDIR to a folder with a short path"
    )
