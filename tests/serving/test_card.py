"""The model card: its content, and that it stays Markdown and YAML whatever texts it holds."""

import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from paft_ray.config import Config
from paft_ray.serving.card import Evaluation, Form, render_card
from paft_ray.serving.record import TrainingRecord
from paft_ray.tasks import Example, Task

EXAMPLE = Example("0" * 16, {"review": "a secret review"}, "positive")
TASK = Task(
    "reviews", "Say how it feels: {% raw %} <b>", ("review",), {}, ("positive", "negative"),
    (EXAMPLE,) * 1200, (EXAMPLE,) * 8, (EXAMPLE,) * 25,
)  # fmt: skip
ABOUT: dict[str, Any] = {
    "variant": "paft", "seed": 3, "steps": 150, "tokens": 58561, "answer_tokens": 1200,
    "trimmed": 0, "seconds": 243.526, "prompts": 351, "workers": 2, "dtype": "bfloat16",
    "prompt": {"id": "p", "text": 'Is it "good"?\n{review}\n```\nAnswer:'}, "last_loss": 0.10014,
    "made_from": {"task": "aaaa", "model": "bbbb", "pool": "cccc"},
    "verified": {"tensors": 120, "change": 0.05, "loss": 0.25, "loss_reloaded": 0.25},
    "versions": {"paft_ray": "0.1.0", "peft": "0.21.2"},
}  # fmt: skip


def card(
    path: str = "owner/model",
    revision: str | None = None,
    form: Form = "adapter",
    evaluation: Evaluation | None = None,
    task: Task = TASK,
    **about: Any,
) -> str:
    config = Config.model_validate(
        {
            "name": "x",
            "storage": "/home/somebody/storage",
            "task": {
                "type": "custom", "name": "reviews", "description": "Say how it feels.",
                "path": "none.jsonl", "fields": {"review": "review"}, "answer": "label",
            },
            "prompts": {"generation": {"llms": [{"type": "fake"}]}},
            "model": {"path": path, "revision": revision},
            "train": {"steps": 150},
        }
    )  # fmt: skip
    return render_card(
        config, task, "dddd", TrainingRecord.from_json({**ABOUT, **about}), evaluation, form
    )


