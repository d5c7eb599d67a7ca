"""Ray Data and Ray tasks as the place where `deduplicate` computes.

The gathered texts lie in the object store, where all workers of a node read the same copy; the
driver holds references and counts, never texts, candidates or pairs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from paft_ray.cluster.remote import own_errors
from paft_ray.prompts.dedup.deduplicate import Function, InProcess

if TYPE_CHECKING:
    import ray
    import ray.data


class OnRay(InProcess):
    """Runs functions of tables in tasks of the cluster, each with a part of the rows."""

    def __init__(self, partitions: int | None = None) -> None:
        """More partitions need less memory each; as many as the cluster has CPUs unless given."""
        self._partitions = partitions

    def rows(self, items: Sequence[Mapping[str, Any]]) -> "ray.data.Dataset":
        """A data set from dicts."""
        import ray.data

        return ray.data.from_items(list(items))

    def map(self, function: Function, rows: Any, together: int | None = None) -> "ray.data.Dataset":
        """Apply a function to the rows when they are read."""
        return rows.map_batches(function, batch_format="pyarrow", batch_size=together)

    def hold(self, rows: Any) -> "ray.data.Dataset":
        """The rows in the object store."""
        with own_errors():
            return rows.materialize()

    def blocks(self, rows: Any) -> list["ray.ObjectRef"]:
        """References to the tables."""
        return list(rows.to_arrow_refs()) if rows.count() else []

    def batches(self, rows: Any) -> Iterator[pa.Table]:
        """Batches of the rows; this process never holds all of them."""
        with own_errors():
            yield from rows.iter_batches(
                batch_size=16_384, batch_format="pyarrow", prefetch_batches=0
            )

    def partitions(self) -> int:
        """The number of tasks that look for similar pairs at a time."""
        import ray

        return self._partitions or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def call(self, function: Callable[..., Any], *arguments: Any, returns: int = 1) -> Any:
        """Start a task; returns a reference to its result, or so many."""
        import ray

        remote: Any = ray.remote(function)
        return remote.options(num_returns=returns).remote(*arguments)

    def get(self, results: Any) -> Any:
        """The values of references."""
        import ray

        with own_errors():
            return ray.get(results)
