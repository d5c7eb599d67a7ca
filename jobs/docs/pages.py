"""Write the pages and parts of pages that are made from code and records, or check them.

python jobs/docs/pages.py            # writes docs/reference/*.md, tables of docs/results, pictures
python jobs/docs/pages.py --check    # names those that are not what would be written
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import commands
import configuration
import figures

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "jobs" / "benchmarks"))  # of which pictures and answers are made

import measured  # noqa: E402
import picture  # noqa: E402
import questions  # noqa: E402
import study  # noqa: E402

DOCS = ROOT / "docs"
NOTE = "*Written by `make reference` from the code; changes to this file are lost.*"
STUDIES = ROOT / "jobs" / "configs" / "study"
_DRAWN = re.compile(r"\]\(([\w-]+)\.svg\)")
_KINDS = "|".join(["study", "question", *measured.TABLES])
_BLOCK = re.compile(rf"(<!-- ({_KINDS}): ([\w,-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> Iterator[tuple[Path, str]]:
    """Every file that is written, and what it holds."""
    yield DOCS / "reference" / "configuration.md", configuration.page(NOTE)
    yield DOCS / "reference" / "commands.md", commands.page(NOTE)
    yield DOCS / "reference" / "figures.md", figures.page(NOTE)
    yield DOCS / "accuracy.svg", picture.drawn(_record("smollm2-sst2"), picture.FEW)
    for page in (DOCS / "results").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        yield page, _BLOCK.sub(lambda found: found[1] + _block(*found.groups()) + found[4], text)
        for name in _DRAWN.findall(text):
            yield page.with_name(f"{name}.svg"), _drawn(name)


def _block(_: str, kind: str, name: str, __: str) -> str:
    """The table of a recorded study or benchmark, or the answer to a question."""
    if kind == "study":
        lines = study.table(_record(name))
    elif kind == "question":
        lines = questions.block(name, _answering())
    else:
        lines = measured.block(kind, name)
    return "\n".join(["", *lines, "", ""])


def _drawn(name: str) -> str:
    question = questions.QUESTIONS.get(name)
    if question is None:
        return picture.drawn(_record(name))
    found = questions.comparisons(question, _answering())
    return picture.compared(question, [*found, *questions.together(question, found)])


def _record(name: str) -> dict[str, Any]:
    path = study.RESULTS / f"study_{name}.json"
    if not path.exists():
        raise SystemExit(f"no study {name} is recorded beside {path}: keep one, or name another")
    return json.loads(path.read_text(encoding="utf-8"))


@cache
def _answering() -> tuple[dict[str, Any], ...]:
    """The records of the configurations in `jobs/configs/study`, which answer the questions."""
    runs = sorted(path.stem for path in STUDIES.glob("*.yaml"))
    further = [f"{run}-{kind}" for kind in ("axes", "far") for run in runs]  # `evaluation.name`
    names = [*runs, *further]
    return tuple(_record(n) for n in names if (study.RESULTS / f"study_{n}.json").exists())


def main() -> int:
    """Write, or name what differs; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, name what differs")
    check = parser.parse_args().check
    differing = []
    for path, text in pages():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            differing.append(str(path.relative_to(ROOT)))
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    if differing:
        print(f"{'not up to date, run make reference' if check else 'written'}: {differing}")
    return int(check and bool(differing))


if __name__ == "__main__":
    sys.exit(main())
