"""The pages as people see them: in a real browser, wide and narrow, light and dark."""

import csv
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet
from browser import PROGRAM, Browser, Tab, open_browser, open_tab
from synthetic_pool import make_pool
from synthetic_run import HOSTILE, SIX, add_shares, make_run, make_search

from paft_ray.report import SEARCH_FILE, write_pool_page, write_report
from paft_ray.storage.paths import Storage

WIDE, MIDDLE, PHONE = 1366, 900, 390
OPEN_ALL = "document.querySelectorAll('details').forEach(each => each.open = true)"
CONTRASTS = """(() => {
  const pen = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b]
    .map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] > 250) return colour;
    }
    return [255, 255, 255, 255];
  };
  const words = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  return [...document.body.querySelectorAll('*')]
    .filter(e => words(e) && !['SCRIPT', 'title'].includes(e.tagName) && e.checkVisibility())
    .map(e => {
      const style = getComputedStyle(e);
      const ink = rgba(e.tagName === 'text' ? style.fill : style.color);
      const [a, b] = [light(ink), light(behind(e))];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.tagName, e.textContent];
    })
    .sort((one, other) => one[0] - other[0]);
})()"""
CUT_TABLES = """[...document.querySelectorAll('.wide')]
  .filter(box => box.scrollWidth > box.clientWidth).map(box => box.innerText)"""
SORT_ALL = """[...document.querySelectorAll('table.sortable')].flatMap((table, t) =>
  [...table.tHead.rows[0].cells].flatMap((head, c) => {
    const shown = () => [...table.tBodies[0].rows].map(row => row.cells[c].dataset.v);
    return ['ascending', 'descending'].flatMap(way => {
      if (head.getAttribute('aria-sort') !== way) head.querySelector('button').click();
      const values = shown(), known = values.filter(v => v !== '').map(Number);
      const inOrder = values[0] === undefined || known.every((v, i) =>
        !i || (way === 'ascending' ? known[i - 1] <= v : known[i - 1] >= v));
      const emptyLast = !values.slice(0, known.length).includes('');
      const named = head.getAttribute('aria-sort') === way
        && table.querySelectorAll('[aria-sort]').length === 1;
      return inOrder && emptyLast && named ? [] : [[t, head.textContent, way, values]];
    });
  }))"""


def _starts() -> bool:
    """Whether the program is a browser, and not a stand-in that says how to get one."""
    if PROGRAM is None:
        return False
    done = subprocess.run([PROGRAM, "--version"], capture_output=True, timeout=60)
    return done.returncode == 0 and b"Chromium" in done.stdout


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not _starts():
        pytest.skip("no chromium on PATH: apt-get install chromium, as root")
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    storage = Storage.open(str(tmp_path_factory.mktemp("storage")))
    run = storage.child("runs", "six")
    make_run(run, SIX, 40, seeds=(0, 1, 2))
    add_shares(run, "paft_t1-s0")
    pool = make_pool(storage.child("pools", "0123456789abcdef"))
    searched = storage.child("runs", "searched")
    make_run(searched, {"base": (0.6, 0.1), "finalist_1": (0.8, 0.05)}, 40, seeds=(1, 2, 3))
    samples = [
        {"prompts.pool_size": size, "train.sampling.temperature": temperature}
        for size in (1, 4, 16, 64, 256)
        for temperature in (0.5, "inf")
    ]
    goals = [0.5 + 0.03 * number for number in range(len(samples))]
    searched.write_json(SEARCH_FILE, make_search(samples, goals))
    return {
        "report": Path(write_report(run)),
        "search": Path(write_report(searched)),
        "pool": Path(write_pool_page(pool)),
    }


def background(tab: Tab) -> str:
    return tab.run("getComputedStyle(document.body).backgroundColor")


