"""Checks before the first write, which need neither Ray nor torch and change nothing.

Covered: storage, the run's identity, tracking, arithmetic, workers against this machine, model and
peft, LLMs, task, prompts. Not covered: facts of later stages, such as how many prompts survive or
whether an example is too long.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from paft_ray.cluster.access import named_cluster
from paft_ray.cluster.resources import stage_workers
from paft_ray.config import (
    Config,
    Endpoint,
    LLMConfig,
    PaftVariant,
    PromptsConfig,
    SinglePromptVariant,
    TransformersLLM,
)
from paft_ray.config.errors import ConfigError, PaftError
from paft_ray.config.hub import require_hub_model
from paft_ray.models.files import (
    ModelFiles,
    inspect_model,
    refuse_beyond_context,
    refuse_quantized,
)
from paft_ray.models.vllm_limits import refuse_beyond_engine
from paft_ray.pipeline.backend import require_vllm
from paft_ray.pipeline.endpoints import check_endpoint, check_served
from paft_ray.pipeline.recorded import check_recorded
from paft_ray.pipeline.subjects import check_files
from paft_ray.pipeline.trust import check_trusted
from paft_ray.pipeline.written import check_optimized
from paft_ray.prompts.files import holds_escapes, read_templates
from paft_ray.prompts.lint import LintResult, lint
from paft_ray.prompts.tested import read_prompt_files
from paft_ray.runs.settings import check_settings
from paft_ray.storage.paths import Storage, refuse_relative, require_writable
from paft_ray.tasks import Task, load_task
from paft_ray.tracking import check_tracking
from paft_ray.training.reinforcement.rewards import check_rewards

_SHOWN_PROMPTS = 5


@dataclass(frozen=True, slots=True)
class Checked:
    """Task, model and warnings that the checks found."""

    task: Task
    model: ModelFiles
    warnings: tuple[str, ...]
    """Settings that are allowed but may not be meant, one line each."""
    prompt_files: tuple[tuple[str, str], ...]
    """File and template of every prompt of `evaluation.prompt_files`."""


def preflight(
    config: Config,
    overwrite: bool = False,
    planning: bool = False,
    test: bool = True,
    weightless: bool = False,
) -> Checked:
    """Check a configuration against the files, the environment and this machine.

    Args:
        config: The configuration.
        overwrite: The run's name may belong to a run with another configuration.
        planning: No worker will run here, so that a lack of this machine is a warning.
        test: Read test examples, see `load_task`.
        weightless: Accept a model folder without weights.

    Raises:
        ConfigError: The configuration cannot be used here; the message names the remedy.
        DataError: The task's rows cannot be used.
        TemplateError: A prompt file or template cannot be used.
    """
    storage = _check_storage(config.storage)
    check_tracking(config.tracking)
    check_trusted(config)
    warnings = _check_workers(config, planning)
    model = ModelFiles(config.model.path, "none")
    if config.has_base:
        model = inspect_model(config.model.path, weightless=weightless)
        warnings += _check_model(config, model)
    warnings += check_files(config)
    warnings += _check_llms(config, model)
    task = load_task(config.task, config.seed, test, config.reads_unlabelled)
    warnings += task.rows.sentences()
    warnings += check_settings(config, task, model.has_weights)
    check_rewards(config, task)
    warnings += check_served(config, task)
    check_optimized(config)
    warnings += _check_prompts(config, task)
    prompt_files = read_prompt_files(config, task)
    warnings += _check_count(config, len(prompt_files) or config.prompts.split.test)
    warnings += require_vllm(config, planning)
    if not overwrite:  # last, since a value that is wrong differs from the recorded one too
        check_recorded(config, storage)
    return Checked(task, model, tuple(warnings), prompt_files)


def _check_storage(location: str) -> Storage:
    storage = Storage.open(location)
    if "runtime_resources" in Path.cwd().parts:  # where Ray unpacks a job's working directory
        refuse_relative(location)
    if storage.is_local:
        require_writable(Path(storage.root), "storage")
    return storage


def _check_workers(config: Config, planning: bool) -> list[str]:
    """Refuse workers that do not fit this machine, where no cluster is named."""
    try:
        if named_cluster() is None:
            _require_places(config)
    except ConfigError as error:
        if not planning:
            raise
        return [f"this cannot run here: {error}"]
    return []


def fits_this_machine(config: Config) -> bool:
    """Return whether the workers fit this machine, where no cluster is named."""
    return named_cluster() is not None or not _check_workers(config, planning=True)


def this_machine() -> dict[str, float]:
    """Resources of this machine as Ray would count them; the number of GPUs is not looked up."""
    return {"CPU": os.cpu_count() or 1, "GPU": 1e9 if _sees_gpu() else 0}


def _require_places(config: Config) -> None:
    for field, workers in stage_workers(config).items():
        _require_fit(field, "num", workers.fewest, workers.cpus, workers.gpus)
    for field, llm in config.llms.items():
        actors, cpus, gpus = llm.actor_pool
        if cpus >= 1:
            _require_fit(field, "actors", actors, cpus, gpus)


def _require_fit(field: str, count: str, num: int, cpus: float | None, gpus: float) -> None:
    have, each = os.cpu_count() or 1, 1 if cpus is None else cpus
    if num * each > have:
        raise ConfigError(
            f"{field}.{count}: {num} with {each:g} CPUs each are more than "
            f"this machine's {have}; lower it or {field}.cpus, or set RAY_ADDRESS to a cluster"
        )
    if gpus > 0 and not _sees_gpu():
        raise ConfigError(
            f"{field}.gpus: {gpus:g}, but no GPU is visible on this machine; set it to 0, see to "
            "the driver and CUDA_VISIBLE_DEVICES, or set RAY_ADDRESS to a cluster"
        )


def _sees_gpu() -> bool:
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*")) or shutil.which("nvidia-smi") is not None


def _check_model(config: Config, model: ModelFiles) -> Iterator[str]:
    refuse_beyond_context(config, model.context_length)
    refuse_beyond_engine(config, model.context_length)
    refuse_quantized(config.model.path, model.quantized)
    if not model.has_weights:
        lacks = "no weights" if model.has_tokenizer else "no weights and no tokenizer"
        unchecked = "" if model.has_tokenizer else "; lengths of texts are not looked at"
        yield (
            f"model.path: {config.model.path} has {lacks}: it can be planned with, and nothing "
            f"else{unchecked}"
        )
    if model.kind == "hub":
        require_hub_model("model.path", config.model.path, config.model.revision)
    if model.kind == "hub" and config.model.revision is None:
        yield (
            f"model.revision: none is given for {config.model.path}, so that the run cannot be "
            "repeated once the model changes; name a commit"
        )
    if config.model.chat_template == "auto" and model.has_chat_template is False:
        yield f"model.chat_template: {config.model.path} has none, so prompts are used as they are"


def configured_llms(config: PromptsConfig) -> list[tuple[str, LLMConfig]]:
    """The LLMs that write prompts, each after its field in the configuration."""
    generation = config.generation
    llms = generation.llms if generation else ()
    return [(f"prompts.generation.llms.{i}", llm) for i, llm in enumerate(llms)]


def _check_llms(config: Config, model: ModelFiles) -> Iterator[str]:
    author = config.prompts.split.held_out_llm
    labels = [llm.label for _, llm in configured_llms(config.prompts)]
    if author is not None and (author not in labels or len(set(labels)) < 2):
        raise ConfigError(
            f"prompts.split.held_out_llm: {author!r} writes nothing, or all there is (the LLMs are "
            f"{', '.join(labels) or 'none'}): name one of several"
        )
    seen = {config.model.path: model}
    own = configured_llms(config.prompts)
    for field, llm in config.llms.items():
        if isinstance(llm, TransformersLLM) and llm.path not in seen:
            seen[llm.path] = inspect_model(llm.path, field=f"{field}.path")
            if seen[llm.path].kind == "hub":
                require_hub_model(f"{field}.path", llm.path, llm.revision)
        elif isinstance(llm, Endpoint):
            yield from check_endpoint(field, llm, driver=(field, llm) not in own)


def _check_prompts(config: Config, task: Task) -> Iterator[str]:
    slots = ", ".join(f"{{{slot}}}" for slot in task.slots)
    usable: set[str] = set()
    for path in config.prompts.files:
        try:
            texts = read_templates(path, task)
        except PaftError as error:
            raise ConfigError(f"prompts.files: {error}") from error
        results = [
            lint(text, task, config.prompts.lint, escapes=holds_escapes(path, text))
            for text in texts
        ]
        usable.update(result.text for result in results if result.problem is None)
        if all(result.problem for result in results):
            raise ConfigError(
                f"prompts.files: none of the {len(results)} templates in {path} can be used"
                f"{_first_problem(results)}; a template holds each of {slots} once"
            )
        yield from _unusable(path, texts, results)
    split = config.prompts.split
    own = (v.pool_size for v in config.variants if isinstance(v, PaftVariant))
    sizes = (config.prompts.pool_size, *own)
    wanted = max(size or 1 for size in sizes) + split.validation + split.test
    if config.prompts.generation is None and len(usable) < wanted:
        raise ConfigError(
            f"prompts.files: {len(usable)} usable templates are fewer than the {wanted} that "
            "prompts.pool_size, split.validation and split.test ask for; add some, or lower these"
        )
    for index, variant in enumerate(config.variants):
        if isinstance(variant, SinglePromptVariant) and variant.prompt is not None:
            result = lint(variant.prompt, task, config.prompts.lint, escapes=True)
            if result.problem is not None:
                raise ConfigError(
                    f"variants.{index}.prompt: cannot be used{_first_problem([result])}; "
                    f"a template holds each of {slots} once"
                )


def _check_count(config: Config, count: int) -> Iterator[str]:
    wanted = config.evaluation.prompts
    if wanted is not None and wanted > count:
        yield f"evaluation.prompts: {wanted}, of {count} test prompts; all are used"


def _unusable(path: str, texts: Sequence[str], results: Sequence[LintResult]) -> Iterator[str]:
    """Name the templates of a user's own file that are not used."""
    bad = [(n, t, r) for n, (t, r) in enumerate(zip(texts, results, strict=True), 1) if r.problem]
    for number, text, result in bad[:_SHOWN_PROMPTS]:
        start = " ".join(text[:200].split())
        start = start if len(start) <= 60 else f"{start[:57]}..."
        yield (
            f"prompts.files: template {number} of {path} is left out"
            f"{_first_problem([result])}: {start!r}"
        )
    if (more := len(bad) - _SHOWN_PROMPTS) > 0:
        yield f"prompts.files: {more} more templates of {path} are left out"


def _first_problem(results: Iterable[LintResult]) -> str:
    for result in results:
        return f" ({' '.join(f'{result.problem}: {result.detail}'.split())})"
    return ""
