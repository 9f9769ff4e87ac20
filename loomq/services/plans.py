"""Look at a pipeline before anything runs: its stages, how they are published, and what is wrong with its files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.catalog import load_catalog
from loomq.configs import limits_of, router_of
from loomq.errors import ConfigError, UnknownNameError
from loomq.kinds import shown_name
from loomq.pipelines.canvas import segments
from loomq.problems import listed, suggest
from loomq.queues.names import priority_named
from loomq.registry import project_on_path
from loomq.runs.freeze import freeze
from loomq.runs.snapshot import parse
from loomq.services import inspect
from loomq.services.drawing import notes
from loomq.store import goals

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from loomq.catalog import Catalog
    from loomq.loom import Loom
    from loomq.orchestrator.manifest import Offer
    from loomq.pipelines.canvas import Segment
    from loomq.pipelines.graph import StageGraph
    from loomq.problems import Problem
    from loomq.queues.limits import Limits
    from loomq.runs.plan import Plan, StagePlan
    from loomq.settings import Settings


@dataclass(frozen=True, slots=True)
class StageLine:
    """One stage of a plan.

    Args:
        level: From 0, in Kahn's order.
        tier: After the router's overrides.
        waits_for: Its parents in the transitive reduction.
        reads: The paths of its mapping, as they were written.
        notes: Its for_each, its condition and its fallback, each in a few words.
        priority: ``None`` is the goal's.
        limits: What keeps it from starting at will, in words.
    """

    name: str
    level: int
    worker: str
    kind: str
    tier: str
    queue: str
    timeout_s: float
    max_retries: int
    priority: str | None
    waits_for: tuple[str, ...]
    reads: tuple[str, ...]
    notes: tuple[str, ...]
    limits: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Describe the stage."""
        lists = {name: list(getattr(self, name)) for name in ("waits_for", "reads", "notes", "limits")}
        return {name: getattr(self, name) for name in self.__slots__} | lists


@dataclass(frozen=True, slots=True)
class SegmentLine:
    """One canvas, and when it is published.

    Args:
        after: The stages that must be done; whichever ends last publishes it, and none means submit does.
        shape: ``single``, ``chain`` or ``chord``.
    """

    after: tuple[str, ...]
    shape: str
    runs: tuple[tuple[str, ...], ...]
    join: str | None

    def to_json(self) -> dict[str, Any]:
        """Describe the segment."""
        runs = [list(run) for run in self.runs]
        return {"after": list(self.after), "shape": self.shape, "runs": runs, "join": self.join}


@dataclass(frozen=True, slots=True)
class OfferLine:
    """Something that an orchestrator's plans may use.

    Args:
        kind: ``worker``, ``pipeline`` or ``orchestrator``.
        tiers: Where its tasks may run, the first by default.
    """

    name: str
    kind: str
    description: str
    tiers: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Describe it."""
        return {"name": self.name, "kind": self.kind, "description": self.description, "tiers": list(self.tiers)}


@dataclass(frozen=True, slots=True)
class PlanView:
    """What a pipeline's goals will do, if nothing changes before they are submitted.

    Args:
        stages: By level, in the order of the file.
        findings: What ``loomq validate`` says about the pipeline's file and those of its workers.
        kind: ``pipeline`` or ``orchestrator``; of the latter only the steps are known before it runs.
        offers: What an orchestrator's plans may use.
    """

    name: str
    description: str
    file: str
    stages: tuple[StageLine, ...]
    segments: tuple[SegmentLine, ...]
    findings: tuple[Problem, ...]
    kind: str = "pipeline"
    offers: tuple[OfferLine, ...] = ()

    @property
    def levels(self) -> int:
        """How many levels there are."""
        return self.stages[-1].level + 1

    @property
    def queues(self) -> list[str]:
        """The queues that its stages go to."""
        return sorted({stage.queue for stage in self.stages})

    def to_json(self) -> dict[str, Any]:
        """Describe the plan."""
        return {
            "schema_version": inspect.SCHEMA_VERSION,
            self.kind: self.name,
            "description": self.description,
            "file": self.file,
            "levels": self.levels,
            "queues": self.queues,
            "stages": [stage.to_json() for stage in self.stages],
            "segments": [segment.to_json() for segment in self.segments],
            "findings": [problem.to_json() for problem in self.findings],
            **({"available": [offer.to_json() for offer in self.offers]} if self.kind == "orchestrator" else {}),
        }


def plan(settings: Settings, name: str) -> PlanView:
    """Plan a pipeline of the project without any service.

    Files that it does not use may have errors.

    Raises:
        UnknownNameError: No pipeline is called so.
        ConfigError: Its file, or that of a worker it names, has errors.
    """
    catalog, frozen, findings = _frozen(settings, name)
    limits = limits_of(catalog, router_of(catalog))
    limited = {
        stage.name
        for stage in frozen.stages.values()
        if limits.shared_by(stage.worker.name, stage.tier, {}) is not None
    }
    return PlanView(
        name=name,
        kind=frozen.kind,
        description=frozen.frozen.spec.description if frozen.frozen else catalog.pipelines[name].description,
        file=shown_name(catalog.files[frozen.kind, name]),
        offers=tuple(_offer(offer) for offer in frozen.frozen.offers) if frozen.frozen else (),
        stages=tuple(_stages(frozen, limits)),
        segments=published(frozen.graph, frozen.alone | limited),
        findings=findings,
    )


def plan_of(settings: Settings, name: str) -> Plan:
    """Give a pipeline's plan as a goal submitted now would have it; errors as ``plan``."""
    return _frozen(settings, name)[1]


