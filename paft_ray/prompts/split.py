"""The split of a pool: held-out prompts and layouts, which share nothing with training.

A held-out prompt shares neither wording nor layout with training. So components are split, not
prompts: two candidates are connected if their instructions are similar, or if they are templates
of the same layout; and at the end every training prompt is compared with every held-out one.
Instructions without a layout get one of the grammar's, which are dealt among the splits as well.
All is a function of content and seed: the order of candidates does not matter.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest

from paft_ray.config import PoolSplitConfig, PromptsConfig
from paft_ray.prompts.dedup.similarity import components, shingles, similar_pairs
from paft_ray.prompts.layouts import Layout, compose, layout_of
from paft_ray.prompts.leakage import nearest
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.tasks.example import SPLITS, SplitName

BESIDE_HELD_OUT = "beside_held_out"
"""In one group with a held-out prompt, so that it can be in no split."""
NEAR_HELD_OUT = "near_held_out"
"""Too similar to a held-out instruction, by the exact check at the end."""
HELD_OUT_AUTHOR = "held_out_author"
"""From the LLM or the file that all test prompts come from, and no test prompt."""
NO_LAYOUT = "no_layout"
"""The instruction makes every layout of its split look like one of another split."""

_HELD_OUT_SHARE = 0.25
"""Share of the pieces that may go with held-out components before these give several each."""
_HELD_OUT: tuple[SplitName, ...] = ("test", "validation")


@dataclass(frozen=True, slots=True)
class Piece:
    """The unit of the split: an instruction, with a layout of its own if it came as a template."""

    instruction: str
    layout: str | None
    """Key of the layout; None where the grammar is to give it one."""
    author: str | None = None
    """The LLM that wrote it, or the file that it stands in."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The split of a piece, or why it is in none."""

    split: SplitName | None
    """None where it can be in none."""
    cluster: str
    """Sixteen hex digits of the group that it belongs to."""
    reason: str = ""
    """Why it is in no split."""
    detail: str = ""


class TooFewError(Exception):
    """The pieces do not suffice for the configured splits; the message says what there is."""


def split_pieces(
    pieces: Sequence[Piece], config: PoolSplitConfig, seed: int
) -> tuple[Assignment, ...]:
    """Deal pieces into training, validation and test, so that no wording or layout is shared.

    Groups are held out whole: components of pieces that are connected by wording or layout. Small
    ones go first, among equal ones those that come first by hash. Each gives one held-out piece,
    or several where more groups would take over a quarter of the pieces from training; the
    largest always trains. Where chains of likenesses have grown components so large that this
    fails or leaves less than half for training, groups are of one layout, or one instruction, and
    whatever is itself similar to a held-out instruction is taken from training: the same promise.

    Raises:
        TooFewError: There are not enough that differ.
    """
    sets = [shingles(piece.instruction) for piece in pieces]
    similar = [
        (i, j) for i, j, _ in similar_pairs([p.instruction for p in pieces], config.similarity)
    ]
    first: dict[str, int] = {}
    same_layout = [
        (first.setdefault(piece.layout, index), index)
        for index, piece in enumerate(pieces)
        if piece.layout is not None
    ]
    best: tuple[Assignment, ...] = ()
    problem = TooFewError("there are none")
    for edges in ([*similar, *same_layout], same_layout):
        labels = components(len(pieces), edges)
        groups, names = _groups(pieces, labels, similar, seed)
        try:
            held_out = _choose(groups, pieces, sets, config)
            found = _assign(pieces, [names[label] for label in labels], held_out, sets, config)
        except TooFewError as error:
            problem = error
            continue
        best = max(best, found, key=_trained)
        if _trained(best) >= len(pieces) / 2:
            break
    if not best:
        raise problem
    return best


def _trained(assignments: Sequence[Assignment]) -> int:
    return sum(assignment.split == "train" for assignment in assignments)


@dataclass(frozen=True, slots=True)
class _Group:
    """Pieces that are held out together, or not at all."""

    members: tuple[int, ...]
    cost: int
    """Pieces that training loses if the first member is held out."""


def _groups(
    pieces: Sequence[Piece], labels: Sequence[int], similar: Iterable[tuple[int, int]], seed: int
) -> tuple[list[_Group], Mapping[int, str]]:
    """The groups, cheapest first, and the name of each label's group."""
    outside: Counter[int] = Counter()  # similar pieces in other groups
    for i, j in similar:
        if labels[i] != labels[j]:
            outside.update((i, j))
    members: dict[int, list[int]] = defaultdict(list)
    order = sorted(range(len(pieces)), key=lambda i: (outside[i], _name(pieces[i])))
    for index in order:
        members[labels[index]].append(index)
    names = {label: min(_name(pieces[i]) for i in group) for label, group in members.items()}
    groups = {
        label: _Group(tuple(group), len(group) + outside[group[0]])
        for label, group in members.items()
    }
    ordered = sorted(groups, key=lambda k: (groups[k].cost, fingerprint(seed, names[k])))
    return [groups[label] for label in ordered], names


