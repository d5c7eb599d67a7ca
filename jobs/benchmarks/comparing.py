"""Two trainings that should have become the same: their ledgers and adapters side by side."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file


@dataclass(frozen=True, slots=True)
class Comparison:
    """A disturbed training against the undisturbed one."""

    rows: int
    """Steps times slots of the undisturbed one."""
    other_draws: int
    """Rows that are missing, or have another example or prompt."""
    other_losses: int
    """Rows of the same draw whose loss differs in any bit."""
    tensors: int
    """Of the adapter."""
    other_tensors: int
    """Those that differ in any bit."""
    relative: float
    """Largest norm of a tensor's difference, over the norm of the undisturbed tensor."""


def compare(disturbed: Path, undisturbed: Path) -> Comparison:
    """Compare ledgers and adapters of two trainings, given by their folders.

    Raises:
        ValueError: Their adapters have other tensors.
    """
    expected, found = read_ledger(undisturbed / "ledger"), read_ledger(disturbed / "ledger")
    other_draws = other_losses = 0
    for place, rows in expected.items():
        [(*draw, loss)] = rows
        others = found.get(place, set())
        if {tuple(other[:-1]) for other in others} != {tuple(draw)}:
            other_draws += 1
        elif {other[-1] for other in others} != {loss}:
            other_losses += 1
    file = "adapter/adapter_model.safetensors"
    ours, theirs = load_file(disturbed / file), load_file(undisturbed / file)
    if ours.keys() != theirs.keys():
        raise ValueError(f"{disturbed / file} has other tensors than {undisturbed / file}")
    norms = [
        (float(np.linalg.norm(ours[name] - theirs[name])), float(np.linalg.norm(theirs[name])))
        for name in theirs
    ]
    return Comparison(
        rows=len(expected),
        other_draws=other_draws + len(found.keys() - expected.keys()),
        other_losses=other_losses,
        tensors=len(theirs),
        other_tensors=sum(ours[name].tobytes() != theirs[name].tobytes() for name in theirs),
        relative=max(difference / norm if norm else difference for difference, norm in norms),
    )


def read_ledger(folder: Path) -> dict[tuple[int, int], set[tuple[str, str, str]]]:
    """Example, prompt and loss (its exact digits) of every step and slot, over all parts."""
    rows: dict[tuple[int, int], set[tuple[str, str, str]]] = {}
    names = ("step", "slot", "example_id", "prompt_id", "loss")
    for part in sorted(folder.glob("*.parquet")):
        columns = pq.read_table(part).to_pydict()
        for step, slot, *draw, loss in zip(*(columns[name] for name in names), strict=True):
            rows.setdefault((step, slot), set()).add((*draw, loss.hex()))
    return rows
