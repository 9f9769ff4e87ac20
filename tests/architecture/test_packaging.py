"""The wheel is whole: built from the sdist, put into an empty environment, it works far from this folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("LOOMQ_", "PYTHON", "VIRTUAL_ENV"))}
NOT_SOURCE = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "tests")

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(150)]


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env or CLEAN, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source") / "loomq"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE)
    run(sys.executable, "-m", "build", "--no-isolation", cwd=source)
    [built] = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    venv = tmp_path_factory.mktemp("installed") / "venv"
    chosen = CLEAN | {"PYTHON": sys.executable}
    run(ROOT / "requirements/install.sh", venv, "requirements/runtime.lock", wheel, cwd=ROOT, env=chosen)
    return venv / "bin"


def test_the_installed_command_helps(installed: Path, tmp_path: Path):
    said = run(installed / "loomq", "--help", cwd=tmp_path)
    assert "Usage: loomq" in said


def test_the_installed_package_is_not_this_folder(installed: Path, tmp_path: Path):
    home = run(installed / "python", "-c", "import loomq; print(loomq.__file__)", cwd=tmp_path)
    assert home.startswith(str(installed.parent))


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path):
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "loomq").rglob("*") if path.is_file()}
    ours = {name for name in ours if "__pycache__" not in name}
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if name.startswith("loomq/")}
    assert shipped == ours


def test_the_wheel_carries_the_licence_and_nothing_but_the_package(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"loomq"}
