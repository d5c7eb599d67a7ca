"""Rows in which sequences share common beginnings: complete, and scored like separate ones."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from paft_ray.models import attention
from paft_ray.models.attention import BLOCK_ATTENTION
from paft_ray.models.logprobs import ForwardPass, answer_logprobs, score_sequences
from paft_ray.models.packing import Row, TokenSequence, build_row
from paft_ray.models.sharing import share_rows
from paft_ray.models.tokenization import Encoded, choice_sequences


def make_sequences(common: int, answers: int, count: int = 9) -> list[TokenSequence]:
    """Examples that begin with so many equal tokens, with answers of one to so many tokens."""
    rng = random.Random(common + answers)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1, 100) for _ in range(length))

    start, sequences = draw(common), []
    for _ in range(count):
        context = start + draw(rng.randint(1, 30))
        choices = {draw(1 + n % answers): None for n in range(3)}
        sequences += choice_sequences([Encoded(context, choice) for choice in choices])
    return sequences


def built(sequences: Sequence[TokenSequence], row_tokens: int) -> list[Row] | None:
    numbered = dict(enumerate(sequences))
    dealt = share_rows(numbered, row_tokens)
    return None if dealt is None else [row.build(numbered) for row in dealt[0]]


def paths(row: Row) -> list[list[int]]:
    """For each part the places of the tokens from the beginning of its sequences to its end."""
    found: list[list[int]] = []
    for part in row.parts:
        before = found[part.parent] if part.parent >= 0 else []
        found.append([*before, *range(part.start, part.stop)])
    return found


@given(
    common=st.integers(0, 12),
    answers=st.integers(1, 5),
    row_tokens=st.sampled_from([60, 100, 400]),
)
def test_shared_rows_read_and_predict_what_each_sequence_does(
    common: int, answers: int, row_tokens: int
) -> None:
    sequences = make_sequences(common, answers)
    rows = built(sequences, row_tokens)
    if rows is None:
        return
    assert sorted(i for row in rows for i in row.members) == list(range(len(sequences)))
    for row in rows:
        assert 0 < row.tokens <= row_tokens
        assert [t for part in row.parts for t in range(part.start, part.stop)] == list(
            range(row.tokens)
        )
        path_to: dict[int, list[int]] = {}
        for path in paths(row):
            path_to.update({place: path[: n + 1] for n, place in enumerate(path)})
            assert row.position_ids_T[path].tolist() == list(range(len(path)))
        found = Counter()
        for gather, target, member, owner in zip(
            row.gather_A, row.targets_A, row.members_A, row.owners_A, strict=True
        ):
            read = tuple(row.input_ids_T[path_to[int(row.keep_U[gather])]].tolist())
            found[row.members[member], read, int(target), int(owner)] += 1
        expected = Counter(
            (index, s.input_ids[: position + 1], target, owner)
            for index in row.members
            for s in [sequences[index]]
            for position, target, owner in zip(s.positions, s.targets, s.owners, strict=True)
        )
        assert found == expected


def test_shared_rows_read_a_common_beginning_once_a_row_and_a_context_once() -> None:
    start = (9, 8, 7, 6, 5)
    examples = [
        [Encoded((*start, n), (1, 2, n)), Encoded((*start, n), (3,))] for n in range(20, 30)
    ]
    sequences = [s for encoded in examples for s in choice_sequences(encoded)]
    [row] = built(sequences, 100) or []
    assert row.tokens == 5 + 10 * (1 + 2)  # the last token of an answer is only predicted
    rows = built(sequences, 20) or []
    assert [row.tokens for row in rows] == [5 + 5 * 3, 5 + 5 * 3]


def test_answers_of_a_context_stand_in_as_many_rows_as_they_need() -> None:
    sequences = [Encoded((1, 2, 3, 4, 5), (n, n, n)).sequence() for n in range(10, 15)]
    assert [row.tokens for row in built(sequences, 9) or []] == [5 + 2 * 2, 5 + 2 * 2, 5 + 2]


def test_ranks_read_as_many_rows_and_together_every_sequence() -> None:
    sequences = dict(enumerate(make_sequences(11, 4)))
    dealt = share_rows(sequences, 60, ranks=4) or []
    assert len({len(rows) for rows in dealt}) == 1
    read = [i for rows in dealt for row in rows for _, own in row.contexts for i in own]
    assert sorted(read) == sorted(sequences)
    assert [row.tokens for rows in dealt for row in rows if row.contexts] == [
        row.build(sequences).tokens for rows in dealt for row in rows if row.contexts
    ]


@pytest.mark.parametrize(
    ("contexts", "row_tokens"),
    [
        ([(1, 2, 3, 4, 5), (2, 3, 4, 5, 6)], 64),
        ([(1, 2, 3, 4, 5), (1, 2, 3, 5, 6)], 64),
        ([(1, 2, 3, 4, 5), (1, 2, 3, 4, 5)], 5),
    ],
    ids=["nothing in common", "too little in common", "a row too short for what shares"],
)
def test_rows_are_not_shared_where(contexts: list[tuple[int, ...]], row_tokens: int) -> None:
    sequences = [Encoded(c, (7, n)).sequence() for n, c in enumerate(contexts)]
    assert built(sequences, row_tokens) is None


def test_ends_of_single_token_choices_share_their_context() -> None:
    encoded = [Encoded((*range(1, 9), n), (n + 50, 0), ended=True) for n in (20, 21) for _ in "ab"]
    encoded = [replace(e, answer_ids=(60 + n, 0)) for n, e in enumerate(encoded)]
    sequences = [s for two in (encoded[:2], encoded[2:]) for s in choice_sequences(two, True)]
    [row] = built(sequences, 100) or []
    assert row.tokens == 8 + 2 * (1 + 2)
    assert row.owners_A.tolist() == [0, 2, 1, 3] * 2


@pytest.mark.parametrize(
    ("longest_plain", "common", "answers"), [(512, 11, 1), (20, 11, 4), (0, 0, 4)]
)
def test_scores_with_shared_parts_are_those_of_sequences_alone(
    make_model: Callable[..., PreTrainedModel],
    longest_plain: int,
    common: int,
    answers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "_PLAIN_LENGTH", longest_plain)
    model = make_model(initializer_range=0.2)
    sequences = make_sequences(common, answers)
    alone = score_sequences(model, sequences, ForwardPass("float32", 200, packing=False))
    model.set_attn_implementation(BLOCK_ATTENTION)
    assert built(sequences, 200) is not None
    shared = score_sequences(model, sequences, ForwardPass("float32", 200))
    assert [own.keys() for own in shared] == [own.keys() for own in alone]
    expected, found = ([v for own in scores for v in own.values()] for scores in (alone, shared))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert np.std(expected) > 0.1  # scores that are all alike would prove nothing


@pytest.mark.parametrize("longest_plain", [512, 0])
def test_gradients_through_shared_parts_are_those_of_sequences_alone(
    make_model: Callable[..., PreTrainedModel], longest_plain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_PLAIN_LENGTH", longest_plain)
    model = make_model(initializer_range=0.2).requires_grad_(True)
    model.set_attn_implementation(BLOCK_ATTENTION)
    sequences = make_sequences(11, 4)
    apart = [build_row(sequences, [index]) for index in range(len(sequences))]
    found, expected = (gradients(model, rows) for rows in (built(sequences, 200) or [], apart))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4, msg=name)
    assert any(float(gradient.abs().max()) > 1 for gradient in expected.values())


def gradients(model: PreTrainedModel, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Of the log-probabilities of all answer tokens."""
    model.zero_grad()
    for row in rows:
        answer_logprobs(model, row, torch.device("cpu")).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
