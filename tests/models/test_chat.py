"""Chat templates as models bring them: shown once, without thinking, on every day the same."""

import json
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from paft_ray.cli import call
from paft_ray.config import ModelConfig
from paft_ray.config.errors import ConfigError, DataError
from paft_ray.config.loading import load_config
from paft_ray.models.chat import open_chat, renders_anew
from paft_ray.models.load import load_tokenizer
from paft_ray.models.tokenization import TextEncoder
from paft_ray.pipeline.perform import open_context
from paft_ray.prompts.build import pool_fingerprint

_TURNS = (
    "{%- for m in messages %}{{ '<' + m.role + '>' + m.content + '</' + m.role + '>\\n' }}"
    "{%- endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}"
)
PLAIN = f"{_TURNS}{{% endif %}}"
QWEN = (
    _TURNS + "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{% endif %}"
)
DEEPSEEK = (
    "{% if not thinking is defined %}{% set thinking = true %}{% endif %}"
    + _TURNS
    + "{%- if thinking %}{{ '<think>' }}{% else %}{{ '</think>' }}{% endif %}{% endif %}"
)
GRANITE = (
    "{% if thinking %}{{ 'Respond with your thoughts first.\\n' }}{% endif %}"
    + _TURNS
    + "{% endif %}"
)
GPT_OSS = (
    "{%- if reasoning_effort is not defined %}{%- set reasoning_effort = 'medium' %}{%- endif %}"
    "{{ 'Today: ' + strftime_now('%Y-%m-%d') + '\\nReasoning: ' + reasoning_effort + '\\n' }}"
    + PLAIN
)
MISTRAL = (
    "{% set reasoning_effort = reasoning_effort | default('high') %}"
    "{% if reasoning_effort not in ['none', 'high'] %}{{ raise_exception('bad') }}{% endif %}"
    "{{ '[' + reasoning_effort + ']' }}" + PLAIN
)
BUDGET = (
    "{% if thinking_budget is defined and thinking_budget == 0 %}{{ 'no thoughts\\n' }}{% endif %}"
    + PLAIN
)
DISABLE = _TURNS + "{% if not disable_thinking %}{{ '<think>\\n' }}{% endif %}{% endif %}"
MISNAMED = _TURNS + "{% if not thinks_never %}{{ '<think>\\n' }}{% endif %}{% endif %}"
NEMOTRON = (
    "{% set ns = namespace(on=true) %}{% for m in messages %}"
    "{% if '/no_think' in m.content %}{% set ns.on = false %}{% endif %}"
    "{{ '<' + m.role + '>' + m.content.replace('/no_think', '') }}{% endfor %}"
    "{{ '<assistant>' }}{% if ns.on %}{{ '<think>\\n' }}{% else %}{{ '<think></think>' }}"
    "{% endif %}"
)
ALWAYS = _TURNS + "{{ '<think>\\n' }}{% endif %}"
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<start>' + m.role + '\\n' + m.content | trim + '<end>' }}"
    "{% endfor %}{{ '<start>model\\n' }}"
)
LLAMA = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ 'Today Date: ' + date_string + '\\n' }}" + PLAIN
)
PARTS = (
    "{% for m in messages %}{% for part in m.content %}{{ part['text'] }}{% endfor %}{% endfor %}"
    "{{ ' ->' }}"
)


@pytest.fixture
def chat_of(tiny_model: Path) -> Any:
    def make(template: str, system: str | None = None, **arguments: Any) -> Any:
        tokenizer = load_tokenizer(str(tiny_model))
        tokenizer.bos_token = tokenizer.eos_token
        tokenizer.chat_template = template
        return open_chat(tokenizer, system, arguments)

    return make


