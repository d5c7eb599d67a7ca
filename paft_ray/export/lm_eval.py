"""Exports what a run evaluates as tasks of lm-evaluation-harness: `paft export --lm-eval`.

It needs the pool, the test examples and the model's tokenizer, but no training and no Ray.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from paft_ray.config.errors import ArtifactError, ConfigError, DataError
from paft_ray.config.visible import shell_words
from paft_ray.export.adapter import choose_folder
from paft_ray.export.lm_eval_tasks import LmEvalTasks
from paft_ray.models.base_model import prepare_base
from paft_ray.models.load import load_tokenizer, result_folder
from paft_ray.models.tokenization import Question, TextEncoder
from paft_ray.prompts.build import pool_fingerprint
from paft_ray.prompts.pool import Prompt, load_pool
from paft_ray.prompts.template import parse
from paft_ray.prompts.tested import tested_prompts
from paft_ray.runs.context import RunContext
from paft_ray.storage.artifacts import ArtifactWriter, load_manifest
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.storage.paths import Storage
from paft_ray.tasks import Example
from paft_ray.training.identity import find_trained

_FORMAT, _CHAT_FORMAT = 3, 4
"""Versions of the files, without and with a chat template: part of an export's identity."""
WITHOUT_END = (
    "lm-eval scores choices without their end, as a run with task.answer_end: ignored does"
)


@dataclass(frozen=True)
class LmEvalPlan:
    """An export to write; all checks that need no tokenizer were made."""

    context: RunContext
    prompts: Sequence[Prompt]
    """Held-out prompts of the evaluation."""
    examples: Sequence[Example]
    """Test examples of the evaluation."""
    out: Storage
    identity: str
    reused: bool
    default: bool
    """Whether the folder is the run's own, which holds nothing else."""

    @property
    def name(self) -> str:
        """Name of the group of tasks, for `--tasks`."""
        return f"paft_{self.context.config.name}"


@dataclass(frozen=True, slots=True)
class LmEvalExported:
    """An export on storage, and the commands that use it."""

    kind: str
    folder: str
    fingerprint: str
    files: tuple[str, ...]
    reused: bool
    group: str
    """Name of the group of tasks."""
    tasks: int
    examples: int
    """Number of examples of each task."""
    commands: Mapping[str, str]
    """Commands of lm-eval for the base model and every trained variant."""


def plan_lm_eval(context: RunContext, out: str | None = None) -> LmEvalPlan:
    """Decide what is exported and where; refuse what cannot be exported.

    Args:
        context: The run.
        out: Folder or URI; by default `runs/<name>/lm_eval/`.

    Raises:
        ConfigError: The pool is not built, or `out` holds something else.
        ArtifactError: The pool's files are damaged.
    """
    config, task = context.config, context.task
    if not config.has_base:
        raise ConfigError(
            "--lm-eval: lm-evaluation-harness loads a model, and all models here are behind "
            "endpoints: name one in model"
        )
    if config.task.grade:
        raise ConfigError(
            f"--lm-eval: task.grade {config.task.grade[0].type} has no counterpart there: export "
            "from a configuration without task.grade"
        )
    pool_folder = context.storage.child("pools", pool_fingerprint(context))
    if load_manifest(pool_folder) is None:
        raise ConfigError(
            f"--lm-eval: the prompt pool of run {config.name!r} is not built in "
            f"{context.storage.path()}: run `paft prompts` with this configuration first"
        )
    evaluation = config.evaluation
    prompts = tested_prompts(context, load_pool(pool_folder))
    examples = task.test[: evaluation.examples]
    made_from = [
        _FORMAT if config.model.chat_template == "none" else _CHAT_FORMAT,
        config.name,
        [context.task_identity, context.model_identity, config.model.chat_template],
        [list(task.choices or ()), task.answer_pattern, evaluation.max_new_tokens],
        list(config.task.stop),
        [prompt.id for prompt in prompts],
        [example.id for example in examples],
        context.scoring_dtype,
    ]
    if chat := [each for each in (config.model.system, config.model.chat_template_kwargs) if each]:
        made_from.append(chat)
    identity = fingerprint("export", "lm_eval", made_from)
    folder, reused = choose_folder(context.run_folder.child("lm_eval"), out, identity)
    return LmEvalPlan(context, prompts, examples, folder, identity, reused, out is None)


