"""The program ``loomq`` for tests: as a process of its own, or faster in this one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from loomq.cli import main


class Program:
    """Run ``loomq`` in a project.

    Args:
        project: Its environment is read at each call.
    """

    def __init__(self, project: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.project = project
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self._started: list[subprocess.Popen[str]] = []

    def __call__(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Run it in this process, which saves a second of imports, and give its stdout and stderr."""
        for name in [name for name in os.environ if name.startswith("LOOMQ_")]:
            self._monkeypatch.delenv(name)
        for name, value in self.project.environment.items():
            if name.startswith("LOOMQ_"):
                self._monkeypatch.setenv(name, value)
        self._monkeypatch.setattr(sys, "path", [*sys.path])
        for name in [name for name in sys.modules if name == "mine" or name.startswith("mine.")]:
            self._monkeypatch.delitem(sys.modules, name)  # another project's package of the same name
        found = main.run(arguments)
        return self._checked(found, code, *self._capsys.readouterr())

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start it as a process of its own."""
        usual: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            [sys.executable, "-m", "loomq.cli.main", *arguments],
            cwd=self.project.folder,
            env=self.project.environment,
            text=True,
            **{**usual, **options},
        )
        self._started.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
        """Wait for the end of a process, and give its stdout and stderr."""
        out, err = process.communicate(timeout=90)
        return self._checked(process.returncode, code, out, err)

    def _checked(self, found: int, code: int, out: str, err: str) -> tuple[str, str]:
        assert found == code, f"exit code {found}\n{out}\n{err}"
        assert "Traceback" not in err
        return out, err

    def close(self) -> None:
        """End what a failed test has left running."""
        for process in self._started:
            process.terminate()  # its children are told by the kernel
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()

    def leftovers(self) -> list[str]:
        """List the processes of the project that still run."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get("LOOMQ_PROJECT") == str(self.project.folder):
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:  # gone meanwhile, or a zombie
                continue
        return found


@pytest.fixture
def loomq(project: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Program]:
    """The program in the test's project."""
    found = Program(project, monkeypatch, capsys)
    yield found
    found.close()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses connections and that nobody else gets meanwhile."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        yield server.getsockname()[1]
