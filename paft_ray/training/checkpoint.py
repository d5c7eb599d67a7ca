"""Training state to and from storage, in a form that no number of ranks is part of.

A checkpoint is an artifact `checkpoints/step-000000050/`: `state.safetensors` (weights and
optimizer moments by parameter name), `progress.json`, and the manifest last. The newest valid one
wins; a torn one is passed over. Never a pickle.
"""

import logging
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from paft_ray.artifacts import ArtifactWriter, Storage, load_manifest, to_json

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training has come; with the configuration, all that resuming needs to know."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Tokens read in them."""
    answer_tokens: int = 0
    """Answer tokens trained on in them."""
    trimmed: int = 0
    """Examples that had a field cut."""
    seconds: float = 0.0
    """Time spent in the loop, over all attempts."""
    loss: float = float("nan")
    """Mean loss per answer token of the last step."""


class Checkpoints:
    """The checkpoints of one training; writing happens in a thread, with bounded retries."""

    _pause_s = 2.0
    """Longest pause before the second attempt to write; it doubles with every further one."""

    def __init__(self, folder: Storage, identity: str, keep: int) -> None:
        """Checkpoints below `folder`, for the training with this fingerprint.

        Args:
            folder: Where they lie.
            identity: The training's fingerprint; checkpoints of another one are passed over.
            keep: How many of the newest stay.
        """
        self._folder = folder
        self._identity = identity
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def load(self) -> "tuple[Progress, dict[str, torch.Tensor]] | None":
        """The newest valid checkpoint, or None where there is none."""
        import safetensors.torch

        for name in reversed(self._names()):
            folder = self._folder.child(name)
            manifest = load_manifest(folder, check=True)
            if manifest is None or manifest.fingerprint != self._identity:
                logger.warning("checkpoint %s is torn or another training's, passed over", name)
                continue
            progress = Progress(**folder.read_json("progress.json"))
            return progress, safetensors.torch.load(folder.read_bytes("state.safetensors"))
        return None

    def save(
        self,
        progress: Progress,
        state: "Mapping[str, torch.Tensor]",
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin to write a checkpoint; waits for the one before, and raises what went wrong there.

        Args:
            progress: Where training is.
            state: Gathered state, which must not change any more.
            before: Called in the thread first: what must be on storage before the checkpoint is.
        """
        self.wait()
        self._pending = self._thread.submit(self._write, progress, dict(state), before)

    def wait(self) -> None:
        """Return when the last checkpoint is on storage.

        Raises:
            OSError: It could not be written in five attempts.
        """
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _names(self) -> list[str]:
        return [name for name in self._folder.names() if name.startswith("step-")]

    def _write(
        self, progress: Progress, state: "dict[str, torch.Tensor]", before: Callable[[], None]
    ) -> None:
        import safetensors.torch

        data = safetensors.torch.save(state)

        def once() -> None:
            before()
            writer = ArtifactWriter(self._folder.child(_name(progress.step)))
            writer.add("state.safetensors", data)
            writer.add("progress.json", to_json(asdict(progress)))
            writer.commit(self._identity, {"step": progress.step})

        retry_storage(once, f"checkpoint of step {progress.step}", self._pause_s)
        # a later one is torn, else training had begun there: it must not count as one that is kept
        own = [name for name in self._names() if name <= _name(progress.step)]
        for name in own[: -self._keep]:
            self._folder.delete(name)


def _name(step: int) -> str:
    return f"step-{step:09d}"


def retry_storage(write: Callable[[], None], what: str, pause_s: float) -> None:
    """Call `write`, again after a growing pause where storage fails, five times at most.

    Args:
        write: Writes to storage; may be called again after it failed half-way.
        what: What is written, for the log.
        pause_s: Longest first pause; it doubles with every further attempt.

    Raises:
        OSError: The last attempt failed too.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            write()
        except OSError as error:
            if attempt == _ATTEMPTS:
                raise
            pause = pause_s * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.0)
            logger.warning("%s: %s; attempt %d in %.0f s", what, error, attempt + 1, pause)
            time.sleep(pause)
        else:
            return
