"""Which stages of a finished goal must run again, and which results stand."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.errors import PipelineValidationError, UnknownNameError
from loomq.problems import suggest
from loomq.runs.snapshot import snapshot_within

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from loomq.pipelines.paths import Path
    from loomq.pipelines.spec import StageSpec
    from loomq.runs.plan import Plan, StagePlan


#: The states that a rerun may take over, and why.
STANDS = {"done": "its result stands", "skipped": "it was skipped, and would be again"}


@dataclass(frozen=True, slots=True)
class RerunPlan:
    """What a rerun will do.

    Args:
        runs: The stages that run again, each with the reason, in the order of the DAG.
        reused: Those that stay as they were, each with its state, ``done`` or ``skipped``.
    """

    runs: dict[str, str]
    reused: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Describe the plan."""
        return {
            "runs": [{"stage": name, "reason": reason} for name, reason in self.runs.items()],
            "reuses": [{"stage": name, "reason": STANDS[state]} for name, state in self.reused.items()],
        }


def plan_rerun(
    old: Plan, new: Plan, states: Mapping[str, str], *, start: str | None = None, changed: Collection[str] = ()
) -> RerunPlan:
    """Decide stage by stage: one runs again if it did not end well, if something of it has changed, or a parent runs.

    A stage that was skipped stays so on the same terms: its condition would be answered as before.

    Args:
        old: What the earlier goal ran from.
        new: What this one will run from.
        states: How the earlier goal left each stage.
        start: The stage to start from, or ``None``.
        changed: Keys of the context, dotted, that have another value.

    Raises:
        UnknownNameError: There is no such stage.
    """
    if start is not None and start not in new.stages:
        raise UnknownNameError(
            f'pipeline {new.name} has no stage "{start}"',
            hint=suggest(start, new.stages) or f"there are: {', '.join(new.graph.order)}",
        )
    runs: dict[str, str] = {}
    for name in new.graph.order:
        reason = _reason(old, new, name, states, start, changed)
        parent = next((each for each in new.graph.parents[name] if each in runs), None)
        if reason is None and parent is not None:
            reason = f"{parent} runs again"
        if reason is not None:
            runs[name] = reason
    return RerunPlan(runs, {name: states[name] for name in new.graph.order if name not in runs})


def _reason(
    old: Plan, new: Plan, name: str, states: Mapping[str, str], start: str | None, changed: Collection[str]
) -> str | None:
    if name == start:
        return "asked for"
    if name not in old.stages:
        return "it is new"
    if states.get(name) not in STANDS:
        return "it has no result"
    if _frozen(old, name) != _frozen(new, name):
        return "its definition has changed"
    key = _changed(new.stages[name], changed)
    return f"goal.context.{key} has changed" if key is not None else None


def _frozen(plan: Plan, name: str) -> Any:
    stage = plan.stages[name]
    inner = snapshot_within(plan, stage.pipeline) if stage.pipeline else None
    return (plan.frozen, stage.spec, stage.worker if inner is None else inner, stage.other and stage.other.worker)


def _changed(stage: StagePlan, changed: Collection[str]) -> str | None:
    """Name a key of the context that a stage reads and that has another value."""
    if stage.spec is None:  # a goal of one worker, or an orchestrator's: it reads the whole context
        return next(iter(changed), None)
    return next((key for path in _paths(stage.spec) for key in changed if _overlaps(path, key)), None)


def _paths(spec: StageSpec) -> Iterator[Path]:
    yield from (path for _, path in spec.mapping.paths)
    if spec.when is not None:
        yield from spec.when.paths
    if spec.items is not None:
        yield spec.items.path


def _overlaps(path: Path, key: str) -> bool:
    """Say whether a path into the goal's context reads, or reads from, what stands at a key."""
    if path.root != "goal" or path.of_item or path.parts[:1] not in {(), ("context",)}:
        return False
    read, written = [str(part) for part in path.parts[1:]], key.split(".")
    shorter = min(len(read), len(written))
    return read[:shorter] == written[:shorter]


def changed_context(context: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Give a context with other values at some dotted keys; objects on the way are made where there is nothing.

    Raises:
        PipelineValidationError: A key leads into a value that is neither an object nor a list with that place.
    """
    found = dict(context)
    for key, value in changes.items():
        *way, last = key.split(".")
        inside: Any = found
        for at, part in enumerate(way, start=1):
            place = _place(inside, part, way[: at - 1])
            below = inside[place] if isinstance(inside, list) else inside.get(place)
            inside[place] = {} if below is None else copy(below)
            inside = inside[place]
        inside[_place(inside, last, way)] = value
    return found


def _place(inside: Any, part: str, way: Sequence[str]) -> Any:
    """Give the key of an object, or the index of a list, that a part of a dotted key stands for."""
    if isinstance(inside, dict):
        return part
    if isinstance(inside, list) and part.isascii() and part.isdigit() and int(part) < len(inside):
        return int(part)
    what = f"a list of {len(inside)}" if isinstance(inside, list) else "neither an object nor a list"
    where = ".".join(("goal", "context", *way))
    raise PipelineValidationError(f'"{part}" has no place in {where}, which is {what}', hint="set a key above it whole")
