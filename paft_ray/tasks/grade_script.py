"""Runs in the process that `grade_process` starts: a line of JSON in, a line of JSON out.

The first line holds path, source and name of the function, every further one its arguments. What
the function prints goes to stderr.
"""

import json
import os
import sys
import types


def main() -> None:
    """Answer until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path.pop(0)  # the folder of this file
    lines = iter(sys.stdin.buffer.readline, b"")

    def reply(found: dict[str, object]) -> None:
        replies.write(json.dumps(found) + "\n")
        replies.flush()

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
    except BaseException as error:  # noqa: BLE001
        reply({"error": f"cannot be imported: {said(error)}"})
        return
    reply({})
    for line in lines:
        reply(graded(function, json.loads(line)))


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
