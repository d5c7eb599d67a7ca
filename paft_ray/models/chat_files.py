"""What a model's files say about its chat template, read without torch and transformers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paft_ray.config.loading import resolve_path
from paft_ray.models.chat import renders_anew
from paft_ray.models.gguf_header import is_gguf, read_gguf


def chat_moved(path: str) -> bool:
    """Return whether a model's chat template may be rendered otherwise than by the first version.

    Identities of what is made with it then hold `CHAT_RULE`. It may be for hub models, whose files
    are not read.
    """
    location = resolve_path(path)
    return renders_anew(None if location is None else "\n".join(_templates(location)))


def _templates(location: Path) -> Iterator[str]:
    """Yield the templates of a model folder or a GGUF file, whichever of them is used."""
    if is_gguf(location):
        if (found := read_gguf(location).chat_template) is not None:
            yield found
        return
    for file in (*location.glob("*.jinja"), *location.glob("additional_chat_templates/*.jinja")):
        yield file.read_text("utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        if (location / name).is_file():
            tree: Any = json.loads((location / name).read_bytes())
            yield json.dumps(tree.get("chat_template") or "", ensure_ascii=False)
