"""Builds a prompt pool with its page and tracks both, for every command that needs a pool."""

import json
from itertools import islice

from paft_ray.prompts.build import build_prompt_pool, pool_fingerprint
from paft_ray.prompts.pool import POOL_FILE, PromptPool
from paft_ray.prompts.tested import tested_pool
from paft_ray.report.pool_page import POOL_PAGE, write_pool_page
from paft_ray.runs.context import RUN_KEY, RunContext
from paft_ray.runs.progress import tell
from paft_ray.storage.paths import to_json
from paft_ray.tasks.example import SPLITS
from paft_ray.tracking import TrackedRun, open_tracker, pool_version

_TOLD = 3
"""Prompts of each kind that are shown on the screen."""


def build_published_pool(context: RunContext) -> PromptPool:
    """Build the pool or find it built, write its page, and track both.

    In MLflow the pool is a table in its own run, and a version in the registry, which trainings
    refer to.
    """
    pool = build_prompt_pool(context)
    _tell_prompts(context, pool)
    folder = context.storage.child("pools", pool_fingerprint(context))
    if not folder.exists(POOL_PAGE):
        write_pool_page(folder)
    name, alias = pool_version(context.task.name, pool.fingerprint)
    tags = {"paft.kind": "pool", **context.tags, "paft.pool": f"models:/{name}@{alias}"}
    run = TrackedRun(f"pool/{pool.fingerprint}", f"pool of {context.config.name}", RUN_KEY)
    tracker = open_tracker(context.tracking, run, tags)
    rows = [
        [prompt.id, prompt.split, prompt.text, prompt.cluster, prompt.origin.llm or ""]
        for split in SPLITS
        for prompt in pool.prompts(split)
    ]
    table = {"columns": ["prompt_id", "split", "text", "cluster", "llm"], "data": rows}
    tracker.log_artifact("pool/pool.json", to_json(table))
    for file in (POOL_FILE, POOL_PAGE):
        tracker.log_artifact(f"pool/{file}", folder.path(file))
    shown = [{"path": "pool/pool.json", "type": "table"}]
    tracker.set_tags({"mlflow.loggedArtifacts": json.dumps(shown)})
    tracker.register(name, alias, "pool")
    tracker.finish("FINISHED")
    return pool


def _tell_prompts(context: RunContext, pool: PromptPool) -> None:
    """Show three prompts as LLMs wrote them, and three that are held out."""
    generation = context.config.prompts.generation
    whole = generation is None or generation.form == "template"
    by_llms = (prompt for prompt in pool.train if prompt.origin.llm is not None)
    written = dict.fromkeys(prompt.text if whole else prompt.instruction for prompt in by_llms)
    tell(context.screen, "an LLM wrote", islice(written, _TOLD))
    asked = "asked" if context.prompt_files else "held out"
    tested = tested_pool(context, pool).test
    tell(context.screen, asked, (prompt.text for prompt in tested[:_TOLD]))
