"""The checks of an orchestrator that need the project around it: whom it names, and what stands inside what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loomq.contracts import schema_faults
from loomq.problems import suggest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from loomq.orchestrator.spec import OrchestratorSpec
    from loomq.pipelines.spec import PipelineSpec
    from loomq.problems import Problem
    from loomq.yaml_text import Document

#: How many orchestrators may stand inside each other, the outermost counted.
MAX_NESTING = 4


def check_orchestrator(
    document: Document,
    spec: OrchestratorSpec,
    workers: Collection[str],
    pipelines: Mapping[str, PipelineSpec | None],
    orchestrators: Mapping[str, OrchestratorSpec | None],
) -> Iterator[Problem]:
    """Check an orchestrator against the project.

    Args:
        workers: Every worker_type that has a file.
        pipelines, orchestrators: Every one that has a file; ``None`` for one that cannot be read.
    """
    for kind, others in (("worker", workers), ("pipeline", pipelines)):
        if spec.name in others:
            message = f'there is a {kind} "{spec.name}" already, and they would share a queue or a name'
            yield document.problem("LQ116", message, ("name",), hint="rename one of them")
    if not spec.named and not workers:
        yield document.problem("LQ201", "all are available, and the project has no worker", ("available_workers",))
    known = {*workers, *pipelines, *orchestrators}
    for at, one in enumerate(spec.named):
        place = ("available_workers", at, "name")
        if one.name not in known:
            hint = suggest(one.name, known)
            message = f'no worker, pipeline or orchestrator is called "{one.name}"'
            yield document.problem("LQ201", message, place, hint=hint)
        elif one.name not in workers and (one.default_model_tier or one.tiers):
            key = "tiers" if one.tiers else "default_model_tier"
            message = f"{key} makes no sense for {one.name}, which is no worker"
            yield document.problem("LQ117", message, ("available_workers", at, key))
        for path, message in [] if one.input_schema is None else schema_faults(one.input_schema):
            yield document.problem("LQ132", message, ("available_workers", at, "input_schema", *path))
    way = _way_back(spec, orchestrators, workers, pipelines)
    if way:
        message = f"orchestrators that contain themselves: {' -> '.join(way)}"
        yield document.problem("LQ217", message, ("available_workers",))
        return
    deepest = _longest(spec, orchestrators, workers, pipelines)
    if len(deepest) > MAX_NESTING:
        message = (
            f"orchestrators stand {len(deepest)} deep in each other, {MAX_NESTING} at most: {' -> '.join(deepest)}"
        )
        yield document.problem("LQ217", message, ("available_workers",))


def _inner(
    spec: OrchestratorSpec | None, workers: Collection[str], pipelines: Mapping[str, PipelineSpec | None]
) -> list[str]:
    """Name the orchestrators that one may use; a worker or pipeline of that name wins."""
    return [one.name for one in spec.named if one.name not in workers and one.name not in pipelines] if spec else []


def _way_back(
    spec: OrchestratorSpec,
    known: Mapping[str, OrchestratorSpec | None],
    workers: Collection[str],
    pipelines: Mapping[str, PipelineSpec | None],
) -> list[str]:
    """Find an orchestrator inside itself: the way from it to itself, or nothing."""
    ways = {name: [spec.name, name] for name in _inner(spec, workers, pipelines)}
    todo = list(ways)
    while todo and spec.name not in ways:
        name = todo.pop(0)
        for below in _inner(known.get(name), workers, pipelines):
            if below not in ways:
                ways[below] = [*ways[name], below]
                todo.append(below)
    return ways.get(spec.name, [])


def _longest(
    spec: OrchestratorSpec,
    known: Mapping[str, OrchestratorSpec | None],
    workers: Collection[str],
    pipelines: Mapping[str, PipelineSpec | None],
) -> list[str]:
    """Find the longest chain of orchestrators inside each other, as far as it matters."""
    chains = [[spec.name]]
    for _ in range(MAX_NESTING):
        longer = [
            [*chain, below]
            for chain in chains
            for below in _inner(spec if chain[-1] == spec.name else known.get(chain[-1]), workers, pipelines)
            if below not in chain
        ]
        if not longer:
            break
        chains = list({chain[-1]: chain for chain in longer}.values())
    return chains[0]
