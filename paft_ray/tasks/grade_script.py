"""Runs in the process that `grade_process` starts: a line of JSON in, a line of JSON out.

The first line holds path, source and name of the function, every further one its arguments. What
the function prints goes to stderr.
"""

import inspect
import json
import os
import sys
import types


def main() -> None:
    """Answer until stdin ends."""
    nothing = os.open(os.devnull, os.O_RDWR)
    asked, said_to = os.dup(0), os.dup(1)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    # a process that the function forks has no part in this
    os.register_at_fork(
        after_in_child=lambda: [os.dup2(nothing, pipe) for pipe in (asked, said_to)]
    )
    sys.path.pop(0)  # the folder of this file
    lines = iter(os.fdopen(asked, "rb").readline, b"")
    owner = os.getpid()

    def reply(found: dict[str, object]) -> None:
        os.write(said_to, json.dumps(found).encode() + b"\n")

    path, source, name = json.loads(next(lines))
    try:
        module = types.ModuleType("paft_grade")
        module.__file__ = path
        sys.modules[module.__name__] = module
        exec(compile(source, path, "exec"), module.__dict__)
        function = getattr(module, name, None)
        if not callable(function):
            reply({"error": f"is missing: the file defines no function {name}"})
            return
        if reason := unfit(function):
            reply({"error": reason})
            return
    except BaseException as error:  # noqa: BLE001
        reply({"error": f"cannot be imported: {said(error)}"})
        return
    reply({})
    for line in lines:
        if os.getpid() != owner:
            return
        reply(graded(function, json.loads(line)))


def unfit(function: "types.FunctionType") -> str:
    """Return why a function cannot be called as it has to be; empty where it can."""
    if inspect.iscoroutinefunction(function):
        return "is async, and has to return a number at once"
    try:
        inspect.signature(function).bind({}, "", "")
    except TypeError as error:
        return f"has to take three arguments, fields, answer and text ({error})"
    except ValueError:  # written in C
        return ""
    return ""


def graded(function: "types.FunctionType", arguments: list[object]) -> dict[str, object]:
    """Call the function; return its value, or what is wrong."""
    try:
        value = function(*arguments)
    except Exception as error:  # noqa: BLE001
        return {"error": f"raised {said(error)}"}
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    if isinstance(value, (str, bytes)) or value is None:
        return {"error": f"returned {shown}"}
    try:
        return {"value": float(value), "shown": shown}
    except (TypeError, ValueError, OverflowError):
        return {"error": f"returned {shown}"}


def said(error: BaseException) -> str:
    """Return an exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__


if __name__ == "__main__":
    main()
