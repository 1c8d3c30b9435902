"""Figures as files, ready for a paper: SVG, PDF (with its fonts) and PNG.

A figure with one panel is as wide as one column of a paper (COLUMN_MM), one with several as both (PAGE_MM); a small figure may be
narrower, so that its text is no larger than that of the others. Text is then about 7 points high.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import vl_convert as vlc

from w2s_ray.analysis.charts.parts import Figure, specification

COLUMN_MM, PAGE_MM = 84.0, 174.0
MM_PER_PX = 25.4 / 96
PT_PER_MM = 72 / 25.4
MAX_PX_OF_COLUMN = 640
"""A drawing that is wider than this before it is scaled gets the width of both columns."""
MAX_SCALE = 0.7
PNG_DPI = 300


def write_figures(figures: dict[str, Figure], *, folder: Path) -> dict[str, dict[str, Any]]:
    """Write each figure as SVG, PDF and PNG. Returns name -> Vega-Lite specification."""
    folder.mkdir(parents=True, exist_ok=True)
    specs = {}
    for name, figure in figures.items():
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", name)  # names come from tables, and must not lead out of the folder
        spec = specification(figure)
        svg = vlc.vegalite_to_svg(spec)
        width_px, _ = _size_px(svg)
        width_mm = _width_mm(width_px)
        (folder / f"{stem}.svg").write_text(_resized(svg, width_mm, unit="mm"), encoding="utf-8")
        # in a PDF, a number without a unit is in points
        (folder / f"{stem}.pdf").write_bytes(vlc.svg_to_pdf(_resized(svg, width_mm * PT_PER_MM, unit="")))
        (folder / f"{stem}.png").write_bytes(vlc.svg_to_png(svg, scale=width_mm / 25.4 * PNG_DPI / width_px, ppi=72))
        specs[stem] = spec
    return specs


def _width_mm(width_px: float) -> float:
    most_mm = COLUMN_MM if width_px <= MAX_PX_OF_COLUMN else PAGE_MM
    return min(most_mm, width_px * MM_PER_PX * MAX_SCALE)


SIZE = re.compile(r'width="([\d.]+)" height="([\d.]+)"')


def _size_px(svg: str) -> tuple[float, float]:
    """Width and height that the root element says, in pixels."""
    found = SIZE.search(svg)
    assert found is not None, "Vega writes both"
    return float(found[1]), float(found[2])


def _resized(svg: str, width: float, *, unit: str) -> str:
    """The same drawing with another width. Its `viewBox` scales what is in it."""
    width_px, height_px = _size_px(svg)
    height = width * height_px / width_px
    return SIZE.sub(f'width="{width:.2f}{unit}" height="{height:.2f}{unit}"', svg, count=1)
