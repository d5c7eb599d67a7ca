"""The division of a training's state among ranks and files, and its size; pure.

State is a set of whole tensors under names that do not depend on ranks. Rank 0 keeps all of a small
state, so that most checkpoints are one file; a large one is spread by bytes over all ranks, so that
each writes an equal part and none holds all.
"""

from collections.abc import Mapping, Sequence

from paft_ray.config.errors import TrainingError

SMALL_STATE = 256 << 20
"""Bytes below which rank 0 keeps everything."""
SHARD_BYTES = 1 << 30
"""Most bytes in one file, which loading holds beside the model; larger tensors have their own."""


def deal_owners(
    sizes: Mapping[str, int], ranks: int, small_state: int = SMALL_STATE
) -> dict[str, int]:
    """The rank that keeps each tensor: the largest first, each to the rank with the least so far.

    Args:
        sizes: Tensor name to its bytes.
        ranks: Number of ranks.
        small_state: Bytes below which rank 0 keeps everything.
    """
    if ranks == 1 or sum(sizes.values()) < small_state:
        return dict.fromkeys(sizes, 0)
    loads = [0] * ranks
    owners: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = min(range(ranks), key=loads.__getitem__)
        owners[name] = rank
        loads[rank] += sizes[name]
    return {name: owners[name] for name in sizes}


def cut_files(sizes: Mapping[str, int], most: int = SHARD_BYTES) -> list[list[str]]:
    """Tensor names, in the same sequence, cut into files of at most `most` bytes.

    Args:
        sizes: Tensor name to its bytes.
        most: Bytes in one file; a larger tensor has its own.
    """
    files: list[list[str]] = []
    filled = 0
    for name, size in sizes.items():
        if not files or filled + size > most:
            files.append([])
            filled = 0
        files[-1].append(name)
        filled += size
    return files


def bytes_needed(state: int, result: int, keep: int, there: int) -> int:
    """Most bytes of storage that a training still fills.

    Args:
        state: Bytes of one checkpoint.
        result: Bytes of the training's result.
        keep: How many checkpoints stay; one more exists until the oldest is deleted.
        there: Number of complete checkpoints on storage.
    """
    return max(0, keep + 1 - there) * state + result


def refuse_small_disk(needed: int, free: int, where: str) -> None:
    """Refuse to begin where the disk is too small for checkpoints and result.

    Raises:
        TrainingError: `needed` is more than `free`, both in bytes.
    """
    if needed > free:
        raise TrainingError(
            f"storage: {where} has {_gigabytes(free)} free, and this training's checkpoints and "
            f"result need {_gigabytes(needed)}: free space there, lower train.checkpoint.keep, or "
            "name another storage"
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def file_names(attempt: str, counts: Sequence[int], rank: int) -> list[str]:
    """Names of a rank's files, with numbers that run over all ranks.

    `attempt` is the token of this attempt, `counts` the number of files of each rank.
    """
    total, first = sum(counts), sum(counts[:rank]) + 1
    return [
        f"state-{attempt}-{number:05d}-of-{total:05d}.safetensors"
        for number in range(first, first + counts[rank])
    ]
