"""What surrounds the figures of the report: files for papers, tables as text, the dictionary of columns, items, and what it cost."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from test_report import planted_study, predictions_of, results_of

from w2s_ray import item_texts, left_out, results, tasks
from w2s_ray.analysis import (
    columns,
    compare,
    figure_files,
    findings,
    items_page,
    page,
    pgr,
    provenance,
    report,
    sections,
    text_tables,
)
from w2s_ray.analysis.answers import read_answers
from w2s_ray.analysis.charts.scores import score_marks

from fits import DATA

EMPTY = (
    "methods",
    "scores",
    "supervisors",
    "labels",
    "imitation",
    "misfit",
    "stopping",
    "copying",
    "parts",
    "left_out",
)
"""Tables of the page that a test leaves out."""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report with controls."""
    out = tmp_path_factory.mktemp("planted") / "out"
    planted_study(out, with_controls=True)
    report.write_report(out)
    return out


def test_every_column_of_every_table_has_its_sentence(planted: Path) -> None:
    first_lines = {path.stem: path.read_text().partition("\n")[0] for path in (planted / "tables").glob("*.csv")}
    written = {table: line.split(",") for table, line in first_lines.items() if line}
    schemas: dict[str, Any] = {
        "results": results.SCHEMA, "runs": results.RUNS, "predictions": results.PREDICTIONS, "half_b": results.PREDICTIONS,
        "items": results.ITEMS, "parts": results.PARTS, "left_out": left_out.LEFT_OUT, "item_texts": item_texts.ITEM_TEXTS,
        "pgr": pgr.SCHEMA, "findings": findings.SCHEMA, "compare": compare.SCHEMA,
    }  # fmt: skip
    assert len(written) > 15
    for table, names in [*written.items(), *((name, list(schema)) for name, schema in schemas.items())]:
        missing = [name for name in names if columns.meaning(name, table=table) is None]
        assert not missing, f"{table}: give these columns a sentence in analysis/columns.yaml: {missing}"
    assert columns.meaning("pgr_low", table="pgr") == "Lower end of the 95 % interval of pgr."
    assert "- `pgr`: Performance gap recovered" in (planted / "tables/columns.md").read_text()


def test_tables_have_no_rows_of_methods_with_nothing_to_say(planted: Path) -> None:
    rare_fits, rare_steps, results, pgr = (
        pl.read_csv(planted / f"tables/{name}.csv") for name in ("fits", "inverse_scaling", "results", "pgr")
    )
    assert rare_fits["value"].is_null().all(), "no form was fitted"
    fits = rare_fits.with_columns(value=pl.lit("1.0"))
    steps = rare_steps.with_columns(steps_down=pl.lit(1, pl.Int64), steps_up=pl.lit(0, pl.Int64))
    rare_fits = rare_fits.with_columns(method=pl.lit("rare"))
    rare_steps = steps.with_columns(method=pl.lit("rare"), steps_down=pl.lit(0, pl.Int64))

    def shown(fits: pl.DataFrame, steps: pl.DataFrame) -> dict[str, page.Section]:
        frames = dict.fromkeys(EMPTY, pl.DataFrame()) | {"results": results, "pgr": pgr}
        made = sections.sections(frames | {"fits": fits, "inverse_scaling": steps})
        return {section.title: section for section in made}

    alone, both = shown(fits, steps), shown(pl.concat([fits, rare_fits]), pl.concat([steps, rare_steps]))
    for title in ("Scaling fits", "Inverse scaling of agreement"):
        assert both[title].rows == alone[title].rows
    assert both["Scaling fits"].note.endswith("Methods with too few pairs for any form are only in fits.csv.")
    rare = shown(rare_fits, rare_steps)
    assert len(rare["Scaling fits"].rows) == rare_fits.n_unique(["setting", "family"]), "the reason is said once"
    assert "Inverse scaling of agreement" not in rare


def test_figures_have_the_width_of_a_column_and_no_title(planted: Path) -> None:
    score = (planted / "figures/classification-score.svg").read_text()
    width = re.search(r'width="([\d.]+)mm"', score)
    assert width and float(width[1]) <= figure_files.COLUMN_MM
    assert "Test score" not in score and "<h3>Test score</h3>" in (planted / "report.html").read_text()
    assert (planted / "figures/classification-score.pdf").read_bytes().startswith(b"%PDF")


