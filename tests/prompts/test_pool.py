"""The pool: nothing is lost silently, and nothing held out is known from training."""

import io
import json
import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paft_ray.config import PoolSplitConfig, PromptsConfig
from paft_ray.config.errors import ArtifactError, PoolError
from paft_ray.prompts import split as sp
from paft_ray.prompts.candidates import TableFile, keep_unique, lint_all
from paft_ray.prompts.dedup.deduplicate import InProcess
from paft_ray.prompts.dedup.similarity import similarity
from paft_ray.prompts.layouts import compose, enumerate_layouts, layout_of
from paft_ray.prompts.lint import lint
from paft_ray.prompts.pool import (
    CANDIDATES_SCHEMA,
    REJECTS_SCHEMA,
    Candidate,
    Origin,
    PoolBuild,
    PromptPool,
    Rejected,
    Survivors,
    assemble_pool,
    load_pool,
    rejects_to_table,
)
from paft_ray.prompts.template import clean
from paft_ray.storage.artifacts import ArtifactWriter
from paft_ray.storage.paths import Storage
from paft_ray.tasks.example import SPLITS, Task


def make_task(slots, options=None, choices=None):
    return Task("demo", "Say it.", slots, options or {}, choices, (), (), ())


MATHS = make_task(("question",))
PIQA = make_task(("goal", "sol1", "sol2"), {"sol1": "A", "sol2": "B"}, ("A", "B"))
LAYOUTS = enumerate_layouts(MATHS)
BY_LLM = Origin(llm="tiny", strategy="zero_shot", decoding_temperature=1.0, seed=7)
BY_FILE = Origin(file="prompts.txt")
VOCABULARY = [
    "".join(letters)
    for letters in random.Random(3).sample(list(permutations("aeioklmnrst", 5)), 80)
]


def build_pool(
    candidates: Sequence[Candidate], task: Task, config: PromptsConfig, seed: int
) -> PoolBuild:
    """A pool, and all that was rejected on the way, from candidates of this process."""
    execution = InProcess()
    with TableFile(CANDIDATES_SCHEMA) as linted, TableFile(REJECTS_SCHEMA) as rejects:
        rows = lint_all(candidates, None, task, config.lint, execution)
        found = keep_unique(rows, config, execution, linted, rejects)
        build = assemble_pool(found, task, config, seed)
        early = pq.read_table(io.BytesIO(rejects.content())).to_pylist()
    rejected = [Rejected(**{**row, "origin": Origin(**row["origin"])}) for row in early]
    return replace(build, rejected=(*rejected, *build.rejected))


def make_config(**changes):
    split = {"test": 4, "validation": 2, **changes.pop("split", {})}
    return PromptsConfig.model_validate({"files": ["x"], "split": split, **changes})


def sentences(count, seed=0, words=8):
    rng = random.Random(seed)
    return [" ".join(rng.choices(VOCABULARY, k=words)).capitalize() + "." for _ in range(count)]


def instructions(count, seed=0):
    return [Candidate(text, "instruction", BY_LLM) for text in sentences(count, seed)]


def templates(count, layouts=LAYOUTS, seed=1, origin=BY_FILE):
    return [
        Candidate(compose(text, layouts[i * 37 % len(layouts)]), "template", origin)
        for i, text in enumerate(sentences(count, seed))
    ]


def leaks(pool, task, threshold):
    """Every way in which two splits share a layout or a wording."""
    found = []
    for one, other in (("test", "train"), ("validation", "train"), ("test", "validation")):
        a, b = pool.prompts(one), pool.prompts(other)
        found += {p.layout for p in a} & {p.layout for p in b}
        found += {layout_of(p.text, task.slots) for p in a} & {
            layout_of(p.text, task.slots) for p in b
        }
        found += {p.cluster for p in a} & {p.cluster for p in b}
        found += [
            (p, q) for p in a for q in b if similarity(p.instruction, q.instruction) >= threshold
        ]
    return found


def assert_nothing_lost(candidates, build):
    """Of every text one candidate at most is in the pool, and all others are rejected."""
    prompts = [p for split in SPLITS for p in build.pool.prompts(split)]
    there = {plain(p.text) for p in prompts} | {plain(p.instruction) for p in prompts}
    rejected = Counter(plain(reject.text) for reject in build.rejected)
    for text, count in Counter(plain(c.text) for c in candidates).items():
        assert rejected[text] == count - (text in there), text


