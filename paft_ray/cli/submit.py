"""`paft submit`: a verb as a job of a cluster, followed to its end."""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paft_ray.cli.streams import Streams, write, write_error
from paft_ray.cluster.access import INSIST, check_dashboard_access
from paft_ray.cluster.jobs import follow, plan_job, send
from paft_ray.config import Config
from paft_ray.config.errors import ConfigError, PaftError
from paft_ray.config.visible import shell_words
from paft_ray.pipeline.verbs import VERBS
from paft_ray.runs.progress import RichScreen

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def submit(config: Config, options: argparse.Namespace, streams: Streams) -> int:
    """Submit a job and follow it; its log goes to the stream of progress."""
    home = None if options.working_dir is None else Path(options.working_dir)
    progress = streams.stderr if options.json else streams.stdout
    insist = [INSIST] if options.insist and VERBS[options.job].joins else []
    arguments = [*options.overrides, *options.for_job, *insist]
    job = plan_job(config, options.job, options.config, arguments, home)
    by_hand = shell_words(["--address", options.address, job.id])
    check_dashboard_access(options.address, options.insist)
    try:
        client = send(job, options.address)
    except ConfigError:
        raise
    except PaftError as error:
        return write_error(streams.stderr, error, 1)
    RichScreen(streams.console).line(f"job {job.id}: {job.entrypoint}")
    data: dict[str, Any] = {"job": job.id}
    text, code = f"follow it: ray job logs --follow {by_hand}", 0
    if not options.no_wait:
        try:
            log = WithoutResult(lambda text: write(progress, _plain(text)))
            ended = follow(client, job, log)
            log.close(ended.result is not None)
        except PaftError as error:
            return write_error(streams.stderr, error, 1)
        except KeyboardInterrupt:
            write(progress, f"interrupted; the job goes on, and ends by: ray job stop {by_hand}\n")
            return 130
        data |= {"status": ended.status, "result": ended.result}
        text, code = f"job {job.id}: {ended.status.lower()}", ended.code
        if options.job == "plan" and ended.result:
            from paft_ray.pipeline.plan import plan_lines

            text = "\n".join([*plan_lines(ended.result), "", text])
        if code:
            write_error(
                streams.stderr, f"job {job.id} {ended.status.lower()}: {ended.message}", code
            )
    write(streams.stdout, (json.dumps(data, ensure_ascii=False) if options.json else text) + "\n")
    return code


class WithoutResult:
    """Shows a log in pieces, but for a last line with an object for programs."""

    def __init__(self, show: Callable[[str], object]) -> None:
        """`show` receives what is shown."""
        self._show, self._held = show, ""

    def __call__(self, piece: str) -> None:
        """Show a piece; what may be the last line waits for what follows it."""
        text = self._held + piece
        start = text.rstrip().rfind("\n") + 1
        cut = start if text[start:].startswith("{") else len(text)
        self._held = text[cut:]
        if cut:
            self._show(text[:cut])

    def close(self, is_result: bool) -> None:
        """Show the last line too, unless it is the result."""
        if self._held and not is_result:
            self._show(self._held)


def _plain(piece: str) -> str:
    """A piece of a job's log without colours, and with lines where bars were drawn again."""
    return _COLOUR.sub("", piece).replace("\r\n", "\n").replace("\r", "\n")
