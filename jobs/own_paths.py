"""Imported first by every job: what lies in a job's working directory replaces no package.

Ray puts the folder that a job was sent with before installed packages, where a file of the user's
own called `tokenizers.py` or `datasets/` would be imported in place of the package. It comes last
here, as it may hold this package itself. Only modules that Python has loaded by now are used.
"""

import os
import sys

_HERE = os.path.realpath("")


def move_last(paths: list[str], folder: str) -> list[str]:
    """Return `paths` with those that lead to a folder at the end."""
    own = [path for path in paths if os.path.realpath(path) == folder]
    return [path for path in paths if path not in own] + own


sys.path[:] = move_last(sys.path, _HERE)
