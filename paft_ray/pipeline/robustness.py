"""`paft robustness MODEL DATA`: how brittle a model is, without a configuration or a training."""

from collections.abc import Iterator
from dataclasses import replace

from paft_ray.pipeline.perform import Options, Result, Verb, Work
from paft_ray.pipeline.verbs import finished_run, results_of
from paft_ray.runs.context import RunContext
from paft_ray.runs.opening import refuse_other_content

_SHOWN = 160
"""Characters of a prompt on the screen."""


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
        # an estimate for one prompt is nearer to the mean than the estimate of the extreme
        share = "" if run.partly_scored else f" ({line.accuracies[place]:.1f}%)"
        yield f"{'probably the ' if run.partly_scored else ''}{name} prompt{share}:"
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
    replaces=True,
    finished=finished_run,
    check=_check,
)
