"""A goal's plan: the frozen snapshot that it was compiled from, parsed once a process and content address."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from loomq.contracts import Contract
from loomq.errors import GoalNotFoundError, NotSupportedYetError
from loomq.pipelines.graph import StageGraph, graph_of
from loomq.pipelines.spec import PipelineSpec, StageSpec
from loomq.queues.names import level
from loomq.store import goals
from loomq.workers.runtime import Job
from loomq.workers.spec import WorkerSpec

if TYPE_CHECKING:
    from loomq.pipelines.mapping import Mapping
    from loomq.store.engine import Database

_FORMAT = 1
_KEPT = 256  # plans a process holds; the oldest makes room


@dataclass(frozen=True)
class StagePlan:
    """One stage, resolved: who runs it, with what limits.

    Args:
        mapping: ``None`` passes the goal's context on as it is, as for a goal of one worker.
        priority: The stage's own level, or ``None`` for the goal's.
        spec: What the pipeline says of the stage; ``None`` for a goal of one worker.
    """

    name: str
    worker: WorkerSpec
    tier: str
    mapping: Mapping | None
    input_schema: dict[str, Any] | None
    output_schema: dict[str, Any] | None
    timeout_s: float
    max_retries: int
    priority: int | None
    spec: StageSpec | None = None

    @cached_property
    def inputs(self) -> Contract | None:
        """The contract of the payload."""
        return Contract(self.input_schema) if self.input_schema is not None else None

    @cached_property
    def outputs(self) -> Contract | None:
        """The contract of the output."""
        return Contract(self.output_schema) if self.output_schema is not None else None

    def payload(self, goal: dict[str, Any], inputs: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Give what the stage gets by its mapping.

        Args:
            goal: ``goal_id``, ``instruction`` and ``context``.
            inputs: The finished stages that it reads.

        Raises:
            PipelineMappingError: A path names something that is not there.
        """
        context: dict[str, Any] = goal["context"]
        return context if self.mapping is None else self.mapping.apply(goal, inputs)

    def job(self, payload: dict[str, Any], *, tier: str, timeout_s: float) -> Job:
        """Make one task of this stage, as its worker sees it.

        Args:
            tier: After the router's overrides.
            timeout_s: Run time until the soft deadline.
        """
        return Job(self.name, self.worker, tier, payload, self.inputs, self.outputs, timeout_s)

    @property
    def reads(self) -> tuple[str, ...]:
        """The stages whose results its mapping, its condition or its for_each names."""
        return self.spec.reads if self.spec else ()


@dataclass(frozen=True)
class Plan:
    """A whole goal's plan.

    Args:
        kind: ``pipeline``, or ``worker`` for a goal of one stage.
        name: The pipeline's or the worker's name.
        graph: The transitive reduction of the stages' dependencies.
        output: The mapping that selects the goal's result; ``None`` gives every stage's output.
    """

    kind: str
    name: str
    stages: dict[str, StagePlan]
    graph: StageGraph
    output: Mapping | None = None
    context_schema: dict[str, Any] | None = None

    @cached_property
    def context_contract(self) -> Contract | None:
        """The contract of the goal's context."""
        return Contract(self.context_schema) if self.context_schema is not None else None

    @classmethod
    def parse(cls, body: dict[str, Any]) -> Plan:
        """Read a snapshot that ``snapshot_of_*`` made."""
        workers = {name: WorkerSpec.model_validate(raw) for name, raw in body["workers"].items()}
        if body["kind"] == "worker":
            stage = _stage_of_worker(workers[body["name"]])
            return cls("worker", body["name"], {stage.name: stage}, StageGraph((stage.name,), {stage.name: ()}))
        spec = PipelineSpec.model_validate(body["pipeline"])
        stages = {stage.name: _stage_of(spec, stage, worker_of(stage, workers)) for stage in spec.pipeline_stages}
        graph = graph_of(spec).reduced()
        return cls("pipeline", spec.name, stages, graph, spec.output_mapping, spec.input_schema)


def _stage_of_worker(worker: WorkerSpec) -> StagePlan:
    return StagePlan(
        name=worker.name,
        worker=worker,
        tier=str(worker.tier),
        mapping=None,
        input_schema=worker.input_schema,
        output_schema=worker.output_schema,
        timeout_s=float(worker.timeout_seconds),
        max_retries=worker.max_retries,
        priority=None,
    )


def worker_of(stage: StageSpec, workers: dict[str, WorkerSpec]) -> WorkerSpec:
    """Give the worker of a stage.

    Raises:
        NotSupportedYetError: The stage runs a pipeline.
    """
    if stage.worker_type is None:
        raise NotSupportedYetError(
            f"stage {stage.name} runs the pipeline {stage.pipeline}, which cannot be run yet",
            hint=f"submit {stage.pipeline} as a goal of its own",
        )
    return workers[stage.worker_type]


def _stage_of(spec: PipelineSpec, stage: StageSpec, worker: WorkerSpec) -> StagePlan:
    return StagePlan(
        name=stage.name,
        worker=worker,
        tier=str(stage.tier or worker.tier),
        mapping=stage.mapping,
        input_schema=worker.input_schema if stage.input_schema is None else stage.input_schema,
        output_schema=worker.output_schema if stage.output_schema is None else stage.output_schema,
        timeout_s=spec.timeout_of(stage, worker.timeout_seconds),
        max_retries=worker.max_retries if stage.max_retries is None else stage.max_retries,
        priority=None if stage.priority is None else level(stage.priority),
        spec=stage,
    )


def snapshot_of_worker(worker: WorkerSpec) -> dict[str, Any]:
    """Freeze one worker; its schema references are resolved already."""
    return {"format": _FORMAT, "kind": "worker", "name": worker.name, "workers": {worker.name: _frozen(worker)}}


def snapshot_of_pipeline(spec: PipelineSpec, workers: dict[str, WorkerSpec]) -> dict[str, Any]:
    """Freeze a pipeline with the workers that it names; their schema references are resolved already."""
    return {
        "format": _FORMAT,
        "kind": "pipeline",
        "name": spec.name,
        "pipeline": _frozen(spec),
        "workers": {name: _frozen(workers[name]) for name in spec.worker_types},
    }


def _frozen(spec: PipelineSpec | WorkerSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json")


class PlanCache:
    """The plans that a process has parsed, by content address."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._plans: dict[str, Plan] = {}

    def get(self, snapshot: str) -> Plan:
        """Give the plan of a stored snapshot.

        Raises:
            GoalNotFoundError: The snapshot is not in the database.
        """
        plan = self._plans.get(snapshot)
        if plan is None:
            body = goals.read_snapshot(self._database, snapshot)
            if body is None:
                raise GoalNotFoundError(f"the database holds no snapshot {snapshot[:12]}")
            plan = self.keep(snapshot, body)
        return plan

    def keep(self, snapshot: str, body: dict[str, Any]) -> Plan:
        """Parse a snapshot, unless that has been done, and remember it."""
        plan = self._plans.get(snapshot)
        if plan is None:
            plan = Plan.parse(body)
            while len(self._plans) >= _KEPT:
                self._plans.pop(next(iter(self._plans)), None)
            self._plans[snapshot] = plan
        return plan