def _assign(
    pieces: Sequence[Piece],
    clusters: Sequence[str],
    held_out: Mapping[int, SplitName],
    sets: Sequence[frozenset[str]],
    config: PoolSplitConfig,
) -> tuple[Assignment, ...]:
    """Train on all that is neither held out nor like what is held out; an exact check."""
    used = {clusters[index] for index in held_out}
    assignments = []
    for index, cluster in enumerate(clusters):
        if index in held_out:
            assignments.append(Assignment(held_out[index], cluster))
        elif (author := pieces[index].author) and author in config.held_out_authors:
            detail = f"{author} is for test prompts only"
            assignments.append(Assignment(None, cluster, HELD_OUT_AUTHOR, detail))
        elif near := _nearest(index, held_out, sets, config.similarity):
            other, similar = near
            detail = f"similarity {similar:.2f} to {pieces[other].instruction!r}"
            assignments.append(Assignment(None, cluster, NEAR_HELD_OUT, detail))
        elif cluster in used:
            detail = "hangs together with a held-out prompt by its wording or layout"
            assignments.append(Assignment(None, cluster, BESIDE_HELD_OUT, detail))
        else:
            assignments.append(Assignment("train", cluster))
    if not _trained(assignments):
        raise TooFewError("nothing is left to train on")
    return tuple(assignments)


def place_instructions(
    pieces: Sequence[Piece],
    assignments: Sequence[Assignment],
    layouts: Sequence[Layout],
    slots: Sequence[str],
    config: PromptsConfig,
    seed: int,
) -> list[tuple[Layout, ...]]:
    """Choose the layouts that each piece is placed in; none for templates and dropped pieces.

    A held-out instruction gets one layout of its split, its own as long as there are enough; a
    training instruction gets `layouts_per_instruction`, chosen by its hash and the seed. An
    unusual instruction can make a layout look like another one, so what `layout_of` finds in the
    composed text has to be new to the other splits too.
    """
    taken: dict[str, SplitName | None] = {
        piece.layout: assignment.split
        for piece, assignment in zip(pieces, assignments, strict=True)
        if piece.layout is not None
    }
    dealt = deal_layouts(layouts, taken, config.split, seed)
    seen: dict[SplitName, set[str]] = {
        split: {layout.key for layout in dealt[split]}
        | {key for key, owner in taken.items() if owner == split}
        for split in SPLITS
    }
    placed: list[tuple[Layout, ...]] = [()] * len(pieces)
    for split in (*_HELD_OUT, "train"):
        others = frozenset().union(*(seen[other] for other in SPLITS if other != split))
        count = config.layouts_per_instruction if split == "train" else 1
        used: Counter[str] = Counter()
        for index, (piece, assignment) in enumerate(zip(pieces, assignments, strict=True)):
            if piece.layout is not None or assignment.split != split:
                continue
            if split == "train":
                order = _drawn(dealt[split], piece.instruction, seed)
            else:
                order = iter(sorted(dealt[split], key=lambda layout: used[layout.id]))
            chosen: dict[str, Layout] = {}
            while len(chosen) < count and (layout := next(order, None)):
                found = layout_of(compose(piece.instruction, layout), slots)
                if found not in others:
                    chosen[layout.id] = layout
                    seen[split].add(found)
            used.update(list(chosen))
            placed[index] = tuple(chosen.values())
    return placed


