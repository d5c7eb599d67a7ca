"""Convert the configuration's base model now, so that no run has to: `prepare_model.py CONFIG`."""

import sys

import own_paths  # noqa: F401

from paft_ray.config.loading import load_config
from paft_ray.models.base_model import prepare_base
from paft_ray.storage.paths import Storage

if __name__ == "__main__":
    config = load_config(sys.argv[1], sys.argv[2:])
    print(prepare_base(config.model.path, config.model.revision, Storage.open(config.storage)))
