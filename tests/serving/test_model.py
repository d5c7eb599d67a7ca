"""The pyfunc's answers, in this process: free text, prompt learning, what a row may leave out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow.pyfunc import PythonModelContext

from paft_ray.config.errors import DataError
from paft_ray.models.generation import generate
from paft_ray.models.load import adapter_files, add_adapter, load_adapter, load_base, load_tokenizer
from paft_ray.serving.folder import input_columns
from paft_ray.serving.model import AnswerModel
from paft_ray.training.output.save import trainable_copy

LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "init_lora_weights": False}
TUNED = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}


@pytest.fixture
def make(tiny_model: Path, tmp_path: Path) -> Callable[..., AnswerModel]:
    def make_model(peft: dict = LORA, **changed: Any) -> AnswerModel:
        model = add_adapter(load_base(str(tiny_model)), peft, seed=1)
        for name, data in adapter_files(model, trainable_copy(model), "base").items():
            (tmp_path / name).write_bytes(data)
        settings = {
            "base": str(tiny_model), "revision": None, "device": "cpu", "dtype": "float32",
            "prompt": "{review} It is", "slots": ["review"], "choices": None,
            "chat_template": "none", "max_length": 40, "overlong": "refuse", "row_tokens": 100,
            "packing": True, "max_new_tokens": 5, **changed,
        }  # fmt: skip
        answering = AnswerModel()
        answering.load_context(PythonModelContext({"adapter": str(tmp_path)}, settings))
        return answering

    return make_model


def predict(model: AnswerModel, *rows: dict[str, Any], **params: Any) -> list[str]:
    return list(model.predict(None, pd.DataFrame(rows), params)["answer"])


# peft warns at every text that prompt tuning generates
@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")
@pytest.mark.parametrize("peft", [LORA, TUNED], ids=["lora", "prompt tuning"])
def test_free_text_is_generated_as_the_model_alone_would(
    peft: dict, make, tiny_model: Path, tmp_path: Path
) -> None:
    answers = predict(make(peft), {"review": "a film"}, {"text": "the plot was very poor and"})
    model = load_adapter(load_base(str(tiny_model)), str(tmp_path), "default")
    tokenizer = load_tokenizer(str(tiny_model))
    expected = []
    for text in ("a film It is", "the plot was very poor and"):
        ids: Any = tokenizer(text)["input_ids"]
        [(text, _)] = generate(model, tokenizer, [ids], 5)
        expected.append(text.strip())
    assert answers == expected


def test_generated_answer_ends_at_a_text_to_stop_at(make) -> None:
    [whole] = predict(make(max_new_tokens=12), {"review": "a film"})
    stop = whole[len(whole) // 2 :][:3]
    [cut] = predict(make(max_new_tokens=12, stop=[stop]), {"review": "a film"})
    assert stop
    assert cut == whole[: whole.find(stop)].strip()


def test_choice_is_ranked_with_its_end_unless_the_folder_is_older_or_says_otherwise(make) -> None:
    choices = {"choices": ["positive", "negative"]}
    ends = [
        make(**choices, **more)._encoder.end_id is not None
        for more in ({}, {"answer_end": "ignored"}, {"answer_end": "scored"})
    ]
    assert ends == [False, False, True]


def test_rows_of_both_forms_may_stand_in_one_table(make) -> None:
    model = make(choices=["positive", "negative"])
    rows = [
        {"review": "a film"}, {"text": "a film It is"},
        {"review": "a film", "prompt": "{review}  \\n was it good?"},
    ]  # fmt: skip
    first, second, third = predict(model, *rows)
    assert first == second
    assert [third] == predict(model, {"text": "a film\n was it good?"})


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ("Is it good? {x} Answer:", "unknown_slot: {x}"),
        ("Is it good? Answer:", "missing_slot: {review}"),
        ("{review} and {review}", "repeated_slot"),
        ("good {review} " + "and " * 1000, "too_long"),
    ],
)
def test_prompt_that_training_would_refuse_is_refused(make, prompt: str, problem: str) -> None:
    """Else the answer is to a question without the text."""
    model = make(choices=["positive", "negative"])
    with pytest.raises(DataError, match=f"row 0: its prompt cannot be used .{problem}"):
        predict(model, {"review": "a film"}, prompt=prompt)
    with pytest.raises(DataError, match=f"row 1: its prompt cannot be used .{problem}"):
        predict(model, {"review": "a film"}, {"review": "a film", "prompt": prompt})


def test_empty_template_is_refused_and_an_empty_cell_names_none(make) -> None:
    model = make(choices=["positive", "negative"])
    for prompt in ("", "  "):
        with pytest.raises(DataError, match=r"row 0: its prompt cannot be used .empty"):
            predict(model, {"review": "a film"}, prompt=prompt)
    own = predict(model, {"review": "a film"})
    assert predict(model, {"review": "a film", "prompt": ""}) == own
    assert list(model.predict(None, pd.DataFrame([{"review": "a film"}]), None)["answer"]) == own


@pytest.mark.parametrize(
    "given", ["a film", b"a film", [], pd.DataFrame(), pd.DataFrame({"a": []})]
)
def test_what_holds_no_row_is_refused(make, given: Any) -> None:
    with pytest.raises(
        DataError, match="no row to answer: give a DataFrame with the columns review"
    ):
        make().predict(None, given, None)


def test_text_and_choices_of_a_row_do_not_depend_on_the_other_rows(make) -> None:
    model = make(choices=["positive", "negative", "a very good film"])
    rows = [{"review": f"the film {number} was"} for number in range(9)]
    assert predict(model, *rows) == [predict(model, row)[0] for row in rows]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (({"review": "x"}, {"review": None}), "row 1 has no review"),
        (({"foo": "x"},), "row 0 has no review.*column text"),
        (({"text": ""}, {"review": " "}), "row 0 has no review"),
        (({"review": "x"}, {"text": " ", "review": ""}), "row 1 has no review"),
        (({"review": "good " * 50},), r"row 0 has \d+ tokens"),
    ],
)
def test_row_that_cannot_be_answered_is_refused_by_its_number(rows, message: str, make) -> None:
    with pytest.raises(DataError, match=message):
        predict(make(), *rows)


def test_rows_without_any_known_column_are_refused_and_not_dropped(make) -> None:
    with pytest.raises(DataError, match="row 0 has no review"):
        make().predict(None, pd.DataFrame(index=range(2)), None)


def test_overlong_field_is_cut_where_the_task_allows_it_but_no_finished_prompt(
    make,
) -> None:
    model = make(overlong="trim", choices=["positive", "negative"])
    assert len(predict(model, {"review": "good " * 50})) == 1
    with pytest.raises(DataError, match="tokens"):
        predict(model, {"text": "good " * 50})


def test_columns_beside_the_fields_avoid_their_names() -> None:
    assert input_columns(("review",)) == ("text", "prompt")
    assert input_columns(("text", "prompt")) == ("finished_prompt", "prompt_template")
    for slots in (("text", "finished_prompt"), ("prompt", "prompt_template", "prompt_template_")):
        assert not set(input_columns(slots)) & set(slots)
