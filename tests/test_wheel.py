"""What the wheel holds, and that its commands work where no repository is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a wheel installs. It is built where a build may leave files behind, from what the image of
    cluster/Dockerfile builds it from."""
    source, built, folder = (tmp_path_factory.mktemp(name) for name in ("source", "built", "installed"))
    copied = re.findall(r"^COPY --chown=ray (.+) \S+$", (ROOT / "cluster" / "Dockerfile").read_text(), re.MULTILINE)
    for name in " ".join(copied).split():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(built)], cwd=source, check=True, capture_output=True)
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_the_wheel_holds_its_licence_and_the_notices_of_shipped_data(installed: Path) -> None:
    (info,) = installed.glob("*.dist-info")
    metadata = message_from_bytes((info / "METADATA").read_bytes())
    assert metadata["License-Expression"] == "Apache-2.0"
    notices = [path.relative_to(ROOT) for path in ROOT.glob("w2s_ray/**/*.NOTICE")]
    assert notices
    for path in (Path("LICENSE"), *notices):
        assert (info / "licenses" / path).read_bytes() == (ROOT / path).read_bytes()


def test_the_wheel_holds_the_whole_package(installed: Path) -> None:
    """A folder that the packaging forgot would be missed by users alone."""
    in_repository = {path.relative_to(ROOT) for path in ROOT.glob("w2s_ray/**/*") if path.is_file()}
    kept = {path for path in in_repository if "__pycache__" not in path.parts}
    kept |= {Path("w2s_ray") / path.relative_to(ROOT) for path in ROOT.glob("analysis/**/*.*") if path.suffix != ".pyc"}
    assert {path for path in kept if not (installed / path).is_file()} == set()


def test_the_wheel_brings_one_package_and_a_folder_called_analysis_stays_the_users(
    installed: Path, tmp_path: Path
) -> None:
    (info,) = installed.glob("*.dist-info")
    assert {path.name for path in installed.iterdir()} == {"w2s_ray", info.name}
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "__init__.py").write_text("raise SystemExit('this one is the user's')")
    code = (
        "import importlib.resources, w2s_ray.analysis.report as report;"
        "templates = importlib.resources.files('w2s_ray.analysis') / 'templates';"
        "print(report.__file__, [path.name for path in templates.iterdir()])"
    )
    done = python(installed, tmp_path, code)
    assert done.stdout.startswith(str(installed)) and "report.html.j2" in done.stdout, done.stderr


def test_a_wheel_in_an_empty_folder_finds_a_study_by_its_name(installed: Path, tmp_path: Path) -> None:
    """`run` and `plan` take the same road to a study; `explain` takes the least time."""
    done = w2s(installed, tmp_path, "explain", "easy-to-hard")
    assert done.returncode == 0 and "cells; give one of them" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


def w2s(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of the installed package, with no repository beside it."""
    code = f"import w2s_ray.cli as cli; assert cli.__file__.startswith({str(installed)!r}); cli.main()"
    return python(installed, folder, code, *arguments)


def python(installed: Path, folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
