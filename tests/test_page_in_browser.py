"""The pages of the report in a real browser: nothing is off-screen on a phone, and nothing is cut off on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from browser import Browser, find_chromium
from test_report import planted_study

from w2s_ray.analysis import report

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="there is no Chromium or Chrome on this machine; `apt install chromium`, or name one in $CHROMIUM",
)
PHONE_PX, A4_PX, A4_LANDSCAPE_PX = 390, 703, 1032
"""Width of a phone, and of A4 without its margins of 12 mm; tables are printed on landscape pages."""
PRINTED_FIGURE_PX = 800
"""A figure is no higher on paper, so that its title and its caption stand on the same page."""
OUTSIDE = """[...document.querySelectorAll("svg, p, dd, summary, figcaption, select, h1, h2, h3, a")]
  .filter((part) => part.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map((part) => part.outerHTML.slice(0, 200))"""
OUTSIDE_OF_FIGURES = """[...document.querySelectorAll(".drawing svg")].filter((svg) => {
  const frame = svg.getBoundingClientRect();
  return frame.left < 0 || frame.right > document.documentElement.clientWidth || [...svg.querySelectorAll("text")].some((text) => {
    const own = text.getBoundingClientRect();
    return own.width && (own.right > frame.right + 1 || own.left < frame.left - 1 || own.bottom > frame.bottom + 1);
  });
}).map((svg) => svg.parentElement.id)"""
CUT = """[...document.querySelectorAll(".wide, pre, td, th")]
  .filter((part) => part.clientHeight && (part.scrollWidth > part.clientWidth + 1 || part.scrollHeight > part.clientHeight + 1) &&
    getComputedStyle(part).overflow !== "visible" || part.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map((part) => part.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None
    with Browser(CHROMIUM) as browser:
        yield browser


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a study with controls, with texts of items."""
    out = tmp_path_factory.mktemp("page") / "out"
    planted_study(out, with_controls=True)
    ids = pl.read_parquet(out / "predictions.parquet")["id"].unique()
    texts = {
        "task": "t",
        "id": ids,
        "text": "A text of an item. " * 20 + "w" * 200,
        "first": None,
        "second": None,
        "label": 1,
    }
    pl.DataFrame(texts).write_parquet(out / "item_texts.parquet")
    report.write_report(out)
    return out


def test_on_a_phone_nothing_is_off_screen(browser: Browser, out: Path) -> None:
    page = browser.open(out / "report.html", width=PHONE_PX)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE_PX
    assert page.evaluate("document.querySelectorAll('.drawing svg').length") > 5
    assert page.evaluate(OUTSIDE_OF_FIGURES) == []
    assert page.evaluate(OUTSIDE) == []


def test_on_paper_no_table_loses_rows_or_columns(browser: Browser, out: Path) -> None:
    page = browser.open(out / "report.html", width=A4_LANDSCAPE_PX, is_print=True)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("[...document.querySelectorAll('details.table')].every((table) => table.open)")
    assert page.evaluate("document.documentElement.scrollWidth") == A4_LANDSCAPE_PX
    assert page.evaluate(CUT) == []
    upright = browser.open(out / "report.html", width=A4_PX, is_print=True)
    assert upright.evaluate(OUTSIDE_OF_FIGURES) == []
    upright.evaluate("document.querySelector('.drawing svg').setAttribute('viewBox', '0 0 100 3000')")
    assert upright.evaluate("document.querySelector('.drawing svg').clientHeight") < PRINTED_FIGURE_PX, (
        "longer than a page"
    )


def test_at_a_desk_pgr_is_seen_without_scrolling(browser: Browser, out: Path) -> None:
    page = browser.open(out / "report.html", width=1300)
    header = "[...document.querySelector('details.table').querySelectorAll('th')].find((th) => th.innerText === 'PGR')"
    right, of_table = (
        f"{header}.getBoundingClientRect().right",
        f"{header}.closest('.wide').getBoundingClientRect().right",
    )
    assert page.evaluate(right) <= page.evaluate(of_table)


def test_items_are_chosen_by_task_pair_and_kind(browser: Browser, out: Path) -> None:
    page = browser.open(out / "items.html", width=PHONE_PX)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE_PX
    before = page.evaluate("document.querySelector('#items').innerText")
    assert "A text of an item." in before and "supervisor: " in before
    assert page.evaluate("document.querySelectorAll('#pair option').length") == 3
    page.evaluate("{const kind = document.querySelector('#kind'); kind.value = 'lost'; kind.onchange()}")
    after = page.evaluate("document.querySelector('#items').innerText")
    assert after != before and "A text of an item." in after
