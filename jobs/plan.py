"""What a run would do, and whether this cluster has what it needs.

ray job submit --working-dir . -- python jobs/plan.py jobs/configs/demo.yaml storage=/storage
"""

import sys

import own_paths  # noqa: F401

from paft_ray.cli import main

if __name__ == "__main__":
    main(["plan", "--json", *sys.argv[1:]])
