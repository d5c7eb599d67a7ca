"""Who keeps which part of a training's state, in which files, and how much room that takes; pure.

State is a set of whole tensors under names that say nothing of ranks. What is small lies with rank
0 alone, so that most checkpoints are one file; what is large is spread by bytes over all ranks, so
that each writes an equal part and none holds all.
"""

from collections.abc import Mapping, Sequence

from paft_ray.config.errors import TrainingError

SMALL_STATE = 256 << 20
"""Bytes below which rank 0 keeps everything."""
SHARD_BYTES = 1 << 30
"""Most bytes in one file, which is what loading holds beside the model; a larger tensor has a file
of its own."""


def deal_owners(
    sizes: Mapping[str, int], ranks: int, small_state: int = SMALL_STATE
) -> dict[str, int]:
    """The rank that keeps each tensor: the largest first, each to whoever has least so far.

    Args:
        sizes: Tensor name to its bytes.
        ranks: How many there are.
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
    """Names in their order, cut into files of at most so many bytes of tensors.

    Args:
        sizes: Tensor name to its bytes.
        most: Bytes in one file; a tensor that is larger stands alone.
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
    """Bytes of storage that a training still fills, at the most.

    Args:
        state: Bytes of one checkpoint.
        result: Bytes of what is written at the end.
        keep: How many checkpoints stay; one more is there while the oldest is not deleted yet.
        there: Complete checkpoints that are on storage already.
    """
    return max(0, keep + 1 - there) * state + result


def refuse_small_disk(needed: int, free: int, where: str) -> None:
    """Refuse to begin where the disk cannot hold what training will write.

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
    """Names of a rank's files, numbered through over all ranks.

    Args:
        attempt: Token of this attempt.
        counts: Files of each rank.
        rank: Whose names.
    """
    total, first = sum(counts), sum(counts[:rank]) + 1
    return [
        f"state-{attempt}-{number:05d}-of-{total:05d}.safetensors"
        for number in range(first, first + counts[rank])
    ]
