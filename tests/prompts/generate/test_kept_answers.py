"""Answers of LLMs, kept as they arrive."""

from pathlib import Path

import pyarrow.fs as pafs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paft_ray.prompts.generate.completions import Completion
from paft_ray.prompts.generate.kept_answers import Answers
from paft_ray.storage.paths import Storage


def answer(id: str, text: str | None = "text", error: str | None = None) -> Completion:
    return Completion(id, text, error, 200, 1, 0.5, 10, 5)


@pytest.fixture(params=["local", "objects"])
def store(request, tmp_path) -> Answers:
    """On the local file system, and on one of which only whole files can be written."""
    filesystem: pafs.FileSystem = pafs.LocalFileSystem()
    if request.param == "objects":
        filesystem = pafs.SubTreeFileSystem("/", filesystem)
        for folder in ("unit", "unit-failed"):  # which an object store does without
            (tmp_path / "generations" / folder).mkdir(parents=True)
    return Answers(Storage(filesystem, str(tmp_path / "generations")), "unit")


def test_answers_are_there_after_every_addition(store):
    assert store.read() == {}
    store.add([answer("a"), answer("b", None, "HTTP 500")])
    assert store.read() == {"a": answer("a")}
    assert store.failed() == {"b": answer("b", None, "HTTP 500")}
    store.add([answer("b", "later"), answer("c")])
    assert store.read() == {"a": answer("a"), "b": answer("b", "later"), "c": answer("c")}


def test_answers_of_earlier_versions_are_read_and_cost_at_least_their_bytes(tmp_path):
    line = (
        '{"request_id": "a", "text": "gr\\u00fcn", "error": null, "status": 200, "attempts": 1,'
        ' "seconds": 0.5, "prompt_tokens": 0, "completion_tokens": 0}\n'
    )
    (tmp_path / "unit.jsonl").write_text(line)
    found = Answers(Storage.open(str(tmp_path)), "unit").read()["a"]
    assert (found.text, found.finish_reason, found.billed_tokens) == ("grün", "", 5)
    assert answer("b").billed_tokens == 5
    assert answer("c", "").billed_tokens == 5


def test_the_first_answer_counts(tmp_path):
    store = Answers(Storage.open(str(tmp_path)), "unit")
    store.add([answer("a", "first")])
    store.add([answer("a", "second")])
    assert store.read()["a"].text == "first"


@given(st.text())
@settings(deadline=None)
def test_any_text_comes_back(text):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = Answers(Storage.open(folder), "unit")
        store.add([answer("a", text), answer("b", "lone \ud800 surrogate")])
        assert [found.text for found in store.read().values()].count(text) >= 1
        assert store.read()["b"].text == "lone \ud800 surrogate"


@pytest.mark.parametrize("kept", [1, 20, 60])
def test_a_torn_line_costs_that_answer_only(tmp_path, kept):
    store = Answers(Storage.open(str(tmp_path)), "unit")
    store.add([answer("a")])
    path = Path(tmp_path / "unit.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole + whole.replace(b'"a"', b'"b"')[:kept])
    assert store.read().keys() == {"a"}
    store.add([answer("b"), answer("c")])
    assert store.read().keys() == {"a", "b", "c"}
