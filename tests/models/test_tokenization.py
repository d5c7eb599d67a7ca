"""Text to tokens as lm-evaluation-harness does it, and sequences dealt into rows without loss."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from paft_ray.config.errors import ConfigError, DataError
from paft_ray.models.load import load_tokenizer
from paft_ray.models.packing import TokenSequence, build_row, deal_rows, inert_row
from paft_ray.models.tokenization import Encoded, TextEncoder, choice_sequences
from paft_ray.prompts.template import parse

PLAIN = parse("{text}", ("text",))
TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
ANSWERS = TEXTS.filter(lambda text: text.strip())

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
TURNS = CHAT.replace("{{ m.content }}", "{{ m.content }} <turn>\n")


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text)["input_ids"])


def encode(encoder: TextEncoder, text: str, *answers: str, **options) -> tuple[Encoded, ...]:
    return encoder.encode(PLAIN.render, {"text": text}, answers, **options)


@given(
    context=TEXTS,
    answers=st.lists(ANSWERS, min_size=1, max_size=4, unique=True),
    spaces=st.integers(0, 3),
)
def test_encode_splits_where_lm_eval_does_unless_a_token_lies_across(
    tokenizer, context, answers, spaces
):
    encoder = TextEncoder(tokenizer, max_length=10_000)
    encoded = encode(encoder, context + " " * spaces, *answers)
    context = context.rstrip(" ")
    delimiter = "" if context.endswith("\n") else " "
    wholes = [ids(tokenizer, context + delimiter + answer) for answer in answers]
    expected = ids(tokenizer, context)
    across = any(whole[: len(expected)] != expected for whole in wholes)
    assert len({found.context_ids for found in encoded}) == 1
    read = encoded[0].context_ids
    read = () if read == (tokenizer.eos_token_id,) else read
    assert (read == expected) == (not across)
    assert context.startswith(tokenizer.decode(read).rstrip("\ufffd"))
    for whole, found in zip(wholes, encoded, strict=True):
        assert (*read, *found.answer_ids) == whole
        assert not found.trimmed


def word_tokenizer(appends_end: bool = False) -> PreTrainedTokenizerFast:
    """Knows whole words, in small letters, and letters within them."""
    words = ["[UNK]", "</s>", "yes", "no", "answer", ":", "answer:no", "answer:yes"]
    own = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "[UNK]"))
    own.normalizer, own.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    if appends_end:
        own.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=own, unk_token="[UNK]", eos_token="</s>")


@pytest.mark.parametrize("end_id", [None, 1])
def test_encode_with_a_tokenizer_that_appends_its_end_token_is_as_with_one_that_does_not(end_id):
    plain, appending = word_tokenizer(), word_tokenizer(appends_end=True)
    expected, found = (
        encode(TextEncoder(each, end_id=end_id), "answer :", "yes", "no", "yes no")
        for each in (plain, appending)
    )
    assert found == expected
    assert expected[0].answer_ids == ((2,) if end_id is None else (2, 1))


def test_encode_of_a_token_across_context_and_answer_gives_it_to_the_answer():
    encoder = TextEncoder(word_tokenizer())
    across = encoder.encode(lambda _: "no answer:\n", {}, ["no", "yes"])
    assert [e.context_ids for e in across] == [(3, 0), (3, 0)]  # the line end parts them
    encoder.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\n", "")
    across = encoder.encode(lambda _: "no answer:\n", {}, ["no", "yes"])
    assert [e.context_ids for e in across] == [(3,), (3,)]
    assert [e.answer_ids for e in across] == [(6,), (7,)]


@pytest.mark.parametrize("answers", [["Good", "bad"], ["Yes", "yes"], ["a", "a"]])
def test_encode_of_answers_that_are_the_same_tokens_is_refused(answers):
    one, other = map(repr, answers)
    with pytest.raises(DataError, match=rf"{one} and {other} are the same tokens .* reword them"):
        encode(TextEncoder(word_tokenizer()), "answer :", *answers)


def test_end_of_a_choice_under_a_chat_template_is_that_of_the_assistants_turn(tiny_model):
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    asks_only = (
        "{{ raise_exception('no') if messages[-1].role != 'user' else messages[-1].content }}"
    )
    ends = TURNS, CHAT, asks_only
    found = []
    for template in ends:
        tokenizer.chat_template = template
        encoder = TextEncoder(tokenizer, "auto")
        found.append(encoder.ending("scored", choices=True).end_id)
        assert encoder.ending("scored", choices=False).end_id == tokenizer.eos_token_id
        assert encoder.ending("ignored", choices=True).end_id is None
    assert found == [turn, tokenizer.eos_token_id, tokenizer.eos_token_id]
    assert TextEncoder(tokenizer).ending("scored", choices=True).end_id == tokenizer.eos_token_id


def test_end_that_the_tokenizer_does_not_have_is_refused():
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match=r"no end token .*task\.answer_end: ignored"):
        TextEncoder(tokenizer).ending("scored", choices=True)


def test_encode_moves_trailing_spaces_of_the_context_to_the_answer(tokenizer):
    encoder = TextEncoder(tokenizer)
    [bare], [spaced] = (encode(encoder, text, "good") for text in ("the film:", "the film:  "))
    assert bare == spaced
    assert tokenizer.decode(bare.context_ids) == "the film:"
    assert tokenizer.decode(bare.answer_ids) == " good"


def test_encode_after_a_line_end_puts_no_space_before_the_answer(tokenizer):
    [encoded] = encode(TextEncoder(tokenizer), "the film:\n", "good")
    assert tokenizer.decode(encoded.answer_ids) == "good"


def test_encode_with_end_appends_the_end_token_to_every_answer(tokenizer):
    without, with_end = (
        encode(TextEncoder(tokenizer, end_id=end_id), "the film:", "good", "very bad")
        for end_id in (None, tokenizer.eos_token_id)
    )
    for short, long in zip(without, with_end, strict=True):
        assert long.answer_ids == (*short.answer_ids, tokenizer.eos_token_id)
        assert long.context_ids == short.context_ids
        assert long.length == short.length + 1


def test_encode_with_a_chat_template_asks_as_the_user_and_answers_as_the_assistant(tiny_model):
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.chat_template = CHAT
    [encoded] = encode(TextEncoder(tokenizer, "auto"), "the film: ", "good")
    assert tokenizer.decode(encoded.context_ids) == "<user>the film:<assistant>\n"
    assert tokenizer.decode(encoded.answer_ids) == "good"


@pytest.mark.parametrize("context", ["the film:\n", "\n"])
def test_encode_of_an_empty_answer_is_refused(tokenizer, context):
    with pytest.raises(DataError, match=r"answer '' adds no token .* reword the answer"):
        encode(TextEncoder(tokenizer), context, "good", "")


def test_encode_of_an_empty_context_reads_the_end_token(tokenizer):
    [encoded] = encode(TextEncoder(tokenizer), "", "good")
    assert encoded.context_ids == (tokenizer.eos_token_id,)
    assert tokenizer.decode(encoded.answer_ids) == " good"
    assert encoded.sequence().input_ids == (tokenizer.eos_token_id, *encoded.answer_ids[:-1])


def test_sequence_predicts_each_answer_token_where_the_one_before_was_read():
    encoded = Encoded((5, 6, 7), (8, 9))
    assert encoded.sequence() == TokenSequence((5, 6, 7, 8), (2, 3), (8, 9), (0, 0))


def test_choice_sequences_of_single_tokens_read_the_context_once():
    encoded = [Encoded((5, 6, 7), (answer,)) for answer in (8, 9, 8)]
    assert choice_sequences(encoded) == (TokenSequence((5, 6, 7), (2, 2, 2), (8, 9, 8), (0, 1, 2)),)


def test_choice_sequences_with_ends_are_one_each_and_may_keep_the_ends_apart():
    encoded = [Encoded((5, 6), (answer, 0), ended=True) for answer in (8, 9)]
    together = [TokenSequence((5, 6, a), (1, 2), (a, 0), (n, n)) for n, a in enumerate((8, 9))]
    assert choice_sequences(encoded) == tuple(together)
    apart = choice_sequences(encoded, ends_apart=True)
    assert [s.owners for s in apart] == [(0, 2), (1, 3)]


def test_choice_sequences_of_several_tokens_are_one_each():
    encoded = [Encoded((5, 6, 7), (8,)), Encoded((5, 6, 7), (9, 10))]
    assert choice_sequences(encoded) == (
        TokenSequence((5, 6, 7), (2,), (8,), (0,)),
        TokenSequence((5, 6, 7, 9), (2, 3), (9, 10), (1, 1)),
    )


PAIR = parse("Read {long} and {short}. Answer:", ("long", "short"))


def trimming(tokenizer: PreTrainedTokenizerBase, max_length: int = 48) -> TextEncoder:
    return TextEncoder(tokenizer, max_length=max_length, overlong="trim")


def context_of(tokenizer: PreTrainedTokenizerBase, encoded: Encoded) -> str:
    return tokenizer.decode(encoded.context_ids)


def test_trim_cuts_the_end_of_the_longest_field_only_and_marks_it(tokenizer):
    fields = {"long": "the film was good and " * 20, "short": "a fine plot"}
    answers = ["good", "very bad"]
    encoded = trimming(tokenizer).encode(PAIR.render, fields, answers)
    assert [e.trimmed for e in encoded] == [True, True]
    assert 40 <= max(e.length for e in encoded) <= 48
    read = context_of(tokenizer, encoded[0])
    head, tail = "Read ", " and a fine plot. Answer:"
    assert read.startswith(head)
    assert read.endswith(tail)
    kept = read[len(head) : -len(tail)]
    assert kept
    assert fields["long"].startswith(kept)
    assert [tokenizer.decode(e.answer_ids) for e in encoded] == [" good", " very bad"]
    assert fields["long"] == "the film was good and " * 20  # arguments are never changed


@given(text=st.text(st.sampled_from("aé文🎬 \n"), min_size=60, max_size=120))
def test_trim_in_the_middle_of_a_character_leaves_a_beginning_of_the_field(tokenizer, text):
    fields = {"long": text, "short": "fine"}
    [encoded] = trimming(tokenizer, 60).encode(PAIR.render, fields, ["good"])
    assert encoded.length <= 60
    head, tail = "Read ", " and fine. Answer:"
    assert text.startswith(context_of(tokenizer, encoded)[len(head) : -len(tail)])


def test_trim_of_an_example_that_fits_changes_nothing(tokenizer):
    fields = {"long": "the film", "short": "a plot"}
    refusing = TextEncoder(tokenizer, max_length=48)
    assert trimming(tokenizer).encode(PAIR.render, fields, ["good"]) == refusing.encode(
        PAIR.render, fields, ["good"]
    )


def test_trim_never_cuts_the_prompt_itself(tokenizer):
    template = parse("the film " * 30 + "{text}", ("text",))
    with pytest.raises(DataError, match=r"example 7 .* the prompt itself is too long"):
        trimming(tokenizer).encode(
            template.render, {"text": "good " * 20}, ["good"], what="example 7"
        )


def test_refuse_names_example_length_and_remedy_at_one_token_too_many(tokenizer):
    [encoded] = encode(TextEncoder(tokenizer), "the film was good", "very bad")
    exact = TextEncoder(tokenizer, max_length=encoded.length)
    assert encode(exact, "the film was good", "very bad") == (encoded,)
    tight = TextEncoder(tokenizer, max_length=encoded.length - 1)
    with pytest.raises(DataError, match=rf"example 7 has {encoded.length} tokens .*overlong: trim"):
        encode(tight, "the film was good", "bad", "very bad", what="example 7")


@st.composite
def deals(draw):
    row_tokens = draw(st.integers(1, 60))
    lengths = draw(st.lists(st.integers(1, row_tokens), max_size=40))
    return lengths, row_tokens, draw(st.integers(1, 6)), draw(st.booleans())


@given(deals())
def test_deal_rows_loses_nothing_and_respects_capacity(deal):
    lengths, row_tokens, ranks, packing = deal
    dealt = deal_rows(lengths, row_tokens, ranks, packing)
    assert len(dealt) == ranks
    assert len({len(rows) for rows in dealt}) == 1
    assert dealt[0]
    rows = [row for rows in dealt for row in rows]
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= row_tokens for row in rows)
    if not packing:
        assert all(len(row) <= 1 for row in rows)
    assert deal_rows(lengths, row_tokens, ranks, packing) == dealt


@given(deals())
def test_deal_rows_wastes_no_row_that_every_rank_could_do_without(deal):
    lengths, row_tokens, ranks, packing = deal
    dealt = deal_rows(lengths, row_tokens, ranks, packing)
    per_rank = len(dealt[0])
    if packing:  # greedy dealing never needs twice what any dealing needs
        needed = max(1, -(-sum(lengths) // row_tokens))
        assert per_rank <= max(1, -(-2 * needed // ranks))
    else:
        assert per_rank == max(1, -(-len(lengths) // ranks))


def test_deal_rows_gives_ranks_about_equal_work():
    lengths = [50, 50, 30, 30, 20, 20, 10, 10]
    loads = [
        [sum(lengths[i] for i in row) for row in rows] for rows in deal_rows(lengths, 64, ranks=2)
    ]
    assert loads[0] == loads[1]


def test_deal_rows_of_a_sequence_that_fits_no_row_is_refused():
    assert deal_rows([64], 64, 1) == [[[0]]]
    with pytest.raises(DataError, match=r"65 tokens fits no row: raise row_tokens \(64\)"):
        deal_rows([3, 65], 64, 1)


SEQUENCES = st.builds(
    lambda context, answer: Encoded(tuple(context), tuple(answer)).sequence(),
    st.lists(st.integers(0, 99), min_size=1, max_size=9),
    st.lists(st.integers(0, 99), min_size=1, max_size=4),
)


@given(st.lists(SEQUENCES, min_size=1, max_size=6), st.randoms())
def test_build_row_restarts_positions_and_points_at_each_target(sequences, rng):
    members = list(range(len(sequences)))
    rng.shuffle(members)
    members = members[: rng.randint(1, len(members))]
    row = build_row(sequences, members)
    chosen = [sequences[index] for index in members]
    assert row.members == tuple(members)
    assert row.input_ids_T.tolist() == [t for s in chosen for t in s.input_ids]
    assert row.position_ids_T.tolist() == [p for s in chosen for p in range(len(s.input_ids))]
    assert row.tokens == sum(len(s.input_ids) for s in chosen)
    assert row.targets_A.tolist() == [t for s in chosen for t in s.targets]
    assert row.keep_U.tolist() == sorted(set(row.keep_U.tolist()))
    at_A = row.keep_U[row.gather_A]
    assert set(at_A.tolist()) == set(row.keep_U.tolist())
    for member, sequence in enumerate(chosen):
        mine = row.members_A == member
        assert row.position_ids_T[at_A[mine]].tolist() == list(sequence.positions)
        starts = at_A[mine] - row.position_ids_T[at_A[mine]]
        assert set(starts.tolist()) == {sum(len(s.input_ids) for s in chosen[:member])}
        assert row.owners_A[mine].tolist() == list(sequence.owners)


def test_build_row_keeps_a_position_that_several_choices_share_once():
    [shared] = choice_sequences([Encoded((5, 6), (answer,)) for answer in (7, 8, 9)])
    row = build_row([shared, shared], [1, 0])
    assert row.keep_U.tolist() == [1, 3]
    assert row.gather_A.tolist() == [0, 0, 0, 1, 1, 1]
    assert row.owners_A.tolist() == [0, 1, 2, 0, 1, 2]


def test_inert_row_reads_tokens_and_belongs_to_no_sequence():
    row = inert_row(7)
    assert row.members == ()
    assert row.input_ids_T.tolist() == [7] * row.tokens
    assert row.position_ids_T.tolist() == list(range(row.tokens))
    lengths = {len(a) for a in (row.gather_A, row.targets_A, row.members_A, row.owners_A)}
    assert lengths == {1}
    assert np.all(row.keep_U < row.tokens)
