"""The report of a finished run, written again.

ray job submit --working-dir . -- python jobs/report.py jobs/configs/demo.yaml storage=/storage
"""

import sys

import own_paths  # noqa: F401

from paft_ray.cli import main

if __name__ == "__main__":
    main(["report", "--json", *sys.argv[1:]])
