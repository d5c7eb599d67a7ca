"""The errors that `paft_ray` raises on purpose.

    PaftError            anything below; the CLI prints it in one or two lines
      ConfigError        the configuration or an input is wrong: exit code 2
      TemplateError      a prompt template cannot be used
      DataError          a data set or a row of it cannot be used
      ArtifactError      something on storage is missing, damaged or of another run
      PoolError          the pool has too few prompts, or others than variants need
      GradeError         a grader of the user's own failed
      LLMError           an LLM or its endpoint failed
        UnsupportedError   an endpoint does not have what it was asked for
      TrainingError      training stopped before bad weights (a loss that is not finite, ...)
        WorkersLostError workers were lost too often
      DiskFullError      no space or quota is left where something is written
      NodeLostError      Ray's own processes on this machine died

Every class is built from one message, so that it survives pickling between Ray processes.
"""

import os


class PaftError(Exception):
    """Base of all errors raised on purpose; its text states the value, the rule and the remedy.

    The text stays what it was: Ray Data appends advice about its own settings to `args`.
    """

    def __init__(self, text: str = "") -> None:
        """Keep the text."""
        super().__init__(text)
        self._text = text

    def __str__(self) -> str:
        """Return the text."""
        return self._text


class ConfigError(PaftError, ValueError):
    """The configuration or an input is wrong; only nodes can show it once something is written."""


class TemplateError(PaftError, ValueError):
    """A prompt template breaks a rule of `prompts.template`."""


class DataError(PaftError, ValueError):
    """A data set cannot be read as the task describes it."""


class OverlongError(DataError):
    """An example that does not fit `task.max_length` under a prompt."""


class ArtifactError(PaftError, RuntimeError):
    """A stored result is missing, damaged, made from something else, or held by a live run."""


class PoolError(PaftError, RuntimeError):
    """The prompt pool cannot be built or used, for example because too few prompts survived."""


class GradeError(PaftError, RuntimeError):
    """A function that grades answers failed, or returned no grade."""


class LLMError(PaftError, RuntimeError):
    """An LLM endpoint failed in a way that retrying does not fix."""


class UnsupportedError(LLMError):
    """An LLM endpoint does not have what it was asked for: a path, a parameter, or a figure."""


class TrainingError(PaftError, RuntimeError):
    """Training was stopped before the weights went bad."""


class WorkersLostError(TrainingError):
    """Workers of a training were lost too often; its settings are not the cause."""


class DiskFullError(PaftError, OSError):
    """No space or quota is left where something is written; see `storage.full_disk`."""


class OutputError(PaftError, OSError):
    """What a command prints cannot be written."""


class NodeLostError(PaftError, RuntimeError):
    """Ray's own processes on this machine died; the run's settings are not the cause."""


def package_missing(package: str, extra: str) -> LLMError:
    """The error for an optional package that a node does not have."""
    return LLMError(
        f"the package {package} is not installed on node {os.uname().nodename}: "
        f"pip install 'paft_ray[{extra}]'"
    )


def one_line(error: BaseException, longest: int = 200) -> str:
    """A library error's text, shortened to one line for use inside a message."""
    return _shortened(str(error), longest) or type(error).__name__


def last_line(error: BaseException, longest: int = 200) -> str:
    """As `one_line`; of a text that holds a traceback, only the exception at its end."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    frames = [place for place, line in enumerate(lines) if line.lstrip().startswith('File "')]
    if not frames:
        return one_line(error, longest)
    after = lines[frames[-1] + 1 :]
    end = [line for line in after if not line[0].isspace()] or after[-1:]
    return _shortened(" ".join(end), longest) or type(error).__name__


def _shortened(text: str, longest: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 3] + "..."
