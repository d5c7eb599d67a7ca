"""Parts that were scored before a column was added, beside parts that have it."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from paft_ray.evaluation.answers import read_answers
from paft_ray.evaluation.grid import _to_scores
from paft_ray.evaluation.units import Subject

ROWS = [
    {"prompt_id": "p0", "example_id": f"e{e}", "prediction": "yes", "correct": e == 0}
    for e in range(2)
]
OLD = pa.Table.from_pylist(ROWS)
NEW = OLD.append_column("generated_tokens", pa.array([3, 5]))


@pytest.mark.parametrize("old_first", [True, False])
def test_column_that_older_parts_lack_is_null_there(old_first: bool):
    subjects = {"base": OLD, "paft": NEW} if old_first else {"base": NEW, "paft": OLD}
    parts = list(enumerate(subjects.values()))
    scores = _to_scores([Subject(label, 0, "") for label in subjects], parts).by_split
    for label, part in subjects.items():
        own = scores.filter(pc.field("variant") == label)
        expected = [3, 5] if part is NEW else [None, None]
        assert own["generated_tokens"].to_pylist() == expected
    answers = read_answers(scores, ["base", "paft"])
    assert answers.grade_MPE.tolist() == [[[1, 0]], [[1, 0]]]
    tokens_MPE = answers.numbers_MPE["generated_tokens"]
    known = {
        label: answers.knows(tokens_MPE, model) for model, (label, _) in enumerate(answers.models)
    }
    assert known == {label: part is NEW for label, part in subjects.items()}
