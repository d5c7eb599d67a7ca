"""A trained adapter, merged model, pyfunc or lm-eval tasks, written for others.

ray job submit --working-dir . -- python jobs/export.py CONFIG --merge storage=/storage
"""

import sys

import own_paths  # noqa: F401

from paft_ray.cli import main

if __name__ == "__main__":
    main(["export", "--json", *sys.argv[1:]])
