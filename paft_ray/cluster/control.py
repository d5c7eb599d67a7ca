"""How far remote work has come."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from paft_ray.cluster.remote import actor_beside


class Board:
    """Where remote work says how far it is; a Ray actor without a CPU of its own."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._held: dict[str, Any] = {}

    def hold(self, key: str, value: Any) -> None:
        """Keep something that is asked for by its name, such as an actor's handle."""
        self._held[key] = value

    def held(self, key: str) -> Any:
        """What was given to hold, or None."""
        return self._held.get(key)

    def post(self, key: str, value: Any) -> None:
        """Say something."""
        self._values[key] = value

    def exchange(self, key: str, value: Any, asked: str) -> Any:
        """Say something, and hear what was given to hold under another name, or None."""
        self.post(key, value)
        return self.held(asked)

    def read(self) -> dict[str, Any]:
        """All that was said."""
        return dict(self._values)


class BoardHandle:
    """The driver's and the workers' end of a `Board`; pickles."""

    def __init__(self) -> None:
        """Start the actor, on this process's own node: it is lost only where the driver is too."""
        self._actor = actor_beside(Board)

    def post(self, key: str, value: Any) -> None:
        """Say something, without waiting for it to arrive."""
        self._actor.post.remote(key, value)

    def post_now(self, key: str, value: Any) -> None:
        """Say something, and return when it has arrived."""
        import ray

        ray.get(self._actor.post.remote(key, value))

    def read(self) -> dict[str, Any]:
        """All that was said."""
        import ray

        return ray.get(self._actor.read.remote())

    def hold(self, key: str, value: Any) -> None:
        """Keep something that is asked for by its name, without waiting for it to arrive."""
        self._actor.hold.remote(key, value)

    def held(self, key: str) -> Any:
        """What was given to hold, or None."""
        import ray

        return ray.get(self._actor.held.remote(key))

    def exchange(self, key: str, value: Any, asked: str) -> Any:
        """Say something, without waiting; a reference to what is held under another name."""
        return self._actor.exchange.remote(key, value, asked)


@contextmanager
def follow(board: BoardHandle, show: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
    """Show what remote work says on the board, twice a second and once at the end."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            show(board.read())

    thread = threading.Thread(target=watch, name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    show(board.read())