def plan_of_goal(loom: Loom, goal_id: UUID) -> Plan:
    """Give the plan that a goal runs from, whatever its file says by now.

    Raises:
        GoalNotFoundError: There is no such goal.
    """
    inspect.status(loom, goal_id)
    row = goals.get(loom.database, goal_id)
    assert row is not None
    return loom.plans.get(row.snapshot)


def published(graph: StageGraph, alone: frozenset[str] = frozenset()) -> tuple[SegmentLine, ...]:
    """List the canvases of a goal, compiled by the function that publishes them.

    Stages with the same parents become ready in the same moment. Those with different parents may do so by chance,
    and are then published together; the list shows what is always so, on queues that have room.

    Args:
        graph: The transitive reduction.
        alone: Stages that no chain or chord carries.
    """
    together: dict[tuple[str, ...], list[str]] = {}
    for name in graph.order:
        together.setdefault(graph.parents[name], []).append(name)
    found: list[SegmentLine] = []
    carried: set[str] = set()
    for parents, names in together.items():
        for segment in segments(graph, [name for name in names if name not in carried], alone=alone):
            found.append(_line(segment, parents))
            carried.update(name for run in segment.runs for name in run[1:])
            carried.update([segment.join] if segment.join else [])
    return tuple(found)


def _line(segment: Segment, parents: tuple[str, ...]) -> SegmentLine:
    if segment.join is not None:
        return SegmentLine(parents, "chord", segment.runs, segment.join)
    return SegmentLine(parents, "chain" if len(segment.runs[0]) > 1 else "single", segment.runs, None)


def _frozen(settings: Settings, name: str) -> tuple[Catalog, Plan, tuple[Problem, ...]]:
    project_on_path(settings.project)
    catalog, problems = load_catalog(settings, imports=True)
    if name in catalog.orchestrators:
        return _frozen_orchestrator(settings, catalog, problems, name)
    if name not in catalog.pipelines:
        raise _missing(settings, catalog, problems, name)
    used = catalog.pipelines[name].worker_types
    files = {shown_name(settings.workers_dir / f"{worker}.yaml") for worker in used}
    files |= {shown_name(file) for key in used if (file := catalog.files.get(("worker", key)))}
    files.add(shown_name(catalog.files["pipeline", name]))
    findings = tuple(problem for problem in problems if problem.file in files)
    if any(worker not in catalog.workers for worker in used):
        raise _unusable(f"a worker of pipeline {name}", findings)
    return catalog, parse(freeze(catalog, name, allow=settings.import_allow)), findings


def _frozen_orchestrator(
    settings: Settings, catalog: Catalog, problems: Sequence[Problem], name: str
) -> tuple[Catalog, Plan, tuple[Problem, ...]]:
    spec = catalog.orchestrators[name]
    known = {*catalog.workers, *catalog.pipelines, *catalog.orchestrators}
    own = shown_name(catalog.files["orchestrator", name])
    named = {
        shown_name(file) for (_, other), file in catalog.files.items() if other in {one.name for one in spec.named}
    }
    findings = tuple(problem for problem in problems if problem.file in {own, *named})
    if any(one.name not in known for one in spec.named):
        raise _unusable(f"what orchestrator {name} may use", findings)
    return catalog, parse(freeze(catalog, name, allow=settings.import_allow)), findings


def _missing(settings: Settings, catalog: Catalog, problems: Sequence[Problem], name: str) -> Exception:
    file = shown_name(settings.pipelines_dir / f"{name}.yaml")
    own = tuple(problem for problem in problems if problem.file == file)
    if own:
        return _unusable(f"pipeline {name}", own)
    known = sorted({*catalog.pipelines, *catalog.orchestrators})
    hint = suggest(name, known) or f"{settings.project} has {listed(known) if known else 'none'}"
    return UnknownNameError(f'no pipeline is called "{name}"', hint=hint)


def _unusable(what: str, problems: Sequence[Problem]) -> ConfigError:
    errors = [problem for problem in problems if problem.severity == "error"]
    told = errors[0].headline() if errors else "its file is missing"
    return ConfigError(
        f"{what} has errors: {told}", hint="see all of them: loomq validate", problems=errors or list(problems)
    )


def _offer(offer: Offer) -> OfferLine:
    return OfferLine(offer.name, offer.kind, offer.description, offer.tiers)


def _stages(frozen: Plan, limits: Limits) -> Iterator[StageLine]:
    for level, names in enumerate(frozen.graph.levels):
        for name in names:
            yield _stage(frozen.stages[name], level, frozen.graph.parents[name], limits)


def _stage(stage: StagePlan, level: int, parents: tuple[str, ...], limits: Limits) -> StageLine:
    worker, router = stage.worker.name, limits.router
    return StageLine(
        name=stage.name,
        level=level,
        worker=worker,
        kind=stage.worker.worker_kind,
        tier=router.tier(worker, stage.tier),
        queue=router.queue(worker, stage.tier),
        timeout_s=stage.timeout_s,
        max_retries=stage.max_retries,
        priority=None if stage.priority is None else str(priority_named(stage.priority)),
        waits_for=parents,
        reads=tuple(dict.fromkeys(path.text for _, path in stage.mapping.paths)) if stage.mapping else (),
        notes=notes(stage),
        limits=limits.told(worker, stage.tier),
    )
