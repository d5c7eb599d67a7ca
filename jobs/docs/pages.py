"""Write the pages and parts of pages that are made from code and records, or check them.

python jobs/docs/pages.py            # writes docs/reference/*.md, tables of docs/results, pictures
python jobs/docs/pages.py --check    # names those that are not what would be written
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import commands
import configuration
import figures
import picture

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
STUDY = ROOT / "jobs" / "benchmarks" / "study.py"
NOTE = "*Written by `make reference` from the code; changes to this file are lost.*"
RESULTS = STUDY.parent / "results"
_DRAWN = re.compile(r"\]\((\w+)\.svg\)")
_BLOCK = re.compile(r"(<!-- study: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> Iterator[tuple[Path, str]]:
    """Every file that is written, and what it holds."""
    yield DOCS / "reference" / "configuration.md", configuration.page(NOTE)
    yield DOCS / "reference" / "commands.md", commands.page(NOTE)
    yield DOCS / "reference" / "figures.md", figures.page(NOTE)
    studies = DOCS / "results" / "studies.md"
    text = studies.read_text(encoding="utf-8")
    yield studies, _BLOCK.sub(lambda found: found[1] + _study(found[2]) + found[3], text)
    yield DOCS / "accuracy.svg", picture.drawn(RESULTS / "study_sst2.json", picture.FEW)
    for name in _DRAWN.findall(text):
        yield studies.parent / f"{name}.svg", picture.drawn(RESULTS / f"study_{name}.json")


def _study(task: str) -> str:
    """The table of a recorded study, as its benchmark prints it."""
    found = re.search(rf"^{task}: .*?(?=^\w+: |\Z)", _studies(), re.DOTALL | re.MULTILINE)
    if found is None:
        raise SystemExit(
            f"no study of {task} is recorded beside {STUDY}: keep one, or name another"
        )
    return f"\n{found[0].strip()}\n\n"


@cache
def _studies() -> str:
    records = sorted(RESULTS.glob("study_*.json"))
    command = [sys.executable, str(STUDY), "show", *map(str, records)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


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
