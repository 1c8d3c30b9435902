"""Misspelt options and commands, and half-typed names: the command line says what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from w2s_ray import cli


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        ("plan quickstart --stor x", "did you mean --store?"),
        ("run quickstart --max-paralel 2", "did you mean --max-parallel?"),
        ("run quickstart --parallel 2", "did you mean --max-parallel?"),
        ("run quickstart --retry", "did you mean --retry-failed?"),
        ("run quickstart --budget 2", "did you mean --budget-hours or --budget-usd?"),
        ("plan quickstart --usd 2", "did you mean --usd-per-hour?"),
        ("new task data.csv --lable x", "did you mean --label?"),
        ("plan --hepl", "did you mean --help?"),
        ("plann quickstart", "Did you mean 'plan'"),
        ("new taks data.csv", "Did you mean 'task'?"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_right_one(command: str, meant: str) -> None:
    result = CliRunner().invoke(cli.app, command.split(), env={"COLUMNS": "200"})
    assert result.exit_code == 2 and meant in result.output


def test_an_option_that_is_like_no_other_gets_no_suggestion() -> None:
    result = CliRunner().invoke(cli.app, ["plan", "quickstart", "--zzz"])
    assert result.exit_code == 2 and "No such option: --zzz" in result.output and "mean" not in result.output


@pytest.mark.parametrize(
    ("typed", "completions"),
    [
        ("run quick", {"quickstart"}),
        ("submit quick", {"quickstart"}),
        ("status quick", {"quickstart"}),
        ("explain quick", {"quickstart"}),
        ("verify quick", {"quickstart"}),
        ("report quickstart quick", {"quickstart"}),
        ("report m", {"methods", "mine/", "my-study.yaml"}),
        ("plan mine/", {"mine/other.yaml"}),
        ("tasks chess-m", {"chess-mate", "chess-moves"}),
        ("families pythia-", {"pythia-410m-steps", "pythia-deduped"}),
        ("methods shuf", {"shuffled"}),
        ("new study my", {"my-study.yaml"}),
        ("new study my-study.yaml --family mini", {"minilm"}),
    ],
)
def test_names_and_files_are_completed(
    typed: str, completions: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("my-study.yaml", "my-data.csv", "mine/other.yaml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    words = f"w2s {typed}"
    shell = {"_W2S_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    result = CliRunner().invoke(cli.app, [], prog_name="w2s", env=shell)
    assert set(result.output.split()) == completions
