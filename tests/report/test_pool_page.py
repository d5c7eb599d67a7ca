"""The page of a prompt pool."""

import re
from pathlib import Path

import pytest
from synthetic_pool import ABOUT, make_pool

from paft_ray.config.errors import ArtifactError
from paft_ray.report import funnel_lines, write_pool_page
from paft_ray.report.pool_page import funnel
from paft_ray.storage.paths import Storage


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return make_pool(Storage.open(str(tmp_path / "pools" / "0123456789abcdef")))


def test_page_shows_funnel_authors_points_groups_and_examples_of_every_reject(folder):
    path = write_pool_page(folder)
    page = folder.read_bytes("pool.html").decode()
    assert path.endswith("pool.html")
    assert page.count("<circle") == 25
    for shown in ("20 training, 2 validation, 3 test prompts", "12,345", "0.0123", "nothing new"):
        assert shown in page, shown
    assert "lint: refusal (7)" in page
    assert page.count("sorry ") == 5, "examples, not all of them"
    assert "dedup: duplicate (5)" in page
    assert "maximum mean discrepancy" in page


def test_page_is_safe_and_fetches_nothing(folder):
    write_pool_page(folder)
    page = folder.read_bytes("pool.html").decode()
    assert page.count("<script") == 1
    assert "<b>small" not in page
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", page)
    assert "//" not in page.replace("</", "")


def test_page_of_an_incomplete_pool_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no complete pool"):
        write_pool_page(Storage.open(str(tmp_path)))


def test_funnel_says_why_there_are_more_prompts_than_were_asked_for():
    rejected = {**ABOUT["rejected"], "split: near_held_out": 3}
    about = {**ABOUT, "rejected": rejected, "train": 61}
    *_, kept, (stage, count, note) = funnel(about)
    assert kept == ("kept for a split", 22, "")
    assert (stage, count) == ("prompts in a split", 66)
    assert note == "a training instruction stands in several layouts"
    assert funnel_lines(about)[5].endswith(f" 66  ({note})")


def test_funnel_in_a_terminal_counts_every_stage_and_reject():
    text = "\n".join(funnel_lines(ABOUT))
    for stage, count in (("asked for", 40), ("parsed", 38), ("linted", 30), ("unique", 25)):
        assert re.search(rf"{stage}.* {count}$", text, re.MULTILINE), stage
    assert "28 of 30 requests answered, 12,345 tokens read, 678 written, cost 0.0123" in text
    assert "rejected: 7 lint: refusal, 5 dedup: duplicate" in text
    assert "ended early: nothing new" in text