def export_lm_eval(plan: LmEvalPlan) -> LmEvalExported:
    """Write a planned export.

    Raises:
        ConfigError: An example is too long under a prompt; nothing was written.
    """
    context, config = plan.context, plan.context.config
    base = prepare_base(config.model.path, config.model.revision, context.storage)
    tokenizer = load_tokenizer(base, config.model.revision, config.model.trust_remote_code)
    encoder = TextEncoder.from_config(tokenizer, config)
    if context.task.has_choices:
        encoder = encoder.ending("ignored", choices=True)
    commands = dict(_commands(plan, base, encoder.uses_chat_template))
    with context.screen.stage("export for lm-eval") as stage:
        if not plan.reused:
            tasks = LmEvalTasks(
                plan.name,
                context.task,
                plan.examples,
                dict(_contexts(plan, encoder)),
                config.evaluation.max_new_tokens,
                _comment(plan, encoder.uses_chat_template),
                config.task.stop,
            )
            if plan.default:
                plan.out.delete()  # an unfinished export
            writer = ArtifactWriter(plan.out)
            for name, data in tasks.files().items():
                writer.add(name, data)
            writer.commit(plan.identity, {})
        manifest = load_manifest(plan.out)
        if manifest is None:
            raise ArtifactError(f"{plan.out.path()}: is not complete; run the same command again")
        found = ", found complete" if plan.reused else ""
        ends = f"; {WITHOUT_END}" if context.task.has_choices else ""
        stage.finish(f"{len(plan.prompts)} tasks of {len(plan.examples)} examples{found}{ends}")
    return LmEvalExported(
        "lm_eval",
        plan.out.path(),
        plan.identity,
        tuple(manifest.files),
        plan.reused,
        plan.name,
        len(plan.prompts),
        len(plan.examples),
        commands,
    )


def _contexts(
    plan: LmEvalPlan, encoder: TextEncoder
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield prompt ids, and for each example its context, cut to fit if necessary.

    Raises:
        ConfigError: One does not fit `task.max_length`, and may not be cut.
    """
    task = plan.context.task
    for prompt in plan.prompts:
        render = parse(prompt.text, task.slots).render
        questions = [
            Question(
                render,
                example.fields,
                task.choices_of(example) or [example.answer],
                example.under(prompt.id),
            )
            for example in plan.examples
        ]
        try:
            encoded = encoder.encode_all(questions)
        except DataError as error:
            raise ConfigError(f"--lm-eval: {error}") from error
        fields = [
            encoder.trimmed_fields(question) if first.trimmed else question.fields
            for question, (first, *_) in zip(questions, encoded, strict=True)
        ]
        yield prompt.id, [encoder.context(render(each)) for each in fields]


def _commands(plan: LmEvalPlan, base: str, chat: bool) -> Iterator[tuple[str, str]]:
    """Yield for each model of the run the command that evaluates it as the run does."""
    context, peft = plan.context, plan.context.config.model.peft
    revision = context.config.model.revision
    at = f",revision={revision}" if revision else ""
    yield "base", _command(f"pretrained={base}{at}", plan, plan.out.path(), chat)
    for training in context.config.trainings:
        if (trained := find_trained(context.run_folder, training)) is None:
            continue
        weights = trained.folder.path(result_folder(peft))
        model = f"{weights},tokenizer={base}" if peft is None else f"{base}{at},peft={weights}"
        yield (
            context.config.called(training),
            _command(f"pretrained={model}", plan, plan.out.path(), chat),
        )


def _command(model: str, plan: LmEvalPlan, folder: str, chat: bool) -> str:
    # our bf16 is autocast over fp32 weights
    dtype = "dtype=float32"
    if plan.context.scoring_dtype == "bfloat16":
        dtype += ",mixed_precision_dtype=bfloat16"
    words = ["lm_eval", "--model", "hf", "--model_args", f"{model},{dtype}"]
    if chat:  # the contexts are rendered, and a chat template has its own first token
        words[-1] += ",add_bos_token=False"
    return shell_words([*words, "--include_path", folder, "--tasks", plan.name])


def _comment(plan: LmEvalPlan, chat: bool) -> str:
    """Return instructions for the group's file."""
    ends = "" if not plan.context.task.has_choices else f"{WITHOUT_END}.\n"
    if plan.context.config.model.quantization != "none":
        ends += "paft_ray scored the base model in 4 bits; lm_eval reads it as it is on disk.\n"
    return ends + (
        f"{len(plan.prompts)} prompts that paft_ray tests with, on {len(plan.examples)} examples.\n"
        f"{_command('pretrained=MODEL', plan, 'FOLDER', chat)}\n"
        "An adapter: --model_args pretrained=MODEL,peft=ADAPTER,..."
    )
