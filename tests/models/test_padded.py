"""What cannot be packed is read in batches, padded behind, and gives what one by one gives."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from families import build_family
from paft_ray.config.errors import DataError
from paft_ray.models.load import virtual_tokens
from paft_ray.models.logprobs import ForwardPass, answer_logprobs, score_sequences
from paft_ray.models.packing import TokenSequence, build_row, deal_batches
from paft_ray.models.row_check import Together, check_padded, read_apart

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")
METHODS = {
    "LORA": LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
    "PROMPT_TUNING": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "PREFIX_TUNING": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
}


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(50, 200), st.integers(1, 5)
)
def test_batches_hold_every_sequence_once_within_their_size_and_ranks_read_as_many(
    lengths, most, ranks
):
    dealt = deal_batches(lengths, most, ranks)
    assert len({len(own) for own in dealt}) == 1
    batches = [batch for own in dealt for batch in own]
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    padded = [len(batch) * max(lengths[i] for i in batch) for batch in batches if batch]
    assert max(padded) <= most
    one_less = -(-sum(lengths) // most) // ranks - 1
    assert len(dealt[0]) > one_less


def test_a_sequence_longer_than_a_batch_is_refused():
    with pytest.raises(DataError, match="fits no row"):
        deal_batches([4, 60], 50, 2)


def sequences(lengths: tuple[int, ...] = (9, 30, 4, 17, 12)) -> list[TokenSequence]:
    rng = np.random.default_rng(0)
    return [
        TokenSequence(
            tuple(rng.integers(1, 90, n).tolist()), (1, n - 2, n - 1), (5, 6, 7), (0, 0, 1)
        )
        for n in lengths
    ]


@pytest.mark.parametrize("family", ["mamba", "lfm2", "bloom", "llama4_text", "gpt_neo", "doge"])
def test_families_that_mix_in_rows_are_read_right_in_batches(family):
    model = build_family(family)
    read_apart(model)
    assert check_padded(model, 2048, 100) == ""
    drawn = sequences()
    alone = score_sequences(model, drawn, ForwardPass("float32", 40, packing=False))
    together = score_sequences(model, drawn, ForwardPass("float32", 200, False, padded=True))
    for expected, found in zip(alone, together, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_adapters_learn_from_a_batch_what_they_learn_from_one_by_one(method):
    model: Any = get_peft_model(build_family("llama"), METHODS[method])
    read_apart(model)
    virtual, drawn = virtual_tokens(model), sequences()
    assert check_padded(model, 2048, 100) == ""

    def step(rows: list[list[int]], padded: bool) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        found = []
        for members in rows:
            found.append(answer_logprobs(model, build_row(drawn, members, padded), CPU, virtual))
        logprobs = torch.cat(found)
        logprobs.sum().backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return logprobs.detach(), torch.cat(grads)

    expected, wanted = step([[0], [1], [2], [3], [4]], padded=False)
    found, got = step([[0, 1, 2, 3, 4]], padded=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (got - wanted).norm() < 1e-3 * wanted.norm()
    assert wanted.norm() > 0.1


def test_a_model_in_which_padding_shows_reads_one_at_a_time(monkeypatch):
    model: Any = build_family("llama")
    forward = model.model.layers[0].forward

    def mixes(states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(states + states.mean((0, 1)), *args, **kwargs)

    monkeypatch.setattr(model.model.layers[0], "forward", mixes)
    read_apart(model)
    assert "other sequences of a row move" in check_padded(model, 2048, 100)


def test_what_is_read_in_batches_is_described():
    assert Together("it mixes", "", padded=True).describe() == "padded batches, as it mixes"
    assert Together("it mixes").describe() == "one sequence a row, as it mixes"