def test_the_score_figure_has_supervisors_gaps_and_intervals_of_ceilings() -> None:
    common = {
        "task": "t", "family": "f", "method": "naive", "panel": "naive", "fails": None, "weak": "s", "weak_number": 0, "weak_size": 10.0,
        "weak_score": 0.6, "student_score": 0.7, "ceiling_score": 0.9, "ceiling_score_low": 0.88, "ceiling_score_high": 1.2,
    }  # fmt: skip
    rows = [
        common | {"strong": "m", "strong_size": 100.0, "floor": 0.6},
        common | {"strong": "l", "strong_size": 1000.0, "floor": 0.65},
    ]
    marks = score_marks(pl.DataFrame(rows))
    of = {what: marks.filter(pl.col("what") == what) for what in ("supervisor", "student", "floor", "ceiling")}
    assert of["supervisor"].height == 3 and of["supervisor"]["score"].unique().to_list() == [0.6], (
        "its own size and two students"
    )
    assert of["supervisor"].filter("is_own")["drawn_size"][0] < of["student"]["drawn_size"].min()
    assert of["student"].select("weak_score", "ceiling_score").unique().rows() == [(0.6, 0.9)], "the ends of the gap"
    assert of["floor"]["strong"].to_list() == ["l"], "a floor that is the supervisor's score is not drawn twice"
    assert of["ceiling"].select("low", "high").unique().rows() == [(0.88, 1.0)]
    assert not set(of["ceiling"]["drawn_size"]) & set(of["student"]["drawn_size"]), "side by side"


def test_tables_as_markdown_and_latex(planted: Path) -> None:
    assert text_tables.markdown(["a"], [["x|y"]]).splitlines()[2] == r"| x\|y |"
    tex = text_tables.latex(["a_b", "n"], [[r"50 % \input{x}", "1.0"]], is_number=[False, True])
    assert r"a\_b & n \\" in tex and r"50 \% \textbackslash{}input\{x\} & 1.0 \\" in tex
    assert tex.startswith(r"\begin{tabular}{lr}")
    pairs = (planted / "tables/pairs.md").read_text().splitlines()
    assert pairs[0].startswith("| task | weak | strong |") and len(pairs) == 5
    assert (planted / "tables/pairs.tex").read_text().count(r"\\") == 4


def test_a_long_table_is_cut_on_the_page_and_says_so(tmp_path: Path) -> None:
    table = pl.DataFrame({"reason": [f"r{i}" for i in range(page.MAX_ROWS + 5)]})
    [short, long] = [
        page.section(f"up to {height}", table.head(height)) for height in (page.MAX_ROWS, page.MAX_ROWS + 5)
    ]
    assert not short.left_out and len(long.rows) == page.MAX_ROWS
    assert long.left_out == "The first 1,000 of 1,005 rows; the CSV files have all."
    text_tables.write_text_tables([short, long], folder=tmp_path)
    for name, has_line in (("up_to_1000.md", False), ("up_to_1005.md", True), ("up_to_1005.tex", True)):
        assert (long.left_out in (tmp_path / name).read_text()) == has_line


