"""What the wheel holds, and that its commands work where no repository is."""

from __future__ import annotations

import os
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
    """A folder with what a wheel installs. It is built from a copy, since a build leaves files behind."""
    source, built, folder = (tmp_path_factory.mktemp(name) for name in ("source", "built", "installed"))
    for name in ("w2s_ray", "analysis", "studies"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
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
    assert {path for path in kept if not (installed / path).is_file()} == set()
