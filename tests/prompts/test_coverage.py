"""How well prompts cover the space of wordings."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paft_ray.config.prompts import CoverageConfig
from paft_ray.prompts.coverage import covering_order, discrepancy, embed, flat_map, vectors

TOPICS = {
    "mood": "Decide whether the mood of this is cheerful or gloomy, version {}.",
    "vote": "Would the author recommend it to others? Yes or no, number {}.",
    "mark": "Assign a mark: positive if praising, negative if complaining ({}).",
    "role": "You are a critic. Label what follows as good or bad; case {}.",
}
TEXTS = [text.format(n) for text in TOPICS.values() for n in range(100, 110)]


def topic(text: str) -> str:
    return next(name for name, t in TOPICS.items() if text.startswith(t.split("{")[0]))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(max_size=20), max_size=12))
def test_covering_order_has_every_text_once(texts):
    assert sorted(covering_order(texts)) == list(range(len(texts)))


def test_every_beginning_covers_topics_before_it_repeats_one():
    order = covering_order(TEXTS)
    assert {topic(TEXTS[index]) for index in order[:4]} == set(TOPICS)


def test_covering_order_is_a_function_of_the_texts_and_farthest_first():
    shuffled = random.Random(3).sample(TEXTS, len(TEXTS))
    order = [shuffled[i] for i in covering_order(shuffled)]
    matrix = vectors(order).toarray()
    similar = matrix @ matrix.T
    for place in range(1, len(order) - 1):
        nearest = similar[place:, :place].max(axis=1)
        assert nearest[0] <= nearest.min() + 1e-6


def test_flat_map_puts_like_texts_together():
    points = flat_map(TEXTS)
    assert points.shape == (len(TEXTS), 2)
    assert np.abs(points).max() <= 1
    groups = [points[[topic(t) == name for t in TEXTS]] for name in TOPICS]
    spread = max(np.linalg.norm(g - g.mean(axis=0), axis=1).max() for g in groups)
    centres = np.array([group.mean(axis=0) for group in groups])
    gaps = [np.linalg.norm(a - b) for i, a in enumerate(centres) for b in centres[:i]]
    assert min(gaps) > spread
    assert flat_map(["one", "two"]).shape == (2, 2)


def test_discrepancy_tells_other_texts_from_like_ones():
    first, second = TEXTS[::2], TEXTS[1::2]
    alike, chance = discrepancy(first, second)
    assert alike <= chance
    other, chance = discrepancy(TEXTS[:20], TEXTS[20:])
    assert other > 3 * chance > 0
    assert all(map(math.isnan, discrepancy(TEXTS, TEXTS[:1])))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    """A BERT of one layer with random weights, saved as sentence-transformers models are."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return str(folder)


def test_embeddings_do_not_depend_on_which_texts_share_a_batch(encoder):
    found = embed([*TEXTS, "short"], encoder)
    assert np.allclose(np.linalg.norm(found, axis=1), 1)
    for index in (0, 17, 40):
        alone = embed([[*TEXTS, "short"][index]], encoder)[0]
        assert np.allclose(found[index], alone, atol=1e-5)


def test_covering_order_by_embeddings_is_farthest_first_by_them(encoder):
    order = [
        TEXTS[i] for i in covering_order(TEXTS, CoverageConfig(type="embeddings", path=encoder))
    ]
    assert sorted(order) == sorted(TEXTS)
    similar = embed(order, encoder) @ embed(order, encoder).T
    for place in range(1, len(order) - 1):
        nearest = similar[place:, :place].max(axis=1)
        assert nearest[0] <= nearest.min() + 1e-6
    assert order != [TEXTS[i] for i in covering_order(TEXTS)]
