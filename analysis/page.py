"""An HTML page that is one file and needs no network: templates, tables as they are shown, and the script that draws figures.

Content is plain data; `templates/` lays it out. Every name in a study's files is untrusted: the templates escape text, and the
scripts of a page get names as JSON only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import polars as pl
import vl_convert as vlc

from w2s_ray.analysis.columns import meaning

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("w2s_ray.analysis"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.policies["json.dumps_kwargs"] = {}  # not sorted: the order of keys may matter to Vega

DRAW = """
const isNarrow = document.documentElement.clientWidth < 700;
for (const [name, spec] of Object.entries(JSON.parse(document.getElementById("specs").textContent))) {
  if (isNarrow && spec.columns) spec.columns = 1;
  vegaEmbed(document.getElementById(`fig-${name}`), spec, {actions: false, renderer: "svg"}).then(() => {
    document.querySelector(`#fig-${name} svg`).style = "max-width: 100%; height: auto";
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details.table").forEach((table) => (table.open = true)));
"""
"""Draws every figure in its place, never wider than the window: on a phone the panels of a figure stand one under the other. Opens
the tables for printing. The specifications are read as JSON, so no name becomes a part of the script."""


class Column(NamedTuple):
    name: str
    meaning: str
    """Its sentence in columns.yaml; empty where there is none."""


class TableCell(NamedTuple):
    text: str
    is_number: bool


@dataclass(frozen=True)
class Section:
    """A table with its title, formatted for the page. It opens and closes by a click on the title."""

    title: str
    columns: list[Column]
    rows: list[list[TableCell]]
    note: str
    is_open: bool
    left_out: str = ""
    """Which rows a long table lacks here."""


@dataclass(frozen=True)
class Download:
    name: str
    address: str
    """The whole content as a data URL, or a path beside the page."""


def write_page(path: Path, template: str, *, specs: dict[str, dict[str, Any]], **content: Any) -> None:
    """Fill in a template and write the page, whole or not at all. `specs`: name -> specification of the figures to draw."""
    script = _drawing_script() if specs else ""
    page = TEMPLATES.get_template(template).render(specs=specs, script=script, **content)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)


def _drawing_script() -> str:
    """Vega and DRAW, bundled into one module that needs no network."""
    # strings of the bundle hold tags such as </script>, which would end the element; JavaScript reads the escapes as the same
    escapes = {"</": "<\\/", "<": "\\x3c"}
    bundle = vlc.javascript_bundle(DRAW)
    return re.sub("</(?=script)|<(?=!--)", lambda match: escapes[match[0]], bundle, flags=re.IGNORECASE)


SHOWN_AS = {
    "supervisor": "weak_score",
    "student": "student_score",
    "ceiling": "ceiling_score",
    "PGR": "pgr",
    "PGR above floor": "pgr_above_floor",
    "median": "pgr_median",
    "left out of the median": "num_left_out",
    "seeds": "num_seeds",
    "dropped": "num_dropped",
    "fails a control": "fails",
}
"""Header of a column on the page -> its name in the files, where they differ."""


MAX_ROWS = 1000
"""A table on the page has no more rows."""


def section(title: str, table: pl.DataFrame, *, of: str = "", note: str = "", is_open: bool = False) -> Section:
    """Format a table for the page. `of`: the table of columns.yaml that says what its columns mean. A long table has its
    first MAX_ROWS rows here, and says so."""
    rows = [[_table_cell(value) for value in row] for row in table.head(MAX_ROWS).iter_rows()]
    left_out = (
        f"The first {MAX_ROWS:,} of {table.height:,} rows; the CSV files have all." if table.height > MAX_ROWS else ""
    )
    columns = [Column(name, meaning(SHOWN_AS.get(name, name), table=of) or "") for name in table.columns]
    return Section(title, columns, rows, note, is_open, left_out)


def _table_cell(value: Any) -> TableCell:
    if value is None:
        return TableCell("–", is_number=False)
    if isinstance(value, float):
        is_plain = value == 0 or 1e-3 <= abs(value) < 1e5
        return TableCell(f"{value:.3f}" if is_plain else f"{value:.2g}", is_number=True)
    return TableCell(str(value), is_number=isinstance(value, int))
