"""The node's hand in the database: a process beside each worker node that extends leases, frees them and sweeps.

It is a process of its own, so that the pool's parent forks without threads and connections, and so that C code that
holds the GIL does not lose its lease.
"""

from __future__ import annotations

import logging
import os
import select
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import IO, TYPE_CHECKING

import psutil

from loomq.errors import EnvironmentNotReadyError
from loomq.runs.sweep import LEADERSHIP
from loomq.store import nodes, stages
from loomq.workers.deadline import INTERRUPTION

if TYPE_CHECKING:
    from collections.abc import Callable

    from loomq.runs.pace import Pacemaker
    from loomq.runs.sweep import Sweeper
    from loomq.settings import Settings
    from loomq.store.engine import Database
    from loomq.store.nodes import Node
    from loomq.store.stages import Held

logger = logging.getLogger(__name__)

_STOPPED = {psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP}
_SHORTEST_WAIT_S = 0.05
_SOON_S = 1.0
_ENDED = {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}  # the pool's parent may take seconds to collect a dead child


class Agent:
    """Serve one node until its parent process ends.

    Args:
        node: What is known of the node; ``node.pid`` is the worker's parent process, which is also this one's.
        commands: A pipe from the parent: a line asks for a look at once, ``serves QUEUES`` that the files be read
            again, ``leaving`` says that the node takes no more work, ``leaving now`` that it does not finish either,
            and its end that the parent is gone.
        reload: Reads the files again.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        sweeper: Sweeper,
        pacemaker: Pacemaker,
        node: Node,
        commands: IO[bytes],
        reload: Callable[[], object],
    ) -> None:
        self._settings = settings
        self._database = database
        self._sweeper = sweeper
        self._pacemaker = pacemaker
        self._reload = reload
        self._pause_s = 0.0
        self._node = node
        self._commands = commands
        self._parent = psutil.Process(node.pid)
        self._is_out = False
        self._unread = b""
        self._beat_at = 0.0
        self._hand_back_at: float | None = None  # known once the node is leaving

    @property
    def _is_leaving(self) -> bool:
        return self._hand_back_at is not None

    def run(self) -> None:
        """Beat and sweep until the parent is gone, then free what its dead processes held.

        A node that is leaving gets ``shutdown_seconds`` for what it has in hand; the rest is handed back, uncounted.
        """
        os.set_blocking(self._commands.fileno(), False)
        next_sweep = 0.0
        while self._parent_lives():
            if time.monotonic() >= self._beat_at:
                self._beat_at = time.monotonic() + self._settings.heartbeat_seconds
                self._try(self._beat)
            self._pause_s = self._settings.heartbeat_seconds
            self._try(self._pace)
            if time.monotonic() >= next_sweep:
                next_sweep = time.monotonic() + self._settings.sweep_seconds
                self._try(self._sweeper.sweep)
            if self._hand_back_at is not None and time.monotonic() >= self._hand_back_at:
                self._try(self._hand_back)
                self._hand_back_at = time.monotonic() + self._settings.heartbeat_seconds
            if not self._wait():
                break
        self._try(self._leave)

    def _parent_lives(self) -> bool:
        return os.getppid() == self._node.pid and self._parent.is_running()

    def _wait(self) -> bool:
        """Wait for the next beat or a word from the parent; False if there will be none."""
        patience = min(max(self._beat_at - time.monotonic(), 0.0), self._pause_s)
        if self._hand_back_at is not None:
            patience = min(patience, max(self._hand_back_at - time.monotonic(), _SHORTEST_WAIT_S))
        readable, _, _ = select.select([self._commands], [], [], patience)
        if not readable:
            return True
        said = self._commands.read()
        self._beat_at = 0.0
        *lines, self._unread = (self._unread + (said or b"")).split(b"\n")
        for line in lines:
            self._hear(line)
        return bool(said)

    def _hear(self, line: bytes) -> None:
        """Do what the parent says."""
        if line.startswith(b"serves "):
            queues = tuple(filter(None, line.decode().removeprefix("serves ").split(",")))
            self._node = replace(self._node, queues=queues)
            self._pacemaker.serve(queues)
        if line == b"reload":
            self._try(self._reload)
        if line.startswith(b"leaving") and not self._is_leaving:
            self._hand_back_at = time.monotonic() + self._settings.shutdown_seconds
            self._try(partial(nodes.leave, self._database, self._node.id))
        if line == b"leaving now":
            self._hand_back_at = time.monotonic()

    def _pace(self) -> None:
        self._pause_s = self._pacemaker.beat()

    def _beat(self) -> None:
        if not self._is_leaving:
            nodes.beat(self._database, self._node)
        # Claims are read before processes: whoever claims in between is not in the list and not missed.
        held = stages.held_by(self._database, self._node.id)
        running, present = self._processes()
        stages.extend(
            self._database,
            self._node.id,
            running,
            self._settings.lease_seconds,
            self._settings.grace_seconds + self._settings.lease_seconds,
        )
        self._tell(held, running)
        gone = {claim.pid for claim in held} - present
        if self._is_leaving:
            self._release([claim for claim in held if claim.pid in gone])
        else:
            self._free(sorted(gone))

    def _tell(self, held: list[Held], running: list[int]) -> None:
        """Interrupt children whose goal has ended; what threads still bring is refused by its token."""
        for claim in held:
            if not claim.is_wanted and claim.pid in running and claim.pid != self._node.pid:
                with suppress(ProcessLookupError):
                    os.kill(claim.pid, INTERRUPTION)

    def _free(self, gone: list[int]) -> None:
        """Take back what processes of this node held that are gone; no need to wait for the lease."""
        if not gone:
            return
        for key, outcome in stages.take_back(
            self._database,
            lease_s=self._settings.lease_seconds,
            max_deliveries=self._settings.max_deliveries,
            node=self._node.id,
            gone=gone,
        ):
            logger.warning("the process of stage %s of goal %s is gone: %s", key.name, key.goal_id, outcome)

    def _processes(self) -> tuple[list[int], set[int]]:
        """List the node's processes that run, and all that exist; a stopped one keeps its row and not its lease."""
        running, present = [], set()
        try:
            family = [self._parent, *self._parent.children()]
        except psutil.NoSuchProcess:
            return [], set()
        for process in family:
            try:
                status = process.status()
            except psutil.NoSuchProcess:
                continue
            if status in _ENDED:
                continue
            present.add(process.pid)
            if status not in _STOPPED:
                running.append(process.pid)
        return running, present

    def _hand_back(self) -> None:
        """End what did not finish in time, and make its stages ready for other nodes.

        A process ends before its stage is released, so that nobody works on it twice. Threads cannot be ended: what
        they still bring is refused by its token.
        """
        held = stages.held_by(self._database, self._node.id)
        children = {process.pid: process for process in self._parent.children()}
        ended = [children[pid] for pid in {claim.pid for claim in held} & set(children)]
        for process in ended:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        deadline = time.monotonic() + _SOON_S
        while any(_runs(process) for process in ended) and time.monotonic() < deadline:
            time.sleep(_SHORTEST_WAIT_S)
        self._release(held)

    def _release(self, held: list[Held]) -> None:
        for claim in held:
            if stages.release(self._database, claim.key, claim.token, "handed back"):
                logger.warning("stage %s of goal %s is handed back: the node stops", claim.key.name, claim.key.goal_id)

    def _leave(self) -> None:
        held = stages.held_by(self._database, self._node.id)
        ended = [claim for claim in held if claim.pid == self._node.pid or not psutil.pid_exists(claim.pid)]
        if self._is_leaving:
            self._release(ended)
        else:
            self._free(sorted({claim.pid for claim in ended}))
        nodes.leave(self._database, self._node.id)
        nodes.step_down(self._database, [LEADERSHIP], self._node.id)

    def _try(self, work: object) -> None:
        """Do one thing; an outage is logged once and outlived."""
        try:
            work()  # type: ignore[operator]
        except EnvironmentNotReadyError as error:
            if not self._is_out:
                logger.warning("%s", error.message)
            self._is_out = True
        except Exception:
            logger.exception("the node's agent met an error and goes on")
        else:
            if self._is_out:
                logger.warning("services answer again")
            self._is_out = False


def _runs(process: psutil.Process) -> bool:
    """Say whether a process still does anything; one that nobody has collected yet does not."""
    try:
        return process.status() not in _ENDED
    except psutil.NoSuchProcess:
        return False