def header(text: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert found is not None
    return yaml.safe_load(found.group(1))


def test_card_names_what_the_adapter_was_made_of() -> None:
    text = card(revision="abc123")
    for figure in (
        "1,200 train, 8 validation, 25 test", "`aaaa`", "`bbbb`", "`cccc`", "`dddd`", "351",
        "150 of 8 sequences", "58,561", "0.1001", "inf (uniform)", "steps per prompt (K) | 1",
        "2 workers", "244", "120 tensors equal", "peft 0.21.2", "abc123", "learning_rate: 0.0002",
        "LORA",
    ):  # fmt: skip
        assert figure in text, figure


def test_card_of_a_training_that_ended_early_names_its_best_step() -> None:
    validated = {
        "best": 80, "figure": 0.7519, "goal": "mean accuracy", "kept": True, "planned": 1200,
        "prompts": 4, "examples": 64,
    }  # fmt: skip
    text = card(validated=validated)
    assert "| steps | 150 of 8 sequences (of 1,200 planned) |" in text
    assert (
        "| best step on validation prompts | 80: mean accuracy 75.2% over 4 prompts x 64 examples; "
        "these are its weights |\n| steps per prompt (K)" in text
    )
    assert "validation prompts" not in card()


def test_card_has_the_header_of_a_hub_model_and_states_no_license() -> None:
    found = header(card())
    assert found["base_model"] == "owner/model"
    assert found["library_name"] == "peft"
    assert "reviews" in found["tags"]
    assert "license" not in found
    assert header(card(form="merged"))["library_name"] == "transformers"


def test_card_shows_no_row_of_the_data_and_no_place_of_the_storage() -> None:
    text = card()
    assert "a secret review" not in text
    assert "somebody" not in text


def test_card_names_a_local_base_by_its_last_part() -> None:
    assert header(card(path="/srv/models/small"))["base_model"] == "small"


def test_card_has_the_table_only_after_an_evaluation() -> None:
    assert "Not evaluated on held-out prompts yet" in card()
    rows = (("base model", "53.9", "5.9"), ("PAFT, 150 steps", "73.6", "5.8"))
    text = card(evaluation=Evaluation(("mean", "std over prompts"), rows, 12, 60))
    assert "| PAFT, 150 steps | 73.6 | 5.8 |" in text
    assert "12 held-out prompts x 60 test examples" in text
    assert "Not evaluated" not in text


def test_code_says_where_a_relative_folder_of_the_base_model_counts_from() -> None:
    said = "as seen from where the run was started"
    assert said not in card()
    assert said not in card(path="/srv/models/small")
    assert said in card(path="./merged") and said in card(path="./model.gguf")


def test_card_describes_free_text_and_a_single_prompt() -> None:
    text = card(task=replace(TASK, choices=None), prompts=1)
    assert "generated greedily" in text
    assert "rendered through one prompt" in text


@pytest.mark.parametrize("form", ["adapter", "merged", "pyfunc", "model"])
@pytest.mark.parametrize("path", ["owner/model", "./model.gguf"])
def test_code_in_a_card_is_python_whatever_the_prompt_holds(form: Form, path: str) -> None:
    code = card(path=path, form=form).partition("```python\n")[2].partition("\n```\n")[0]
    compile(code, "card", "exec")
    assert form == "pyfunc" or (
        r'parts = ["Is it \"good\"?\n", "review", "\n```\nAnswer:"]' in code
    )


HOSTILE = (
    "</code><script>alert(1)</script> ![x](http://evil/x.png) | a | b |\n```\n# Heading\n"
    "---\n[link](javascript:x) `tick` <img src=x> https://evil/ *bold* &lt; \x1b[31m "
    "\u202e {{ 7*7 }}"
)


@pytest.mark.parametrize("form", ["adapter", "merged", "pyfunc", "model"])
def test_texts_from_outside_stay_text_in_a_card(form: Form) -> None:
    """As a Markdown renderer with tables and links reads it, which loads no picture for it."""
    task = replace(
        TASK, name=HOSTILE, description=HOSTILE, choices=(HOSTILE, "b"), slots=(HOSTILE,)
    )
    rows = ((HOSTILE, "53.9"), ("b", HOSTILE))
    text = card(
        path=f"/models/{HOSTILE.replace('/', '')}", revision=HOSTILE, form=form, task=task,
        evaluation=Evaluation((HOSTILE,), rows, 12, 60), variant=HOSTILE,
        prompt={"id": "p", "text": HOSTILE}, versions={"paft_ray": HOSTILE, HOSTILE: "1"},
        made_from=dict.fromkeys(("task", "model", "pool"), "aaaa"),
    )  # fmt: skip
    assert header(text)["tags"][-1] == HOSTILE
    assert "\x1b" not in text and "\u202e" not in text
    body = text.partition("\n---\n")[2]
    renderer = MarkdownIt("commonmark", {"html": True, "linkify": False}).enable("table")
    tokens = renderer.parse(body)
    inner = [child for token in tokens for child in token.children or ()]
    kinds = {token.type for token in (*tokens, *inner)}
    assert not kinds & {"image", "html_inline", "em_open"}
    assert [t.attrs["href"] for t in inner if t.type == "link_open"] == [
        "https://arxiv.org/abs/2502.12859"
    ]
    html = [token.content for token in tokens if token.type == "html_block"]
    assert len(html) == 1 and "No license" in html[0]
    headings = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    assert headings[1:] == ["Use", "Data and prompts", "Training", "Evaluation", "Configuration"]
    cells = [tokens[i + 1] for i, t in enumerate(tokens) if t.type in ("th_open", "td_open")]
    shown = ["".join(child.content for child in cell.children) for cell in cells]
    plain = " ".join(HOSTILE.split()).replace("\x1b", r"\u001b").replace("\u202e", r"\u202e")
    assert shown[-6:] == ["model", plain, plain, "53.9", "b", plain]
    [code, tree] = [token.content for token in tokens if token.type == "fence"]
    compile(code, "card", "exec")
    yaml.safe_load(tree)
