"""Sending a verb to a cluster as a Ray job, and following it: `paft submit`.

A thin layer over Ray's Jobs SDK: the working directory travels, with `jobs/` and `paft_ray/` in it,
so that the cluster needs the dependencies only. Covered: sending, following the log over broken
connections, the job's own result and exit code. Not covered: what the job checks itself when it
runs, on the cluster, where its files are. A job that is sent again continues, as any command does.
"""

import asyncio
import json
import logging
import os
import secrets
import shlex
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
"""Verb to the file under `jobs/` that does it."""
DASHBOARD = "http://127.0.0.1:8265"
_OVER = ("SUCCEEDED", "FAILED", "STOPPED")
_LOST_S = 120.0
"""How long a cluster may be away while its job is followed."""


@dataclass(frozen=True)
class Job:
    """What is sent."""

    entrypoint: str
    working_dir: Path
    id: str
    """Readable: the verb, the run, and a few letters that make it new."""
    about: dict[str, str]
    """Shown in the dashboard."""


@dataclass(frozen=True)
class Ended:
    """What came of a job."""

    status: str
    code: int
    """Its exit code; 1 where Ray knows none."""
    message: str
    result: dict[str, Any] | None
    """The JSON object of the last line of its log."""


def plan_job(
    config: Config, verb: str, path: str, words: Sequence[str], working_dir: Path | None = None
) -> Job:
    """The job for a verb; nothing is sent.

    Args:
        config: What `path` and the overrides make.
        verb: One of `JOBS`.
        path: The configuration file, in the working directory.
        words: Overrides and options of the verb.
        working_dir: What travels; the current directory by default.

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
        ConfigError: The working directory is too large.
        PaftError: The cluster did not take the job.
    """
    from ray.job_submission import JobSubmissionClient

    try:
        with _no_other_address():
            client = JobSubmissionClient(address.rstrip("/"))
        # it has set up lines of its own: every file that stays at home, among others
        logging.getLogger("ray").setLevel(logging.ERROR)
        client.submit_job(
            entrypoint=job.entrypoint,
            submission_id=job.id,
            runtime_env={"working_dir": str(job.working_dir)},
            metadata=job.about,
        )
    except Exception as error:
        if "exceeds the maximum size" in str(error):
            raise ConfigError(
                f"--working-dir: {one_line(error)}; exclude data and models in .rayignore"
            ) from error
        raise PaftError(
            f"--address: the cluster at {address} did not take the job: {one_line(error)}"
        ) from error
    return client


@contextmanager
def _no_other_address() -> Iterator[None]:
    """Hide the variables that Ray prefers to the address it is given, while it looks."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def follow(client: Any, job: Job, show: Callable[[str], None]) -> Ended:
    """Show a job's log until it ends, over connections that break.

    Args:
        client: From `send`.
        job: Which one.
        show: Takes the log as it comes, in pieces.

    Raises:
        PaftError: The cluster was away for two minutes; the job may go on.
    """
    from aiohttp import ClientError
    from ray.exceptions import RayError

    away = (OSError, RuntimeError, ClientError, RayError)  # of requests, the SDK and the socket
    seen, heard = 0, time.monotonic()

    async def tail() -> None:
        """Show what is new of the log, which comes from its beginning each time."""
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
            heard = time.monotonic()
            if status in _OVER:
                info, log = client.get_job_info(job.id), client.get_job_logs(job.id)
                break
        except away as error:
            if time.monotonic() - heard > _LOST_S:
                raise PaftError(
                    f"--address: the cluster is away ({one_line(error)}), and job {job.id} may go "
                    "on: follow it with `ray job logs --follow` when it is back"
                ) from error
        time.sleep(1.0)
    if len(log) > seen:
        show(log[seen:])
    code = {"SUCCEEDED": 0, "STOPPED": 143}.get(status, info.driver_exit_code or 1)
    said = (info.message or "").strip().splitlines() or [""]
    return Ended(status, code, said[0], _last_object(log))


def _last_object(log: str) -> dict[str, Any] | None:
    for line in reversed(log.splitlines()):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None
    return None