def slow(*values: object) -> ParameterSet:
    """Return a parameter for the slow tier."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "width", "dark"),
    [
        ("report", WIDE, False),
        ("report", WIDE, True),
        slow("report", MIDDLE, False),
        ("report", PHONE, False),
        ("report", PHONE, True),
        slow("search", WIDE, True),
        ("search", PHONE, False),
        slow("pool", WIDE, True),
        ("pool", PHONE, False),
    ],
)
def test_page_fits_is_legible_and_fetches_nothing(
    browser: Browser, pages: dict[str, Path], tmp_path: Path, name: str, width: int, dark: bool
):
    tab = open_tab(browser, pages[name], width, dark)
    tab.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    tab.run(OPEN_ALL)
    assert tab.run("innerWidth") == width
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run(CUT_TABLES) == []
    ratio, tag, text = tab.run(CONTRASTS)[0]
    assert ratio >= 4.5, f"{text!r} in <{tag}> is hard to read"
    assert (background(tab) == "rgb(19, 20, 23)") is dark
    outside = [url for url in tab.requests() if not url.startswith("data:")]
    assert outside == [pages[name].as_uri()]
    assert tab.complaints() == []
    assert browser.proxy.requested == []


def test_every_heading_sorts_its_table_both_ways(browser: Browser, pages: dict[str, Path]):
    for page in pages.values():
        tab = open_tab(browser, page, WIDE)
        assert tab.run("document.querySelectorAll('table:not(.sortable)').length") == 0
        assert tab.run("document.querySelectorAll('table.sortable').length") > 1
        assert tab.run(SORT_ALL) == []
        assert tab.complaints() == []


DOWNLOAD = """(async () => {
  const made = [], before = URL.createObjectURL;
  URL.createObjectURL = blob => { made.push(blob); return "data:,"; };
  HTMLAnchorElement.prototype.click = function () { made.push(this.download); };
  document.querySelector('#results').closest('section').querySelector('.tools button').click();
  URL.createObjectURL = before;
  return [await made[0].text(), made[1]];
})()"""


def test_table_is_downloaded_as_csv_with_intervals_in_columns_of_their_own(
    browser: Browser, pages: dict[str, Path]
):
    tab = open_tab(browser, pages["report"], WIDE)
    text, name = tab.run(DOWNLOAD)
    assert name == "six-table-1.csv"
    heads, *rows = csv.reader(text.removeprefix("\ufeff").splitlines())
    assert heads[:3] == ["model", "mean", "mean, 95% interval or note"]
    assert rows[0][0] == "base model"
    assert len(rows) == 6
    assert all(re.fullmatch(r"[\d.]+ – [\d.]+", row[2]) for row in rows)
    assert all(len(row) == len(heads) for row in rows)
    assert tab.run("document.querySelectorAll('table').length") == tab.run(
        "document.querySelectorAll('.tools button').length"
    )


def test_every_section_can_be_linked_to(browser: Browser, pages: dict[str, Path]):
    for page in pages.values():
        tab = open_tab(browser, page, WIDE)
        links = "[...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href'))"
        targets = tab.run(links)
        ids = tab.run("[...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(ids) == len(set(ids))
        assert {target[1:] for target in targets} <= set(ids)
        without = "[...document.querySelectorAll('h2, h3')].filter(h => !h.id).length"
        assert tab.run(without) == 0


def test_glossary_is_open_on_the_first_visit_alone(browser: Browser, pages: dict[str, Path]):
    tab = open_tab(browser, pages["report"], WIDE)
    shown = "document.getElementById('glossary')?.open ?? null"
    assert tab.run(shown) is True
    browser.call("Page.reload", tab.session)
    deadline = time.monotonic() + 30
    while tab.run(shown) is not False and time.monotonic() < deadline:
        time.sleep(0.1)
    assert tab.run(shown) is False


def test_heading_is_reached_and_pressed_by_keyboard(browser: Browser, pages: dict[str, Path]):
    tab = open_tab(browser, pages["report"], WIDE)
    rows = "[...document.querySelector('.results').tBodies[0].rows].map(r => r.cells[0].innerText)"
    before = tab.run(rows)
    tab.run("document.querySelector('.results th button').focus()")
    tab.press("Tab")
    assert tab.run("document.activeElement.innerText") == "mean"
    tab.press("Enter")
    assert tab.run("document.activeElement.closest('th').getAttribute('aria-sort')") == "ascending"
    tab.press("Enter")
    after = tab.run(rows)
    assert after != before
    assert sorted(after) == sorted(before)
    assert after[-1] == "base model"


def test_pointing_at_a_dot_marks_the_same_prompt_everywhere(
    browser: Browser, pages: dict[str, Path]
):
    tab = open_tab(browser, pages["report"], WIDE)
    dot = "document.querySelector('.dot')"
    x, y = tab.run(
        f"{dot}.scrollIntoView({{block: 'center', behavior: 'instant'}}),"
        f"(b => [b.x + b.width / 2, b.y + b.height / 2])({dot}.getBoundingClientRect())"
    )
    browser.call("Input.dispatchMouseEvent", tab.session, type="mouseMoved", x=x, y=y)
    marked = tab.run("[...document.querySelectorAll('.on')].map(e => e.dataset.p)")
    assert len(set(marked)) == 1
    assert len(marked) >= 7  # a dot for each of six models, and the line of the ranking


def test_texts_from_outside_are_shown_and_never_run(browser: Browser, pages: dict[str, Path]):
    tab = open_tab(browser, pages["report"], WIDE)
    assert HOSTILE in tab.run("document.querySelector('#ranked').parentElement.innerText")
    assert tab.run("document.querySelectorAll('img, iframe, object, embed').length") == 0
    assert tab.run("document.scripts.length") == 1


def test_what_gets_into_the_page_all_the_same_can_load_nothing(
    browser: Browser, pages: dict[str, Path], tmp_path: Path
):
    picture = '<img src="http://outside.invalid/pixel.png">'
    inject = "onload = null; new Promise(done => {{ const box = document.createElement('div');"
    inject += "document.body.append(box); box.innerHTML = '{}';"
    inject += "box.firstChild.onerror = box.firstChild.onload = () => done() }})"
    tab = open_tab(browser, pages["report"], WIDE)
    tab.run(inject.format(picture))
    assert browser.proxy.requested == []
    plain = tmp_path / "plain.html"
    plain.write_text("<!doctype html><title>without a policy</title><p>text")
    control = open_tab(browser, plain, WIDE)
    control.run(inject.format(picture))
    assert [line.split()[1] for line in browser.proxy.requested] == [
        "http://outside.invalid/pixel.png"
    ]
    browser.proxy.requested.clear()
