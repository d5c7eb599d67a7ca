"""The processes of a Ray node that was started here: one that dies is named, at once.

Ray itself ends the driver without a word some seconds after its raylet died.
"""

import _thread
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from paft_ray.config.errors import NodeLostError

logger = logging.getLogger(__name__)

_EVERY_S = 0.5


@contextmanager
def own_node() -> Iterator[None]:
    """Watch the processes of this process's own node while the block runs.

    Raises:
        NodeLostError: One died, which makes whatever the block waits for hopeless.
    """
    stop, died = threading.Event(), []

    def watch() -> None:
        processes = _processes()
        while not stop.wait(_EVERY_S):
            for name, process in processes.items():
                if (code := process.poll()) is not None:
                    died.append(f"{name}, pid {process.pid}, {_ended(code)}")
                    logger.error("a process of Ray's died: %s", died[0])
                    _thread.interrupt_main()
                    return

    thread = threading.Thread(target=watch, name="own node", daemon=True)
    if threading.current_thread() is threading.main_thread():  # which the watch can interrupt
        thread.start()
    try:
        yield
    except BaseException as error:
        if not died:
            raise
        raise NodeLostError(
            f"Ray's node on this machine died under the run ({died[0]}): memory may have run out, "
            "see dmesg; what is done is kept, run the same command to continue"
        ) from error
    finally:
        stop.set()


def _processes() -> dict[str, Any]:
    from ray._private import ray_constants, worker

    kinds = {
        "raylet": ray_constants.PROCESS_TYPE_RAYLET,
        "gcs_server": ray_constants.PROCESS_TYPE_GCS_SERVER,
    }
    running: Any = getattr(worker._global_node, "all_processes", {})
    return {name: running[kind][0].process for name, kind in kinds.items() if running.get(kind)}


def _ended(code: int) -> str:
    if code >= 0:
        return f"with code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"
