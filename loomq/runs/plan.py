"""A goal's plan: the frozen snapshot that it was compiled from, parsed once a process and content address."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from loomq.contracts import Contract
from loomq.errors import GoalNotFoundError
from loomq.pipelines.graph import StageGraph, graph_of
from loomq.pipelines.spec import PipelineSpec, StageSpec
from loomq.queues.names import level
from loomq.store import goals
from loomq.workers.runtime import Job
from loomq.workers.spec import WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Mapping as MappingABC

    from loomq.pipelines.for_each import ForEach
    from loomq.pipelines.mapping import Mapping
    from loomq.store.engine import Database
    from loomq.workers.journal import Journal

    Pipelines = MappingABC[str, PipelineSpec]

_FORMAT = 1
# Keys of later releases, left out where they say nothing: older nodes read the rest.
_LATER = {"stream": False, "cache": None}
_KEPT = 256  # plans a process holds; the oldest makes room


@dataclass(frozen=True)
class StagePlan:
    """One stage, resolved: who runs it, with what limits.

    Args:
        worker: Who runs it; of a stage that runs a pipeline, who runs that one's first stage: its queue is served.
        mapping: ``None`` passes the goal's context on as it is, as for a goal of one worker.
        priority: The stage's own level, or ``None`` for the goal's.
        spec: What the pipeline says of the stage; ``None`` for a goal of one worker.
        other: The same stage, run by its fallback's worker.
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
    other: StagePlan | None = None

    @cached_property
    def inputs(self) -> Contract | None:
        """The contract of the payload."""
        return Contract(self.input_schema) if self.input_schema is not None else None

    @cached_property
    def outputs(self) -> Contract | None:
        """The contract of the output."""
        return Contract(self.output_schema) if self.output_schema is not None else None

    def payload(self, goal: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
        """Give what the stage gets by its mapping.

        Args:
            goal: ``goal_id``, ``instruction`` and ``context``.
            inputs: The finished stages that it reads; for an item also ``item`` and ``index``.

        Raises:
            PipelineMappingError: A path names something that is not there.
        """
        context: dict[str, Any] = goal["context"]
        return context if self.mapping is None else self.mapping.apply(goal, inputs)

    def job(self, payload: dict[str, Any], *, tier: str, timeout_s: float, journal: Journal | None = None) -> Job:
        """Make one task of this stage, as its worker sees it.

        Args:
            tier: After the router's overrides.
            timeout_s: Run time until the soft deadline.
            journal: Where it writes down what models and tools have answered.
        """
        return Job(self.name, self.worker, tier, payload, self.inputs, self.outputs, timeout_s, journal)

    def run_by(self, worker: str, tier: str) -> StagePlan:
        """Give the stage as that worker and tier run it: itself, or its fallback."""
        other = self.other
        return other if other is not None and (worker, tier) == (other.worker.name, other.tier) else self

    @property
    def pipeline(self) -> str | None:
        """The pipeline that the stage runs instead of a worker."""
        return self.spec.pipeline if self.spec else None

    @property
    def each(self) -> ForEach | None:
        """The list that it fans out over."""
        return self.spec.items if self.spec else None

    @property
    def reads(self) -> tuple[str, ...]:
        """The stages whose results it reads when its message comes; its items read for themselves."""
        if self.spec is None:
            return ()
        if self.each is None:
            return self.spec.reads
        sources = (self.each, self.spec.when)
        asked = (name for one in sources if one is not None for name in one.roots)
        return tuple(dict.fromkeys((*asked, *self.needs)))

    @property
    def item_reads(self) -> tuple[str, ...]:
        """The stages whose results each of its items reads."""
        return self.mapping.roots if self.mapping else ()

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages without whose result it cannot run."""
        return self.spec.needs if self.spec else ()

    @property
    def fallback(self) -> dict[str, Any] | None:
        """What stands in when it fails for good, as the store keeps it."""
        written = self.spec.fallback if self.spec else None
        if written is None:
            return None
        if self.other is None:
            return {"output": written.value}
        other = self.other
        return {
            "worker": other.worker.name,
            "tier": other.tier,
            "timeout_s": other.timeout_s,
            "max_retries": other.max_retries,
        }


@dataclass(frozen=True)
class Plan:
    """A whole goal's plan.

    Args:
        kind: ``pipeline``, or ``worker`` for a goal of one stage.
        name: The pipeline's or the worker's name.
        graph: The transitive reduction of the stages' dependencies.
        spec: The pipeline, or ``None``.
        pipelines: It and those that it contains, by name.
        workers: Those that any of them runs.
    """

    kind: str
    name: str
    stages: dict[str, StagePlan]
    graph: StageGraph
    spec: PipelineSpec | None = None
    pipelines: dict[str, PipelineSpec] = field(default_factory=dict)
    workers: dict[str, WorkerSpec] = field(default_factory=dict)

    @property
    def output(self) -> Mapping | None:
        """The mapping that selects the goal's result; ``None`` gives every stage's output."""
        return self.spec.output_mapping if self.spec else None

    @cached_property
    def context_contract(self) -> Contract | None:
        """The contract of the goal's context."""
        schema = self.spec.input_schema if self.spec else None
        return Contract(schema) if schema is not None else None

    @property
    def goes_on(self) -> bool:
        """Whether a failed stage leaves the others running."""
        return self.spec is not None and self.spec.on_failure == "continue_partial"

    @cached_property
    def unsure(self) -> frozenset[str]:
        """The stages that may be skipped: by their condition, or for want of a result that they need."""
        found: set[str] = set()
        for name in self.graph.order:
            stage = self.stages[name]
            is_asked = stage.spec is not None and stage.spec.when is not None
            if is_asked or any(self.goes_on or need in found for need in stage.needs):
                found.add(name)
        return frozenset(found)

    @cached_property
    def alone(self) -> frozenset[str]:
        """The stages that no chain or chord carries: they may be skipped, or are more than one task."""
        return self.unsure | {name for name, stage in self.stages.items() if stage.each or stage.pipeline}

    @property
    def is_newer(self) -> bool:
        """Whether nodes of the first release would run it wrongly."""
        return self.goes_on or bool(self.alone) or any(stage.fallback for stage in self.stages.values())

    def snapshot_of(self, pipeline: str) -> dict[str, Any]:
        """Give the snapshot of a pipeline that this one contains."""
        return snapshot_of_pipeline(pipeline, self.pipelines, self.workers)

    @classmethod
    def parse(cls, body: dict[str, Any]) -> Plan:
        """Read a snapshot that ``snapshot_of_*`` made."""
        workers = {name: WorkerSpec.model_validate(raw) for name, raw in body["workers"].items()}
        if body["kind"] == "worker":
            stage = _stage_of_worker(workers[body["name"]])
            return cls("worker", body["name"], {stage.name: stage}, StageGraph((stage.name,), {stage.name: ()}))
        spec = PipelineSpec.model_validate(body["pipeline"])
        inner = {name: PipelineSpec.model_validate(raw) for name, raw in body.get("pipelines", {}).items()}
        pipelines = {spec.name: spec, **inner}
        stages = {stage.name: _stage_of(spec, stage, pipelines, workers) for stage in spec.pipeline_stages}
        return cls("pipeline", spec.name, stages, graph_of(spec).reduced(), spec, pipelines, workers)


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


def first_worker(stage: StageSpec, pipelines: Pipelines) -> str:
    """Name the worker whose queue a stage's message goes to."""
    while stage.worker_type is None:
        inner = pipelines[str(stage.pipeline)]
        stage = inner.by_name[graph_of(inner).order[0]]
    return stage.worker_type


def _stage_of(spec: PipelineSpec, stage: StageSpec, pipelines: Pipelines, workers: dict[str, WorkerSpec]) -> StagePlan:
    worker = workers[first_worker(stage, pipelines)]
    fallback = stage.fallback
    plan = StagePlan(
        name=stage.name,
        worker=worker,
        tier=str(stage.tier or worker.tier),
        mapping=stage.mapping,
        input_schema=stage.input_schema,
        output_schema=stage.output_schema,
        timeout_s=spec.timeout_of(stage, worker.timeout_seconds),
        max_retries=worker.max_retries if stage.max_retries is None else stage.max_retries,
        priority=None if stage.priority is None else level(stage.priority),
        spec=stage,
    )
    if stage.pipeline is not None:
        return plan
    plan = replace(
        plan,
        input_schema=worker.input_schema if stage.input_schema is None else stage.input_schema,
        output_schema=worker.output_schema if stage.output_schema is None else stage.output_schema,
    )
    if fallback is None or fallback.worker_type is None:
        return plan
    other = workers[fallback.worker_type]
    instead = replace(
        plan,
        worker=other,
        tier=str(fallback.tier or other.tier),
        input_schema=other.input_schema,
        output_schema=other.output_schema,
        timeout_s=float(other.timeout_seconds),
        max_retries=other.max_retries,
    )
    return replace(plan, other=instead)


def snapshot_of_worker(worker: WorkerSpec) -> dict[str, Any]:
    """Freeze one worker; its schema references are resolved already."""
    return {"format": _FORMAT, "kind": "worker", "name": worker.name, "workers": {worker.name: _frozen(worker)}}


def snapshot_of_pipeline(name: str, pipelines: Pipelines, workers: dict[str, WorkerSpec]) -> dict[str, Any]:
    """Freeze a pipeline with those that it contains and the workers that any of them names.

    Args:
        pipelines, workers: By name, at least those that are needed; their schema references are resolved already.
    """
    inner = contained(name, pipelines)
    used = sorted({worker for each in inner for worker in pipelines[each].worker_types})
    body = {
        "format": _FORMAT,
        "kind": "pipeline",
        "name": name,
        "pipeline": _frozen(pipelines[name]),
        "workers": {worker: _frozen(workers[worker]) for worker in used},
    }
    if len(inner) > 1:
        body["pipelines"] = {each: _frozen(pipelines[each]) for each in inner if each != name}
    return body


def contained(name: str, pipelines: Pipelines) -> list[str]:
    """Name a pipeline and all that it contains, sorted."""
    found, todo = {name}, [name]
    while todo:
        for stage in pipelines[todo.pop()].pipeline_stages:
            if stage.pipeline is not None and stage.pipeline not in found:
                found.add(stage.pipeline)
                todo.append(stage.pipeline)
    return sorted(found)


def _frozen(spec: PipelineSpec | WorkerSpec) -> dict[str, Any]:
    found = spec.model_dump(mode="json")
    return {key: value for key, value in found.items() if key not in _LATER or value != _LATER[key]}


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
