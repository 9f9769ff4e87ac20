"""Systems that run in a venv of their own, built on demand from pinned requirements."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import venv
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from benchmarks.harness import ROOT, environment
from benchmarks.systems.base import LINKS, WIDTH, System
from loomq.processes import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_HERE = ROOT / "benchmarks" / "baselines"
_STARTS_WITHIN_S = 60.0


class BaselineMissing(Exception):  # noqa: N818  (it is left out, and nothing failed)
    """A system that cannot be had on this machine."""


def venv_of(name: str) -> Path:
    """Give a baseline's Python, built if it is not there yet.

    Raises:
        BaselineMissing: It cannot be installed.
    """
    folder = ROOT / ".benchmarks" / name
    python = folder / "bin" / "python"
    stamp, wanted = folder / "installed.txt", (_HERE / f"{name}.txt").read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"{name}: building its venv …", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "-r",
        str(_HERE / f"{name}.txt"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BaselineMissing(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "pip failed")
    stamp.write_text(wanted)
    return python


class Driven(System):
    """A system that a driver of ours speaks for.

    Args:
        more: Variables for its processes.
        worker: The command of its worker, after its venv's ``bin/``; the driver works itself if there is none.
    """

    def __init__(self, folder: Path, more: dict[str, str], worker: Sequence[str] = ()) -> None:
        python = venv_of(self.name)
        around = {
            **environment(),
            **more,
            "BENCH_LINKS": str(LINKS),
            "BENCH_WIDTH": str(WIDTH),
            "PYTHONPATH": str(ROOT),
        }
        self._log = folder / f"{self.name}.log"
        self._processes: list[subprocess.Popen[str]] = []
        with self._log.open("wb") as out:
            for command in ([str(python), "-m", f"benchmarks.baselines.{self.name}_driver"], worker):
                if command:
                    line = command if command is not worker else [str(python.parent / worker[0]), *worker[1:]]
                    self._processes.append(
                        subprocess.Popen(
                            list(line),
                            cwd=ROOT,
                            env=around,
                            stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE if not self._processes else out,
                            stderr=out,
                            text=True,
                            start_new_session=True,
                            preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509  (this process has one thread)
                        )
                    )
        self._answer("ready")
        if worker:
            time.sleep(3)  # none of them says when it is ready

    def _answer(self, wanted: str) -> None:
        found = self._processes[0].stdout
        line = found.readline().strip() if found else ""
        if line != wanted:
            raise BaselineMissing(f"its driver ended: {self._log.read_text()[-300:].strip()}")

    def hand_in(self, kind: str, runs: Sequence[str]) -> None:
        """Tell the driver."""
        into = self._processes[0].stdin
        assert into is not None
        into.write(json.dumps({"kind": kind, "runs": list(runs)}) + "\n")
        into.flush()
        self._answer("done")

    def roots(self) -> list[int]:
        """Name the driver and its worker."""
        return [process.pid for process in self._processes]

    def check(self) -> None:
        """Find out whether all still run."""
        for process in self._processes:
            if process.poll() is not None:
                raise RuntimeError(f"{self.name}: a process ended\n{self._log.read_text()[-3000:]}")

    def hold(self) -> None:
        """Stop the worker; what works in the driver itself cannot be stopped while it is handed work."""
        for process in self._processes[1:]:
            os.killpg(process.pid, signal.SIGSTOP)

    def let_go(self) -> None:
        """Let the worker go on."""
        for process in self._processes[1:]:
            os.killpg(process.pid, signal.SIGCONT)

    def close(self) -> None:
        """End all."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Dramatiq(Driven):
    """dramatiq over Redis."""

    name = "dramatiq"
    kinds: ClassVar[frozenset[str]] = frozenset({"noop", "chain"})


class Taskiq(Driven):
    """taskiq over Redis; on redis-py 8 its idle worker ends after five seconds, so it has an older one."""

    name = "taskiq"


class Dbos(Driven):
    """DBOS over Postgres; it works where it is handed work, so that nothing can be made to wait for it."""

    name = "dbos"
    kinds: ClassVar[frozenset[str]] = frozenset({"diamond", "fan", "chain"})


class LangGraph(Driven):
    """LangGraph with its Postgres checkpointer."""

    name = "langgraph"
    kinds: ClassVar[frozenset[str]] = frozenset({"diamond", "fan", "chain"})
