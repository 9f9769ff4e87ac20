"""Start Celery's own processes for this project: worker nodes and beat, as children of the process that asks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from loomq.errors import EnvironmentNotReadyError
from loomq.processes import die_with_parent
from loomq.services import inspect
from loomq.services.plans import plan_of_goal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from uuid import UUID

    from loomq.loom import Loom

_TAIL_LINES = 15
_MOST_SLOTS = 4
_LOOK_EVERY_S = 1.0
_STDERR = 2
_AFTERWARDS_S = 5.0


def worker_command(
    *, queues: Sequence[str] = (), concurrency: int | None = None, pool: str | None = None, name: str | None = None
) -> list[str]:
    """Give the command line of a worker node; what ``celery -A loomq worker`` is to a Celery user.

    Args:
        queues: Queues to serve; none serves those that the configurations use.
        concurrency: Slots; ``None`` is one a processor.
        pool: Celery's pool: ``prefork`` (the default), ``threads`` or ``solo``.
        name: The node's name before the ``@``.
    """
    command = [sys.executable, "-m", "celery", "-A", "loomq", "worker", "--without-gossip", "--without-mingle"]
    command += ["-n", f"{name or 'loomq'}-{os.getpid()}@%h", "-l", "INFO"]
    if queues:
        command += ["-Q", ",".join(queues)]
    if concurrency:
        command += ["-c", str(concurrency)]
    if pool:
        command += ["-P", pool]
    return command


def beat_command() -> list[str]:
    """Give the command line of beat; what ``celery -A loomq beat`` is to a Celery user."""
    return [sys.executable, "-m", "celery", "-A", "loomq", "beat", "-l", "INFO"]


def state_dir(loom: Loom) -> Path:
    """Give the folder where this project's processes keep logs and notes; made if it is not there.

    Raises:
        EnvironmentNotReadyError: It cannot be made.
    """
    folder = loom.services.data_dir
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentNotReadyError(
            f"the data folder {folder} cannot be made: {error.strerror}",
            hint="choose another with --data or LOOMQ_DATA",
        ) from error
    return folder


def environment_of(loom: Loom) -> dict[str, str]:
    """Give the environment of a process that is to find this project."""
    data = {"LOOMQ_DATA": str(loom.settings.data)} if loom.settings.data else {}
    return {**os.environ, "LOOMQ_PROJECT": str(loom.settings.project), **data, "PYTHONUNBUFFERED": "1"}


class Child:
    """A Celery process that ends with the process that started it.

    Args:
        name: What messages call it.
        command: Its command line.
        log: Where its output goes; ``None`` is the caller's stderr.
    """

    def __init__(self, loom: Loom, name: str, command: Sequence[str], *, log: Path | None) -> None:
        self.name = name
        self.log = log
        self._patience_s = loom.settings.shutdown_seconds + _AFTERWARDS_S
        out = log.open("ab") if log else None
        try:
            self._process = subprocess.Popen(  # noqa: S603
                list(command),
                cwd=loom.settings.project,
                env=environment_of(loom),
                stdin=subprocess.DEVNULL,
                stdout=out or _STDERR,  # a command's own stdout is for its data
                stderr=subprocess.STDOUT if out else None,
                start_new_session=log is not None,
                preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509  (no thread runs yet where children are started)
            )
        finally:
            if out:
                out.close()

    @property
    def is_running(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """How it ended."""
        return self._process.poll()

    def check(self) -> None:
        """Make sure that it runs.

        Raises:
            EnvironmentNotReadyError: It has ended; the error quotes the end of its log.
        """
        if self.is_running:
            return
        quoted = ""
        if self.log and self.log.exists():
            quoted = "\n".join(self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
        raise EnvironmentNotReadyError(
            f"the {self.name} ended with {self.returncode}" + (f":\n{quoted}" if quoted else ""),
            hint=f"its log: {self.log}" if self.log else None,
        )

    def ask_to_stop(self) -> None:
        """Send SIGTERM, and do not wait."""
        if self.is_running:
            self._process.send_signal(signal.SIGTERM)

    def stop(self, grace_s: float | None = None) -> None:
        """End it in good order: within ``shutdown_seconds`` it finishes or hands back what it has in hand."""
        self.ask_to_stop()
        try:
            self._process.wait(self._patience_s if grace_s is None else grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class NodeAtHand:
    """A worker node for some queues: others that live, or else one of our own.

    It has to look again and again: a node that lives now may be about to leave.

    Args:
        concurrency: Slots of a node of our own; ``None`` is one a processor, four at most.
        wanted: False never starts one.
    """

    def __init__(self, loom: Loom, queues: set[str], concurrency: int | None, *, wanted: bool = True) -> None:
        self._loom = loom
        self._queues = queues
        self._slots = concurrency or min(os.cpu_count() or 1, _MOST_SLOTS)
        self._wanted = wanted
        self._own: Child | None = None
        self._look_again_at = 0.0

    def look(self) -> None:
        """Start a node if none serves the queues.

        Raises:
            EnvironmentNotReadyError: Our own has ended.
        """
        if self._own is not None:
            self._own.check()
        elif self._wanted and time.monotonic() >= self._look_again_at:
            self._look_again_at = time.monotonic() + _LOOK_EVERY_S
            if unserved(self._loom, self._queues):
                command = worker_command(queues=sorted(self._queues), concurrency=self._slots, name="run")
                log = state_dir(self._loom) / "logs" / f"run-{os.getpid()}.log"
                self._own = Child(self._loom, "worker", command, log=log)

    def ask_to_stop(self) -> None:
        """Ask our own node, if there is one, to end when it has done what it has in hand."""
        if self._own is not None:
            self._own.ask_to_stop()

    def stop(self, grace_s: float | None = None) -> None:
        """End our own node, if there is one."""
        if self._own is not None:
            self._own.stop(grace_s)


def queues_of(loom: Loom, goal_id: UUID) -> set[str]:
    """Name the queues that a goal's stages, and what they contain, go to or may go to."""
    found = {(stage.worker, stage.tier) for stage in inspect.progress(loom, goal_id)}
    found |= plan_of_goal(loom, goal_id).routes
    return {loom.router.queue(worker, tier) for worker, tier in found}


def unserved(loom: Loom, queues: set[str]) -> set[str]:
    """Name the queues that no live worker node serves."""
    served = {queue for node in inspect.live_nodes(loom) for queue in node.queues}
    return queues - served


def wait_until_live(loom: Loom, child: Child, timeout_s: float = 60) -> None:
    """Wait until a worker node that was just started is there.

    Raises:
        EnvironmentNotReadyError: It ended, or did not come up in time.
    """
    until = time.monotonic() + timeout_s
    while not any(str(os.getpid()) in node.hostname for node in inspect.live_nodes(loom)):
        child.check()
        if time.monotonic() > until:
            raise EnvironmentNotReadyError(
                f"the {child.name} did not come up within {timeout_s:g} s", hint=f"its log: {child.log}"
            )
        time.sleep(0.1)
