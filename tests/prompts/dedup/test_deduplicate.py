"""Which rows are kept: what is dropped repeats something kept, wherever and however it is computed.

What is expected comes from all similar pairs, one text after another; the rows are decided in this
process, and some of them on Ray, where blocks, partitions and order must not matter.
"""

import random
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paft_ray.config.errors import DataError
from paft_ray.prompts.dedup.decision import Choice, Turn, choose, propose_from_kept
from paft_ray.prompts.dedup.deduplicate import Columns, InProcess, deduplicate
from paft_ray.prompts.dedup.distributed import OnRay
from paft_ray.prompts.dedup.similarity import (
    in_columns,
    normalise,
    similar_pairs,
    similarity,
    sketch,
)
from paft_ray.storage.fingerprint import fingerprint

on_ray = pytest.mark.ray
WORDS = ["read", "the", "review", "and", "choose", "which", "answer", "fits", "best", "option"]
texts = st.lists(
    st.lists(st.sampled_from(WORDS), max_size=7).map(" ".join) | st.text(max_size=8), max_size=14
)
thresholds = st.floats(0.05, 1)
PLAIN = Columns()

THRESHOLD = 0.8


def make_texts(families: int, members: int = 4) -> list[str]:
    """Families of texts with a word or two exchanged, and some that differ in case alone."""
    rng = random.Random(3)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 8))) for _ in range(400)]
    texts = []
    for _ in range(families):
        base = rng.choices(words, k=rng.randint(10, 22))
        texts += [
            " ".join(rng.choice(words) if rng.random() < 0.05 else word for word in base)
            for _ in range(members)
        ]
    return [*texts, texts[0].upper(), texts[0] + "!", texts[5], "?!", "..."]


def make_table(texts: list[str]) -> pa.Table:
    ids = [f"row{number:05d}" for number in range(len(texts))]
    return pa.table({"id": ids, "instruction": texts})


def decide(
    table: pa.Table, threshold: float = THRESHOLD, columns: Columns = PLAIN
) -> list[dict[str, Any]]:
    """The rows as they are decided in this process, by id."""
    tables = deduplicate([table], threshold, InProcess(), columns)
    return sorted(pa.concat_tables(tables).to_pylist(), key=lambda row: row[columns.id])


def decide_on_ray(
    table: pa.Table, blocks: int = 3, partitions: int | None = None, columns: Columns = PLAIN
) -> list[dict[str, Any]]:
    import ray.data

    dataset = ray.data.from_arrow(table).repartition(blocks)
    rows = deduplicate(dataset, THRESHOLD, OnRay(partitions), columns).take_all()
    return sorted(rows, key=lambda row: row[columns.id])


def expect(table: pa.Table, threshold: float = THRESHOLD) -> list[dict[str, Any]]:
    """The rows as all their similar pairs decide, one text after another by hash."""
    rows = table.to_pylist()

    def order(index: int) -> tuple[str, str, str]:
        text = rows[index]["instruction"]
        return fingerprint(normalise(text)), fingerprint(text), rows[index]["id"]

    numbers = sorted(range(len(rows)), key=order)
    wordings = [rows[number]["instruction"] for number in numbers]
    before: dict[int, list[tuple[float, int]]] = {}
    for i, j, similar in similar_pairs(wordings, threshold):
        before.setdefault(j, []).append((similar, -i))
    kept: set[int] = set()
    for place, number in enumerate(numbers):
        like = [(similar, i) for similar, i in before.get(place, ()) if -i in kept]
        similar, i = max(like, default=(None, 0))
        row = rows[number]
        row["kept"] = not like
        row["repeats"] = rows[numbers[-i]]["id"] if like else None
        row["similarity"] = similar
        kept |= set() if like else {place}
    return rows


@pytest.mark.parametrize("families", [30, 700], ids=["few", "many"])
def test_rows_are_decided_as_all_similar_pairs_decide(families):
    table = make_table(make_texts(families))
    rows = decide(table)
    assert 4 < sum(not row["kept"] for row in rows) < len(rows) - families // 2
    assert rows == expect(table)