def deal_layouts(
    layouts: Sequence[Layout],
    taken: Mapping[str, SplitName | None],
    config: PoolSplitConfig,
    seed: int,
) -> Mapping[SplitName, tuple[Layout, ...]]:
    """Deal the grammar's layouts among the splits: one per held-out prompt, the rest trains.

    Args:
        layouts: All layouts of the task.
        taken: Layout keys of templates to their split. A layout trained on in a template is a
            training layout; one of a held-out template is not used again.
        config: How many prompts are held out.
        seed: The run's seed.
    """
    order = sorted(layouts, key=lambda layout: fingerprint("layout", seed, layout.id))
    free = [layout for layout in order if layout.key not in taken]
    # held-out prompts share layouts rather than leave training with fewer than half of them
    test = min(config.test, max(1, len(free) // 4))
    rest = test + min(config.validation, max(1, len(free) // 4))
    trained = [layout for layout in order if taken.get(layout.key) == "train"]
    return {
        "test": tuple(free[:test]),
        "validation": tuple(free[test:rest]),
        "train": tuple(free[rest:] + trained),
    }


def _drawn(layouts: Sequence[Layout], instruction: str, seed: int) -> Iterator[Layout]:
    """Layouts in an order given by the instruction; after some draws simply all of them."""
    for draw in range(min(64, 4 * len(layouts))):
        yield layouts[int(fingerprint("place", seed, instruction, draw), 16) % len(layouts)]
    yield from layouts


def _name(piece: Piece) -> str:
    return fingerprint("piece", piece.instruction, piece.layout)


def _choose(
    groups: Sequence[_Group],
    pieces: Sequence[Piece],
    sets: Sequence[frozenset[str]],
    config: PoolSplitConfig,
) -> dict[int, SplitName]:
    """The held-out pieces: one of each small group, or several where that spares training."""
    wanted, shares = config.test + config.validation, _shares(config)
    available = groups[:-1]  # the largest trains
    budget = max(wanted, _HELD_OUT_SHARE * len(sets))
    count = spent = 0
    while count < min(wanted, len(available)) and spent + available[count].cost <= budget:
        spent += available[count].cost
        count += 1
    for enough in range(count, len(available) + 1):
        for order in (available[:enough], available[:enough][::-1]):
            chosen = _pick(_deal(order, pieces, shares), sets, config)
            if len(chosen) == wanted:
                return chosen
    sizes = [len(group.members) for group in groups]
    raise TooFewError(
        f"they fall into {len(sizes)} groups of like wording or layout (the largest of "
        f"{max(sizes, default=0)}), which do not give {config.test} test and "
        f"{config.validation} validation prompts beside the training prompts"
    )


@dataclass(frozen=True, slots=True)
class _Share:
    """Held-out prompts of one split, by one author or by any but some others."""

    split: SplitName
    count: int
    author: str | None
    others: tuple[str, ...] = ()

    def takes(self, piece: Piece) -> bool:
        """Return whether a piece may be in it."""
        return piece.author not in self.others and self.author in (None, piece.author)


def _shares(config: PoolSplitConfig) -> tuple[_Share, ...]:
    """What is held out: as many test prompts by each of the authors who write them."""
    authors = config.held_out_authors or (None,)
    more = [config.test + place for place in reversed(range(len(authors)))]
    test = (_Share("test", n // len(more), who) for n, who in zip(more, authors, strict=True))
    return *test, _Share("validation", config.validation, None, config.held_out_authors)


def _deal(
    groups: Sequence[_Group], pieces: Sequence[Piece], shares: Sequence[_Share]
) -> Mapping[_Share, list[tuple[int, ...]]]:
    """Groups to shares, in proportion to what each needs, with the members that may be in it."""
    dealt: dict[_Share, list[tuple[int, ...]]] = {share: [] for share in shares}
    for place, group in enumerate(groups):
        fitting = {
            share: tuple(i for i in group.members if share.takes(pieces[i])) for share in shares
        }
        able = [share for share in shares if fitting[share]]
        without = [share for share in able if share.count and not dealt[share]]
        open_to = without if without and len(groups) - place <= len(without) else able
        if open_to:
            share = max(open_to, key=lambda share: share.count / (len(dealt[share]) + 1))
            dealt[share].append(fitting[share])
    return dealt


def _pick(
    dealt: Mapping[_Share, list[tuple[int, ...]]],
    sets: Sequence[frozenset[str]],
    config: PoolSplitConfig,
) -> dict[int, SplitName]:
    """One piece of every group in turn, until all that is held out has what it needs."""
    chosen: dict[int, SplitName] = {}
    for share, groups in dealt.items():
        others = [index for index, split in chosen.items() if split != share.split]
        turns = (index for turn in zip_longest(*groups) for index in turn if index is not None)
        fitting = (i for i in turns if not _nearest(i, others, sets, config.similarity))
        for index in islice(fitting, share.count):
            chosen[index] = share.split
    return chosen


def _nearest(
    index: int, others: Iterable[int], sets: Sequence[frozenset[str]], threshold: float
) -> tuple[int, float] | None:
    """The most similar of the others and its similarity, where that reaches the threshold."""
    ascending = sorted(others)
    place, similar = nearest(sets[index], (sets[other] for other in ascending))
    return (ascending[place], similar) if similar >= threshold else None
