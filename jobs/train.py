"""Train the configuration's variants, on the cluster that this job runs in.

ray job submit --working-dir . -- python jobs/train.py jobs/configs/demo.yaml storage=/storage
"""

import sys

import own_paths  # noqa: F401

from paft_ray.cli import main

if __name__ == "__main__":
    main(["train", "--json", *sys.argv[1:]])
