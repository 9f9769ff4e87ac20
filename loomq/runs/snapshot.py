"""Snapshots: what a goal runs from, frozen when it is handed in, and parsed once a process and content address."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from loomq.errors import GoalNotFoundError
from loomq.orchestrator.manifest import Frozen
from loomq.orchestrator.outline import steps
from loomq.orchestrator.tasks import Subtask
from loomq.pipelines.graph import StageGraph, graph_of
from loomq.pipelines.spec import PipelineSpec
from loomq.queues.names import level
from loomq.runs.plan import Plan, StagePlan
from loomq.store import goals
from loomq.workers.spec import WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loomq.pipelines.spec import StageSpec
    from loomq.store.engine import Database

    Pipelines = Mapping[str, PipelineSpec]

_FORMAT = 1
# Keys of later releases, left out where they say nothing: older nodes read the rest.
_LATER = {"stream": False, "cache": None}
_KEPT = 256  # plans a process holds; the oldest makes room


def parse(body: dict[str, Any]) -> Plan:
    """Read a snapshot that ``snapshot_of_*`` made."""
    workers = {name: WorkerSpec.model_validate(raw) for name, raw in body["workers"].items()}
    if body["kind"] == "worker":
        stage = _stage_of_worker(workers[body["name"]])
        return Plan("worker", body["name"], {stage.name: stage}, StageGraph((stage.name,), {stage.name: ()}))
    inner = {name: PipelineSpec.model_validate(raw) for name, raw in body.get("pipelines", {}).items()}
    orchestrators = {name: Frozen.model_validate(raw) for name, raw in body.get("orchestrators", {}).items()}
    if body["kind"] == "orchestrator":
        return _of_orchestrator(Frozen.model_validate(body["orchestrator"]), inner, workers, orchestrators)
    if body["kind"] == "round":
        return _of_round(body, inner, workers, orchestrators)
    spec = PipelineSpec.model_validate(body["pipeline"])
    pipelines = {spec.name: spec, **inner}
    stages = {stage.name: _stage_of(spec, stage, pipelines, workers) for stage in spec.pipeline_stages}
    return Plan("pipeline", spec.name, stages, graph_of(spec).reduced(), spec, pipelines, workers)


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


def _of_orchestrator(
    frozen: Frozen,
    pipelines: dict[str, PipelineSpec],
    workers: dict[str, WorkerSpec],
    orchestrators: dict[str, Frozen],
) -> Plan:
    own = frozen.spec.as_worker
    line = steps(frozen.spec.max_rounds)
    stages = {
        step.name: replace(_stage_of_worker(own), name=step.name, input_schema=None, output_schema=None, step=step)
        for step in line
    }
    above = [None, *(step.name for step in line)]
    graph = StageGraph.build({step.name: (up,) if up else () for step, up in zip(line, above, strict=False)})
    return Plan(
        "orchestrator",
        frozen.spec.name,
        stages,
        graph,
        pipelines=pipelines,
        workers=workers,
        frozen=frozen,
        orchestrators=orchestrators,
    )


def _of_round(
    body: dict[str, Any],
    pipelines: dict[str, PipelineSpec],
    workers: dict[str, WorkerSpec],
    orchestrators: dict[str, Frozen],
) -> Plan:
    tasks = [Subtask.of(said) for said in body["tasks"]]
    stages = {
        task.name: _stage_of_task(task, said["kind"], at, pipelines, workers, orchestrators)
        for at, (task, said) in enumerate(zip(tasks, body["tasks"], strict=True))
    }
    graph = StageGraph.build({task.name: task.depends_on for task in tasks}).reduced()
    return Plan(
        "round",
        body["name"],
        stages,
        graph,
        pipelines=pipelines,
        workers=workers,
        orchestrators=orchestrators,
        window=body["window"],
    )


def _stage_of_task(
    task: Subtask,
    kind: str,
    place: int,
    pipelines: dict[str, PipelineSpec],
    workers: dict[str, WorkerSpec],
    orchestrators: dict[str, Frozen],
) -> StagePlan:
    contains = None if kind == "worker" else task.worker_type
    if kind == "worker":
        worker = workers[task.worker_type]
    elif kind == "orchestrator":
        worker = orchestrators[task.worker_type].spec.as_worker
    else:
        inner = pipelines[task.worker_type]
        worker = workers[first_worker(inner.by_name[graph_of(inner).order[0]], pipelines)]
    whole = _stage_of_worker(worker)
    return replace(
        whole,
        name=task.name,
        tier=task.tier or whole.tier,
        input_schema=whole.input_schema if contains is None else None,
        output_schema=whole.output_schema if contains is None else None,
        priority=None if task.priority is None else level(task.priority),
        task=task,
        contains=contains,
        place=place,
    )


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


def snapshot_of_orchestrator(
    frozen: Frozen,
    orchestrators: Mapping[str, Frozen],
    pipelines: Pipelines,
    workers: Mapping[str, WorkerSpec],
) -> dict[str, Any]:
    """Freeze an orchestrator with all that its plans may use.

    Args:
        orchestrators, pipelines, workers: By name, at least those that are needed; their schema references are
            resolved already.
    """
    used = within([frozen], orchestrators, pipelines)
    body = {
        "format": _FORMAT,
        "kind": "orchestrator",
        "name": frozen.spec.name,
        "orchestrator": frozen.dumped(),
    }
    return body | _dumped(used, orchestrators, pipelines, workers)


def snapshot_of_round(name: str, tasks: Sequence[Subtask], window: int, plan: Plan) -> dict[str, Any]:
    """Freeze the tasks of one plan, without their payloads, with those whom they name.

    Args:
        name: The orchestrator's.
        window: How many may be under way.
        plan: What the orchestrator's goal runs from.
    """
    assert plan.frozen is not None
    kinds = {task.worker_type: plan.frozen.by_name[task.worker_type].kind for task in tasks}
    asked = {
        kind: {name for name, one in kinds.items() if one == kind} for kind in ("worker", "pipeline", "orchestrator")
    }
    used = Used(asked["orchestrator"], set(), asked["worker"])
    used.add(within([plan.orchestrators[name] for name in asked["orchestrator"]], plan.orchestrators, plan.pipelines))
    for each in sorted(asked["pipeline"]):
        used.add_pipeline(each, plan.pipelines)
    said = [
        {key: value for key, value in task.to_json().items() if key != "payload"} | {"kind": kinds[task.worker_type]}
        for task in tasks
    ]
    body = {"format": _FORMAT, "kind": "round", "name": name, "tasks": said, "window": window}
    return body | _dumped(used, plan.orchestrators, plan.pipelines, plan.workers)


def snapshot_within(plan: Plan, name: str) -> dict[str, Any]:
    """Give the snapshot of a pipeline or an orchestrator that a plan contains."""
    if name in plan.orchestrators:
        return snapshot_of_orchestrator(plan.orchestrators[name], plan.orchestrators, plan.pipelines, plan.workers)
    return snapshot_of_pipeline(name, plan.pipelines, plan.workers)


@dataclass
class Used:
    """Names of all that something may run."""

    orchestrators: set[str] = field(default_factory=set)
    pipelines: set[str] = field(default_factory=set)
    workers: set[str] = field(default_factory=set)

    def add(self, other: Used) -> None:
        """Add what another one names."""
        self.orchestrators |= other.orchestrators
        self.pipelines |= other.pipelines
        self.workers |= other.workers

    def add_pipeline(self, name: str, pipelines: Pipelines) -> None:
        """Add a pipeline with all that it runs."""
        for each in contained(name, pipelines):
            self.pipelines.add(each)
            self.workers.update(pipelines[each].worker_types)


def within(frozen: Sequence[Frozen], orchestrators: Mapping[str, Frozen], pipelines: Pipelines) -> Used:
    """Name all that some orchestrators may run, themselves not counted."""
    found, todo = Used(), list(frozen)
    while todo:
        one = todo.pop()
        found.workers.update(one.of_kind("worker"))
        for name in one.of_kind("pipeline"):
            found.add_pipeline(name, pipelines)
        for name in one.of_kind("orchestrator"):
            if name not in found.orchestrators:
                found.orchestrators.add(name)
                todo.append(orchestrators[name])
    return found


def _dumped(
    used: Used, orchestrators: Mapping[str, Frozen], pipelines: Pipelines, workers: Mapping[str, WorkerSpec]
) -> dict[str, Any]:
    found: dict[str, Any] = {"workers": {name: _frozen(workers[name]) for name in sorted(used.workers)}}
    if used.pipelines:
        found["pipelines"] = {name: _frozen(pipelines[name]) for name in sorted(used.pipelines)}
    if used.orchestrators:
        found["orchestrators"] = {name: orchestrators[name].dumped() for name in sorted(used.orchestrators)}
    return found


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
            plan = parse(body)
            while len(self._plans) >= _KEPT:
                self._plans.pop(next(iter(self._plans)), None)
            self._plans[snapshot] = plan
        return plan
