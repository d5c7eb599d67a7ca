"""Scores and texts against what transformers computes by itself: unpacked, padded by nobody."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from paft_ray.models.generation import Decoding, Ending, continue_texts, generate
from paft_ray.models.load import load_base, load_tokenizer, store_frozen_in_bf16
from paft_ray.models.logprobs import (
    ForwardPass,
    FullPrecisionLinear,
    answer_logprobs,
    choice_logprobs,
    inference,
    score_sequences,
)
from paft_ray.models.packing import TokenSequence, build_row, inert_row
from paft_ray.models.tokenization import Encoded, TextEncoder, choice_sequences

WORDS = ["good", "bad", "the", "film", "movie", "was", "is", "and", "very", "not", "story"]
SINGLE = ("!", "?", ".")
SEVERAL = ("good", "very bad", "not the film that it was", "a")
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> PreTrainedModel:
    return load_base(str(tiny_model))


def encode(
    tokenizer: PreTrainedTokenizerBase, choices: tuple[str, ...], count: int = 12
) -> list[tuple[Encoded, ...]]:
    """Examples of different lengths; contexts end in a line end, so that no space is added."""
    rng = random.Random(5)
    encoder = TextEncoder(tokenizer)
    contexts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 25))) + "\n" for _ in range(count)]
    return [encoder.encode(lambda fields: fields["c"], {"c": c}, choices) for c in contexts]


def plain_logprob(model: torch.nn.Module, encoded: Encoded) -> float:
    """All logits of one text, and nothing of ours."""
    ids = torch.tensor([[*encoded.context_ids, *encoded.answer_ids]])
    with torch.no_grad():
        logprobs = model(input_ids=ids).logits[0].float().log_softmax(-1)
    first = len(encoded.context_ids)
    return sum(
        float(logprobs[first - 1 + place, token]) for place, token in enumerate(encoded.answer_ids)
    )


@pytest.mark.parametrize("choices", [SINGLE, SEVERAL], ids=["single-token", "multi-token"])
@pytest.mark.parametrize("row_tokens", [60, 2000])
def test_scores_packed_unpacked_and_from_full_logits_agree(model, tokenizer, choices, row_tokens):
    examples = encode(tokenizer, choices)
    per_example = [choice_sequences(encoded) for encoded in examples]
    assert {len(s) for s in per_example} == {1 if choices is SINGLE else len(choices)}
    sequences = [s for group in per_example for s in group]
    packed = score_sequences(model, sequences, ForwardPass("float32", row_tokens))
    unpacked = score_sequences(model, sequences, ForwardPass("float32", row_tokens, packing=False))
    expected = [plain_logprob(model, e) for encoded in examples for e in encoded]
    for scores in (packed, unpacked):
        owners = [owner for by_owner in scores for owner in by_owner]
        assert owners == list(range(len(choices))) * len(examples)
        values = [value for by_owner in scores for value in by_owner.values()]
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-5)
    assert np.std(expected) > 0.1  # scores that are all alike would prove nothing


@pytest.mark.parametrize("choices", [SINGLE, SEVERAL], ids=["single-token", "multi-token"])
def test_choices_are_as_likely_as_their_tokens_and_their_end(model, tokenizer, choices):
    encoder = TextEncoder(tokenizer, end_id=tokenizer.eos_token_id)
    encoded = [encoder.encode(lambda _: "the film was", {}, choices)]
    [found] = choice_logprobs(model, encoded, ForwardPass("float32", 200))
    whole = [plain_logprob(model, e) for e in encoded[0]]
    text = [plain_logprob(model, replace(e, answer_ids=e.answer_ids[:-1])) for e in encoded[0]]
    np.testing.assert_allclose(found.whole, whole, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.text, text, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def two_sequences(tokenizer: PreTrainedTokenizerBase) -> list[TokenSequence]:
    return [e.sequence() for [e] in encode(tokenizer, ("very bad",), count=2)]


def test_sequences_of_a_row_do_not_see_each_other(model, two_sequences):
    first, second = two_sequences
    changed = replace(first, input_ids=tuple(reversed(first.input_ids)))
    with inference(model, "float32"):
        before = answer_logprobs(model, build_row([first, second], [0, 1]), CPU)
        after = answer_logprobs(model, build_row([changed, second], [0, 1]), CPU)
    mine = torch.tensor(build_row([first, second], [0, 1]).members_A == 1)
    assert torch.equal(before[mine], after[mine])
    assert not torch.equal(before[~mine], after[~mine])


def test_row_whose_positions_do_not_restart_would_be_scored_otherwise(model, two_sequences):
    row = build_row(two_sequences, [0, 1])
    running = replace(row, position_ids_T=np.arange(row.tokens))
    with inference(model, "float32"):
        right, wrong = (answer_logprobs(model, r, CPU) for r in (row, running))
    mine = torch.tensor(row.members_A == 1)
    assert (right[mine] - wrong[mine]).abs().max() > 0.01
    torch.testing.assert_close(right[~mine], wrong[~mine], rtol=0, atol=1e-5)


def test_inert_row_has_a_finite_score_with_a_gradient_path(tiny_model):
    model = load_base(str(tiny_model)).requires_grad_(True)
    score = answer_logprobs(model, inert_row(7), CPU)
    assert score.shape == (1,)
    (score.sum() * 0.0).backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and not g.any() for g in gradients)


PROMPTS = ("the film was", "a", "very good and not bad is the story of the movie that", "plot?")


def plainly(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Transformers' own greedy continuation of one text, without a batch and without padding."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    output = model.generate(ids, do_sample=False, max_new_tokens=24, pad_token_id=0)
    return output[0, ids.shape[1] :].tolist()


def contexts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]


def test_generate_greedily_in_a_batch_continues_as_transformers_does_alone(model, tokenizer):
    expected = [plainly(model, tokenizer, prompt) for prompt in PROMPTS]
    found = generate(model, tokenizer, contexts(tokenizer), max_new_tokens=24)
    assert [text for text, _ in found] == [tokenizer.decode(ids) for ids in expected]
    assert [tokens for _, tokens in found] == [24] * len(PROMPTS)
    assert len({text for text, _ in found}) == len(PROMPTS)


@pytest.mark.parametrize("as_list", [True, False])
def test_generate_ends_each_text_at_its_own_end_token(tiny_model, tokenizer, as_list):
    model = load_base(str(tiny_model))
    free = [plainly(model, tokenizer, prompt) for prompt in PROMPTS]
    end = free[0][3]
    model.generation_config.eos_token_id = [0, end] if as_list else end
    lengths = [ids.index(end) + 1 if end in ids else 24 for ids in free]
    assert len(set(lengths)) > 1
    found = generate(model, tokenizer, contexts(tokenizer), max_new_tokens=24)
    assert [tokens for _, tokens in found] == lengths
    kept = [ids[: ids.index(end)] if end in ids else ids for ids in free]
    assert [text for text, _ in found] == [tokenizer.decode(ids) for ids in kept]


def test_generate_with_an_end_token_of_id_0_ends_there_whatever_the_tokenizer_names(tiny_model):
    model, tokenizer = load_base(str(tiny_model)), load_tokenizer(str(tiny_model))
    often = plainly(model, tokenizer, PROMPTS[0])[3]
    head = model.lm_head.weight.data
    head[[0, often]] = head[[often, 0]]
    expected = [len(plainly(model, tokenizer, prompt)) for prompt in PROMPTS]
    assert len(set(expected)) > 1
    tokenizer.add_special_tokens({"eos_token": "<other>"})  # as chat tokenizers do
    found = generate(model, tokenizer, contexts(tokenizer), max_new_tokens=24)
    assert [tokens for _, tokens in found] == expected


def test_text_to_stop_at_that_is_a_special_token_ends_there(model, tiny_model):
    tokenizer = load_tokenizer(str(tiny_model))
    free = [plainly(model, tokenizer, prompt) for prompt in PROMPTS]
    place = next(n for n, id in enumerate(free[0]) if tokenizer.decode(id).isascii())
    stop = tokenizer.convert_ids_to_tokens(free[0][place])
    tokenizer.add_tokens([AddedToken(stop, special=True)])
    [found] = continue_texts(model, tokenizer, contexts(tokenizer)[:1], 24, Ending(stop=(stop,)))
    assert (found.tokens, found.ended) == (free[0].index(free[0][place]) + 1, True)


def test_generate_is_not_moved_by_the_models_own_decoding_preferences(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    model, tokenizer = load_base(str(tiny_model)), load_tokenizer(str(tiny_model))
    expected = generate(model, tokenizer, contexts(tokenizer), 12)
    preferences = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "eos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(preferences))
    other = load_base(str(folder))
    assert generate(other, tokenizer, contexts(tokenizer), 12) == expected


def test_generate_by_sampling_depends_on_the_seed_alone(model, tokenizer):
    def sample(seed):
        return generate(model, tokenizer, contexts(tokenizer), 12, Decoding(1.0, 0.9, seed))

    first = sample(1)
    torch.rand(7)  # randomness that somebody else used
    assert sample(1) == first
    assert sample(2) != first
    assert generate(model, tokenizer, contexts(tokenizer), 12) != first


def test_full_precision_linear_computes_in_fp32_under_bf16_autocast():
    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 8)
    full = FullPrecisionLinear(64, 8)
    full.load_state_dict(plain.state_dict())
    inputs = torch.randn(5, 64)
    expected = plain(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert plain(inputs).dtype == torch.bfloat16
        assert full(inputs).dtype == torch.float32
        assert torch.equal(full(inputs), expected)
        assert full(inputs.bfloat16()).dtype == torch.float32


def test_output_head_of_a_loaded_model_gives_fp32_logits_under_autocast(model, tokenizer):
    ids = tokenizer("the film was", return_tensors="pt")["input_ids"]
    with inference(model, "bfloat16"):
        logits = model(input_ids=ids).logits
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


def test_frozen_weights_stored_in_bf16_change_no_score_under_bf16_autocast(tiny_model, tokenizer):
    model = load_base(str(tiny_model))
    sequences = [s for e in encode(tokenizer, SEVERAL) for s in choice_sequences(e)]
    wide = score_sequences(model, sequences, ForwardPass("bfloat16", 500))
    full = score_sequences(model, sequences, ForwardPass("float32", 500))
    store_frozen_in_bf16(model)
    stored = {name: p.dtype for name, p in model.named_parameters()}
    assert stored["model.layers.0.self_attn.q_proj.weight"] == torch.bfloat16
    assert stored["model.layers.0.mlp.down_proj.weight"] == torch.bfloat16
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        assert stored[name] == torch.float32
    assert score_sequences(model, sequences, ForwardPass("bfloat16", 500)) == wide
    assert wide != full
