"""Work of models, reported while it goes on: weights that are read, layers that are computed.

Covered: all models of this process, whoever loads or calls them. Not covered: compiled layers,
which are compiled anew where these hooks come and go.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def watch_models(work: Callable[[], None]) -> Iterator[None]:
    """Call `work` in the block whenever a weight gets its place in a model or a layer has run.

    Args:
        work: Quick, and callable from any thread: transformers reads weights in several.
    """
    from torch.nn.modules import module

    def done(*_: Any) -> None:  # what a hook returns would replace the weight or the output
        work()

    hooks = (
        module.register_module_parameter_registration_hook(done),
        module.register_module_forward_hook(done),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