def plain(text):
    return " ".join(clean(text, escapes=True).split())


def test_build_instructions_exact_numbers_of_held_out_prompts_in_layouts_of_their_own():
    build = build_pool(instructions(60), MATHS, make_config(layouts_per_instruction=4), 0)
    pool = build.pool
    assert (len(pool.test), len(pool.validation), len(pool.train)) == (4, 2, 54 * 4)
    assert dict(build.counts) == {
        "candidates": 60, "linted": 60, "unique": 60, "train": 216, "validation": 2, "test": 4
    }  # fmt: skip
    held_out = [*pool.test, *pool.validation]
    assert len({prompt.layout for prompt in held_out}) == 6
    assert len({prompt.instruction for prompt in held_out}) == 6
    for instruction, count in Counter(p.instruction for p in pool.train).items():
        assert count == 4, instruction
    assert len({p.layout for p in pool.train}) > 100
    assert leaks(pool, MATHS, 0.5) == []


def test_build_every_prompt_is_a_good_template_with_a_content_id():
    pool = build_pool([*instructions(20), *templates(20)], MATHS, make_config(), 0).pool
    prompts = [prompt for split in SPLITS for prompt in pool.prompts(split)]
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        assert lint(prompt.text, MATHS, make_config().lint).problem is None
        assert prompt.instruction in prompt.text
        assert len(prompt.id) == len(prompt.cluster) == 16


words = st.lists(st.sampled_from(VOCABULARY[:14]), min_size=3, max_size=6).map(" ".join)
mixed = st.lists(
    st.builds(Candidate, words, st.just("instruction"), st.sampled_from([BY_LLM, BY_FILE]))
    | st.builds(
        lambda text, layout: Candidate(compose(text + ".", layout), "template", BY_FILE),
        words,
        st.sampled_from(LAYOUTS[::29]),
    ),
    min_size=4,
    max_size=40,
)


@settings(deadline=None, max_examples=40)
@given(mixed, st.integers(0, 3), st.floats(0.2, 0.9), st.randoms(use_true_random=False))
def test_build_any_candidates_nothing_leaks_nothing_is_lost_and_order_is_nothing(
    candidates, seed, threshold, rng
):
    config = make_config(split={"test": 2, "validation": 1, "similarity": threshold})
    try:
        build = build_pool(candidates, MATHS, config, seed)
    except PoolError as error:
        assert "candidate prompts survived" in str(error)
        return
    assert (len(build.pool.test), len(build.pool.validation)) == (2, 1)
    assert build.pool.train
    assert leaks(build.pool, MATHS, threshold) == []
    assert_nothing_lost(candidates, build)
    again = build_pool(rng.sample(candidates, len(candidates)), MATHS, config, seed)
    assert again.pool == build.pool
    assert sorted(map(repr, again.rejected)) == sorted(map(repr, build.rejected))


def test_build_another_seed_holds_out_others():
    candidates, config = instructions(60), make_config()
    pools = [build_pool(candidates, MATHS, config, seed).pool for seed in (0, 1)]
    assert pools[0].fingerprint != pools[1].fingerprint
    assert {p.instruction for p in pools[0].test} != {p.instruction for p in pools[1].test}


def test_build_template_in_a_held_out_layout_takes_that_layout_from_training():
    # templates in many layouts: whichever is held out, no instruction may train in its layout
    build = build_pool([*templates(40), *instructions(20)], MATHS, make_config(), 0)
    assert leaks(build.pool, MATHS, 0.5) == []
    assert {p.origin for p in build.pool.train} == {BY_LLM, BY_FILE}


