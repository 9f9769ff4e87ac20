"""The floors of the house hold, and the contracts that guard them notice when they don't."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINT_IMPORTS, "--no-logo", "--no-cache"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def house(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "loomq", tmp_path / "loomq", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_every_module_stands_on_its_floor_and_imports_only_lower_ones():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("path", "line", "broken"),
    [
        ("ids.py", "from loomq.store import engine", "A floor imports only lower floors"),
        (
            "settings.py",
            "if TYPE_CHECKING:\n    from loomq.workers.base import ProcessingBackend",
            "A floor imports only",
        ),
        ("store/engine.py", "def late() -> None:\n    import loomq.queues.names", "A floor imports only lower floors"),
        ("workers/base.py", "import loomq.contrib.planted", "A floor imports only lower floors"),
        ("stray.py", "", "A floor imports only lower floors"),
        ("cli/planted.py", "from loomq.store import engine", "Faces talk to services only"),
        ("workers/base.py", "import httpx", "httpx is spoken in loomq.llm.http only"),
        ("pipelines/planted/one.py", "import loomq.pipelines.planted.two", "Nothing imports itself round a circle"),
    ],
)
def test_an_import_that_breaks_a_law_is_refused(house: Path, path: str, line: str, broken: str):
    for package in ("cli", "contrib", "pipelines/planted"):
        (house / "loomq" / package).mkdir(exist_ok=True)
        (house / "loomq" / package / "__init__.py").touch()
    (house / "loomq/contrib/planted.py").touch()
    (house / "loomq/pipelines/planted/two.py").write_text("import loomq.pipelines.planted.one\n")
    with (house / "loomq" / path).open("a") as file:
        file.write(f"\n{line}\n")
    done = lint_imports(house)
    assert done.returncode == 1, done.stderr
    verdicts = [text for text in done.stdout.splitlines() if text.startswith(broken)]
    assert any(" BROKEN" in text for text in verdicts), done.stdout
