"""What processes find around them: modules, launchers' variables, a folder for sockets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest

from paft_ray.cluster.surroundings import own_paths_last, ray_folder
from paft_ray.config.launchers import clear_launchers, is_launchers, without_launchers
from paft_ray.models.check_process import ModelCheckProcess

LAUNCHED = {
    "OMPI_COMM_WORLD_LOCAL_RANK": "3", "PMIX_RANK": "3", "PMI_SIZE": "8", "SLURM_PROCID": "3",
    "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True",
}  # fmt: skip
KEPT = {"HF_TOKEN": "x", "MLFLOW_TRACKING_URI": "y", "NCCL_SOCKET_IFNAME": "eth0", "OMP_RANK": "1"}


def write_project(folder: Path) -> Path:
    """A project whose modules have the names of packages, and of a module of Python's own."""
    folder.mkdir(parents=True)
    for name in ("tokenizers", "random", "yaml", "rich", "ray"):
        (folder / f"{name}.py").write_text("raise RuntimeError('the project was imported')\n")
    (folder / "datasets").mkdir()
    (folder / "datasets/__init__.py").write_text("raise RuntimeError('the project')\n")
    return folder


def long_folder(parent: Path) -> Path:
    folder = parent / "net/people/somebody/slurm_jobdir/1355700/tmp.t0016/scratch/of/the/job"
    folder.mkdir(parents=True)
    return folder


def test_launchers_variables_are_hidden_in_the_block_and_others_are_not(monkeypatch):
    for name, value in (LAUNCHED | KEPT).items():
        monkeypatch.setenv(name, value)
    with without_launchers():
        assert not any(map(is_launchers, os.environ))
        assert {name: os.environ[name] for name in KEPT} == KEPT
    assert {name: os.environ[name] for name in LAUNCHED} == LAUNCHED
    clear_launchers()
    assert not LAUNCHED.keys() & os.environ.keys()


def test_folder_with_long_paths_is_used_through_a_short_link(monkeypatch, tmp_path):
    wanted = long_folder(tmp_path)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(wanted))
    with ray_folder() as folder:
        assert folder is not None
        assert len(folder) < 32
        assert Path(folder).resolve() == wanted / "ray"
    assert not Path(folder).parent.exists()
    assert (wanted / "ray").exists()
    monkeypatch.setenv("TMPDIR", "/tmp")
    with ray_folder() as folder:
        assert folder is None


def test_model_check_takes_no_module_of_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(write_project(tmp_path / "project"))
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    with ModelCheckProcess() as process:
        process.begin(os.getenv, "RANK")
        assert process.finish() is None
    assert "PYTHONSAFEPATH" not in os.environ


def test_module_command_takes_no_module_of_the_working_directory(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "paft_ray.cli", "run", "no.yaml"],
        cwd=write_project(tmp_path / "project"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "no.yaml" in done.stderr


def test_job_takes_no_module_of_the_folder_that_it_was_sent_with(tmp_path):
    """Ray puts that folder first in PYTHONPATH."""
    project, root = write_project(tmp_path / "project"), Path(__file__).parents[2]
    for name in ("json.py", "yaml.py", "torch.py", "numpy.py"):
        (project / name).write_text("raise SystemExit('a file of the project')")
    for name in ("paft_ray", "jobs"):
        (project / name).symlink_to(root / name)
    done = subprocess.run(
        [sys.executable, "jobs/run.py", "no.yaml"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "no.yaml" in done.stderr


WORKER = """
import pickle, sys

pickle.loads(bytes.fromhex(sys.argv[1]))()
assert "paft_ray" not in sys.modules, "it was looked for in the folder first"
import rich, tokenizers, yaml, paft_ray

print(rich.__file__, tokenizers.__file__, yaml.__file__)
"""


def test_worker_takes_no_module_of_the_folder_that_its_job_was_sent_with(tmp_path):
    """As Ray starts one: in that folder, which is first in PYTHONPATH; the hook comes by value."""
    project = write_project(tmp_path / "project")
    (project / "random.py").unlink()  # `paft submit` refuses it
    hook = cloudpickle.dumps(own_paths_last()).hex()
    done = subprocess.run(
        [sys.executable, "-P", "-c", WORKER, hook],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert str(project) not in done.stdout


PROGRAM = """
import json, os, sys

def look():
    import tokenizers
    return [sorted(os.environ), sys.path, tokenizers.__file__]

if __name__ == "__main__":
    from paft_ray.cluster.session import ray_session

    with ray_session():
        import ray

        print(json.dumps(ray.get(ray.remote(look).remote())))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_ray_starts_below_a_long_folder_and_its_workers_see_neither_project_nor_launcher(tmp_path):
    project, program = write_project(tmp_path / "project"), tmp_path / "program/program.py"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=project,
        env={**clean, **LAUNCHED, **KEPT, "TMPDIR": str(long_folder(tmp_path))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    names, paths, tokenizers = json.loads(done.stdout.splitlines()[-1])
    assert not LAUNCHED.keys() & set(names)
    assert set(names) >= KEPT.keys()
    assert str(project) not in paths
    assert "" not in paths
    assert "site-packages" in tokenizers
