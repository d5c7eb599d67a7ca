"""A verb from its configuration to its result: checks first, then Ray, then the work.

The command line, `jobs/*.py` and the Python API all use `prepare` and `perform`, so that they
refuse the same and write the same files.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from paft_ray.cluster.access import check_access
from paft_ray.config import Config, SinglePromptVariant
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import resolve_path
from paft_ray.config.visible import visible
from paft_ray.models.chat import describe_chat
from paft_ray.models.check_process import ModelCheckProcess, warm_up
from paft_ray.models.files import has_tokenizer
from paft_ray.models.meta import check_adapters, check_base, check_texts
from paft_ray.models.targets import with_targets
from paft_ray.models.warm_start import read_adapter
from paft_ray.pipeline.preflight import preflight
from paft_ray.pipeline.subjects import check_subjects
from paft_ray.prompts.files import read_templates
from paft_ray.runs.context import RunContext
from paft_ray.runs.opening import refuse_other_content
from paft_ray.runs.progress import Screen
from paft_ray.storage.paths import Storage
from paft_ray.training.lengths import check_lengths_early


@dataclass(frozen=True)
class Options:
    """A verb's options besides its configuration; each verb reads only some of them."""

    overwrite: bool = False
    """Discard what another configuration left under the run's name."""
    insist: bool = False
    """Join a cluster that requires no token."""
    cluster: str | None = None
    """`plan`: the cluster whose nodes are checked; by default RAY_ADDRESS."""
    variant: str | None = None
    """`export`: which variant; by default PAFT."""
    seed: int | None = None
    """`export`: which training of it; by default the first of `seeds`."""
    merge: bool = False
    """`export`: the whole model with the adapter merged in."""
    pyfunc: bool = False
    """`export`: an MLflow pyfunc."""
    lm_eval: bool = False
    """`export`: prompts and examples as tasks of lm-evaluation-harness, no model."""
    out: str | None = None
    """`export`: folder or URI."""


@dataclass(frozen=True, repr=False)
class Result:
    """The result of a verb; printed, it is `text`."""

    data: Mapping[str, Any]
    """The JSON object of `--json`."""
    text: str
    """The same for a person."""
    missing: tuple[str, ...] = ()
    """Reasons why the work could not be done, shown first; with any, the exit code is 2."""

    def __repr__(self) -> str:
        """Return what a person reads."""
        return visible("\n".join([*(f"missing: {line}" for line in self.missing), self.text]))

    def _repr_html_(self) -> str:
        """Return the same for a notebook."""
        return f'<pre style="font-family: monospace">{escape(repr(self))}</pre>'


@dataclass(frozen=True)
class Work:
    """A verb whose checks have passed."""

    verb: "Verb"
    context: RunContext
    options: Options
    checked: Any
    """Returned by the verb's own check."""
    checks: ModelCheckProcess
    """Process that checks model and texts, so that this one imports no torch."""


@dataclass(frozen=True)
class Verb:
    """One command."""

    help: str
    run: Callable[[Work], Result]
    needs_ray: bool = True
    plans: bool = False
    """Whether it only says what would be done: it needs neither weights of the model nor a cluster,
    and joins one where it is named."""
    logged: bool = True
    """Whether output of libraries goes to the run's log, which may be the first file written."""
    trains: bool = False
    """Whether the model and its adapter are checked first."""
    measures: bool = False
    """Whether `evaluation.subjects` are checked first."""
    replaces: bool = False
    """Whether it can discard what another configuration left (`overwrite`)."""
    finished: Callable[[RunContext], Result | None] | None = None
    """Returns the result where everything is done, without Ray."""
    reads_test: bool = True
    """Whether test examples are read from the beginning."""
    check: Callable[[RunContext, Options], Any] | None = None
    """Refuses what it can before anything is written, the log too; where the verb trains, returns
    configurations whose adapters are checked as well."""

    @property
    def joins(self) -> bool:
        """Return whether it may join a cluster."""
        return self.needs_ray or self.plans


def open_context(
    config: Config,
    overwrite: bool = False,
    screen: Screen | None = None,
    planning: bool = False,
    test: bool = True,
    weightless: bool = False,
) -> RunContext:
    """Check everything that can be checked before work, and create the context.

    Args:
        config: The configuration.
        overwrite: The run's name may belong to another configuration.
        screen: Shows progress to a person; silent by default.
        planning: No worker will run here.
        test: Read test examples; a search does not.
        weightless: Accept a model folder without weights.

    Raises:
        PaftError: See `preflight`; nothing was written.
    """
    config = with_targets(config)
    checked = preflight(config, overwrite, planning, test, weightless)
    storage = Storage.open(config.storage)
    context = RunContext.create(config, checked.task, storage, screen, checked.warnings)
    return replace(context, prompt_files=checked.prompt_files)


