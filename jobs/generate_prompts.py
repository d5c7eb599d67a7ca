"""Build the prompt pool, on the cluster that this job runs in.

ray job submit --working-dir . -- python jobs/generate_prompts.py CONFIG storage=/storage
"""

import sys

import own_paths  # noqa: F401

from paft_ray.cli import main

if __name__ == "__main__":
    main(["prompts", "--json", *sys.argv[1:]])
