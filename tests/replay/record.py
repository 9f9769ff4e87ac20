"""Record what this version writes into a database, for later versions to find: ``python -m replay.record FILE``.

Run it (from ``tests/``) at each release that changes the schema. Later versions make a database of that release's
revision, play the calls back, upgrade it, and bring the goals to their end.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import shapes
from conftest import Project

from loomq.catalog import require_catalog
from loomq.embedded import client as embedded
from loomq.ids import uuid7
from loomq.messages import OrchestratorGoal
from loomq.runs.freeze import freeze_pipeline
from loomq.services.submit import submit_goal
from loomq.settings import Settings
from loomq.store import goals, migrate, nodes, stages
from loomq.store.nodes import Node
from loomq.store.stages import Part, Place, StageKey

WRITES = ("SELECT loomq_", "SELECT * FROM loomq_", "INSERT", "UPDATE", "DELETE", "WITH gone")
LEASE_S = 0.5
GONE = Node(uuid7(), "gone@there", 4242, "prefork", 2, ("add.local",), "0.0")


class Recorder:
    """A project whose calls to the database are kept."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.loom = project.loom()
        self.calls: list[list[Any]] = []
        self.goals: dict[str, dict[str, str]] = {}
        migrate.upgrade(self.loom.database)
        self.loom.database.on_call = self._heard

    def _heard(self, statement: str, parameters: Any) -> None:
        if statement.startswith(WRITES):
            self.calls.append([statement, json.loads(json.dumps(parameters, default=str))])

    def submit(self, key: str, shape: str, ends: str = "done") -> UUID:
        """Submit a goal, or a user's canvas, and give the goal's id (a canvas's first)."""
        self.goals[key] = {"shape": shape, "state": ends}
        if shape in shapes.RAW:
            shapes.canvas(self.loom.app, shape, key, 1).apply_async()
            return self.call_of(key, next(iter(shapes.RAW[shape])))
        return submit_goal(key, pipeline=shape, context={"n": 1}, idempotency_key=key, loom=self.loom).goal_id

    def call_of(self, key: str, stage: str) -> UUID:
        """Give the goal of one call of a canvas."""
        found = goals.find_by_key(self.loom.database, f"task:{key}-{stage}")
        assert found
        return found

    def claim(self, goal_id: UUID, name: str, pid: int = GONE.pid) -> tuple[StageKey, UUID]:
        """Claim a stage for a node that will be gone."""
        key, token = StageKey(goal_id, name), uuid7()
        assert stages.claim(self.loom.database, key, token, Place(GONE.id, pid, str(uuid7())), LEASE_S)
        return key, token

    def lose(self, goal_id: UUID, name: str, pid: int, max_deliveries: int) -> None:
        """Claim a stage in a process that ends, and take it back."""
        self.claim(goal_id, name, pid)
        stages.take_back(self.loom.database, lease_s=LEASE_S, max_deliveries=max_deliveries, node=GONE.id, gone=[pid])

    def run(self, goal_id: UUID, names: Sequence[str], part: Part | None = None) -> None:
        """Claim and complete stages; what becomes ready counts as published."""
        for name in names:
            key, token = self.claim(goal_id, name)
            output = json.dumps({"n": shapes.expected(name, 1)})
            stages.complete(self.loom.database, key, token, output=output, room={"add.local": 9}, part=part)


def record(recorder: Recorder) -> None:
    """Bring goals into every state that a goal and a stage can be in."""
    database = recorder.loom.database
    nodes.beat(database, GONE)
    nodes.lead(database, "sweeper", GONE.id, LEASE_S)
    nodes.remember(database, "sweeper", GONE.id, {"epoch": "of a broker that is gone"})
    for shape in shapes.PARENTS | shapes.RAW:
        recorder.submit(f"fresh {shape}", shape)
    recorder.run(recorder.submit("done", "wide"), ["w2", "w1", "w3", "w4"])
    recorder.run(recorder.submit("begun", "line"), ["l1"])
    recorder.claim(recorder.submit("taken", "line"), "l1")
    half = recorder.submit("half a join", "diamond")
    recorder.run(half, ["d1", "d2"])
    recorder.claim(half, "d3")
    recorder.run(recorder.submit("one leaf", "ragged"), ["r1", "r3"])
    for key in ("never published", "a later one"):
        goal = OrchestratorGoal(instruction=key, pipeline="line", context={"n": 1}, idempotency_key=key)
        recorder.loom.submitter.submit(goal, publish=False)
        recorder.goals[key] = {"shape": "line", "state": "done"}
    _failures(recorder)
    _calls(recorder)


def _failures(recorder: Recorder) -> None:
    database = recorder.loom.database
    error = {"type": "PipelineWorkerError", "message": "no", "stage": "l1", "retryable": True}
    stages.fail(
        database, *recorder.claim(recorder.submit("retried", "line"), "l1"), error=error, retryable=True, delay_s=0.1
    )
    stages.release(database, *recorder.claim(recorder.submit("released", "line"), "l1"), "handed back")
    failed = recorder.submit("failed", "line", "failed")
    recorder.run(failed, ["l1"])
    stages.fail(database, *recorder.claim(failed, "l2"), error=error | {"retryable": False}, retryable=False)
    recorder.lose(recorder.submit("dead", "diamond", "failed"), "d1", 5001, max_deliveries=1)
    recorder.lose(recorder.submit("taken back", "line"), "l1", 5002, max_deliveries=5)
    cancelled = recorder.submit("cancelled", "wide", "cancelled")
    recorder.run(cancelled, ["w2"])
    goals.end(database, cancelled, "cancelled", {"type": "GoalCancelledError", "message": "cancelled by somebody"})


def _calls(recorder: Recorder) -> None:
    database = recorder.loom.database
    recorder.run(recorder.submit("ended, not followed", "raw_chain"), ["c1"])
    for key, names in {"half a chord": ["x1"], "full, no body": ["x1", "x2"]}.items():
        recorder.submit(key, "raw_chord")
        for position, name in enumerate(names):
            recorder.run(recorder.call_of(key, name), [name], Part(f"{key}-group", position))
    recorder.loom.app.backend.store_result("a task of somebody's own", {"n": 1}, "SUCCESS")
    stages.take_ready(database, "add", "local", 1)


def plans() -> list[dict[str, Any]]:
    """Freeze the pipelines that ship: their workers use most of what a worker's file may say."""
    catalog = require_catalog(Settings(project=Path(__file__).parents[2]))
    return [freeze_pipeline(catalog, name, allow=()) for name in sorted(catalog.pipelines)]


def main(file: Path) -> None:
    """Write the recording."""
    with tempfile.TemporaryDirectory(prefix="loomq-record-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        services = embedded.services_for(Settings(project=folder, data=folder / "services"))
        embedded.ensure(services)
        (folder / "project").mkdir()
        project = Project(folder / "project", services.database_url, services.broker_url)
        shapes.write(project)
        recorder = Recorder(project)
        record(recorder)
        found = {"revision": migrate.HEAD, "goals": recorder.goals, "plans": plans(), "calls": recorder.calls}
        recorder.loom.close()
        embedded.stop(services)
    lines = [f"{json.dumps(key)}: {_lines(value)}" for key, value in found.items()]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _lines(value: Any) -> str:
    return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]" if isinstance(value, list) else json.dumps(value)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
