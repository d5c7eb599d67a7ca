"""Deduplication over Ray Data decides as `deduplicate` does, however rows are dealt."""

import random
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from paft_ray.config.errors import DataError
from paft_ray.prompts.dedup import (
    Choice,
    choose,
    deduplicate,
    in_columns,
    normalise,
    similarity,
    sketch,
)
from paft_ray.prompts.scale import Turn, deduplicate_dataset, propose_from_kept

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

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
    table: pa.Table, blocks: int = 3, key: str = "id", **options: Any
) -> list[dict[str, Any]]:
    import ray.data

    dataset = ray.data.from_arrow(table).repartition(blocks)
    rows = deduplicate_dataset(dataset, THRESHOLD, **options).take_all()
    return sorted(rows, key=lambda row: row[key])


def expect(table: pa.Table) -> list[dict[str, Any]]:
    """The rows as `deduplicate` would have them."""
    rows = table.to_pylist()
    dropped = deduplicate([row["instruction"] for row in rows], THRESHOLD).dropped
    for index, row in enumerate(rows):
        repeats, similar = dropped.get(index, (None, None))
        row["kept"] = repeats is None
        row["repeats"] = None if repeats is None else rows[repeats]["id"]
        row["similarity"] = similar
    return rows


@pytest.mark.parametrize("families", [30, 700], ids=["few", "many"])
def test_dataset_is_decided_as_deduplicate_decides_its_texts(families):
    table = make_table(make_texts(families))
    rows = decide(table)
    assert 4 < sum(not row["kept"] for row in rows) < len(rows) - families // 2
    assert rows == expect(table)


def test_partitions_blocks_and_order_of_rows_do_not_matter():
    table = make_table(make_texts(400))
    shuffled = table.take(random.Random(1).sample(range(len(table)), len(table)))
    first = decide(table, blocks=1, partitions=1)
    assert decide(table, blocks=7, partitions=4) == first
    assert decide(shuffled, blocks=2, partitions=16) == first


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


def test_other_columns_pass_through_and_no_row_is_lost():
    texts = make_texts(150)
    rng = random.Random(2)
    table = make_table(texts)
    table = table.append_column("origin", pa.array([{"llm": t[:3], "seed": None} for t in texts]))
    table = table.append_column("scores", pa.array([[rng.random()] * (len(t) % 3) for t in texts]))
    rows = decide(table)
    assert [{name: row[name] for name in table.column_names} for row in rows] == table.to_pylist()
    assert list(rows[0]) == [*table.column_names, "kept", "repeats", "similarity"]


def test_columns_may_be_called_otherwise():
    table = make_table(make_texts(20))
    renamed = decide(
        table.rename_columns(["name", "wording"]), key="name", column="wording", id_column="name"
    )
    assert [row["kept"] for row in renamed] == [row["kept"] for row in expect(table)]
    assert [row["repeats"] for row in renamed] == [row["repeats"] for row in expect(table)]


def test_groups_are_decided_as_data_sets_of_their_own():
    texts = make_texts(300)
    layouts = [number % 3 // 2 for number in range(len(texts))]  # of about 780 texts and of 390
    table = make_table(texts).append_column("layout", pa.array(layouts))
    expected = []
    for layout in (0, 1):
        expected += expect(table.filter(pa.array([value == layout for value in layouts])))
    rows = decide(table, group_column="layout")
    assert rows == sorted(expected, key=lambda row: row["id"])
    assert rows != decide(table)


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
    table = make_table([*make_crowd(800), *make_texts(60)])
    assert decide(table) == expect(table)


def test_crowd_of_ten_thousand_is_decided_though_all_its_pairs_were_too_many():
    rows = decide(make_table(make_crowd(10_000)), partitions=2)
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
        for low, high in propose_from_kept(np.arange(size), turn, sketches, band):
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


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"id": ["a"], "text": ["b"]}), r"not \['instruction'\]"),
        (pa.table({"id": ["a"], "instruction": ["b"], "kept": [True]}), "already have"),
        (pa.table({"id": ["a", "b"], "instruction": ["c", None]}), "1 rows have no instruction"),
    ],
)
def test_columns_that_cannot_be_used_are_refused(table, message):
    with pytest.raises(DataError, match=message):
        decide(table, blocks=1)


def test_data_set_without_rows_stays_one():
    assert decide(make_table(["a"]).slice(0, 0), blocks=1) == []
