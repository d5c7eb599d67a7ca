"""Sending a verb to a cluster as a Ray job, and following it: `paft submit`.

A thin layer over Ray's Jobs SDK. The working directory is uploaded with `jobs/` and `paft_ray/` in
it, so that the cluster needs only the dependencies. Covered: sending, following the log over broken
connections, the job's result and exit code. Not covered: checks that the job makes on the cluster.
"""

import asyncio
import json
import logging
import os
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paft_ray.config import Config
from paft_ray.config.errors import ConfigError, PaftError, one_line
from paft_ray.storage.paths import refuse_relative

logger = logging.getLogger(__name__)

JOBS = {
    "prompts": "generate_prompts",
    "train": "train",
    "evaluate": "evaluate",
    "run": "run",
    "tune": "tune",
    "report": "report",
    "export": "export",
    "plan": "plan",
}
"""Verb to its file under `jobs/`."""
_TOO_LARGE = "exceeds the maximum size", "status code 413"
"""What Ray says of a folder above its own limit, and above that of the dashboard (100 MiB)."""
DASHBOARD = "http://127.0.0.1:8265"
_OF_RAY = frozenset((
    "ray", "aiohttp", "attr", "attrs", "certifi", "charset_normalizer", "click", "colorama",
    "colorful", "filelock", "google", "idna", "jsonschema", "msgpack", "multidict", "numpy",
    "packaging", "psutil", "pyarrow", "pydantic", "requests", "six", "tqdm", "typing_extensions",
    "urllib3", "yaml", "yarl",
))  # fmt: skip
"""Packages that Ray's own processes import when they start."""
_FINAL = ("SUCCEEDED", "FAILED", "STOPPED")
_LOST_S = 120.0
"""How long a cluster may be unreachable while its job is followed."""


@dataclass(frozen=True)
class Job:
    """A job to be sent."""

    entrypoint: str
    working_dir: Path
    id: str
    """The verb, the run, and a few random letters."""
    about: dict[str, str]
    """Shown in the dashboard."""


@dataclass(frozen=True)
class JobResult:
    """The end of a job."""

    status: str
    code: int
    """The job's exit code; 1 where Ray knows none."""
    message: str
    result: dict[str, Any] | None
    """The JSON object of the last line of its log."""


def plan_job(
    config: Config, verb: str, path: str, words: Sequence[str], working_dir: Path | None = None
) -> Job:
    """The job for a verb; nothing is sent.

    Args:
        config: The configuration of `path` and the overrides.
        verb: One of `JOBS`.
        path: The configuration file, in the working directory.
        words: Overrides and options of the verb.
        working_dir: The folder to upload; the current directory by default.

    Raises:
        ConfigError: The file lies outside of the working directory, or storage inside.
    """
    home = (working_dir or Path.cwd()).resolve()
    program = Path("jobs") / f"{JOBS[verb]}.py"
    if not (home / program).is_file():
        raise ConfigError(
            f"--working-dir: {home} holds no {program}: change to the project's folder, or name it"
        )
    file = Path(path).resolve()
    if not file.is_relative_to(home):
        raise ConfigError(
            f"CONFIG: {path} lies outside of {home}, which is all that travels: put it below"
        )
    refuse_relative(config.storage)
    words = ["python", str(program), str(file.relative_to(home)), *words]
    return Job(
        shlex.join(words),
        home,
        f"paft-{verb}-{config.name}-{secrets.token_hex(3)}",
        {"paft_verb": verb, "paft_run": config.name},
    )


def send(job: Job, address: str) -> Any:
    """Upload the working directory and start the job; returns the client that follows it.

    Raises:
        ConfigError: The working directory is too large, or Ray would run a file of it.
        PaftError: The cluster did not take the job.
    """
    import ray.dashboard.modules.job.job_supervisor  # noqa: F401
    from ray.job_submission import JobSubmissionClient

    _refuse_rays_modules(job.working_dir)
    try:
        with _no_other_address():
            client = _without_redirects(JobSubmissionClient)(address.rstrip("/"))
        # the client has set up its own log, with a line for every file that is not uploaded
        logging.getLogger("ray").setLevel(logging.ERROR)
        client.submit_job(
            entrypoint=job.entrypoint,
            submission_id=job.id,
            runtime_env={"working_dir": str(job.working_dir)},
            metadata=job.about,
        )
    except Exception as error:
        if any(said in str(error) for said in _TOO_LARGE):
            raise ConfigError(
                f"--working-dir: the cluster does not take as much as is in {job.working_dir} "
                f"({one_line(error)}); exclude data and models in .rayignore"
            ) from error
        raise PaftError(
            f"--address: the cluster at {address} did not take the job: {one_line(error)}"
        ) from error
    return client


