"""Disks without space, named: what a library raises says neither which one it is nor what to do."""

import errno
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paft_ray.config.errors import DiskFullError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SAID = re.compile(
    r"no space left on device|disk quota exceeded|database or disk is full|\bos error (?:28|122)\b"
    r"|the local disk's utilization is over capacity",
    re.IGNORECASE,
)


@contextmanager
def naming_full_disk(folder: str | Path) -> Iterator[None]:
    """Let errors of a disk without space name the folder that is written in the block.

    Raises:
        DiskFullError: There is no space, or the quota is used up.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL or isinstance(error, DiskFullError):
            raise
        raise _full(folder, error, "name another storage") from error


def disk_full(error: BaseException) -> DiskFullError | None:
    """What to say of an unexpected error if it comes from a disk without space.

    What is written on storage names its folder itself; so this is a file beside it.
    """
    chain: list[BaseException] = []
    while error not in chain:
        chain.append(error)
        error = getattr(error, "cause", None) or error.__cause__ or error
    for each in reversed(chain):  # Ray's wrappers repeat the text of what they wrap
        if isinstance(each, DiskFullError):
            return each
        file = getattr(each, "filename", None)
        if getattr(each, "errno", None) in _FULL or _SAID.search(str(each)):
            where = Path(str(file)).parent if file else tempfile.gettempdir()
            return _full(where, each, "set TMPDIR to another folder")
    return None


def _full(folder: str | Path, error: BaseException, otherwise: str) -> DiskFullError:
    code = getattr(error, "errno", None)
    quota = code == errno.EDQUOT or "quota" in str(error).lower()
    found = "your quota is used up" if quota else "no space is left"
    return DiskFullError(
        f"{folder}: {found} there: free some, or {otherwise}; what is done is kept, and the same "
        "command goes on"
    )
