"""`paft robustness MODEL DATA`: how brittle a model is, without a configuration or a training."""

from collections.abc import Iterator
from dataclasses import replace

from paft_ray.pipeline.perform import Options, Result, Verb, Work, perform, prepare
from paft_ray.pipeline.question import CONFIG_FILE, Question, ask
from paft_ray.pipeline.verbs import finished_run, results_of
from paft_ray.runs.context import RunContext
from paft_ray.runs.opening import refuse_other_content
from paft_ray.runs.progress import Screen

_SHOWN = 160
"""Characters of a prompt on the screen."""


def robustness(
    question: Question,
    options: Options | None = None,
    file: str = CONFIG_FILE,
    screen: Screen | None = None,
) -> Result:
    """Measure how a model's answers depend on the way a question is put.

    Args:
        question: Model, data, and what is known of the data's columns.
        options: See `Options`.
        file: Where the configuration is written.
        screen: Shows progress to a person; silent by default.

    Raises:
        ConfigError: Something cannot be used; nothing was written.
        PaftError: The work failed; what is done is kept, and the same call continues.
    """
    asked, options = ask(question), options or Options()
    if not options.overwrite:
        asked.refuse_other(file)
    with prepare(ROBUSTNESS, asked.config, options, screen) as work:
        asked.write(file)
        return with_file(perform(work), work.context, file)


def with_file(result: Result, context: RunContext, file: str) -> Result:
    """A result that names the worst and the best prompt, and the file that repeats it."""
    again = f"{file} holds the configuration; `paft evaluate {file}` repeats this to the digit"
    text = "\n".join([result.text, "", *_ends(context), again])
    return replace(result, data={**result.data, "config": file}, text=text)


def _ends(context: RunContext) -> Iterator[str]:
    """The prompts under which the main model is worst and best."""
    from paft_ray.report.accuracy import prompt_lines
    from paft_ray.report.files import read_run
    from paft_ray.report.tables import main_label

    run = read_run(context.results_folder)
    place = list(run.summary["models"]).index(main_label(run.summary))
    lines = [line for line in prompt_lines(run) if line.accuracies[place] is not None]
    if not lines:
        return
    for name, line in (("worst", lines[0]), ("best", lines[-1])):
        text = line.text if len(line.text) <= _SHOWN else f"{line.text[:_SHOWN]}..."
        yield f"{name} prompt ({line.accuracies[place]:.1f}%):"
        yield from (f"    {each}" for each in text.splitlines())
    yield ""


def _check(context: RunContext, options: Options) -> None:
    if not options.overwrite:
        refuse_other_content(context)


def _measure(work: Work) -> Result:
    from paft_ray.pipeline.run import evaluate

    context = work.context
    return results_of(context, evaluate(context, work.checks, work.options.overwrite))


ROBUSTNESS = Verb(
    "how much a model's answers depend on the wording, without a configuration or training",
    _measure,
    measures=True,
    finished=finished_run,
    check=_check,
)
