"""A complete prompt pool with rejects, whose author's name is hostile."""

from paft_ray.prompts.pool import Origin, Prompt, PromptPool, Rejected, rejects_to_table
from paft_ray.storage.artifacts import ArtifactWriter
from paft_ray.storage.paths import Storage, to_parquet
from paft_ray.tasks.example import SplitName

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


def make_pool(folder: Storage) -> Storage:
    """Write the pool; its folder is returned."""
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
