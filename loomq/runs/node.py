"""The worker node: what Celery's parent process does for loomq, which is to keep an agent beside it."""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from celery import bootsteps, signals
from celery.exceptions import WorkerLostError

from loomq.ids import uuid7
from loomq.workers.deadline import ignore_interruptions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from loomq.queues.app import LoomCelery

logger = logging.getLogger(__name__)

AGENT_MODULE = "loomq.node"
_CHECK_S = 1.0
_AFTERWARDS_S = 3.0


class WorkerNode:
    """This process's part in a node; made before the pool forks, so that children know the node's id."""

    def __init__(self) -> None:
        self.id: UUID = uuid7()
        self.is_pool_child = False
        self._agent: subprocess.Popen[bytes] | None = None
        self._end: threading.Timer | None = None
        self._description: dict[str, Any] = {}

    def install(self, app: LoomCelery) -> None:
        """Hook into Celery's worker: nothing happens until one starts."""
        node = self
        app.quarantine.node = self.id

        class AgentStep(bootsteps.StartStopStep):  # type: ignore[misc]
            """Keep the agent running while the worker does."""

            requires = ("celery.worker.components:Pool", "celery.worker.components:Timer")

            def start(self, worker: Any) -> None:
                app.is_node = True
                app.is_solo = type(worker.pool).__module__.endswith("solo")
                if type(worker.pool).__module__.endswith("prefork"):
                    app.database.pool_connections(False)
                    # Celery looks for dead children every five seconds; a slot should not be gone for so long.
                    worker.timer.call_repeatedly(_CHECK_S, worker.pool.maintain_pool)
                node._describe(worker)
                node._keep_agent()
                app.while_waiting = node._keep_agent
                worker.timer.call_repeatedly(_CHECK_S, node._keep_agent)

            def stop(self, worker: Any) -> None:
                """Hear that the worker stops, also where no signal said so."""
                del worker
                node._leave(app.loom_settings.shutdown_seconds, at_once=False)

        app.steps["worker"].add(AgentStep)

        def in_child(**_: Any) -> None:
            node.is_pool_child = True
            ignore_interruptions()
            node._agent = None
            app.database.pool_connections(True)

        def leaving(how: str = "", **_: Any) -> None:
            node._leave(app.loom_settings.shutdown_seconds, at_once=how == "Cold")

        def before_fork(**_: Any) -> None:
            # What parent and children share stays shared: the collector would write to all of it once in a while.
            gc.collect()
            gc.freeze()

        logging.getLogger("celery.worker.request").addFilter(self._is_news)
        signals.worker_before_create_process.connect(before_fork, weak=False)
        signals.worker_process_init.connect(in_child, weak=False)
        signals.worker_shutting_down.connect(leaving, weak=False)

    def _is_news(self, record: logging.LogRecord) -> bool:
        """Filter what Celery logs of a lost child: its traceback says nothing, and a leaving node ended it itself."""
        if not (isinstance(record.args, tuple) and any(isinstance(each, WorkerLostError) for each in record.args)):
            return True
        record.exc_info = None
        return self._end is None

    def _leave(self, patience_s: float, *, at_once: bool) -> None:
        """Hear, in the handler of a signal, that Celery stops: it would wait for its tasks without bound."""
        if self._end is None:
            self._end = threading.Timer(patience_s + _AFTERWARDS_S, self._give_up)
            self._end.daemon = True
            self._end.start()
        self._say(b"leaving now\n" if at_once else b"leaving\n")

    @staticmethod
    def _give_up() -> None:
        """End the process: the agent has handed back what it held, and only threads or a dead broker keep it."""
        logger.warning("the node did not stop in time and is ended; what it had in hand is handed back")
        os._exit(0)

    def _describe(self, worker: Any) -> None:
        self._description = {
            "id": str(self.id),
            "hostname": worker.hostname,
            "pid": os.getpid(),
            "pool": type(worker.pool).__module__.rpartition(".")[2],
            "slots": worker.pool.num_processes,
            "queues": sorted(worker.app.amqp.queues.consume_from),
        }

    def _keep_agent(self) -> None:
        """Start the agent, also again if it died: without it the node's leases would run out."""
        if self._agent is not None and self._agent.poll() is None:
            return
        if self._agent is not None:
            logger.warning("the node's agent ended with %s; starting another", self._agent.returncode)
        self._agent = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", AGENT_MODULE, json.dumps(self._description)],
            stdin=subprocess.PIPE,
            bufsize=0,  # a signal's handler writes to it, maybe in the middle of another write
        )

    def serves(self, queues: Sequence[str], *, reloaded: bool) -> None:
        """Tell the agent which queues the node consumes by now, and to read the project's files again if we did."""
        self._description["queues"] = list(queues)
        self._say(f"serves {','.join(queues)}\n".encode() + (b"reload\n" if reloaded else b""))

    def process_lost(self) -> None:
        """Ask the agent to look at once: a child of the pool has ended."""
        self._say(b"look\n")

    def _say(self, line: bytes) -> None:
        agent = self._agent
        if agent is None or agent.stdin is None:
            return
        try:
            agent.stdin.write(line)
        except OSError:
            logger.warning("the node's agent does not listen")
