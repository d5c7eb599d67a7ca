"""What the columns of some rows hold, for a person."""

import json
from pathlib import Path

import pytest

from paft_ray.tasks.columns import characters_of, column_lines, describe_columns
from paft_ray.tasks.guessing import Look, Said, guess


@pytest.fixture
def look(tmp_path: Path) -> Look:
    rows = [
        {
            "id": number,
            "text": f"one two {number}" if number else "one two",
            "label": number % 3 == 0,
            "options": ["a", "b"],
            "note": None if number % 2 else "",
            "score": 0.5 + number,
        }
        for number in range(30)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return Look.read(str(path))


def test_every_column_has_its_kind_lengths_and_balance(look: Look) -> None:
    lines = list(column_lines(describe_columns(look)))
    assert [" ".join(line.split()) for line in lines] == [
        "id values 30 different values",
        "text text 2 to 3 words, half of them up to 3",
        "label labels false 20 (67%), true 10 (33%)",
        "options lists",
        "note empty no value",
        "score values 30 different values",
    ]
    assert len({line.index(line.split()[1], 7) for line in lines}) == 1  # in columns


def test_missing_values_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        "text,label\n" + "".join(f"words {n},a\n" for n in range(13)) + ",b\n" * 4 + "more words,\n"
    )
    text, label = describe_columns(Look.read(str(path)))
    assert (text.missing, text.distinct, text.words) == (4, 14, (2, 2, 2))
    assert (label.missing, label.often) == (1, (("a", 13), ("b", 4)))
    assert text.described == "2 words each, 4 rows without"


def test_characters_are_those_of_columns_together_lists_included(look: Look) -> None:
    assert characters_of(look, ["text", "options"])[:2] == [7 + 10, 9 + 10]


@pytest.mark.parametrize("values", [[0, 1], [False, True], ["0", "1"]])
def test_values_that_are_zero_or_false_are_values(values: list[object], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"question": f"is it {n}?", "label": values[n % 2]} for n in range(20)]
    path.write_text("\n".join(map(json.dumps, rows)))
    choices = guess(Look.read(str(path)), Said()).section["choices"]
    assert choices == [str(value).lower() for value in values]
