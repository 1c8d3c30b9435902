"""Tables as Markdown and as LaTeX, as they are shown on the page.

Markdown is what GitHub and notebooks show. LaTeX needs the package booktabs and nothing else; names are escaped, so a table goes into
a paper as it is.
"""

from __future__ import annotations

import re
from pathlib import Path

from w2s_ray.analysis.page import Section

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "–": "--",
    "→": r"$\rightarrow$", "×": r"$\times$",
}  # fmt: skip


def write_text_tables(sections: list[Section], *, folder: Path) -> None:
    """Write each table of the page as NAME.md and NAME.tex."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in sections:
        header = [column.name for column in table.columns]
        rows = [[cell.text for cell in row] for row in table.rows]
        is_number = [any(row[i].is_number for row in table.rows) for i in range(len(header))]
        stem = re.sub(r"[^a-z0-9]+", "_", table.title.lower())
        below, comment = (f"\n{table.left_out}\n", f"% {table.left_out}\n") if table.left_out else ("", "")
        (folder / f"{stem}.md").write_text(f"{markdown(header, rows)}\n{below}", encoding="utf-8")
        (folder / f"{stem}.tex").write_text(comment + latex(header, rows, is_number=is_number), encoding="utf-8")


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [
        header,
        ["---"] * len(header),
        *([text.replace("|", r"\|").replace("\n", " ") for text in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex(header: list[str], rows: list[list[str]], *, is_number: list[bool]) -> str:
    r"""A `tabular` with the lines of booktabs. Columns of numbers are set to the right."""
    alignment = "".join("r" if number else "l" for number in is_number)
    lines = [f"{' & '.join(map(escaped, row))} \\\\" for row in (header, *rows)]
    return "\n".join(
        [
            f"\\begin{{tabular}}{{{alignment}}}",
            "\\toprule",
            lines[0],
            "\\midrule",
            *lines[1:],
            "\\bottomrule",
            "\\end{tabular}",
            "",
        ]
    )


def escaped(text: str) -> str:
    """Text in which LaTeX sees no commands."""
    return "".join(LATEX.get(character, character) for character in text.replace("\n", " "))