def _refuse_rays_modules(folder: Path) -> None:
    """Refuse a folder with modules that Ray's own processes, which find it first, would run.

    Call it when Ray's modules for jobs are imported. What is imported later does no harm: workers
    look into the folder last (`cluster.surroundings`).

    Raises:
        ConfigError: A file or package there has the name of a module that Ray imports.
    """
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    modules = {path.stem: path for path in folder.glob("*.py")}
    modules |= {path.parent.name: path for path in folder.glob("*/__init__.py")}
    stays = get_excludes_from_ignore_files(folder, True, logger)
    found = {name: path for name, path in modules.items() if not any(out(path) for out in stays)}
    names = sys.modules.keys() & (sys.stdlib_module_names | _OF_RAY)
    for name in sorted(names & found.keys()):
        raise ConfigError(
            f"--working-dir: Ray's processes would import {found[name]} in place of their own "
            f"module {name}, and end: rename it, or name it in .rayignore"
        )


def _without_redirects(client: type[Any]) -> type[Any]:
    """A client class whose requests carry token and code to no other address."""

    class Client(client):
        def _do_request(self, method: str, endpoint: str, **settings: Any) -> Any:
            settings["allow_redirects"] = False
            answer = super()._do_request(method, endpoint, **settings)
            if answer.is_redirect:
                raise RuntimeError(
                    f"it redirects to {answer.headers['Location']!r}: name the cluster's own "
                    "address"
                )
            return answer

    return Client


@contextmanager
def _no_other_address() -> Iterator[None]:
    """Hide the variables that Ray prefers to the given address during the block."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def follow(client: Any, job: Job, show: Callable[[str], None]) -> JobResult:
    """Show a job's log until it ends, over connections that break.

    Args:
        client: From `send`.
        job: The job.
        show: Receives the log in pieces.

    Raises:
        PaftError: The cluster was unreachable for two minutes; the job may go on.
    """
    from aiohttp import ClientError
    from ray.exceptions import RayError

    away = (OSError, RuntimeError, ClientError, RayError)  # of requests, the SDK and the socket
    seen, reached_s = 0, time.monotonic()

    async def tail() -> None:
        """Show the new part of the log, which each call sends from its beginning."""
        nonlocal seen
        read = 0
        async for piece in client.tail_job_logs(job.id):
            read += len(piece)
            if read > seen:
                show(piece[seen - read :])
                seen = read

    while True:
        try:
            asyncio.run(tail())
        except away as error:
            logger.info("the log of job %s broke off: %s", job.id, one_line(error))
        try:
            status = str(client.get_job_status(job.id))
            reached_s = time.monotonic()
            if status in _FINAL:
                info, log = client.get_job_info(job.id), client.get_job_logs(job.id)
                break
        except away as error:
            if time.monotonic() - reached_s > _LOST_S:
                raise PaftError(
                    f"--address: the cluster is away ({one_line(error)}), and job {job.id} may go "
                    "on: follow it with `ray job logs --follow` when it is back"
                ) from error
        time.sleep(1.0)
    if len(log) > seen:
        show(log[seen:])
    code = {"SUCCEEDED": 0, "STOPPED": 143}.get(status, info.driver_exit_code or 1)
    message = (info.message or "").strip().splitlines() or [""]
    return JobResult(status, code, message[0], _last_object(log))


def _last_object(log: str) -> dict[str, Any] | None:
    """The JSON object of the log's last line that is not empty, if it is one."""
    try:
        found = json.loads(log.rstrip().splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return found if isinstance(found, dict) else None