@contextmanager
def prepare(
    verb: Verb, config: Config, options: Options, screen: Screen | None = None
) -> Iterator[Work]:
    """Check a verb's configuration and options; the work may be performed in the block.

    Raises:
        PaftError: They cannot be used; nothing was started or written.
    """
    if options.overwrite and not verb.replaces:
        raise ConfigError(
            "overwrite: this command discards nothing that another configuration left: leave it "
            "out, and choose another name, or evaluation.name for a further evaluation"
        )
    context = open_context(
        config, options.overwrite, screen, not verb.needs_ray, verb.reads_test, verb.plans
    )
    if verb.trains and not options.overwrite:
        refuse_other_content(context, "run" if verb.reads_test else "search")
    checked = None if verb.check is None else verb.check(context, options)
    with ModelCheckProcess() as checks:
        yield Work(verb, context, options, checked, checks)


def perform(work: Work, ray_started: Callable[[], None] = lambda: None) -> Result:
    """Do the prepared work, on the Ray that this process has joined, or else on a new one.

    Args:
        work: From `prepare`.
        ray_started: Called once Ray runs, before the work begins.

    Raises:
        ConfigError: The model, its adapter or the cluster cannot be used; nothing was written.
        PaftError: The work failed; what is done is kept.
    """
    verb, context, options = work.verb, work.context, work.options
    if not verb.needs_ray:
        return verb.run(work)
    if verb.finished and not options.overwrite and (done := verb.finished(context)) is not None:
        return done
    from paft_ray.cluster.resources import check_cluster, node_resources
    from paft_ray.cluster.session import import_ray, ray_session
    from paft_ray.pipeline.nodes import require_nodes, survey
    from paft_ray.tracking import import_early

    check_access(options.insist)
    import_early(context.config.tracking)
    if verb.trains:
        check_model(work, import_ray)
    if verb.measures:
        check_subjects(context, work.checks)
    if verb.measures and not verb.trains:
        work.checks.begin(warm_up)
        import_ray()
        work.checks.finish()
        check_lengths_early(context, work.checks, whole=True, trains=False)
    if context.config.model.chat_template == "auto":
        work = replace(work, context=replace(context, notes=chat_notes(work)))
    with ray_session(options.insist):
        check_cluster(context.config)
        if len(node_resources()) > 1:
            require_nodes(survey(context.config, context.storage))
        ray_started()
        return verb.run(work)


def chat_notes(work: Work) -> tuple[str, ...]:
    """Look at the model's chat template, in the process of model checks.

    Raises:
        ConfigError: It cannot be used.
    """
    model = work.context.config.model
    local = resolve_path(model.path)
    if _lacks_tokenizer(local):
        return ()
    work.checks.begin(describe_chat, str(local or model.path), model.revision, model)
    return work.checks.finish()


def check_model(work: Work, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Check, with transformers and peft, whether model, adapters and texts go together.

    A run that has begun to train has passed this check before.

    Args:
        work: The prepared work.
        meanwhile: Done here while the other process begins.

    Raises:
        ConfigError: They do not.
        DataError: An example does not fit `task.max_length`.
    """
    context, config, checks = work.context, work.context.config, work.checks
    if not config.has_base:
        meanwhile()
        return
    begun = any(context.run_folder.child(each).names() for each in ("training", "trials"))
    if begun and not work.options.overwrite:
        checks.begin(warm_up)
        meanwhile()
        checks.finish()
        return
    pefts: list[Mapping[str, Any] | None] = []
    for each in (config, *(work.checked or ())):
        if each.model.peft not in pefts:
            pefts.append(each.model.peft)
    warm_start = config.train.warm_start
    checks.begin(
        check_adapters,
        config.model.path,
        config.model.revision,
        pefts,
        config.seed,
        None if warm_start is None else read_adapter(warm_start),
        config.model.trust_remote_code,
    )
    checks.begin(check_base, config, context.task.choices)
    meanwhile()
    checks.finish()
    checks.unknown_tokens = checks.finish()
    if checks.unknown_tokens:
        checks.begin(check_texts, config, checks.unknown_tokens, list(_known_texts(context)))
        checks.finish()
    local = resolve_path(config.model.path)
    if work.verb.plans and (local is None or _lacks_tokenizer(local)):  # fetched to train
        return
    whole = config.tuning is None if work.verb.plans else work.verb.reads_test
    check_lengths_early(context, checks, whole)


def _lacks_tokenizer(local: Path | None) -> bool:
    """Whether a model is a folder without a tokenizer, with which nothing but a plan is made."""
    return local is not None and local.is_dir() and not has_tokenizer(local)


def _known_texts(context: RunContext) -> Iterator[str]:
    """The texts of which prompts are made, and their answers, as far as files hold them."""
    prompts, task = context.config.prompts, context.task
    for path in prompts.files:
        yield from read_templates(path, task)
    for variant in context.config.variants:
        if isinstance(variant, SinglePromptVariant) and variant.prompt:
            yield variant.prompt
    yield from (*task.instructions, *(task.choices or ()))
    for split in (task.train, task.unlabelled, task.validation, task.test):
        for example in split:
            yield from (*example.fields.values(), example.answer, *example.options)
