"""A project that is made for a run: the pipelines it measures, workers that wait or do nothing, and a node."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks import messages
from benchmarks.harness import loomq_node, plain_connection
from loomq.loom import Loom
from loomq.services import inspect
from loomq.services.submit import GoalHandle, submit_goal
from loomq.settings import Settings
from loomq.testing import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import psycopg

    from benchmarks.harness import Servers

    Pipeline = dict[str, Any]

_WORK = '''
"""What the workers of these benchmarks do: wait, or nothing."""

import time
from loomq.workers.base import SyncProcessingBackend


class Wait(SyncProcessingBackend):
    def process_sync(self, payload, config):
        time.sleep(payload["ms"] / 1000)
        return {"output": {"n": 1 + max(payload.get("above", {}).values(), default=0)}}


class Nothing(SyncProcessingBackend):
    def process_sync(self, payload, config):
        return {"output": {"n": payload["n"]}}


class Numbers(SyncProcessingBackend):
    def process_sync(self, payload, config):
        return {"output": {"items": list(range(payload["n"]))}}
'''
_WORKERS = {"wait": "Wait", "noop": "Nothing", "other": "Nothing", "numbers": "Numbers"}


def _write(folder: Path, pipelines: Iterable[Pipeline]) -> None:
    for name in ("workers", "pipelines"):
        (folder / name).mkdir(parents=True)
    (folder / "work.py").write_text(_WORK.lstrip())
    for name, backend in _WORKERS.items():
        said = {"name": name, "worker_kind": "processor", "processing_backend": f"work.{backend}"}
        (folder / "workers" / f"{name}.yaml").write_text(json.dumps(said))
    for pipeline in pipelines:
        (folder / "pipelines" / f"{pipeline['name']}.yaml").write_text(json.dumps(pipeline))


@dataclass(frozen=True)
class Site:
    """A project with a node at work.

    Args:
        log: Where every process of it notes the messages that it sends.
    """

    loom: Loom
    database: psycopg.Connection[Any]
    log: Path

    def submit(self, pipeline: str, **context: Any) -> GoalHandle:
        """Hand a goal in."""
        return submit_goal("", pipeline=pipeline, context=context, loom=self.loom)

    def took_s(self, handle: GoalHandle) -> float:
        """Say how long a goal took, from when it was written down, by the database's clock."""
        query = "SELECT extract(epoch FROM ended_at - created_at) FROM goals WHERE id = %s"
        (found,) = self.database.execute(query, [handle.goal_id]).fetchone() or (0,)
        return float(found)

    def weight(self, handle: GoalHandle) -> dict[str, int]:
        """Say what the goal's messages weighed."""
        sizes = messages.sizes(self.log, handle.goal_id)
        return {"messages": len(sizes), "max_message_bytes": max(sizes), "message_bytes": sum(sizes)}


@contextmanager
def open_site(servers: Servers, pipelines: Iterable[Pipeline], pool: Sequence[str]) -> Iterator[Site]:
    """Start a node that serves a project with these pipelines.

    Args:
        pool: Celery's options for its slots.
    """
    with ExitStack() as stack:
        folder, log = servers.folder / "project", servers.folder / "messages"
        _write(folder, pipelines)
        settings = {**servers.given, "project": folder, "import_allow": "work"}
        loom = Loom(Settings.load(**settings))
        stack.callback(loom.close)
        messages.install(log)
        node = loomq_node(folder, settings, pool=pool, more=messages.environment(log))
        stack.callback(node.stop)
        stack.callback(node.process.terminate)
        wait_until(lambda: inspect.live_nodes(loom), "the node")
        yield Site(loom, stack.enter_context(plain_connection(loom.database)), log)
