"""Pool, variants, evaluation, report, on the cluster that this job runs in.

ray job submit --working-dir . -- python jobs/run.py jobs/configs/demo.yaml storage=/storage
"""

import sys

import own_paths  # noqa: F401

from paft_ray.cli import main

if __name__ == "__main__":
    main(["run", "--json", *sys.argv[1:]])
