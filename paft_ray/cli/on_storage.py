"""Commands about what is on a storage: `paft runs`, `status`, `compare`, `delete`; no Ray."""

import argparse
import json
import sys

from paft_ray.cli.help import COMPARE, DELETE, RUNS, STATUS
from paft_ray.cli.streams import Streams, open_streams, write, write_error
from paft_ray.config.errors import ConfigError, PaftError, one_line
from paft_ray.config.uris import without_password
from paft_ray.pipeline.perform import Result
from paft_ray.runs.progress import RichScreen
from paft_ray.storage.paths import Storage


def look(options: argparse.Namespace) -> int:
    """Do one of these commands, and return its exit code."""
    with open_streams(options.json) as streams:
        try:
            result = _result(options, streams)
        except PaftError as error:
            return write_error(streams.stderr, error, 2)
        except OSError as error:  # of an object store
            place, why = without_password(options.storage), one_line(error)
            message = f"storage: {place} cannot be reached ({why}): check the URI and credentials"
            return write_error(streams.stderr, message, 2)
        if result is None:
            return 0
        text = json.dumps(result.data, ensure_ascii=False) if options.json else result.text
        write(streams.stdout, text + "\n")
    return 0


def _result(options: argparse.Namespace, streams: Streams) -> Result | None:
    storage = Storage.open(options.storage)
    if options.verb == RUNS:
        from paft_ray.pipeline.listing import list_runs

        return list_runs(storage)
    if options.verb == STATUS:
        from paft_ray.pipeline.status import run_status

        return run_status(storage, options.names[0])
    if options.verb == COMPARE:
        from paft_ray.pipeline.comparing import compare_runs

        return compare_runs(storage, options.names)
    assert options.verb == DELETE
    return _delete(storage, options, streams)


def _delete(storage: Storage, options: argparse.Namespace, streams: Streams) -> Result | None:
    """Delete runs where `--yes` or a person says so; None where nobody did.

    Raises:
        ConfigError: They cannot be deleted, or there is nobody to ask.
    """
    from paft_ray.pipeline.deleting import plan_deletion

    deletion = plan_deletion(storage, options.names)
    screen = RichScreen(streams.console)
    screen.line(deletion.text)
    if not options.yes:
        if not sys.stdin.isatty():
            raise ConfigError(
                "nothing is removed: nobody can be asked here, so pass --yes to do it"
            )
        streams.console.print("remove this? [y/N] ", end="")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            screen.line("nothing is removed")
            return None
    return deletion.perform()
