"""A backend that computes something else than transformers is told from one that only rounds."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from factories import make_prompt
from paft_ray.config.errors import DataError
from paft_ray.evaluation.parity import LOGPROBS_SCHEMA, PAIRS, compare, spread_pairs
from paft_ray.evaluation.units import Grid, Subject
from paft_ray.report.text import cautions
from paft_ray.tasks import Example

BASE = [Subject("base", 0, "")]
PROMPTS = [make_prompt(f"{number}: {{review}} ->", "test") for number in range(6)]
EXAMPLES = [Example(f"{number:016x}", {"review": f"film {number}"}, "good") for number in range(30)]


def grid(subjects: int) -> Grid:
    return Grid([Subject(f"model_{n}", 0, str(n)) for n in range(subjects)], PROMPTS, EXAMPLES)


@pytest.mark.parametrize(("subjects", "each"), [(1, 64), (3, 22), (80, 4)])
def test_pairs_are_spread_over_all_subjects_and_the_same_each_time(
    subjects: int, each: int
) -> None:
    wanted = spread_pairs(7, grid(subjects))
    assert [int(mask_PE.sum()) for mask_PE in wanted] == [each] * subjects
    assert sum(int(mask_PE.sum()) for mask_PE in wanted) >= PAIRS
    again = spread_pairs(7, grid(subjects))
    assert all(np.array_equal(a, b) for a, b in zip(wanted, again, strict=True))
    if subjects == 3:
        assert all(mask_PE.any(axis=1).sum() > 3 for mask_PE in wanted)
        assert not np.array_equal(wanted[0], spread_pairs(8, grid(subjects))[0])


def test_pairs_of_a_grid_that_is_smaller_are_all_of_it() -> None:
    small = Grid([Subject("base", 0, "")], PROMPTS[:2], EXAMPLES[:3])
    assert spread_pairs(0, small)[0].all()


def pairs(seed: int, shift: float = 0.0, answers: int = 2, tokens: int = 2) -> pa.Table:
    """Log-likelihoods of ten pairs, moved by `shift` with either sign."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number in range(10):
        values = np.random.default_rng(number).normal(-5, 2, answers)
        rows.append(
            {
                "prompt_id": f"p{number % 3}",
                "example_id": f"e{number}",
                "logprobs": (values + shift * rng.choice([-1, 1], answers)).tolist(),
                "tokens": [tokens] * answers,
            }
        )
    return pa.Table.from_pylist(rows[:: 1 if seed else -1], LOGPROBS_SCHEMA)  # in any order


def test_difference_is_per_token_the_worst_training_stands_for_its_variant() -> None:
    subjects = [Subject("base", 0, ""), Subject("paft", 0, "a"), Subject("paft", 1, "b")]
    theirs = [pairs(1, 1e-4), pairs(2, 1e-4), pairs(3, 0.3)]
    found = compare(subjects, [pairs(0)] * 3, theirs, "float32")
    assert found["beyond"] == ["paft"]
    assert found["pairs"] == 30
    base, paft = found["models"]["base"], found["models"]["paft"]
    assert base == {
        "mean": pytest.approx(5e-5), "largest": pytest.approx(5e-5), "pairs": 10, "alike": 1.0,
        "nearer_to": None,
    }  # fmt: skip
    assert paft["mean"] == pytest.approx(0.15)
    assert paft["pairs"] == 20
    assert paft["alike"] <= 1.0


def test_bfloat16_may_round_more_and_free_text_has_no_likeliest_answer() -> None:
    both = [pairs(0, answers=1)], [pairs(1, 0.1, answers=1)]
    assert compare(BASE, *both, "float32")["beyond"] == ["base"]
    found = compare(BASE, *both, "bfloat16")
    assert found["beyond"] == []
    assert found["models"]["base"]["alike"] is None


def test_log_likelihood_that_is_not_finite_or_of_other_tokens_is_refused() -> None:
    with pytest.raises(DataError, match="base: log-likelihoods are not finite"):
        compare(BASE, [pairs(0)], [pairs(1, float("nan"))], "float32")
    with pytest.raises(DataError, match="other tokens"):
        compare(BASE, [pairs(0)], [pairs(1, tokens=3)], "float32")


def test_adapter_that_is_another_one_is_found_though_both_lie_within_the_tolerance() -> None:
    subjects = [*BASE, Subject("one", 0, "a"), Subject("two", 0, "b", base=1)]
    of_base, of_one = pairs(0), pairs(4, 0.1)
    ours = [of_base, of_one, of_base]
    found = compare(subjects, ours, [of_base, of_base, of_one], "bfloat16")
    assert found["models"]["one"]["mean"] < found["tolerance"]
    assert {label: m["nearer_to"] for label, m in found["models"].items()} == {
        "base": None, "one": "base", "two": None,  # on a base model of its own
    }  # fmt: skip
    assert found["beyond"] == ["one"]
    right = compare(subjects, ours, [pairs(5, 0.02), of_one, of_base], "bfloat16")
    assert right["beyond"] == []
    parity = {"backend": "vllm", **found}
    told = cautions({"models": {}, "seeds": [0], "differences": {}, "parity": parity})
    [text] = [text for text in told if text.startswith("one: vllm does not")]
    assert "nearer to those of base model" in text


def test_cautions_say_what_was_compared_and_name_first_what_is_beyond() -> None:
    theirs = [pairs(1, 1e-4), pairs(2, 0.6)]
    subjects = [*BASE, Subject("paft", 0, "a")]
    parity = compare(subjects, [pairs(0)] * 2, theirs, "float32")
    summary = {"models": {}, "seeds": [0, 1], "differences": {}}
    assert not any("vllm" in text for text in cautions(summary))
    told = cautions({**summary, "parity": {"backend": "vllm", **parity}})
    [beyond, within] = [text for text in told if "vllm" in text]
    together = {**summary, "parities": {"one": {"backend": "vllm", **parity}}}
    assert [text for text in cautions(together) if "vllm" in text] == [
        f"one: {beyond}", f"one: {within}",
    ]  # fmt: skip
    assert beyond.startswith("PAFT: vllm does not compute what transformers does")
    assert "0.3 nats per answer token" in beyond
    assert "tolerance 0.001 in float32" in beyond
    assert "20 pairs" in within
    assert within.endswith("but for the models above.")
    assert "likeliest answer is the same under all of them" in within
