"""A search for the most robust model, on the cluster that this job runs in.

ray job submit --working-dir . -- python jobs/tune.py jobs/configs/tune_demo.yaml storage=/storage
"""

import sys

import own_paths  # noqa: F401

from paft_ray.cli import main

if __name__ == "__main__":
    main(["tune", "--json", *sys.argv[1:]])