@on_ray
@pytest.mark.parametrize("families", [30, 700], ids=["few", "many"])
def test_rows_on_ray_are_decided_as_in_one_process_in_any_blocks_partitions_and_order(
    families, ray_cluster
):
    table = make_table([*make_texts(families), *make_crowd(5 * families)])
    shuffled = table.take(random.Random(1).sample(range(len(table)), len(table)))
    rows = decide(table)
    assert decide(shuffled) == rows
    assert decide_on_ray(table, blocks=7, partitions=4) == rows
    assert decide_on_ray(shuffled, blocks=2, partitions=1) == rows


@settings(deadline=None)
@given(texts, thresholds, st.randoms(use_true_random=False))
def test_any_texts_are_decided_as_all_similar_pairs_decide_in_any_order(some, threshold, rng):
    table = make_table(some)
    rows = decide(table, threshold) if some else []
    assert rows == expect(table, threshold)
    for row in rows:
        if not row["kept"]:
            [repeated] = [other for other in rows if other["id"] == row["repeats"]]
            assert repeated["kept"]
            true = similarity(row["instruction"], repeated["instruction"])
            assert row["similarity"] == true >= threshold
    kept = [row["instruction"] for row in rows if row["kept"]]
    assert all(similarity(a, b) < threshold for a, b in combinations(kept, 2))
    if some:
        shuffled = table.take(rng.sample(range(len(some)), len(some)))
        assert decide(shuffled, threshold) == rows


def test_chain_of_small_steps_keeps_both_ends():
    words = [f"word{i}number" for i in range(12)]
    chain = [" ".join([*words[k:], *(f"other{i}thing" for i in range(k))]) for k in range(9)]
    assert similarity(chain[0], chain[8]) < 0.4
    kept = [row["kept"] for row in decide(make_table(chain), 0.7)]
    assert 1 < sum(kept) < len(chain)


def test_thousands_of_copies_is_quick_and_keeps_one():
    rows = decide(make_table(["Read it. ", "read it", "READ IT!"] * 2000))
    assert sum(row["kept"] for row in rows) == 1


def test_planted_near_copies_are_all_found_and_no_row_is_dropped_without_reason():
    rng = random.Random(5)
    originals = make_texts(1200, members=1)[:1200]
    copies = []
    for text in originals[::4]:
        words = text.split()
        words[rng.randrange(len(words))] += "s"
        copies.append(" ".join(words))
    rows = decide(make_table([*originals, *copies]))
    for number, copied in enumerate(copies):
        original, copy = rows[4 * number], rows[len(originals) + number]
        assert similarity(original["instruction"], copied) >= THRESHOLD
        assert not (original["kept"] and copy["kept"])
    check_dropped(rows)


@on_ray
def test_other_columns_pass_through_and_no_row_is_lost(ray_cluster):
    texts = make_texts(150)
    rng = random.Random(2)
    table = make_table(texts)
    table = table.append_column("origin", pa.array([{"llm": t[:3], "seed": None} for t in texts]))
    table = table.append_column("scores", pa.array([[rng.random()] * (len(t) % 3) for t in texts]))
    rows = decide_on_ray(table)
    assert rows == decide(table)
    assert [{name: row[name] for name in table.column_names} for row in rows] == table.to_pylist()
    assert list(rows[0]) == [*table.column_names, "kept", "repeats", "similarity"]


def test_columns_may_be_called_otherwise():
    table = make_table(make_texts(20))
    renamed = decide(table.rename_columns(["name", "wording"]), columns=Columns("wording", "name"))
    assert [row["kept"] for row in renamed] == [row["kept"] for row in expect(table)]
    assert [row["repeats"] for row in renamed] == [row["repeats"] for row in expect(table)]


