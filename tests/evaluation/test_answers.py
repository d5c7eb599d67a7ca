"""The scores table, read into dense arrays."""

import numpy as np
import pyarrow as pa
import pytest
from synthetic_scores import random_grid, scores

from paft_ray.config.errors import DataError
from paft_ray.evaluation.answers import read_answers, require_paired


def test_answers_of_shuffled_scores_are_the_grids_that_made_them():
    grids = {("base", 2): random_grid(1), ("paft", 2): random_grid(2), ("paft", 10): random_grid(3)}
    answers = read_answers(scores({**grids, ("other", 0): random_grid(4)}), ["paft", "base"])
    require_paired(answers, ["base", "paft"])
    assert answers.models == tuple(grids)
    assert answers.prompt_ids == tuple(f"p{p}" for p in range(6))
    assert answers.example_ids == tuple(f"e{e:02d}" for e in range(40))
    prediction_MPE = np.array(answers.predictions)[answers.prediction_MPE]
    for place, correct_PE in enumerate(grids.values()):
        assert (answers.grade_MPE[place] == correct_PE).all()
        assert (prediction_MPE[place] == np.where(correct_PE, "yes", "")).all()
    assert (answers.grades("paft") == np.stack([random_grid(2), random_grid(3)])).all()
    assert answers.accuracy("base") == pytest.approx(random_grid(1).mean(axis=1)[None])


def test_answers_of_rows_in_several_chunks_are_those_of_one_table():
    table = scores({("paft", 0): random_grid(1)})
    chunks = pa.concat_tables([table.slice(i, 60) for i in range(0, 240, 60)])
    whole, parts = (read_answers(each, ["paft"]) for each in (table.combine_chunks(), chunks))
    assert (whole.prediction_MPE == parts.prediction_MPE).all()
    assert (whole.grade_MPE == parts.grade_MPE).all()


def test_answers_that_were_not_scored_count_as_neither_right_nor_wrong():
    correct_PE = random_grid(1)
    table = scores({("paft", 0): correct_PE})
    keep = [r["prompt_id"] != "p1" or r["example_id"] < "e02" for r in table.to_pylist()]
    answers = read_answers(table.filter(pa.array(keep)), ["paft"])
    assert np.isnan(answers.grade_MPE[0, 1, 2:]).all()
    assert (answers.prediction_MPE[0, 1, 2:] == -1).all()
    assert answers.accuracy("paft")[0, 1] == correct_PE[1, :2].mean()


def test_partial_grades_count_as_what_they_are_and_further_ones_stand_beside():
    table = scores({("paft", 0): random_grid(1)})
    partial = [0.25 if row % 3 == 0 else None for row in range(table.num_rows)]
    older = table.slice(0, 40)
    table = table.append_column("grade", pa.array(partial, pa.float64()))
    table = table.append_column("further_grades", pa.array([[0.5, 1.0]] * table.num_rows))
    answers = read_answers(table, ["paft"])
    right = table["correct"].to_pylist()
    wanted = [0.25 if row % 3 == 0 else float(right[row]) for row in range(table.num_rows)]
    assert sorted(answers.grade_MPE.ravel()) == sorted(wanted)
    assert answers.accuracy("paft").mean() == pytest.approx(np.mean(wanted))
    assert (answers.numbers_MPE["further_grade_0"] == 0.5).all()
    assert (answers.numbers_MPE["further_grade_1"] == 1.0).all()
    without = table.set_column(
        table.column_names.index("further_grades"),
        "further_grades",
        pa.array([None] * table.num_rows, pa.list_(pa.float64())),
    )
    assert read_answers(without, ["paft"]).numbers_MPE == {}
    joined = pa.concat_tables([older, table.slice(40)], promote_options="default")
    assert read_answers(joined, ["paft"]).numbers_MPE == {}  # not known of all


def test_scores_with_two_rows_for_a_pair_are_refused():
    table = scores({("paft", 0): random_grid(1)})
    row = table.slice(0, 1).to_pylist()[0]
    with pytest.raises(DataError, match="exactly one") as caught:
        read_answers(pa.concat_tables([table, table.slice(0, 1)]), ["paft"])
    assert f"prompt {row['prompt_id']} with example {row['example_id']} has 2" in str(caught.value)


def test_pair_without_a_row_is_refused_unless_a_part_was_to_be_scored():
    table = scores({("paft", 0): random_grid(1)})
    row = table.slice(0, 1).to_pylist()[0]
    answers = read_answers(table.slice(1), ["paft"])
    require_paired(answers, ["paft"], whole=False)
    with pytest.raises(DataError, match="exactly one") as caught:
        require_paired(answers, ["paft"])
    assert f"prompt {row['prompt_id']} with example {row['example_id']} has 0" in str(caught.value)


@pytest.mark.parametrize("whole", [True, False])
def test_models_of_different_prompts_are_refused(whole: bool):
    table = scores({("base", 0): random_grid(1), ("paft", 0): random_grid(1)[:4]})
    with pytest.raises(DataError, match="'paft' was not evaluated on the same prompts"):
        require_paired(read_answers(table, ["base", "paft"]), ["base", "paft"], whole)


@pytest.mark.parametrize(("variant", "split"), [("paft", "train"), ("other", "test")])
def test_variant_without_rows_has_no_scores(variant: str, split: str):
    answers = read_answers(scores({("paft", 0): random_grid(1)}, split), [variant])
    with pytest.raises(DataError, match=f"'{variant}' has no scores"):
        require_paired(answers, [variant])


def test_confidence_is_the_probability_among_the_choices_and_tokens_are_those_generated():
    table = scores({("paft", 0): random_grid(1)})
    rows = table.num_rows
    choices = table.append_column("choice_logprobs", pa.array([[-1.0, -1.0 - np.log(3)]] * rows))
    assert read_answers(choices.slice(7), ["paft"]).confidence_MPE is not None
    assert read_answers(choices, ["paft"]).confidence_MPE == pytest.approx(0.75)
    text = table.append_column("generated_tokens", pa.array(range(rows)))
    answers = read_answers(text, ["paft"])
    assert answers.confidence_MPE is None
    assert answers.numbers_MPE.keys() == {"generated_tokens"}
    assert sorted(answers.numbers_MPE["generated_tokens"].ravel()) == list(range(rows))
    unended = text.append_column("unended", pa.array([row % 3 == 0 for row in range(rows)]))
    [unended_PE] = read_answers(unended, ["paft"]).numbers_MPE["unended"]
    assert unended_PE.sum() == len(range(0, rows, 3))


def test_examples_that_were_never_scored_belong_to_the_grid_where_they_are_named():
    answers = read_answers(scores({("paft", 0): random_grid(1)}), ["paft"], ["e50", "e00"])
    assert answers.example_ids[-1] == "e50"
    assert np.isnan(answers.grade_MPE[:, :, -1]).all()
    assert not answers.even_MPE[:, :, -1].any()
