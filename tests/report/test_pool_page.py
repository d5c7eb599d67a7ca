"""The page of a prompt pool."""

import re

import pytest

from paft_ray.artifacts import ArtifactWriter, Storage, to_parquet
from paft_ray.errors import ArtifactError
from paft_ray.prompts.pool import Origin, Prompt, PromptPool, Rejected, rejects_to_table
from paft_ray.report import funnel_lines, write_pool_page
from paft_ray.tasks.base import SplitName

ABOUT = {
    "candidates": 38, "linted": 30, "unique": 25, "from_files": 10, "requests": 30,
    "train": 20, "validation": 2, "test": 3, "stopped": "nothing new",
    "rejected": {"lint: refusal": 7, "dedup: duplicate": 5},
    "llms": [{
        "llm": "<b>small</b>", "requests": 30, "answered": 28, "failed": 2,
        "prompt_tokens": 12345, "completion_tokens": 678, "cost": 0.0123,
    }],
}  # fmt: skip


def make_prompts(split: SplitName, count: int) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(
            id=f"{split}{n}",
            text=f"{split} asks {n} times {{x}}\nAnswer:",
            instruction=f"{split} asks {n} times",
            layout=f"l{n}",
            split=split,
            cluster=f"{split}{n % 4}",
            origin=Origin(llm="<b>small</b>"),
        )
        for n in range(count)
    )


@pytest.fixture
def folder(tmp_path) -> Storage:
    folder = Storage.open(str(tmp_path / "pools" / "0123456789abcdef"))
    pool = PromptPool(
        make_prompts("train", 20), make_prompts("validation", 2), make_prompts("test", 3)
    )
    rejects = [
        Rejected(f"no <script>{n}</script>", "lint", "refusal", Origin(), f"sorry {n}")
        for n in range(7)
    ]
    rejects += [Rejected("again", "dedup", "duplicate", Origin(), "similarity 1.00")] * 5
    writer = ArtifactWriter(folder)
    pool.save(writer)
    writer.add("rejected.parquet", to_parquet(rejects_to_table(rejects)))
    writer.commit("0123456789abcdef", ABOUT)
    return folder


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
    assert "<script" not in page
    assert "<b>small" not in page
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", page)
    assert "http" not in page


def test_page_of_an_incomplete_pool_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no complete pool"):
        write_pool_page(Storage.open(str(tmp_path)))


def test_funnel_in_a_terminal_counts_every_stage_and_reject():
    text = "\n".join(funnel_lines(ABOUT))
    for stage, count in (("asked for", 40), ("parsed", 38), ("linted", 30), ("unique", 25)):
        assert re.search(rf"{stage}.* {count}$", text, re.MULTILINE), stage
    assert "28 of 30 requests answered, 12,345 tokens read, 678 written, cost 0.0123" in text
    assert "rejected: 7 lint: refusal, 5 dedup: duplicate" in text
    assert "ended early: nothing new" in text
