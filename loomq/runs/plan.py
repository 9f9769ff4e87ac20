"""A goal's plan: its stages, each resolved to who runs it with what limits, and how they wait for each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from loomq.contracts import Contract
from loomq.orchestrator.tasks import resolved
from loomq.workers.runtime import Job

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loomq.orchestrator.manifest import Frozen
    from loomq.orchestrator.outline import Step
    from loomq.orchestrator.tasks import Subtask
    from loomq.pipelines.for_each import ForEach
    from loomq.pipelines.graph import StageGraph
    from loomq.pipelines.mapping import Mapping as PathMapping
    from loomq.pipelines.spec import PipelineSpec, StageSpec
    from loomq.workers.journal import Journal
    from loomq.workers.runtime import Program
    from loomq.workers.spec import WorkerSpec


@dataclass(frozen=True)
class StagePlan:
    """One stage, resolved: who runs it, with what limits.

    Args:
        worker: Who runs it; of a stage that runs a pipeline, who runs that one's first stage: its queue is served.
        mapping: ``None`` passes the goal's context on as it is, as for a goal of one worker.
        priority: The stage's own level, or ``None`` for the goal's.
        spec: What the pipeline says of the stage; ``None`` for other goals than pipelines'.
        other: The same stage, run by its fallback's worker.
        step: Which step of an orchestrator's goal it is, if it is one.
        task: Which task of a round's plan it is, if it is one.
        contains: The pipeline or orchestrator that it runs instead of a worker.
        place: Of a task, its place in the plan.
    """

    name: str
    worker: WorkerSpec
    tier: str
    mapping: PathMapping | None
    input_schema: dict[str, Any] | None
    output_schema: dict[str, Any] | None
    timeout_s: float
    max_retries: int
    priority: int | None
    spec: StageSpec | None = None
    other: StagePlan | None = None
    step: Step | None = None
    task: Subtask | None = None
    contains: str | None = None
    place: int | None = None

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
            inputs: The finished stages that it reads; for an item also ``item`` and ``index``. For a round's task also
                those of earlier rounds, and ``goal``, the orchestrator's.

        Raises:
            PipelineMappingError: A path names something that is not there.
        """
        context: dict[str, Any] = goal["context"]
        if self.task is not None:
            payload: dict[str, Any] = resolved(context[self.name], inputs)
            return payload
        return context if self.mapping is None else self.mapping.apply(goal, inputs)

    def job(
        self,
        payload: dict[str, Any],
        *,
        tier: str,
        timeout_s: float,
        journal: Journal | None = None,
        program: Program | None = None,
    ) -> Job:
        """Make one task of this stage, as its worker sees it.

        Args:
            tier: After the router's overrides.
            timeout_s: Run time until the soft deadline.
            journal: Where it writes down what models and tools have answered.
            program: What is done in place of asking the worker's model once.
        """
        return Job(self.name, self.worker, tier, payload, self.inputs, self.outputs, timeout_s, journal, program)

    def run_by(self, worker: str, tier: str) -> StagePlan:
        """Give the stage as that worker and tier run it: itself, or its fallback."""
        other = self.other
        return other if other is not None and (worker, tier) == (other.worker.name, other.tier) else self

    @property
    def pipeline(self) -> str | None:
        """The pipeline or orchestrator that the stage runs instead of a worker."""
        return self.contains or (self.spec.pipeline if self.spec else None)

    @property
    def opens_round(self) -> bool:
        """Whether its work is a round of tasks."""
        return self.step is not None and self.step.kind == "tasks"

    @property
    def each(self) -> ForEach | None:
        """The list that it fans out over."""
        return self.spec.items if self.spec else None

    @property
    def reads(self) -> tuple[str, ...]:
        """The stages whose results it reads when its message comes; its items read for themselves."""
        if self.task is not None:
            return self.task.depends_on
        if self.spec is None:
            return self._above
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
        if self.task is not None:
            return self.task.depends_on
        return self.spec.needs if self.spec else self._above

    @property
    def _above(self) -> tuple[str, ...]:
        """Of a step, the one that it cannot do without: tasks their plan, a plan the tasks of the round before."""
        return (self.step.above,) if self.step is not None and self.step.above is not None else ()

    def asks_nothing(self, inputs: Mapping[str, Any]) -> bool:
        """Say whether it is a round's tasks, and its plan, which is among the inputs, asks for none."""
        return self.opens_round and any(not inputs[name]["output"]["tasks"] for name in self._above if name in inputs)

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
        kind: ``pipeline``, ``worker`` for a goal of one stage, ``orchestrator``, or ``round`` for one's tasks.
        name: The pipeline's, the worker's or the orchestrator's name.
        graph: The transitive reduction of the stages' dependencies.
        spec: The pipeline, or ``None``.
        pipelines: It and those that it contains, by name.
        workers: Those that any of them runs.
        frozen: The orchestrator, or ``None``.
        orchestrators: Those that it contains, by name.
        window: How many tasks of a round may be under way.
    """

    kind: str
    name: str
    stages: dict[str, StagePlan]
    graph: StageGraph
    spec: PipelineSpec | None = None
    pipelines: dict[str, PipelineSpec] = field(default_factory=dict)
    workers: dict[str, WorkerSpec] = field(default_factory=dict)
    frozen: Frozen | None = None
    orchestrators: dict[str, Frozen] = field(default_factory=dict)
    window: int | None = None

    @property
    def max_concurrent_goals(self) -> int | None:
        """How many goals like this one may be under way."""
        if self.frozen is not None:
            return self.frozen.spec.max_concurrent_goals
        return self.spec.max_concurrent_goals if self.spec else None

    @property
    def goal_timeout_s(self) -> float | None:
        """The limit of the whole goal."""
        if self.frozen is not None:
            return float(self.frozen.spec.timeout_seconds)
        return self.spec.goal_timeout_seconds if self.spec else None

    @property
    def output(self) -> PathMapping | None:
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
        return self.kind == "round" or (self.spec is not None and self.spec.on_failure == "continue_partial")

    @cached_property
    def unsure(self) -> frozenset[str]:
        """The stages that may be skipped: by their condition, or for want of a result that they need."""
        found: set[str] = set()
        for name in self.graph.order:
            stage = self.stages[name]
            is_asked = stage.opens_round or (stage.spec is not None and stage.spec.when is not None)
            if is_asked or any(self.goes_on or need in found for need in stage.needs):
                found.add(name)
        return frozenset(found)

    @cached_property
    def alone(self) -> frozenset[str]:
        """The stages that no chain or chord carries: they may be skipped, or are more than one task."""
        return self.unsure | {
            name for name, stage in self.stages.items() if stage.each or stage.pipeline or stage.step or stage.task
        }

    @property
    def routes(self) -> frozenset[tuple[str, str]]:
        """The workers and tiers that its stages, what they contain, and an orchestrator's plans may use."""
        frozen = [one for one in (self.frozen, *self.orchestrators.values()) if one is not None]
        offered = {(offer.name, tier) for one in frozen for offer in one.offers for tier in offer.tiers}
        steps = {(one.spec.name, str(one.spec.default_model_tier)) for one in frozen}
        own = {(one.worker.name, one.tier) for stage in self.stages.values() for one in (stage, stage.other) if one}
        inner = {
            (one.worker_type, str(one.tier or self.workers[one.worker_type].tier))
            for pipeline in self.pipelines.values()
            for stage in pipeline.pipeline_stages
            for one in (stage, stage.fallback)
            if one is not None and one.worker_type is not None
        }
        return frozenset(offered | steps | own | inner)

    @property
    def is_newer(self) -> bool:
        """Whether nodes of the first release would run it wrongly."""
        return self.goes_on or bool(self.alone) or any(stage.fallback for stage in self.stages.values())
