"""Keep a run's worker nodes and its beat running, as systemd would: what dies is started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from loomq.processes import die_with_parent

_RESTART_AFTER_S = 0.3
_CELERY = [sys.executable, "-m", "celery", "-A", "loomq"]
_QUIET = ["-l", "INFO", "--without-gossip", "--without-mingle"]


class Member:
    """One Celery process with all that it starts.

    Args:
        name: Also its log's.
        command: What is run, in the project's folder.
    """

    def __init__(self, name: str, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.log = folder / "logs" / f"{name}.log"
        self.starts = 0
        self._command = command
        self._cwd = folder / "project"
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._died_at = 0.0

    @property
    def pid(self) -> int:
        """The parent process, 0 if there is none."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def start(self) -> None:
        """Start it as the leader of a group of its own."""
        self.starts += 1
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._cwd,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509  (one thread)
            )

    def look(self) -> None:
        """Start it again a moment after it died."""
        if self.pid:
            self._died_at = 0.0
        elif not self._died_at:
            self._died_at = time.monotonic()
        elif time.monotonic() - self._died_at >= _RESTART_AFTER_S:
            self._died_at = 0.0
            self.start()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def children(self) -> list[psutil.Process]:
        """List the pool's processes."""
        return [each for each in self._family() if "loomq.node" not in " ".join(each.cmdline())]

    def agent(self) -> psutil.Process | None:
        """Find the node's agent."""
        return next((each for each in self._family() if "loomq.node" in " ".join(each.cmdline())), None)

    def _family(self) -> list[psutil.Process]:
        try:
            return [each for each in psutil.Process(self.pid).children() if each.cmdline()] if self.pid else []
        except psutil.Error:
            return []

    def stop(self) -> None:
        """End it for good."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def text(self) -> str:
        """Give all that it has logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Supervisor:
    """All Celery processes of a run.

    Args:
        nodes: How many worker nodes, of two prefork children each.
    """

    def __init__(self, folder: Path, environment: dict[str, str], nodes: int = 2) -> None:
        (folder / "logs").mkdir(exist_ok=True)
        self.nodes = [
            Member(f"node{at}", [*_CELERY, "worker", "-n", f"node{at}@%h", "-c", "2", *_QUIET], folder, environment)
            for at in range(nodes)
        ]
        beat = [*_CELERY, "beat", "-l", "INFO"]
        self.beat = Member("beat", beat, folder, environment)
        self._members = [*self.nodes, self.beat]

    def start(self) -> None:
        """Start all."""
        for member in self._members:
            member.start()

    def look(self) -> None:
        """Start again what has died."""
        for member in self._members:
            member.look()

    def stop(self) -> None:
        """End all for good."""
        for member in self._members:
            member.stop()

    def logged(self, text: str) -> int:
        """Count how often the nodes have said something."""
        return sum(node.text().count(text) for node in self.nodes)
