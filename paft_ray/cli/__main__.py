"""`python -m paft_ray.cli`, which finds modules as `paft` does: not in the working directory."""

import os
import sys
from pathlib import Path

if sys.path[0] == os.getcwd() != str(Path(__file__).resolve().parents[2]):
    del sys.path[0]

from paft_ray.cli.command import main  # noqa: E402 - looks for other packages

main()
