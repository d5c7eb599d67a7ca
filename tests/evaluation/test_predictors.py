"""One predictor, several models: the base and adapters do not disturb each other."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from factories import METHODS
from paft_ray.config import Config
from paft_ray.config.errors import DataError
from paft_ray.config.grade import GradeConfigs
from paft_ray.evaluation.predictors import ModelPredictor, batches_by_length
from paft_ray.evaluation.scores import SCORES_SCHEMA, Asked, Score, grades_of, scores_table
from paft_ray.models.full import full_model_files
from paft_ray.models.load import load_adapter, load_base, load_tokenizer, make_trainable
from paft_ray.models.logprobs import answer_logprobs
from paft_ray.models.packing import build_row
from paft_ray.models.tokenization import TextEncoder
from paft_ray.prompts.template import parse
from paft_ray.tasks import Example, Task
from paft_ray.tasks.builtin import PUBLISHED
from paft_ray.tasks.grading import extract_answer, open_graders

LORA = {**METHODS["LORA"], "lora_dropout": 0.5}
PROMPT_TUNING, PREFIX_TUNING = METHODS["PROMPT_TUNING"], METHODS["PREFIX_TUNING"]
PROMPT = "Tell how it feels: {review}\nAnswer:"
WORDS = ["good", "bad", "the", "film", "movie", "was", "is", "and", "very", "not", "story"]
GSM8K = PUBLISHED["gsm8k"].answer_pattern


def make_examples(answers: tuple[str, ...], count: int = 8) -> tuple[Example, ...]:
    rng = random.Random(2)
    return tuple(
        Example(
            id=f"{number:016x}",
            fields={"review": " ".join(rng.choices(WORDS, k=rng.randint(1, 20)))},
            answer=rng.choice(answers),
        )
        for number in range(count)
    )


CHOICES = ("very positive indeed", "negative", "a")
RANKING = Task(
    "reviews", "Say how it feels.", ("review",), {}, CHOICES, (), (), make_examples(CHOICES)
)
WRITING = Task("texts", "Say how it feels.", ("review",), {}, None, (), (), make_examples(("x",)))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads only spin at each other's barriers in a model this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def make_predictor(tiny_model: Path) -> Callable[..., ModelPredictor]:
    def make(
        task: Task = RANKING,
        dtype: str = "float32",
        max_length: int = 128,
        overlong: str = "refuse",
        row_tokens: int = 200,
        generation_tokens: int = 1000,
        base: Path = tiny_model,
        peft: dict | None = LORA,
        quantization: str = "none",
        **changes,
    ) -> ModelPredictor:
        config = Config.model_validate(
            {
                "name": "test",
                "task": {
                    "type": "custom", "name": "reviews", "description": "Say how it feels.",
                    "path": "none.jsonl", "fields": {"review": "review"}, "answer": "label",
                    "max_length": max_length, "overlong": overlong,
                    "choices": task.choices, **changes,
                },
                "prompts": {"files": ["none.txt"]},
                "model": {"path": str(tiny_model), "peft": peft, "quantization": quantization},
                "train": {"steps": 1},
                "evaluation": {
                    "row_tokens": row_tokens, "max_new_tokens": 12,
                    "generation_tokens": generation_tokens,
                },
            }
        )  # fmt: skip
        return ModelPredictor(config, task, str(base), dtype, "cpu")

    return make


@pytest.fixture(scope="module")
def save_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    def save(seed: int) -> str:
        model = make_trainable(load_base(str(tiny_model)), None, seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        folder = tmp_path_factory.mktemp("trained")
        weights = {n: p.detach() for n, p in model.named_parameters()}
        for name, data in full_model_files(model, weights, load_tokenizer(str(tiny_model))):
            (folder / name).write_bytes(data)
        return str(folder)

    return save


def predict(predictor: ModelPredictor, adapter: str | None, task: Task = RANKING) -> list[Score]:
    return predictor.score(adapter, "p1", PROMPT, task.test)


# peft says so at every text that prompt tuning generates
drops_positions = pytest.mark.filterwarnings(
    "ignore:Position ids are not supported for parameter efficient tuning:UserWarning"
)
each_method = pytest.mark.parametrize(
    "peft", [LORA, PROMPT_TUNING, PREFIX_TUNING], ids=lambda peft: peft["peft_type"]
)


@each_method
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_base_scores_are_the_same_before_and_after_adapters_were_used(
    peft, dtype, make_predictor, save_adapter
):
    predictor = make_predictor(dtype=dtype)
    one, other = save_adapter(peft, seed=1), save_adapter(peft, seed=2)
    base = predict(predictor, None)
    by_one, by_other = predict(predictor, one), predict(predictor, other)
    assert predict(predictor, None) == base
    assert predict(predictor, one) == by_one
    assert predict(predictor, None) == base
    logprobs = {tuple(s.choice_logprobs for s in scores) for scores in (base, by_one, by_other)}
    assert len(logprobs) == 3
    assert predict(make_predictor(dtype=dtype), other) == by_other  # whoever was there before


@drops_positions
@each_method
def test_free_text_of_the_base_is_the_same_after_an_adapter_was_used(
    peft, make_predictor, save_adapter
):
    predictor, adapter = make_predictor(WRITING), save_adapter(peft)
    base = predict(predictor, None, WRITING)
    adapted = predict(predictor, adapter, WRITING)
    assert [s.generated_text for s in adapted] != [s.generated_text for s in base]
    assert predict(predictor, None, WRITING) == base


@drops_positions
@each_method
def test_free_text_of_an_adapter_is_what_forward_passes_without_batch_and_cache_give(
    peft, make_predictor, save_adapter, tiny_model
):
    adapter = save_adapter(peft)
    tokenizer = load_tokenizer(str(tiny_model))
    model = load_adapter(load_base(str(tiny_model)), adapter, "mine")
    expected = []
    for example in WRITING.test:
        read = tokenizer(parse(PROMPT, ("review",)).render(example.fields))["input_ids"]
        ids = torch.tensor([read])
        for _ in range(12):
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        expected.append(tokenizer.decode(ids[0, len(read) :]))
    found = [score.generated_text for score in predict(make_predictor(WRITING), adapter, WRITING)]
    assert found == expected


@pytest.mark.parametrize("end", ["scored", "ignored"])
def test_prediction_is_the_choice_with_the_best_loglikelihood(make_predictor, tiny_model, end):
    found = predict(make_predictor(answer_end=end), None)
    tokenizer, model = load_tokenizer(str(tiny_model)), load_base(str(tiny_model))
    template = parse(PROMPT, ("review",))
    for example, score in zip(RANKING.test, found, strict=True):
        context = template.render(example.fields)
        read = tokenizer(context)["input_ids"]
        expected, without = [], []
        for choice in CHOICES:
            ids = [*tokenizer(f"{context} {choice}")["input_ids"], tokenizer.eos_token_id]
            with torch.no_grad():
                logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            each = [float(logprobs[at - 1, ids[at]]) for at in range(len(read), len(ids))]
            without.append(sum(each[:-1]))
            expected.append(sum(each) if end == "scored" else without[-1])
        assert score.choice_logprobs == pytest.approx(expected, abs=1e-5)
        best = CHOICES[expected.index(max(expected))]
        per_character = [value / len(c) for value, c in zip(without, CHOICES, strict=True)]
        normalised = CHOICES[per_character.index(max(per_character))]
        assert (score.prediction, score.correct) == (best, best == example.answer)
        assert score.normalised_correct == (normalised == example.answer)
        assert (score.prompt_id, score.example_id) == ("p1", example.id)
        assert score.generated_text is None
    assert {score.correct for score in found} == {True, False}


@pytest.mark.parametrize(("end", "answer"), [("scored", "!!"), ("ignored", "!")])
def test_choice_that_begins_with_another_one_wins_only_where_ends_are_scored(
    end, answer, make_predictor, tiny_model, tmp_path
):
    choices = ("!", "!!")
    model, tokenizer = load_base(str(tiny_model)), load_tokenizer(str(tiny_model))
    encoder = TextEncoder(tokenizer, end_id=tokenizer.eos_token_id)
    render = parse(PROMPT, ("review",)).render
    task = Task("marks", "Say.", ("review",), {}, choices, (), (), make_examples(choices))
    both = [encoder.encode(render, example.fields, choices) for example in task.test]
    [(short, long), *_] = [[e.answer_ids[:-1] for e in each] for each in both]
    assert long[: len(short)] == short
    row = build_row([long.sequence() for _, long in both], range(len(both)))
    optimizer = torch.optim.Adam(model.requires_grad_(True).parameters(), 1e-2)
    for _ in range(20):  # it learns to say "!!" whatever it is asked
        loss = -answer_logprobs(model, row, torch.device("cpu")).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = predict(make_predictor(task, base=tmp_path, answer_end=end), None, task)
    assert {score.prediction for score in found} == {answer}


@pytest.mark.parametrize("choices", [("?", "!"), ("!", "?")])
def test_prediction_of_equally_likely_choices_is_the_first(
    choices, make_predictor, tiny_model, tmp_path
):
    model = load_base(str(tiny_model))
    model.lm_head.weight.zero_()  # every token is as likely as any other
    model.save_pretrained(tmp_path)
    load_tokenizer(str(tiny_model)).save_pretrained(tmp_path)
    task = Task("marks", "Say.", ("review",), {}, choices, (), (), make_examples(choices))
    found = predict(make_predictor(task, base=tmp_path), None, task)
    assert all(len(set(score.choice_logprobs)) == 1 for score in found)
    assert {score.prediction for score in found} == {choices[0]}
    right = [example.answer == choices[0] for example in task.test]
    assert [score.correct for score in found] == right
    assert [score.normalised_correct for score in found] == right


def test_scores_do_not_depend_on_which_examples_share_a_row(make_predictor):
    together, alone = (
        predict(make_predictor(row_tokens=2000), None),
        predict(make_predictor(row_tokens=128), None),
    )
    for one, other in zip(together, alone, strict=True):
        assert one.choice_logprobs == pytest.approx(other.choice_logprobs, abs=1e-5)
        assert one.prediction == other.prediction


def test_example_that_does_not_fit_is_refused_or_trimmed(make_predictor):
    long = Example("f" * 16, {"review": "film " * 300}, "negative")
    with pytest.raises(DataError, match=r"example f{16} under prompt p1 has \d+ tokens"):
        make_predictor().score(None, "p1", PROMPT, [long])
    [score] = make_predictor(overlong="trim").score(None, "p1", PROMPT, [long])
    assert len(score.choice_logprobs) == len(CHOICES)


def test_free_text_that_does_not_fit_is_refused_or_trimmed_too(make_predictor):
    long = Example("f" * 16, {"review": "film " * 300}, "x")
    with pytest.raises(DataError, match=r"example f{16} under prompt p1 has \d+ tokens"):
        make_predictor(WRITING).score(None, "p1", PROMPT, [long])
    [score] = make_predictor(WRITING, overlong="trim").score(None, "p1", PROMPT, [long])
    assert score.generated_tokens


@pytest.mark.parametrize("task", [WRITING, RANKING], ids=["texts", "choices"])
def test_prompts_answered_together_are_answered_as_alone(task: Task, make_predictor) -> None:
    predictor = make_predictor(task)
    asked = [
        Asked("p1", PROMPT, task.test),
        Asked("p2", "Say how {review} feels, in a few words ->", task.test[:1]),
        Asked("p3", "{review} =", task.test[1:]),
    ]
    together = predictor.score_together(None, asked)
    assert together == [predictor.score(None, a.prompt_id, a.text, a.examples) for a in asked]
    assert [len(scores) for scores in together] == [len(a.examples) for a in asked]


def test_scores_that_are_no_numbers_are_refused(make_predictor, tiny_model, tmp_path):
    model = load_base(str(tiny_model))
    model.model.layers[0].mlp.down_proj.weight.data[:] = float("nan")
    model.save_pretrained(tmp_path)
    load_tokenizer(str(tiny_model)).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"under prompt p1: the model's log-likelihoods are \[nan"):
        predict(make_predictor(base=tmp_path), None)


def test_free_text_is_generated_and_compared_as_a_whole(make_predictor, tiny_model):
    tokenizer, model = load_tokenizer(str(tiny_model)), load_base(str(tiny_model))
    template = parse(PROMPT, ("review",))
    expected = []
    for example in WRITING.test:
        ids = tokenizer(template.render(example.fields), return_tensors="pt")["input_ids"]
        output = model.generate(ids, do_sample=False, max_new_tokens=12, pad_token_id=0)
        expected.append(output[0, ids.shape[1] :].tolist())
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]
    wholes = [extract_answer(text, None) for text in texts]
    known = tuple(
        Example(e.id, e.fields, (f" {whole.upper()} ", whole[:3], "something else")[number % 3])
        for number, (e, whole) in enumerate(zip(WRITING.test, wholes, strict=True))
    )
    assert all(wholes)
    task = Task("texts", "Say.", ("review",), {}, None, (), (), known)
    found = predict(make_predictor(task), None, task)
    assert [s.generated_text for s in found] == texts
    assert [s.generated_tokens for s in found] == [len(ids) for ids in expected]
    assert [s.prediction for s in found] == wholes
    assert [s.correct for s in found] == [number % 3 == 0 for number in range(len(known))]
    assert [s.begins_right for s in found] == [number % 3 == 1 for number in range(len(known))]
    assert [s.unended for s in found] == [tokenizer.eos_token_id not in ids for ids in expected]
    assert all(s.choice_logprobs is None and s.normalised_correct is None for s in found)


def test_choices_are_ranked_and_written_where_both_are_graded(make_predictor):
    ranked = predict(make_predictor(RANKING), None, RANKING)
    free = Task("texts", "Say.", ("review",), {}, None, (), (), RANKING.test)
    written = predict(make_predictor(free), None, free)
    named = ["choice", "f1", {"type": "choice", "length_normalised": True}]
    graders = open_graders(TypeAdapter(GradeConfigs).validate_python(named), True, None)
    task = replace(RANKING, graders=graders)
    found = predict(make_predictor(task), None, task)
    assert [s.choice_logprobs for s in found] == [s.choice_logprobs for s in ranked]
    assert [s.correct for s in found] == [s.correct for s in ranked]
    assert [s.generated_text for s in found] == [s.generated_text for s in written]
    for score, alone, example in zip(found, ranked, task.test, strict=True):
        f1 = graders[1].grade(example, score.generated_text, "")
        assert score.further_grades == (f1.value, float(alone.normalised_correct))
    turned = replace(RANKING, graders=graders[1:])
    again = predict(make_predictor(turned), None, turned)
    assert [s.value for s in again] == [s.further_grades[0] for s in found]
    assert any(0 < s.value < 1 for s in again) == any(s.grade is not None for s in again)
    assert all(s.choice_logprobs is None for s in again)  # none is the prediction's


def test_free_text_ends_at_the_first_text_to_stop_at(make_predictor):
    whole = predict(make_predictor(WRITING), None, WRITING)
    one = whole[0].generated_text
    stop = (one[len(one) // 2 :][:4], one[3:6])
    found = predict(make_predictor(WRITING, stop=stop), None, WRITING)
    for score, before in zip(found, whole, strict=True):
        places = [p for text in stop if (p := before.generated_text.find(text)) >= 0]
        cut = min(places, default=len(before.generated_text))
        assert score.generated_text == before.generated_text[:cut]
        assert score.unended == (before.unended and not places)
        assert score.generated_tokens <= before.generated_tokens
    assert found[0].generated_tokens < whole[0].generated_tokens
    alone = predict(make_predictor(WRITING, stop=stop, generation_tokens=16), None, WRITING)
    assert alone == found


@given(st.lists(st.integers(1, 90), max_size=40), st.integers(1, 50), st.integers(0, 900))
def test_batches_hold_every_text_once_longest_first_within_the_budget(lengths, more, most):
    batches = batches_by_length(lengths, more, most)
    places = [place for batch in batches for place in batch]
    assert sorted(places) == list(range(len(lengths)))
    assert [lengths[p] for p in places] == sorted(lengths, reverse=True)
    for batch, following in pairwise([*batches, []]):
        size = len(batch) * (lengths[batch[0]] + more)
        assert len(batch) == 1 or size <= most
        assert not following or (len(batch) + 1) * (lengths[batch[0]] + more) > most


def test_free_text_in_small_batches_is_that_of_one_batch(make_predictor):
    one = predict(make_predictor(WRITING), None, WRITING)
    lengths = {len(example.fields["review"]) for example in WRITING.test}
    assert len(lengths) > 2
    many = predict(make_predictor(WRITING, generation_tokens=80), None, WRITING)
    assert [(s.example_id, s.generated_text) for s in many] == [
        (s.example_id, s.generated_text) for s in one
    ]


def test_free_text_without_a_match_of_the_pattern_is_wrong_even_to_an_answer_without_one(
    make_predictor,
):
    examples = tuple(Example(e.id, e.fields, "no number here") for e in WRITING.test)
    task = Task("sums", "Add.", ("review",), {}, None, (), (), examples, 0, GSM8K)
    found = predict(make_predictor(task), None, task)
    assert {(s.prediction, s.correct, s.begins_right) for s in found} == {("", False, None)}


def test_scores_as_a_table_have_the_schema_and_every_field():
    ranked = Score("p", "e", "A", True, (-1.5, -2.0), False)
    written = Score("p", "f", "12", False, None, None, "#### 12", 4, True, False, 0.5, (1.0,))
    table = scores_table([ranked, written])
    assert table.schema == SCORES_SCHEMA
    assert table.to_pylist() == [
        {
            "prompt_id": "p", "example_id": "e", "prediction": "A", "correct": True,
            "choice_logprobs": [-1.5, -2.0], "normalised_correct": False,
            "generated_text": None, "generated_tokens": None,
            "unended": None, "begins_right": None, "grade": None, "further_grades": None,
            "axis": None, "level": None, "draw": None,
        },
        {
            "prompt_id": "p", "example_id": "f", "prediction": "12", "correct": False,
            "choice_logprobs": None, "normalised_correct": None,
            "generated_text": "#### 12", "generated_tokens": 4,
            "unended": True, "begins_right": False, "grade": 0.5, "further_grades": [1.0],
            "axis": None, "level": None, "draw": None,
        },
    ]  # fmt: skip
    assert grades_of(table).tolist() == [1.0, 0.5]
    assert isinstance(scores_table([]), pa.Table)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She has 3 + 4 = 7 apples.\n#### 7", "7"),
        ("#### 7\nWait, no.\n#### 8", "8"),
        ("####12", "12"),
        ("#### -3", "-3"),
        ("#### $1,250", "1250"),
        ("#### 1,234,567", "1234567"),
        ("#### 1,250, because it is so", "1250"),
        ("#### 1250.", "1250"),
        ("#### 1250.00", "1250"),
        ("#### 1,250.00", "1250"),
        ("#### 2.50", "2.5"),
        ("#### 0.5", "0.5"),
        ("#### 0.0", "0"),
        ("#### 100", "100"),
        ("#### 7 apples", "7"),
        ("the answer is 7", ""),
        ("", ""),
    ],
)
def test_extract_answer_of_gsm8k_reads_the_last_number_after_the_mark(text, answer):
    assert extract_answer(text, GSM8K) == answer


def test_extract_answer_takes_a_pattern_without_a_group_whole_and_leaves_words_alone():
    assert extract_answer("so: blue, or red.00", r"blue|red\.00") == "red.00"
    assert extract_answer("version 1.10.0", r"\d+\.\d+\.\d+") == "1.10.0"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Positive.\nBecause it is good.", "positive.\nbecause it is good."),
        ("\n\n  Yes \n", "yes"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("cafe\u0301", "caf\u00e9"),
        ("A+", "a+"),
        (" \n ", ""),
        ("", ""),
    ],
)
def test_extract_answer_without_a_pattern_is_the_whole_text(text, answer):
    assert extract_answer(text, None) == answer


@pytest.mark.parametrize("task", [RANKING, WRITING], ids=lambda task: task.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_models_trained_as_a_whole_score_as_they_do_alone_and_leave_the_base_as_it_was(
    task, dtype, make_predictor, save_model
):
    first, second = save_model(1), save_model(2)
    alone = [
        predict(make_predictor(task, dtype, base=Path(f)), None, task) for f in (first, second)
    ]
    predictor = make_predictor(task, dtype, peft=None)
    base = predict(predictor, None, task)
    assert len({str(base), str(alone[0]), str(alone[1])}) == 3
    assert predict(predictor, first, task) == alone[0]
    assert predict(predictor, None, task) == base
    assert predict(predictor, second, task) == alone[1]
    assert predict(predictor, first, task) == alone[0]
    assert (
        predict(predictor, None, task) == base == predict(make_predictor(task, dtype), None, task)
    )


def test_model_that_is_trained_in_4_bits_is_scored_in_4_bits(make_predictor) -> None:
    pytest.importorskip("bitsandbytes")
    quantized = make_predictor(quantization="nf4")
    kinds = {type(m).__name__ for m in quantized._base.modules()}
    assert "Linear4bit" in kinds
    found, plain = (
        [score.choice_logprobs for score in p.score(None, "p", PROMPT, RANKING.test)]
        for p in (quantized, make_predictor())
    )
    assert found != plain
    assert found[0] == pytest.approx(plain[0], rel=0.1)
