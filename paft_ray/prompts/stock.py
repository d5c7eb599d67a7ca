"""The stock of wordings that come with the package, as templates of a task.

A location `stock:KIND` stands for one of the files in `tasks/wordings/`, which hold a wording a
line: `choices` (one of a few labels), `letters` (lettered options), `yesno`, `text` (a question
with a free answer), `cloze` (a text to be continued), `task` (around the task's description), and
one for each built-in task, by its name. Each wording gets a layout of its own from the grammar. In
wordings `$choices` stands for the allowed answers, `$fields` for the names of the fields, `$task`
for the description.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import paft_ray.tasks
from paft_ray.config.errors import DataError
from paft_ray.prompts.layouts import Layout, compose, enumerate_layouts, layout_of
from paft_ray.storage.fingerprint import fingerprint
from paft_ray.tasks.example import Task

STOCK = "stock:"
"""Beginning of a location that names a part of the stock."""
_FOLDER = Path(paft_ray.tasks.__file__).parent / "wordings"
_OF_TASK = re.compile(r"\$(choices|fields|task)\b")


def stock_kinds() -> tuple[str, ...]:
    """The kinds of wordings there are."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.txt")))


def stock_templates(location: str, task: Task) -> list[str]:
    """The templates of a part of the stock for a task: one per wording, each in another layout.

    Where a wording does not name the allowed answers, its layout does.

    Raises:
        DataError: There is no such part, or it names answers and the task has none.
    """
    kind = location.removeprefix(STOCK)
    if kind not in stock_kinds():
        raise DataError(f"{location}: the stock has {', '.join(stock_kinds())}; name one of them")
    known = _known(task)
    layouts = enumerate_layouts(task)
    naming = [layout for layout in layouts if _names_choices(layout, task)]
    free = {layout.id for layout in layouts}
    templates = []
    for wording in _wordings(kind):
        names = _OF_TASK.findall(wording)
        if "choices" in names and not known["choices"]:
            raise DataError(
                f"{location}: these wordings name the allowed answers, and task.choices has none: "
                "use stock:text, stock:cloze or stock:task"
            )
        text = _OF_TASK.sub(lambda found: known[found[1]], wording)
        suitable = layouts if "choices" in names or not naming else naming
        left = tuple(layout for layout in suitable if layout.id in free)
        layout = _layout_for(text, wording, left, tuple(task.slots))
        if layout is not None:
            free.discard(layout.id)
            templates.append(compose(text, layout))
    return templates


def wording_of(text: str, task: Task) -> str:
    """An instruction of the stock without what it says of the task, by which wordings differ."""
    for said in sorted(filter(None, _known(task).values()), key=len, reverse=True):
        text = text.replace(said, "…")
    return text


def all_wordings() -> tuple[str, ...]:
    """Every wording of every kind, with its marks for what is said of a task."""
    return tuple(wording for kind in stock_kinds() for wording in _wordings(kind))


def _wordings(kind: str) -> tuple[str, ...]:
    return tuple((_FOLDER / f"{kind}.txt").read_text(encoding="utf-8").splitlines())


def _known(task: Task) -> Mapping[str, str]:
    fields = [slot for slot in task.slots if slot not in task.option_slots and slot != "choices"]
    return {
        "choices": _listed(task.choices or (), "or"),
        "fields": _listed([field.replace("_", " ") for field in fields], "and"),
        "task": " ".join(task.description.split()),
    }


def _listed(names: Sequence[str], last: str) -> str:
    """Names in a row, as a sentence lists them."""
    head = ", ".join(names[:-1])
    return f"{head} {last} {names[-1]}" if head else "".join(names)


def _names_choices(layout: Layout, task: Task) -> bool:
    """Return whether a layout has a line with all choices; options show theirs themselves."""
    shown = task.option_slots or task.choices_as is not None
    return not shown and bool(task.choices) and ", ".join(task.choices or ()) in layout.skeleton


@lru_cache(maxsize=256)  # a command asks for the same templates several times
def _layout_for(
    text: str, wording: str, layouts: tuple[Layout, ...], slots: tuple[str, ...]
) -> Layout | None:
    """The first of the layouts, in an order given by the wording, that the text leaves as it is.

    A text with marks of its own, such as ####, changes every layout alike: then simply the first.
    """
    order = sorted(layouts, key=lambda layout: fingerprint("stock", wording, layout.id))
    fitting = (x for x in order if layout_of(compose(text, x), slots) == x.key)
    return next(fitting, order[0] if order else None)
