"""Texts from outside, made safe for terminals, shells and Markdown."""

import json
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from paft_ray.config.visible import markdown, markdown_block, markdown_code, shell_words, visible

hostile = st.text(
    "ab \n\t`*_[]()<>#!|~&$\\\\'\"-+=.:/\x1b\x07\x7f\x9b\u202e\ufeff\U000e0041漢", max_size=40
)
lines = hostile.map(lambda text: " ".join(text.split()))


@given(hostile)
def test_json_is_the_same_value_when_it_was_made_visible(text: str):
    shown = visible(json.dumps({text: text}, ensure_ascii=False))
    assert json.loads(shown) == {text: text}
    assert shown.replace("\n", "").replace("\t", "").isprintable()


def rendered(text: str) -> str:
    [_, inline, *_] = MarkdownIt().enable("table").parse(f"x{text}x")
    assert {child.type for child in inline.children or ()} <= {"text", "text_special"}
    return "".join(child.content for child in inline.children or ())


@given(lines)
def test_text_stands_in_markdown_as_it_is(text: str):
    assert rendered(markdown(text)) == f"x{visible(text)}x"


@given(lines)
def test_code_and_blocks_hold_whatever_there_is(text: str):
    [_, inline, *_] = MarkdownIt().parse(f"x {markdown_code(text)} x")
    codes = [child.content for child in inline.children or () if child.type == "code_inline"]
    assert [code.strip() for code in codes] == [visible(text)] or not text


@given(hostile)
def test_nothing_ends_a_block_of_code(text: str):
    tokens = MarkdownIt().parse(f"{markdown_block(text, 'yaml')}\n\nend")
    assert [token.type for token in tokens[:2]] == ["fence", "paragraph_open"]
    assert tokens[0].content == f"{visible(text)}\n"


@pytest.mark.parametrize("word", ["a b", "$(touch x)", "a'b\"c", "%41?x#y", "", "-x;ls", "*"])
def test_shell_reads_the_words_that_were_quoted(word: str):
    command = shell_words(["printf", "%s", word])
    assert subprocess.run(["sh", "-c", command], capture_output=True, text=True).stdout == word