@pytest.fixture
def on_other_days(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets the date that transformers prints."""

    def set_date(*date: int) -> None:
        class Frozen(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return datetime(*date)

        monkeypatch.setattr(chat_template_utils, "datetime", Frozen)

    yield set_date


@pytest.mark.parametrize(
    ("template", "arguments", "ends"),
    [
        (QWEN, {"enable_thinking": False}, "<assistant><think>\n\n</think>\n\n"),
        (DEEPSEEK, {"thinking": False}, "<assistant></think>"),
        (MISTRAL, {"reasoning_effort": "none"}, "<assistant>"),
        (BUDGET, {"thinking_budget": 0}, "<assistant>"),
        (DISABLE, {"disable_thinking": True}, "<assistant>"),
        (MISNAMED, {"thinks_never": True}, "<assistant>"),
    ],
    ids=["qwen", "deepseek", "mistral", "budget", "disable", "misnamed"],
)
def test_thinking_is_switched_off_where_the_template_can(
    template: str, arguments: dict[str, Any], ends: str, chat_of: Any
) -> None:
    chat = chat_of(template)
    assert chat.arguments == arguments
    assert chat.ask("the film").endswith(ends)
    assert [note for note in chat.notes if "thinking is switched off" in note]


def test_thinking_that_only_gets_lower_is_called_so_and_the_date_is_pinned(
    chat_of: Any, on_other_days: Any
) -> None:
    on_other_days(2030, 5, 6)
    chat = chat_of(GPT_OSS)
    first = chat.ask("the film")
    on_other_days(2031, 7, 8)
    assert chat_of(GPT_OSS).ask("the film") == chat.ask("the film") == first
    assert first.startswith("Today: 2025-01-01\nReasoning: low\n<user>the film</user>")
    assert [n for n in chat.notes if "its lowest, it cannot be switched off" in n]
    assert [n for n in chat.notes if "prints the date: it is always 2025-01-01" in n]


def test_date_is_given_by_the_templates_own_variable(chat_of: Any) -> None:
    [note] = chat_of(LLAMA).notes
    assert "set date_string under model.chat_template_kwargs" in note
    assert chat_of(LLAMA).ask("x").startswith("Today Date: 01 Jan 2025\n<user>x")
    given = chat_of(LLAMA, date_string="26 Jul 2024")
    assert given.ask("x").startswith("Today Date: 26 Jul 2024\n<user>x") and given.notes == ()


def test_thinking_is_left_as_the_user_sets_it(chat_of: Any) -> None:
    chat = chat_of(DEEPSEEK, thinking=True)
    assert chat.ask("x").endswith("<think>")
    [note] = chat.notes
    assert "opens <think> before every answer with thinking: True" in note


def test_thinking_that_is_off_by_default_or_unknown_changes_nothing(chat_of: Any) -> None:
    for template in (GRANITE, PLAIN):
        chat = chat_of(template)
        assert (chat.arguments, chat.notes) == ({}, ())
        assert chat.ask("x") == "<user>x</user>\n<assistant>"


def test_thinking_is_switched_off_by_a_word_in_the_system_message(chat_of: Any) -> None:
    chat = chat_of(NEMOTRON, "Be brief.")
    assert chat.ask("x") == "<system>Be brief.\n<user>x<assistant><think></think>"
    [note] = chat.notes
    assert "/no_think" in note


def test_template_that_always_opens_its_reasoning_is_named(chat_of: Any) -> None:
    [note] = chat_of(ALWAYS).notes
    assert "opens <think> before every answer, without a switch" in note


def test_system_message_is_shown_or_begins_the_users_text(chat_of: Any) -> None:
    shown = chat_of(PLAIN, "Be brief.")
    assert shown.ask("x") == "<system>Be brief.</system>\n<user>x</user>\n<assistant>"
    assert shown.notes == ()
    folded = chat_of(GEMMA, "Be brief.")
    assert folded.ask("x").endswith("<start>user\nBe brief.\n\nx<end><start>model\n")
    [note] = folded.notes
    assert "takes no system message" in note
    # as authors of candidates send it
    assert "<start>user\nA\n\nB<end>" in chat_of(GEMMA).render([("system", "A"), ("user", "B")])


def test_contents_are_given_in_parts_to_a_template_that_reads_no_text(chat_of: Any) -> None:
    assert chat_of(PARTS).ask("the film") == "the film ->"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 'hello' }}", "shows a user's message 0 times"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "0 times"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "2 times"),
        ("{% for m in messages %}{{ m.content[:20] }}{% endfor %}", "0 times"),
        ("{{ raise_exception('never') }}", "never"),
        ("{{ messages[0].content.nothing.at_all }}", "fails"),
        ("{{ messages[3].content + 1 }}", "fails"),
        ("{% for m in messages %}", "cannot be read"),
        ("{{ bos_token + bos_token + messages[0].content }}", "twice"),
        ("{{ messages.append(messages[0]) }}{{ messages[0].content }}", "fails"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages[0].content }}", "fails"),
    ],
)
def test_template_that_fails_or_changes_the_text_is_refused(
    template: str, said: str, chat_of: Any
) -> None:
    with pytest.raises(ConfigError, match=f"model.chat_template: .*{said}"):
        chat_of(template)


def test_text_that_a_template_does_not_render_is_named(chat_of: Any) -> None:
    chat = chat_of(
        "{% if 'bad' in messages[0].content %}{{ raise_exception('not this') }}{% endif %}" + PLAIN
    )
    with pytest.raises(DataError, match=r"does not render 'a bad film' \(not this\)"):
        chat.ask("a bad film")


@pytest.mark.parametrize("name", ["enable_thinkng", "tokenize", "messages", "strftime_now"])
def test_variable_that_no_template_reads_is_refused(name: str, chat_of: Any) -> None:
    with pytest.raises(ConfigError, match=f"model.chat_template_kwargs: .*{name}"):
        chat_of(QWEN, **{name: False})


def test_first_token_stands_once_where_template_and_tokenizer_write_it(tiny_model: Path) -> None:
    from tokenizers import processors

    tokenizer: Any = load_tokenizer(str(tiny_model))
    tokenizer.bos_token, bos = tokenizer.eos_token, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{tokenizer.eos_token} $A", special_tokens=[(tokenizer.eos_token, bos)]
    )
    tokenizer.chat_template = "{{ bos_token }}" + PLAIN
    assert tokenizer("x")["input_ids"][0] == bos
    encoder = TextEncoder(tokenizer, "auto")
    [encoded] = encoder.encode(lambda _: "the film", {}, ["good"])
    assert encoded.context_ids.count(bos) == 1


def test_blanks_that_end_a_chat_move_to_the_answer(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.chat_template = "{{ messages[0].content + '\\nAnswer: ' }}"
    encoder = TextEncoder(tokenizer, "auto")
    assert encoder.context("the film") == ("the film\nAnswer:", " ")
    [chat] = encoder.encode(lambda _: "the film", {}, ["good"])
    [plain] = TextEncoder(tokenizer).encode(lambda _: "the film\nAnswer: ", {}, ["good"])
    assert chat == plain


def test_settings_of_a_chat_need_one() -> None:
    for settings in ({"system": "Be brief."}, {"chat_template_kwargs": {"a": 1}}):
        with pytest.raises(ValidationError, match="set chat_template: auto"):
            ModelConfig(path="m", **settings)
    given: dict[str, Any] = {"chat_template": "auto", "chat_template_kwargs": {"day": datetime.min}}
    assert ModelConfig(path="m", **given).chat_template_kwargs == {"day": "0001-01-01 00:00:00"}


def write_model(folder: Path, model: Path, template: str) -> Path:
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def test_identities_move_where_the_rendering_does(
    tmp_path: Path, tiny_model: Path, small_run: dict[str, Any]
) -> None:
    def identity(template: str | None, *overrides: str) -> tuple[str, str]:
        folder = tmp_path / f"model-{len([*tmp_path.iterdir()])}"
        path = tiny_model if template is None else write_model(folder, tiny_model, template)
        config = load_config(small_run, [f"model.path={path}", "prompts.probe={}", *overrides])
        context = open_context(config)
        return context.model_identity, pool_fingerprint(context)

    assert not renders_anew(PLAIN)
    assert identity(PLAIN) == identity(PLAIN)
    auto = "model.chat_template=auto"
    assert identity(PLAIN, auto)[0] == identity(PLAIN)[0]
    assert identity(None, auto)[0] == identity(None)[0]
    for template in (QWEN, GPT_OSS, LLAMA, NEMOTRON):
        assert identity(template, auto)[0] != identity(template)[0]
    pools = [
        identity(QWEN, auto, *more)[1]
        for more in ([], ["model.system=a"], ["model.chat_template_kwargs={enable_thinking: true}"])
    ]
    assert len(set(pools)) == 3


def test_plan_says_what_becomes_of_a_chat_template_and_refuses_a_bad_one(
    tmp_path: Path, tiny_model: Path, small_run: dict[str, Any], warm_checks: None,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    small_run["model"] |= {
        "path": str(write_model(tmp_path / "m", tiny_model, QWEN)),
        "chat_template": "auto",
    }
    (run := tmp_path / "config.yaml").write_text(yaml.safe_dump(small_run), encoding="utf-8")
    assert call(["plan", str(run), "--json"]) == 0
    [note] = json.loads(capfd.readouterr().out.splitlines()[-1])["chat_template"]
    assert note == "thinking is switched off in its chat template (enable_thinking: false)"
    (tmp_path / "m/chat_template.jinja").write_text("{{ 'hello' }}", encoding="utf-8")
    for verb in ("plan", "prompts"):
        assert call([verb, str(run)]) == 2
        assert "shows a user's message 0 times" in capfd.readouterr().err
    assert not (tmp_path / "storage").exists()


def test_rendering_is_that_of_the_tokenizer_where_nothing_is_changed(chat_of: Any) -> None:
    chat = chat_of(PLAIN)
    tokenizer: PreTrainedTokenizerBase = chat.tokenizer
    messages = [{"role": "user", "content": "the film"}]
    plain = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chat.ask("the film") == plain
