"""Which files of a submitted folder Ray's own processes would run in place of theirs."""

from pathlib import Path

import pytest
import ray.dashboard.modules.job.job_supervisor  # noqa: F401

from paft_ray.cluster.jobs import _refuse_rays_modules
from paft_ray.config.errors import ConfigError


def place(folder: Path, name: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")


@pytest.mark.parametrize("name", ["psutil.py", "logging.py", "aiohttp/__init__.py"])
@pytest.mark.parametrize("ignored_by", [".gitignore", ".rayignore", None])
def test_file_with_the_name_of_a_module_is_refused_if_it_travels(
    tmp_path: Path, name: str, ignored_by: str | None
) -> None:
    place(tmp_path, name)
    place(tmp_path, "words.py")
    if ignored_by is None:
        with pytest.raises(ConfigError, match=f"would import {tmp_path / name}"):
            _refuse_rays_modules(tmp_path)
        return
    (tmp_path / ignored_by).write_text(name.partition("/")[0])
    _refuse_rays_modules(tmp_path)


def test_what_ray_does_not_import_travels(tmp_path: Path) -> None:
    for name in ("datasets/__init__.py", "tokenizers.py", "__init__.py", "psutil/words.py"):
        place(tmp_path, name)
    _refuse_rays_modules(tmp_path)
