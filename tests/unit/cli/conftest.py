"""The program ``loomq`` in this process, in a project without services."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from loomq.cli import main

DIAMOND = """
name: diamond
pipeline_stages:
  - {name: top, worker_type: echo, input_mapping: {text: goal.instruction}}
  - {name: left, worker_type: echo, input_mapping: {text: top.output.text}, timeout_seconds: 5, priority: high}
  - {name: right, worker_type: echo, input_mapping: {text: top.output.text}, tier: frontier, max_retries: 7}
  - {name: bottom, worker_type: echo, input_mapping: {text: left.output.text, other: right.output.text}}
"""
ECHO = "name: echo\nworker_kind: processor\nprocessing_backend: mine_cli.echo.Backend\ntimeout_seconds: 30\n"
BACKEND = """
import time

from loomq.errors import TransientBackendError
from loomq.workers.base import SyncProcessingBackend


class Backend(SyncProcessingBackend):
    def process_sync(self, payload, config):
        print("heard", payload)
        if payload.get("boom"):
            raise ValueError("boom")
        time.sleep(payload.get("nap", 0))
        if payload.get("later"):
            raise TransientBackendError("not yet")
        return {"output": {"text": payload.get("text", "")}}
"""


class Program:
    """Run ``loomq`` in one folder."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Run it, and give its stdout and stderr."""
        found = main.run(arguments)
        out, err = self._capsys.readouterr()
        assert found == code, f"exit code {found}\n{out}\n{err}"
        assert "Traceback" not in err
        return out, err

    def write(self, path: str, text: str) -> None:
        """Write a file of the project."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text).lstrip())


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Program]:
    """The program in an empty folder, without a word from the environment."""
    for name in os.environ:
        if name.startswith(("LOOMQ_", "OLLAMA_", "OPENAI_", "ANTHROPIC_")) or name.endswith(("_MODEL", "_BACKEND")):
            monkeypatch.delenv(name)
    folder = tmp_path / "shop"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOOMQ_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield Program(folder, capsys)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def program(empty: Program) -> Program:
    """The program in a project with one worker and a diamond."""
    empty.write("loomq.toml", 'import_allow = ["mine_cli"]\n')
    empty.write("workers/echo.yaml", ECHO)
    empty.write("mine_cli/__init__.py", "")
    empty.write("mine_cli/echo.py", BACKEND)
    empty.write("pipelines/diamond.yaml", DIAMOND)
    return empty
