"""`python -m paft_ray.cli`, which finds modules as `paft` does: not in the working directory."""

import sys
from pathlib import Path

if sys.path[0] == str(Path.cwd()) != str(Path(__file__).resolve().parents[2]):
    del sys.path[0]

from paft_ray.cli.command import main

main()