def test_the_page_links_to_files_that_it_can_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of about 2,000, 3,000 and 9,000 bytes, and room for 8,000 in all."""
    monkeypatch.setattr(report, "EMBEDDED_BYTES", 5000)
    monkeypatch.setattr(report, "EMBEDDED_BYTES_IN_ALL", 8000)
    frames = {f"of_{size}": pl.DataFrame({"a": ["x" * size]}) for size in (9000, 3000, 2000, 2900)}
    addresses = {each.name: each.address for each in report.write_csv_files(frames, folder=tmp_path / "tables")}
    linked = {name for name, address in addresses.items() if not address.startswith("data:")}
    assert linked == {"of_9000.csv", "of_3000.csv"} and addresses["of_9000.csv"] == "tables/of_9000.csv"


def test_items_by_hand() -> None:
    """Five items of label 1: rescued, misled, both wrong with the ceiling, lost, and both right."""
    predictions = predictions_of(
        [1, 1, 1, 1, 1],
        weak_s_t_0=[0.1, 0.1, 0.1, 0.9, 0.9],
        naive_s_m_t_0=[0.9, 0.1, 0.1, 0.1, 0.9],
        ceiling_m_t_0=[0.9, 0.9, 0.1, 0.9, 0.9],
    )
    [pair] = items_page.items_of_pairs(results_of({}), read_answers(predictions), predictions)
    assert {kind: [item[0] for item in found["items"]] for kind, found in pair["kinds"].items()} == {
        "rescued": ["i00000"], "misled": ["i00001"], "both": ["i00002"], "lost": ["i00003"],
    }  # fmt: skip
    assert pair["kinds"]["misled"]["items"] == [["i00001", 1, "0", "0", "1"]]
    itself = results_of({"strong": "s"})
    assert items_page.items_of_pairs(itself, read_answers(predictions), predictions) == [], (
        "a pair of a size with itself"
    )


def test_the_page_of_items_is_bounded_and_holds_texts_as_data(tmp_path: Path) -> None:
    num_items, evil = 500, "</script><script>alert(1)</script>"
    predictions = predictions_of(
        [1] * num_items, weak_s_t_0=[0.1] * num_items, naive_s_m_t_0=[0.9] * num_items, ceiling_m_t_0=[0.9] * num_items
    )
    ids = predictions["id"].unique()
    texts = pl.DataFrame({"task": "t", "id": ids, "text": evil + "x" * 5000, "first": None, "second": None, "label": 1})
    texts.write_parquet(tmp_path / "item_texts.parquet")
    of_fits: dict[str, Any] = {"answers": read_answers(predictions), "predictions": predictions, "title": "x"}
    assert items_page.write_items_page(tmp_path, results=results_of({}), **of_fits)
    page = (tmp_path / "items.html").read_text()
    assert len(page) < 50_000 and evil not in page and page.count("</script>") == 2
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert len(data["texts"]["t"]) == items_page.MAX_SHOWN
    assert next(iter(data["texts"]["t"].values()))[0].startswith(evil)
    assert "http" not in page, "it needs no network"
    assert not items_page.write_items_page(tmp_path, results=results_of({"status": "failed"}), **of_fits)
    assert not (tmp_path / "items.html").exists()


def test_texts_come_from_the_files_of_the_task(tmp_path: Path) -> None:
    rows = "\n".join(f"{word * 3000},{i % 2}" for i, word in enumerate("abcd"))
    (tmp_path / "data.csv").write_text(f"text,label\n{rows}\n")
    source = tmp_path / "own.yaml"
    source.write_text("name: own\nsetting: classification\ntrain: data.csv\ntemplate: '{text}'\nlabel: label\n")
    data = replace(DATA, task="own", source=str(source), fingerprint="f")
    ids = [row["id"] for row in tasks.read_task(tasks.load_task(source)).rows]
    path = tmp_path / "item_texts.parquet"
    table = item_texts.item_texts([data], test_ids={"own": ids[:3]}, at_hand=(), earlier=path)
    assert table["id"].to_list() == sorted(ids[:3]) and set(table["label"]) == {0, 1}
    assert table["text"].str.len_chars().unique().to_list() == [item_texts.MAX_CHARACTERS + 1], "cut, with its mark"
    table.write_parquet(path)
    source.unlink()
    again = item_texts.item_texts([data], test_ids={"own": ids[:3]}, at_hand=(), earlier=path)
    assert again.equals(table), "the same files are not read again"
    changed = replace(data, fingerprint="g")
    assert item_texts.item_texts([changed], test_ids={"own": ids}, at_hand=(), earlier=path).is_empty()


def test_what_a_study_cost_adds_up_over_runs(tmp_path: Path) -> None:
    facts = {"wall_s": 600.0, "startup_s": 20.0, "busy_share": 0.5, "fits_new": 3, "fits_failed": 0, "store": "x"}
    provenance.remember(tmp_path, facts)
    provenance.remember(tmp_path, facts | {"wall_s": 1200.0, "busy_share": 0.8, "fits_new": 2})
    history = provenance.remember(tmp_path, facts | {"wall_s": 5.0, "busy_share": 0.0, "fits_new": 0})
    assert [run.fits_new for run in history] == [3, 2], "a run that trains nothing changes nothing"
    runs = pl.DataFrame(
        {"workers": [1, 2], "tokens": [1_000_000, 500_000], "flops": [10**13, 10**13], "train_s": [1800.0, 1800.0]}
    )
    first, _, last = provenance.cost_in_words(runs, history)
    assert "took 1.5 h on their workers" in first and "1.5 million tokens and 2.0e+13 FLOP" in first
    assert (
        last
        == "5 of them were trained here, in 2 runs of 30 min together; the machine was busy with them for 70% of that time."
    )
    assert provenance.cost_in_words(pl.DataFrame(), history) == []
