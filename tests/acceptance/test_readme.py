"""README tells the truth: its files are written, its commands run, its Python prints, in an empty project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def place():
    """A folder that the servers' user can enter, and a home of its own."""
    folder = Path(tempfile.mkdtemp(prefix="loomq-readme-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def blocks():
    return [(match[1], match[2]) for match in BLOCK.finditer((ROOT / "README.md").read_text())]


def run(command, project, environment):
    done = subprocess.run(
        command,
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        shell=isinstance(command, str),
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_block_of_the_readme_works(place):
    project = place / "project"
    project.mkdir()
    home = place / "home"
    home.mkdir()
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("LOOMQ_", "PYTHONDONTWRITE"))
    } | {
        "HOME": str(home),
        "LOOMQ_DATA": str(place / "data"),
        "LOOMQ_EMBEDDED_LINGER_SECONDS": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    ran = []
    scripts = []
    for language, text in blocks():
        name = re.match(r"# (\S+\.\w+)\n", text)
        if name:
            file = project / name[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            if language == "python" and "/" not in name[1]:
                scripts.append(name[1])
        elif language == "sh":
            for line in text.splitlines():
                if line.startswith("make "):
                    target = line.split()[1]
                    assert f"\n{target}: " in (ROOT / "Makefile").read_text()
                elif not line.startswith("export "):
                    ran.append((line, run(line, project, environment)))
    told = dict(ran)
    basket = next(text for line, text in told.items() if line.startswith("loomq run basket"))
    assert "4.2" in basket
    assert "12.0" in basket
    assert len(ran) >= 7
    assert scripts == ["ask.py"]
    # What it submits, some node has to do: the README says so.
    node = subprocess.Popen(
        [*("loomq", "dev", "--no-beat")], cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert run([sys.executable, "ask.py"], project, environment).strip() == "10.799999999999999"
    finally:
        node.terminate()
        node.communicate(timeout=30)


def test_every_command_and_file_that_the_readme_names_exists():
    text = (ROOT / "README.md").read_text()
    from loomq.cli.main import COMMANDS

    for command in re.findall(r"`loomq ([\w-]+)", text):
        assert command in COMMANDS
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
        assert (ROOT / link).exists(), link


def test_the_settings_page_lists_every_setting():
    from loomq.settings import Settings

    named = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "settings.md").read_text()))
    assert set(Settings.model_fields) <= named
