"""The process that stands beside a worker node: ``python -m loomq.node DESCRIPTION``, started by the node itself."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from uuid import UUID

from loomq import __version__
from loomq.logs import guard
from loomq.loom import Loom
from loomq.runs.agent import Agent
from loomq.runs.pace import Pacemaker
from loomq.settings import Settings
from loomq.store.nodes import Node


def main() -> None:
    """Serve the node that the one argument describes, until its parent process ends."""
    # The group's Ctrl-C is for the parent: leases are needed until its last task is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    settings = Settings.load()
    logging.basicConfig(level=settings.log_level, format="[%(asctime)s: %(levelname)s/loomq-agent] %(message)s")
    guard(logging.getLogger())
    raw = json.loads(sys.argv[1])
    node = Node(**{**raw, "id": UUID(raw["id"]), "queues": tuple(raw["queues"]), "version": __version__})
    # An agent that is replaced while somebody edits a file is still needed; the parent judges what is read again.
    loom = Loom(settings, lenient=True)
    loom.app.is_node = True
    sweeper = loom.sweeper(node.id)
    pacemaker = Pacemaker(loom.database, loom.app, loom.publisher, node.queues)
    commands = os.fdopen(sys.stdin.fileno(), "rb", buffering=0, closefd=False)
    Agent(settings, loom.database, sweeper, pacemaker, node, commands, loom.configs.reload).run()
    loom.close()


if __name__ == "__main__":
    main()
