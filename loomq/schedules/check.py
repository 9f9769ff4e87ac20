"""The checks of a schedule that need the project around it: whom its entries name, and whether they would be taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loomq.contracts import Contract, schema_faults
from loomq.errors import InlineValueError
from loomq.inline import inline_json
from loomq.problems import listed, suggest

_MOST_BYTES = 256 << 10

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from loomq.pipelines.spec import PipelineSpec
    from loomq.problems import Problem
    from loomq.schedules.spec import ScheduleEntry, ScheduleSpec
    from loomq.yaml_text import Document, KeyPath


def check_schedule(
    document: Document,
    spec: ScheduleSpec,
    workers: Collection[str],
    pipelines: Mapping[str, PipelineSpec | None],
    orchestrators: Collection[str],
    contract_of: Callable[[str], dict[str, Any] | None],
) -> Iterator[Problem]:
    """Check a schedule against the project.

    Args:
        workers, orchestrators: Every one that has a file.
        pipelines: Every one that has a file; ``None`` for one that cannot be read.
        contract_of: Gives what a worker takes, if it says so.
    """
    for at, entry in enumerate(spec.schedules):
        place: KeyPath = ("schedules", at)
        if entry.task is not None:
            worker = entry.task.worker_type
            if worker not in workers:
                hint = suggest(worker, workers)
                message = f'no worker is called "{worker}"'
                yield document.problem("LQ201", message, (*place, "task", "worker_type"), hint=hint)
            else:
                yield from _taken(document, entry, (*place, "task", "payload"), contract_of(worker), worker)
        if entry.goal is not None:
            yield from _goal(document, entry, (*place, "goal"), pipelines, orchestrators)


def _goal(
    document: Document,
    entry: ScheduleEntry,
    place: KeyPath,
    pipelines: Mapping[str, PipelineSpec | None],
    orchestrators: Collection[str],
) -> Iterator[Problem]:
    assert entry.goal is not None
    name, known = entry.goal.pipeline, {*pipelines, *orchestrators}
    if name is None:
        if len(orchestrators) != 1:
            there = f"there are {listed(sorted(orchestrators))}" if orchestrators else "the project has none"
            message = f"without the key pipeline a goal goes to the project's only orchestrator, and {there}"
            yield document.problem("LQ111", message, place, key=True, hint="name a pipeline or an orchestrator")
    elif name not in known:
        message = f'no pipeline or orchestrator is called "{name}"'
        yield document.problem("LQ216", message, (*place, "pipeline"), hint=suggest(name, known))
    elif (pipeline := pipelines.get(name)) is not None:
        yield from _taken(document, entry, (*place, "context"), pipeline.input_schema, name)
    else:
        yield from _taken(document, entry, (*place, "context"), None, name)


def _taken(
    document: Document, entry: ScheduleEntry, place: KeyPath, schema: dict[str, Any] | None, name: str
) -> Iterator[Problem]:
    """Check what is handed in against the contract of what takes it; what ``expand_from`` will add is not known."""
    given = entry.goal.context if entry.goal is not None else entry.task.payload if entry.task is not None else {}
    where = place if document.node(place) else place[:-1]
    try:
        inline_json(given, what=f"the {place[-1]}", limit_bytes=_MOST_BYTES)
    except InlineValueError as error:
        yield document.problem("LQ114", error.message, where, key=True)
        return
    if schema is None or entry.expand_from is not None or schema_faults(schema):
        return
    for fault in Contract(schema).errors(given):
        message = f"{name} would refuse its {place[-1]}: {fault}"
        yield document.problem("LQ220", message, where, key=True)
