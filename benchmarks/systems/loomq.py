"""loomq itself, with its default settings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from benchmarks.harness import ROOT, loomq_node
from benchmarks.systems.base import LINKS, WIDTH, System
from loomq.loom import Loom
from loomq.services import inspect
from loomq.services.submit import submit_goal, submit_goals
from loomq.settings import Settings
from loomq.store import goals
from loomq.testing import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_CODE = '''
"""The workers: what benchmarks.work has, as processors."""

from benchmarks import work
from loomq.workers.base import SyncProcessingBackend


class Step(SyncProcessingBackend):
    def process_sync(self, payload, config):
        return {"output": work.step(payload)}


class Join(SyncProcessingBackend):
    def process_sync(self, payload, config):
        values = [one["n"] for one in payload.get("items") or (payload["left"], payload["right"])]
        return {"output": work.join(values, payload.get("run"))}


class Numbers(SyncProcessingBackend):
    def process_sync(self, payload, config):
        return {"output": work.numbers(payload["count"])}


class Wait(SyncProcessingBackend):
    def process_sync(self, payload, config):
        return {"output": work.wait(payload["ms"], payload.get("run"))}
'''
_RUN = "goal.context.run"


def _stage(name: str, worker: str, **mapping: Any) -> dict[str, Any]:
    return {"name": name, "worker_type": worker, "input_mapping": mapping}


def _pipelines() -> dict[str, list[dict[str, Any]]]:
    links = [_stage(f"s{at}", "step", n=f"s{at - 1}.output.n") for at in range(2, LINKS)]
    return {
        "noop": [_stage("a", "step", n=0, run=_RUN)],
        "diamond": [
            _stage("a", "step", n=0),
            _stage("b", "step", n="a.output.n"),
            _stage("c", "step", n="a.output.n"),
            _stage("d", "join", left="b.output", right="c.output", run=_RUN),
        ],
        "chain": [
            _stage("s1", "step", n=0),
            *links,
            _stage(f"s{LINKS}", "step", n=f"s{LINKS - 1}.output.n", run=_RUN),
        ],
        "fan": [
            _stage("a", "numbers", count=WIDTH),
            {**_stage("b", "step", n="item"), "for_each": "a.output.items"},
            _stage("c", "join", items="b.output.items", run=_RUN),
        ],
        "wait": [_stage("a", "wait", ms="goal.context.ms", run=_RUN)],
    }


def write_project(folder: Path) -> None:
    """Write the project of the benchmarks."""
    for name in ("workers", "pipelines"):
        (folder / name).mkdir(parents=True)
    (folder / "benched.py").write_text(_CODE.lstrip())
    for name, backend in (("step", "Step"), ("join", "Join"), ("numbers", "Numbers"), ("wait", "Wait")):
        said = {"name": name, "worker_kind": "processor", "processing_backend": f"benched.{backend}"}
        (folder / "workers" / f"{name}.yaml").write_text(json.dumps(said))
    for name, stages in _pipelines().items():
        (folder / "pipelines" / f"{name}.yaml").write_text(json.dumps({"name": name, "pipeline_stages": stages}))


class Loomq(System):
    """loomq.

    Args:
        given: The settings that lead to its servers.
    """

    name = "loomq"

    def __init__(
        self, folder: Path, given: dict[str, Any], *, pool: Sequence[str] = ("-P", "prefork", "-c", "2")
    ) -> None:
        write_project(folder / "project")
        settings = {**given, "project": folder / "project", "import_allow": "benched"}
        self.loom = Loom(Settings.load(**settings))
        self.node = loomq_node(folder, settings, pool=pool, more={"PYTHONPATH": str(ROOT)})
        wait_until(lambda: inspect.live_nodes(self.loom), "the node")

    def hand_in(self, kind: str, runs: Sequence[str]) -> None:
        """Submit a goal a run."""
        for run in runs:
            submit_goal("", pipeline=kind, context={"run": run}, loom=self.loom)

    def hand_in_many(self, kind: str, runs: Sequence[str]) -> None:
        """Submit all goals with one call."""
        submit_goals(({"instruction": "", "pipeline": kind, "context": {"run": run}} for run in runs), loom=self.loom)

    def settle(self) -> None:
        """Wait until the last goals are recorded as ended."""
        wait_until(lambda: goals.count_open(self.loom.database) == 0, "the goals")

    def close(self) -> None:
        """End it."""
        super().close()
        self.loom.close()
