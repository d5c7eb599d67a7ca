"""Renders the templates of the pages, with a policy by which a browser loads nothing for them.

The content security policy of a page forbids every fetch and every script but its own one: a text
from outside that was not escaped could still do nothing.
"""

import base64
import hashlib
import importlib.resources
import re
from typing import Any

from paft_ray.report.axes import step_ticks

_SCRIPT = "script.js.j2"


def render(name: str, /, **values: Any) -> str:
    """A page as HTML.

    Args:
        name: Name of a template, which extends `frame.html.j2`.
        values: Values that it shows.
    """
    import jinja2
    import markupsafe

    files = importlib.resources.files("paft_ray.report").joinpath("templates")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda file: files.joinpath(file).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"step_ticks": step_ticks}
    environment.filters |= {"duration": _duration, "count": _count, "pieces": _pieces}
    script = files.joinpath(_SCRIPT).read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(name).render(
        script=markupsafe.Markup(script), script_digest=digest, **values
    )


def _count(value: float) -> str:
    return f"{value:,}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _pieces(text: str) -> tuple[tuple[bool, str], ...]:
    """A prompt cut at its slots: whether a piece is a slot, and the piece."""
    parts = re.split(r"(\{[A-Za-z_][A-Za-z0-9_]*\})", text)
    return tuple((bool(i % 2), part) for i, part in enumerate(parts) if part)
