"""Retries of reads and writes where storage fails, and the error when all have failed."""

import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from paft_ray.config.errors import DiskFullError, TrainingError, one_line

logger = logging.getLogger(__name__)

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 32.0)
"""Longest pauses between attempts: 95 s in all, and 71 s where every one is drawn shortest."""

T = TypeVar("T")


def retry_storage(
    work: Callable[[], T], doing: str, where: str, pauses_s: Sequence[float] = PAUSES_S
) -> T:
    """Call `work`, again after growing pauses where storage fails, and return its value.

    Args:
        work: Reads or writes; may be called again after it failed half-way.
        doing: The work, for messages: "writing the adapter".
        where: Path or URI on storage, for messages.
        pauses_s: Longest pause before each further attempt.

    Raises:
        TrainingError: The last attempt failed too.
    """
    for pause_s in pauses_s:
        try:
            return work()
        except OSError as error:
            pause_s *= random.uniform(0.75, 1.0)
            logger.warning("%s: %s; once more in %.0f s", doing, error, pause_s)
            time.sleep(pause_s)
    try:
        return work()
    except OSError as error:
        raise _storage_failed(doing, where, error, len(pauses_s) + 1) from error


def _storage_failed(doing: str, where: str, error: OSError, attempts: int) -> TrainingError:
    is_full = isinstance(error, DiskFullError)
    cause = error.__cause__ if is_full else None
    reason = one_line(cause or error)
    remedy = "free space there" if is_full else "see that it can be reached and written"
    tried = f" {attempts} times" if attempts > 1 else ""
    return TrainingError(
        f"storage: {doing} failed{tried} in {where} ({reason}): {remedy}, and run the "
        "same command again, which goes on from the last complete checkpoint"
    )
