"""The Python API: one function per verb, for scripts and notebooks.

Each takes a configuration as the path of a YAML file, as a dict, or loaded; checks it; does one
thing on the Ray that this process has joined, on the cluster that `RAY_ADDRESS` names, or on one of
its own that it starts and stops; and returns a `Result`. Progress is shown in notebooks and on
terminals, while what libraries print goes to the run's log. The same call again continues what was
interrupted, and finds what is complete. Three are not called as their commands are (`report`,
`export`, `runs`), since folders of the package are.

All of them raise `ConfigError` where configuration or options cannot be used, before anything is
written, and another `PaftError` where the work failed; what is done is kept.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from paft_ray.config import Config
from paft_ray.config.errors import ConfigError
from paft_ray.config.loading import dump_config, load_config
from paft_ray.pipeline import comparing, listing
from paft_ray.pipeline.perform import Options, Result, Work, perform, prepare
from paft_ray.pipeline.question import CONFIG_FILE, Question, ask
from paft_ray.pipeline.results import PoolResult, RunResult
from paft_ray.pipeline.robustness import ROBUSTNESS, with_file
from paft_ray.pipeline.verbs import VERBS
from paft_ray.runs.log import log_of_call
from paft_ray.runs.notebook import screen_here
from paft_ray.runs.progress import SilentScreen
from paft_ray.storage.paths import Storage
from paft_ray.tasks.guessing import Said

R = TypeVar("R", bound=Result)
ConfigSource = Config | str | Path | Mapping[str, Any]
"""A configuration: loaded, the path of a YAML file, or its tree as a dict."""


def build_prompt_pool(
    config: ConfigSource, options: Options | None = None, *, overrides: Sequence[str] = ()
) -> PoolResult:
    """Build the prompt pool and its page, or find them built; `pool` has the prompts.

    Args:
        config: Path of a YAML file, a dict, or a `Config`.
        options: See `Options`.
        overrides: Changes as on the command line: `["seed=1", "train.steps=50"]`.
    """
    return _expect(PoolResult, _call("prompts", config, options, overrides))


def train(
    config: ConfigSource, options: Options | None = None, *, overrides: Sequence[str] = ()
) -> Result:
    """Train all variants with all seeds, or find them trained; `data` says where they are.

    The arguments are those of `build_prompt_pool`.
    """
    return _call("train", config, options, overrides)


def evaluate(
    config: ConfigSource, options: Options | None = None, *, overrides: Sequence[str] = ()
) -> RunResult:
    """Evaluate the base model, all trained variants and `evaluation.subjects`.

    The arguments are those of `build_prompt_pool`; `data` is the content of `summary.json`.
    """
    return _expect(RunResult, _call("evaluate", config, options, overrides))


def run(
    config: ConfigSource, options: Options | None = None, *, overrides: Sequence[str] = ()
) -> RunResult:
    """Build the pool, train the variants, evaluate them, write the report.

        result = paft_ray.run("jobs/configs/demo.yaml", overrides=["seed=1", "name=demo-1"])
        result.table, result.scores, result.plot()

    The arguments are those of `build_prompt_pool`; `data` is the content of `summary.json`.
    """
    return _expect(RunResult, _call("run", config, options, overrides))


def tune(
    config: ConfigSource, options: Options | None = None, *, overrides: Sequence[str] = ()
) -> RunResult:
    """Search the space of `tuning` for the settings of the most robust model.

    The arguments are those of `build_prompt_pool`; `data` is the content of `search.json`, and the
    tables are of the finalists.
    """
    return _expect(RunResult, _call("tune", config, options, overrides))


def write_report(
    config: ConfigSource, options: Options | None = None, *, overrides: Sequence[str] = ()
) -> Result:
    """Write the report of a run again; the arguments are those of `build_prompt_pool`."""
    return _call("report", config, options, overrides)


def export_model(
    config: ConfigSource, options: Options | None = None, *, overrides: Sequence[str] = ()
) -> Result:
    """Write an adapter, a merged model, a pyfunc or lm-eval tasks to a folder.

    The arguments are those of `build_prompt_pool`; `options` say what is written.
    """
    return _call("export", config, options, overrides)


def plan(
    config: ConfigSource, options: Options | None = None, *, overrides: Sequence[str] = ()
) -> Result:
    """Check everything and say what a run would do; starts no Ray, writes nothing.

    The arguments are those of `build_prompt_pool`.
    """
    return _call("plan", config, options, overrides)


def robustness(
    model: str,
    data: str,
    options: Options | None = None,
    *,
    columns: Said | None = None,
    overrides: Sequence[str] = (),
) -> RunResult:
    """Measure how much a model's answers depend on the wording, without a configuration.

    The configuration that is measured is written to `robustness.yaml`, as by `paft robustness`.

    Args:
        model: Folder, GGUF file, hub name, an adapter's folder, or the URL of an
            OpenAI-compatible server.
        data: A file of rows, or the name of a built-in task.
        options: See `Options`.
        columns: What the columns of the data are; by default it is guessed, and said.
        overrides: Changes as on the command line.
    """
    if columns is not None and not isinstance(columns, Said):
        raise ConfigError('columns: give paft_ray.Said(answer="label", fields=("text",))')
    question = Question(model, data, columns or Said(), overrides=_list(overrides))
    options = _known(options)
    asked = ask(question)
    with screen_here() as screen:
        for note in asked.notes:
            screen.line(note)
        if not options.overwrite:
            asked.refuse_other(CONFIG_FILE)
        with prepare(ROBUSTNESS, asked.config, options, screen) as work:
            asked.write(CONFIG_FILE)
            return _expect(RunResult, with_file(_perform(work), work.context, CONFIG_FILE))


def list_runs(storage: str = "storage") -> Result:
    """List the runs and searches on a storage, a folder or a URI."""
    return listing.list_runs(Storage.open(storage))


def compare_runs(*names: str, storage: str = "storage") -> RunResult:
    """Compare the models of several runs that share prompts and examples, in one paired table."""
    return comparing.compare_runs(Storage.open(storage), names)


def configuration(source: ConfigSource, overrides: Sequence[str] = ()) -> Config:
    """Return a configuration with its overrides, loaded.

    Raises:
        ConfigError: It cannot be read, or `overrides` are one text.
    """
    changes = _list(overrides)
    if isinstance(source, Config):
        return load_config(dump_config(source), changes) if changes else source
    return load_config(source, changes)


def _list(overrides: Sequence[str]) -> tuple[str, ...]:
    if isinstance(overrides, str):
        raise ConfigError(f"overrides: {overrides!r} is one text: give a list, [{overrides!r}]")
    if isinstance(overrides, Mapping):
        raise ConfigError('overrides: a mapping: give a list, as in ["train.steps=10"]')
    return tuple(overrides)


def _known(options: Options | None) -> Options:
    """Options that were given, or the default ones.

    Raises:
        ConfigError: It is something else, such as overrides by position.
    """
    if options is not None and not isinstance(options, Options):
        raise ConfigError(
            f"options: {options!r}: give paft_ray.Options(...), and changes of values by their "
            'name, overrides=["train.steps=10"]'
        )
    return options or Options()


def _call(
    name: str, source: ConfigSource, options: Options | None, overrides: Sequence[str]
) -> Result:
    config, verb = configuration(source, overrides), VERBS[name]
    with screen_here() as screen, prepare(verb, config, _known(options), screen) as work:
        return _perform(work)


def _perform(work: Work) -> Result:
    """Do prepared work; where a screen shows it, what libraries print goes to the run's log."""
    context = work.context
    for warning in context.warnings:
        context.screen.line(f"note: {warning}")
    quiet = work.verb.logged and not isinstance(context.screen, SilentScreen)
    with log_of_call(context.results_folder) if quiet else nullcontext():
        return perform(work)


def _expect(kind: type[R], result: Result) -> R:
    assert isinstance(result, kind)
    return result
