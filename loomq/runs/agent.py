"""The node's hand in the database: a process beside each worker node that extends leases, frees them and sweeps.

It is a process of its own, so that the pool's parent forks without threads and connections, and so that C code that
holds the GIL does not lose its lease.
"""

from __future__ import annotations

import logging
import os
import select
import time
from functools import partial
from typing import IO, TYPE_CHECKING

import psutil

from loomq.errors import EnvironmentNotReadyError
from loomq.runs.sweep import LEADERSHIP
from loomq.store import nodes, stages

if TYPE_CHECKING:
    from loomq.runs.sweep import Sweeper
    from loomq.settings import Settings
    from loomq.store.engine import Database
    from loomq.store.nodes import Node

logger = logging.getLogger(__name__)

_STOPPED = {psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP}
_ENDED = {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}  # the pool's parent may take seconds to collect a dead child


class Agent:
    """Serve one node until its parent process ends.

    Args:
        node: What is known of the node; ``node.pid`` is the worker's parent process, which is also this one's.
        commands: A pipe from the parent: a line asks for a look at once, ``leaving`` says that the node takes no more
            work, and its end that the parent is gone.
    """

    def __init__(
        self, settings: Settings, database: Database, sweeper: Sweeper, node: Node, commands: IO[bytes]
    ) -> None:
        self._settings = settings
        self._database = database
        self._sweeper = sweeper
        self._node = node
        self._commands = commands
        self._parent = psutil.Process(node.pid)
        self._is_out = False
        self._is_leaving = False

    def run(self) -> None:
        """Beat and sweep until the parent is gone, then free what its dead processes held."""
        os.set_blocking(self._commands.fileno(), False)
        next_sweep = 0.0
        while self._parent_lives():
            self._try(self._beat)
            if time.monotonic() >= next_sweep:
                next_sweep = time.monotonic() + self._settings.sweep_seconds
                self._try(self._sweeper.sweep)
            if not self._wait():
                break
        self._try(self._leave)

    def _parent_lives(self) -> bool:
        return os.getppid() == self._node.pid and self._parent.is_running()

    def _wait(self) -> bool:
        """Wait for the next beat or a word from the parent; False if there will be none."""
        readable, _, _ = select.select([self._commands], [], [], self._settings.heartbeat_seconds)
        if not readable:
            return True
        said = self._commands.read()
        if said and b"leaving" in said:
            self._is_leaving = True
            self._try(partial(nodes.leave, self._database, self._node.id))
        return bool(said)

    def _beat(self) -> None:
        if not self._is_leaving:
            nodes.beat(self._database, self._node)
        # Claims are read before processes: whoever claims in between is not in the list and not missed.
        claimed = stages.claimed_by(self._database, self._node.id)
        running, present = self._processes()
        stages.extend(
            self._database,
            self._node.id,
            running,
            self._settings.lease_seconds,
            self._settings.grace_seconds + self._settings.lease_seconds,
        )
        self._free([pid for pid in claimed if pid not in present])

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

    def _leave(self) -> None:
        claimed = stages.claimed_by(self._database, self._node.id)
        self._free([pid for pid in claimed if pid == self._node.pid or not psutil.pid_exists(pid)])
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
