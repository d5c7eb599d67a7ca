"""Errors of remote processes, and actors on the driver's node."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from paft_ray.config.errors import PaftError


@contextmanager
def own_errors() -> Iterator[None]:
    """Replace Ray's wrapper around a `PaftError` of a remote process by that error."""
    try:
        yield
    except Exception as error:
        ours = _find_own(error)
        if ours is None or ours is error:
            raise
        raise ours from error


def _find_own(error: BaseException | None) -> PaftError | None:
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        current = waiting.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        cause = getattr(current, "cause", None)
        if isinstance(current, PaftError) and not isinstance(cause, PaftError):
            return current
        waiting += [cause if isinstance(cause, BaseException) else None, current.__cause__]
        waiting.append(getattr(current, "controller_failure", None))
    return None


def actor_beside(kind: type, *arguments: Any) -> Any:
    """An actor without a CPU on this process's own node, so that it lives as long as this one."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(num_cpus=0)(kind)
    return remote.options(scheduling_strategy=here).remote(*arguments)