def test_build_templates_of_few_layouts_several_held_out_prompts_share_one():
    layouts = [LAYOUTS[i] for i in (0, 100, 300)]
    candidates = [
        Candidate(compose(text, layouts[min(2, i // 10)]), "template", BY_FILE)
        for i, text in enumerate(sentences(60))
    ]
    build = build_pool(candidates, MATHS, make_config(), 0)
    assert Counter(p.layout for p in build.pool.train) == {layouts[2].key: 40}
    assert len({p.layout for p in build.pool.test}) == 1
    assert Counter((r.stage, r.reason) for r in build.rejected) == {
        ("split", sp.BESIDE_HELD_OUT): 14
    }
    assert leaks(build.pool, MATHS, 0.5) == []


def test_build_chain_of_likenesses_through_all_layouts_only_direct_likeness_costs_training():
    words = VOCABULARY[:60]
    windows = [" ".join(words[start : start + 8]).capitalize() + "." for start in range(50)]
    candidates = [
        Candidate(compose(text, LAYOUTS[(i % 7) * 50]), "template", BY_FILE)
        for i, text in enumerate(windows)
    ]
    build = build_pool(candidates, MATHS, make_config(), 0)
    assert (len(build.pool.test), len(build.pool.validation)) == (4, 2)
    assert len(build.pool.train) >= 15
    assert leaks(build.pool, MATHS, 0.5) == []
    assert_nothing_lost(candidates, build)
    near = [reject for reject in build.rejected if reject.reason == sp.NEAR_HELD_OUT]
    assert near
    assert all(reject.detail.startswith("similarity 0.") for reject in near)


def test_build_all_templates_of_one_layout_is_refused_with_counts_and_remedy():
    candidates = templates(30, LAYOUTS[:1]) + [Candidate("Bad {slot}", "template", BY_FILE)] * 2
    with pytest.raises(PoolError, match="30 of 32 candidate prompts survived") as caught:
        build_pool(candidates, MATHS, make_config(), 0)
    for piece in ("2 lint unknown_slot", "1 groups of like wording", "raise prompts.generation"):
        assert piece in str(caught.value)


def test_build_nothing_at_all_is_refused():
    with pytest.raises(PoolError, match="0 of 0 candidate prompts survived"):
        build_pool([], MATHS, make_config(), 0)


def test_build_rejects_say_stage_reason_and_detail():
    base = "Work out what is asked for in this question and answer it carefully."
    candidates = [
        *instructions(20),
        Candidate(base, "instruction", BY_LLM),
        Candidate(base.upper(), "instruction", BY_LLM),
        Candidate(base.replace("carefully", "with care"), "instruction", BY_LLM),
        Candidate("Too short", "instruction", BY_LLM),
        Candidate("{question} So?", "template", BY_LLM),
        Candidate("{question} So?", "template", BY_FILE),
        Candidate("{question} {hint}", "template", BY_FILE),
    ]
    build = build_pool(candidates, MATHS, make_config(dedup={"similarity": 0.7}), 0)
    reasons = Counter((r.stage, r.reason, r.origin.file) for r in build.rejected)
    assert reasons.pop(("lint", "too_short", None)) == 2
    assert reasons.pop(("lint", "unknown_slot", "prompts.txt")) == 1
    # which of the three alike is kept is up to their hashes
    assert set(reasons) <= {("dedup", "duplicate", None), ("dedup", "near_duplicate", None)}
    assert sum(reasons.values()) == 2
    assert all(reject.detail for reject in build.rejected)
    prompts = [p for split in SPLITS for p in build.pool.prompts(split)]
    assert [p.origin for p in prompts if p.text == "{question} So?"] == [BY_FILE]


def test_split_many_pieces_held_out_ones_are_unlike_all_training_pieces():
    rng = random.Random(5)
    pieces = []
    for text in sentences(250, seed=9, words=10):
        for _ in range(3):
            swapped = [rng.choice(VOCABULARY) if rng.random() < 0.3 else w for w in text.split()]
            pieces.append(sp.Piece(" ".join(swapped), None))
    config = PoolSplitConfig(test=30, validation=10, similarity=0.4)
    splits = [assignment.split for assignment in sp.split_pieces(pieces, config, 0)]
    assert (splits.count("test"), splits.count("validation")) == (30, 10)
    by_split = {
        s: [p.instruction for p, a in zip(pieces, splits, strict=True) if a == s] for s in SPLITS
    }
    assert len(by_split["train"]) > 500
    for one, other in (("test", "train"), ("validation", "train"), ("test", "validation")):
        assert all(similarity(a, b) < 0.4 for a in by_split[one] for b in by_split[other])


def test_split_with_a_held_out_author_tests_that_author_and_trains_nobody_else_but_him():
    pieces = [
        sp.Piece(text, None, f"llm-{index % 3}")
        for index, text in enumerate(sentences(120, seed=3, words=10))
    ]
    config = PoolSplitConfig(test=8, validation=5, held_out_llm="llm-1")
    splits = sp.split_pieces(pieces, config, 0)
    by_author = Counter((piece.author, a.split) for piece, a in zip(pieces, splits, strict=True))
    assert by_author["llm-1", "test"] == 8
    assert by_author["llm-1", "train"] == by_author["llm-1", "validation"] == 0
    assert by_author["llm-0", "test"] == by_author["llm-2", "test"] == 0
    assert by_author["llm-0", "validation"] + by_author["llm-2", "validation"] == 5
    assert by_author["llm-0", "train"] + by_author["llm-2", "train"] == 75
    reasons = {a.reason for p, a in zip(pieces, splits, strict=True) if a.split is None}
    assert reasons == {sp.HELD_OUT_AUTHOR}


def test_split_with_two_held_out_authors_tests_half_of_each():
    pieces = [
        sp.Piece(text, None, ("file", "llm-0", "llm-1")[index % 3])
        for index, text in enumerate(sentences(150, seed=3, words=10))
    ]
    config = PoolSplitConfig(test=9, validation=5, held_out_llm="llm-1", held_out_file="file")
    splits = sp.split_pieces(pieces, config, 0)
    by_author = Counter((piece.author, a.split) for piece, a in zip(pieces, splits, strict=True))
    assert by_author == {
        ("file", "test"): 5, ("file", None): 45, ("llm-1", "test"): 4, ("llm-1", None): 46,
        ("llm-0", "validation"): 5, ("llm-0", "train"): 45,
    }  # fmt: skip


def test_pool_with_a_held_out_file_tests_its_prompts_and_trains_on_none_of_them():
    written = [Candidate(text, "instruction", BY_LLM) for text in sentences(60, seed=3)]
    by_hand = [
        Candidate(compose(text, layout), "template", Origin(file="stock:mine"))
        for text, layout in zip(sentences(12, seed=4), LAYOUTS, strict=False)
    ]
    split = PoolSplitConfig(test=6, validation=3, held_out_file="stock:mine")
    config = PromptsConfig(
        files=("stock:mine", "other.txt"), split=split, layouts_per_instruction=2
    )
    found = Survivors((*written, *by_hand), {"candidates": 72, "linted": 72, "unique": 72}, {})
    built = assemble_pool(found, MATHS, config, 0)
    assert {prompt.origin.file for prompt in built.pool.test} == {"stock:mine"}
    others = (*built.pool.train, *built.pool.validation)
    assert {prompt.origin for prompt in others} == {BY_LLM}
    assert {reject.reason for reject in built.rejected} == {sp.HELD_OUT_AUTHOR}
    layouts = {prompt.layout for prompt in built.pool.test}
    assert layouts.isdisjoint(prompt.layout for prompt in others)


def test_split_with_a_held_out_author_who_wrote_too_little_is_refused():
    pieces = [sp.Piece(text, None, "a") for text in sentences(40, seed=3, words=10)]
    with pytest.raises(sp.TooFewError):
        sp.split_pieces(pieces, PoolSplitConfig(test=2, validation=1, held_out_llm="b"), 0)


def test_place_instruction_that_looks_like_a_field_name_brings_no_known_layout():
    # "... Input:" in front of a bare field reads like the layout that names its field Input
    starts = ("{instruction} {question}", "{instruction} Input: {question}")
    layouts = [layout for layout in LAYOUTS if layout.skeleton.startswith(starts)]
    pieces = [sp.Piece(f"{text} Input:", None) for text in sentences(40)]
    config = make_config(split={"validation": 0})
    assignments = sp.split_pieces(pieces, config.split, 0)
    placed = sp.place_instructions(pieces, assignments, layouts, MATHS.slots, config, 0)
    seen = {split: set() for split in SPLITS}
    for piece, assignment, chosen in zip(pieces, assignments, placed, strict=True):
        assert chosen
        texts = [compose(piece.instruction, layout) for layout in chosen]
        seen[assignment.split] |= {layout_of(text, MATHS.slots) for text in texts}
    assert seen["test"]
    assert seen["test"].isdisjoint(seen["train"])


def test_take_is_nested_keeps_held_out_prompts_and_all_is_all():
    pool = build_pool(instructions(30), MATHS, make_config(), 0).pool
    taken = [pool.take(n) for n in range(1, len(pool.train) + 1)]
    for smaller, larger in pairwise(taken):
        assert larger.train[:-1] == smaller.train
        assert (smaller.test, smaller.validation) == (pool.test, pool.validation)
    assert taken[-1] == pool
    assert len({smaller.fingerprint for smaller in taken}) == len(taken)


def test_take_small_pool_mixes_instructions_and_layouts():
    pool = build_pool(instructions(60), MATHS, make_config(), 0).pool.take(24)
    assert len({p.instruction for p in pool.train}) >= 15
    assert len({p.layout for p in pool.train}) >= 20


@pytest.mark.parametrize(
    ("n", "message"),
    [
        (73, r"prompts.pool_size \(73\) is more than the 72 training prompts of this pool: lower"),
        (0, r"prompts.pool_size \(0\) is less than 1: raise it"),
    ],
)
def test_take_impossible_size_is_refused(n, message):
    pool = build_pool(instructions(30), MATHS, make_config(), 0).pool
    with pytest.raises(PoolError, match=message):
        pool.take(n)


def test_pool_saved_and_loaded_is_the_same(tmp_path):
    pool = build_pool([*instructions(20), *templates(20)], MATHS, make_config(), 0).pool
    scored = PromptPool.from_table(pool.to_table())
    assert scored == pool
    writer = ArtifactWriter(Storage.open(str(tmp_path)))
    pool.save(writer)
    with pytest.raises(ArtifactError, match="no complete pool; run `paft prompts`"):
        load_pool(writer.folder)
    writer.commit("0" * 16, {})
    assert load_pool(writer.folder) == pool
    assert load_pool(writer.folder).fingerprint == pool.fingerprint


def test_pool_table_has_the_promised_columns_and_keeps_scores():
    pool = build_pool(instructions(20), MATHS, make_config(), 0).pool
    table = pool.to_table()
    assert table.column_names == [
        "prompt_id", "text", "instruction", "layout", "split", "cluster", "origin", "scores"
    ]  # fmt: skip
    rows = table.to_pylist()
    rows[0]["scores"] = [("base", 0.5)]
    again = PromptPool.from_table(table.from_pylist(rows, table.schema))
    assert (again.train[0].scores, again.train[1].scores) == ({"base": 0.5}, {})
    assert rows[0]["origin"]["llm"] == "tiny"


def test_pool_table_without_a_column_is_refused():
    table = build_pool(instructions(20), MATHS, make_config(), 0).pool.to_table()
    with pytest.raises(ArtifactError, match=r"columns \['layout'\] are missing"):
        PromptPool.from_table(table.drop_columns(["layout"]))


def test_rejects_as_table_keep_origin_and_reason():
    candidates = [*instructions(20), Candidate("No slot", "template", BY_FILE)]
    build = build_pool(candidates, MATHS, make_config(), 0)
    [row] = rejects_to_table(build.rejected).to_pylist()
    assert (row["text"], row["stage"], row["reason"]) == ("No slot", "lint", "missing_slot")
    assert row["origin"]["file"] == "prompts.txt"
    assert rejects_to_table([]).column_names[:4] == ["text", "stage", "reason", "origin"]


def authors(name):
    root = os.environ.get("PAFT_SHARED_DATA")
    folder = Path(root) if root else Path(__file__).resolve().parents[3] / "shared" / "data"
    path = folder / "paft_authors" / f"{name}_candidates.jsonl"
    if not path.exists():
        pytest.skip(f"the authors' prompts are not at {path}; set PAFT_SHARED_DATA")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Candidate(json.loads(line)["text"], "template", BY_FILE) for line in lines]


LETTERS = {letter: letter for letter in "ABCD"}
HELLASWAG = make_task(("ctx", *LETTERS), LETTERS, tuple(LETTERS))


@pytest.mark.parametrize(("name", "task"), [("piqa", PIQA), ("hellaswag", HELLASWAG)])
def test_build_authors_prompts_twelve_and_four_are_held_out_and_most_train(name, task):
    candidates = authors(name)
    build = build_pool(candidates, task, PromptsConfig(files=("x",)), 0)
    assert (len(build.pool.test), len(build.pool.validation)) == (12, 4)
    assert len(build.pool.train) >= 0.7 * build.counts["unique"]
    assert len({p.layout for p in build.pool.test}) >= 8
    assert leaks(build.pool, task, 0.5) == []
    assert_nothing_lost(candidates, build)