@on_ray
def test_groups_are_decided_as_tables_of_their_own(ray_cluster):
    texts = make_texts(300)
    layouts = [number % 3 // 2 for number in range(len(texts))]  # of about 780 texts and of 390
    table = make_table(texts).append_column("layout", pa.array(layouts))
    expected = []
    for layout in (0, 1):
        expected += expect(table.filter(pa.array([value == layout for value in layouts])))
    expected.sort(key=lambda row: row["id"])
    grouped = Columns(group="layout")
    assert decide(table, columns=grouped) == expected
    assert decide_on_ray(table, columns=grouped) == expected
    assert decide(table) != expected


def make_crowd(size: int) -> list[str]:
    base = "read this long sentence that everyone has to read before anything else can happen and"
    return [f"{base} answer {number}" for number in range(size)]


def make_boilerplate(size: int) -> list[str]:
    """Texts that are alike by about 0.75; of every ten, one is the last with a letter changed."""
    rng = random.Random(11)
    base = (
        "read the text below with care and say in one word whether its author speaks of the matter"
    )
    texts = []
    for number in range(size):
        ending = "".join(rng.choices("abcdefghijklmnop", k=14))
        texts.append(
            f"{texts[-1][:-7]}z{texts[-1][-6:]}" if number % 10 == 9 else f"{base} {ending}"
        )
    return texts


def check_dropped(rows: list[dict[str, Any]]) -> None:
    by_id = {row["id"]: row for row in rows}
    for row in rows:
        if not row["kept"]:
            repeated = by_id[row["repeats"]]
            assert repeated["kept"]
            true = similarity(row["instruction"], repeated["instruction"])
            assert row["similarity"] == true >= THRESHOLD


def test_crowd_of_nearly_identical_texts_is_decided_as_by_all_pairs():
    table = make_table([*make_crowd(450), *make_texts(60)])
    assert decide(table) == expect(table)


@pytest.mark.slow
def test_crowd_of_ten_thousand_is_decided_though_all_its_pairs_were_too_many():
    rows = decide(make_table(make_crowd(10_000)))
    kept = [row["instruction"] for row in rows if row["kept"]]
    assert len(kept) < 200
    assert all(similarity(a, b) < THRESHOLD for a, b in combinations(kept, 2))
    check_dropped(rows)


def test_crowd_with_the_same_boilerplate_of_which_most_are_kept_is_decided_as_by_all_pairs():
    table = make_table(make_boilerplate(700))
    rows = decide(table)
    assert 70 <= sum(not row["kept"] for row in rows) < 200
    assert rows == expect(table)


def test_crowd_of_which_too_many_are_kept_is_proposed_by_neighbours_that_hold_close_copies():
    size = 3000
    texts = [normalise(text) for text in make_boilerplate(size)]
    sketches = in_columns(sketch(texts, THRESHOLD))
    everyone = np.ones(size, bool)
    turn = Turn(Choice(everyone, np.full(size, -1), np.zeros(size)), everyone, everyone)
    for band in range(len(sketches.bands)):
        proposed, found = 0, 0
        for low, high in propose_from_kept(np.arange(size), turn, sketches, band, 512):
            assert (low < high).all()
            proposed += len(low)
            found += int(np.count_nonzero((high % 10 == 9) & (low == high - 1)))
        assert proposed <= 512 * size
        assert found >= 0.55 * size / 10  # neighbours at random would hold 0.31


def test_choice_names_the_most_similar_kept_text_and_keeps_what_is_like_a_dropped_one():
    i, j, similar = np.array([0, 1, 2, 2]), np.array([2, 2, 3, 4]), np.array([0.8, 0.9, 0.95, 0.85])
    choice = choose(5, i, j, similar)
    assert choice.kept.tolist() == [True, True, False, True, True]
    assert choice.repeats.tolist() == [-1, -1, 1, -1, -1]
    assert choice.similar.tolist() == [0, 0, 0.9, 0, 0]


def test_duplicate_ids_of_the_same_text_are_refused():
    table = pa.table({"id": ["a", "b", "a"], "instruction": ["Read it.", "Say it.", "Read it."]})
    with pytest.raises(DataError, match="id a is there twice"):
        decide(table)


FAULTY = [
    (pa.table({"id": ["a"], "text": ["b"]}), r"not \['instruction'\]"),
    (pa.table({"id": ["a"], "instruction": ["b"], "kept": [True]}), "already have"),
    (pa.table({"id": ["a", "b"], "instruction": ["c", None]}), "1 rows have no instruction"),
]


@pytest.mark.parametrize(("table", "message"), FAULTY)
def test_columns_that_cannot_be_used_are_refused(table, message):
    with pytest.raises(DataError, match=message):
        decide(table)


@on_ray
def test_rows_that_are_refused_on_ray_are_refused_with_the_same_error(ray_cluster):
    twice = pa.table({"id": ["a", "b", "a"], "instruction": ["Read it.", "Say it.", "Read it."]})
    for table, message in [FAULTY[0], (twice, "id a is there twice")]:
        with pytest.raises(DataError, match=message):
            decide_on_ray(table, blocks=1)


@on_ray
def test_no_rows_stay_none(ray_cluster):
    empty = make_table(["a"]).slice(0, 0)
    assert decide(empty) == decide_on_ray(empty) == []
