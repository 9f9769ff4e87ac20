"""Why a goal, or a stage of it, went as it did: told by its rows, recomputed from its snapshot; nothing is run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loomq.contracts import Contract
from loomq.errors import EnvironmentNotReadyError, GoalNotFoundError, LoomqError, NotFoundError
from loomq.messages import CheckpointState
from loomq.orchestrator.checkpoint import RedisCheckpoints
from loomq.orchestrator.explained import Kept, prompt_of
from loomq.orchestrator.manifest import ORCHESTRATOR_INPUT
from loomq.orchestrator.memory import About
from loomq.problems import suggest
from loomq.redaction import redacted_json
from loomq.runs.about import about
from loomq.runs.orchestration import history, inputs_of_task, step_program
from loomq.services import inspect, tracks
from loomq.services.account import Asked, Attempt, Checked, GoalAccount, Round, StageAccount
from loomq.services.views import ChildView
from loomq.store import checkpoints, details, goals, journal, openings, spending
from loomq.store.stages import StageKey
from loomq.workers.prompt import NOTHING, knowledge_of, request_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Row

    from loomq.llm.base import LLMRequest
    from loomq.loom import Loom
    from loomq.messages import TaskStatus
    from loomq.orchestrator.manifest import Frozen
    from loomq.runs.plan import Plan, StagePlan
    from loomq.services.timing import StageTiming
    from loomq.services.views import GoalView, StageView

_OUTCOMES = {"claimed": "running", "done": "completed", "failed": "failed", "dead": "lost", "cancelled": "cancelled"}


def find(loom: Loom, goal: str, stage: str | None = None) -> tuple[UUID, str | None, int]:
    """Read what is to be explained: a goal's id or its beginning, and ``STAGE[/ITEM]`` behind it or by itself.

    Raises:
        GoalNotFoundError: There is no such goal.
        NotFoundError: What stands for the item is no number.
    """
    beginning, _, rest = goal.partition("/")
    name, _, item = (stage or rest).partition("/")
    goal_id = inspect.find(loom, beginning)
    if item and not item.isdecimal():
        raise NotFoundError(f'"{item}" is no item of stage {name}', hint="items are counted from 0: STAGE/0")
    return goal_id, name or None, int(item) if item else -1


def goal(loom: Loom, goal_id: UUID) -> GoalAccount:
    """Explain a goal: what ran, what did not and why, and where the time went.

    Raises:
        GoalNotFoundError: There is no such goal.
    """
    view = inspect.detailed(loom, goal_id)
    plan, _ = _plan(loom, goal_id)
    known = {stage.name: stage for stage in view.stages}
    statuses = {name: stage.status for name, stage in known.items()}
    order = {
        name: why(known[name], {parent: statuses[parent] for parent in plan.graph.parents[name]}, view)
        for name in plan.graph.order
    }
    return GoalAccount(view, order)


def stage(loom: Loom, goal_id: UUID, name: str, item: int = -1) -> StageAccount:
    """Explain a stage of a goal, or one item of it.

    Raises:
        GoalNotFoundError: There is no such goal.
        NotFoundError: It has no such stage or item.
    """
    view = inspect.detailed(loom, goal_id)
    plan, asked = _plan(loom, goal_id)
    if name not in plan.stages:
        hint = suggest(name, plan.stages) or f"there are: {', '.join(plan.graph.order)}"
        raise NotFoundError(f'goal {goal_id} has no stage "{name}"', hint=hint)
    row = details.one(loom.database, goal_id, name, item)
    if row is None:
        raise NotFoundError(
            f"stage {name} of goal {goal_id} has no item {item}", hint=f"see which there are: loomq show {goal_id}"
        )
    shown = next(one for one in view.stages if one.name == name)
    here = plan.stages[name].run_by(row.worker, row.tier)
    parents = {one.name: one.status for one in view.stages if one.name in plan.graph.parents[name]}
    mine, timing = _of_item(loom, view, shown, row, plan) if item >= 0 else (shown, _timing(view, name))
    roots = _roots(loom, here, row, asked)
    payload = _payload(plan, here, row, roots, asked)
    prompt, prompt_fault = _prompt_of_step(loom, plan, here, goal_id, asked) or _prompt(loom, here, payload)
    return StageAccount(
        goal_id=goal_id,
        kind=view.kind,
        name=view.name,
        stage=mine,
        item=item,
        why=why(mine, parents, view),
        parents=parents,
        condition=_asked(here, row, roots),
        for_each=here.each.path.text if here.each else None,
        payload=payload,
        is_edited=row.payload is not None,
        output=_output(here, row),
        attempts=tuple(_attempts(loom, mine)),
        timing=timing,
        fallback=plan.stages[name].fallback,
        prompt=prompt,
        prompt_fault=prompt_fault,
        rounds=tuple(_rounds(loom, StageKey(goal_id, name, item))),
    )


def input_of(loom: Loom, key: StageKey) -> Checked:
    """Give what a stage, or an item of it, would get if it ran now.

    Raises:
        GoalNotFoundError, NotFoundError: There is no such goal, stage or item.
    """
    plan, asked = _plan(loom, key.goal_id)
    row = details.one(loom.database, key.goal_id, key.name, key.item)
    if row is None:
        raise NotFoundError(f"goal {key.goal_id} has no such stage", hint=f"loomq show {key.goal_id}")
    here = plan.stages[key.name].run_by(row.worker, row.tier)
    return _payload(plan, here, row, _roots(loom, here, row, asked), asked)


def why(stage: StageView, parents: Mapping[str, TaskStatus], goal: GoalView) -> str:
    """Say in one line why a stage stands as it does; empty if there is nothing to say."""
    if stage.state == "waiting":
        open_ones = [name for name, status in parents.items() if status not in {"completed", "skipped", "failed"}]
        return f"it waits for {', '.join(open_ones)}" if open_ones else "it waits for its turn"
    if stage.state in {"ready", "published"}:
        return _why_not_started(stage, goal)
    if stage.state in {"failed", "dead"}:
        return str((stage.error or {}).get("message", "no error was recorded"))
    return _why_so(stage, goal)


def _why_so(stage: StageView, goal: GoalView) -> str:
    """Say what is special about a stage that runs or has run, or why it did not."""
    if stage.reason == "reused":
        return f"its result was taken over from goal {goal.links.rerun_of}"
    if stage.fallback == "value":
        return "it failed, and its fallback, a value, took its place"
    if stage.fallback == "worker":
        return f"it failed, and its fallback, worker {stage.worker} on {stage.tier}, took its place"
    return stage.items.told if stage.items else stage.reason or ""


def _why_not_started(stage: StageView, goal: GoalView) -> str:
    if goal.links.paused_at:
        return "its goal is paused"
    if goal.links.waits_for_turn:
        return f"at most {goal.links.max_concurrent} goals of pipeline {goal.name} are under way at once"
    if stage.status == "retry" and stage.due_at:
        return f"it failed, and is due again at {stage.due_at.astimezone().isoformat(sep=' ', timespec='seconds')}"
    if stage.waits or (stage.reason or "").startswith("waits for"):
        return f"it is due, and waits: {stage.waits or stage.reason}"
    return "it waits for a worker process" + (f" ({stage.reason})" if stage.reason else "")


def _plan(loom: Loom, goal_id: UUID) -> tuple[Plan, dict[str, Any]]:
    """Give a goal's plan, and what mappings and conditions may ask of the goal."""
    row = goals.get(loom.database, goal_id)
    if row is None:
        raise GoalNotFoundError(f"there is no goal {goal_id}")
    return loom.plans.get(row.snapshot), about(row)


def _timing(view: GoalView, name: str) -> StageTiming | None:
    return view.timing.stages.get(name) if view.timing else None


def _of_item(
    loom: Loom, view: GoalView, whole: StageView, row: Row[Any], plan: Plan
) -> tuple[StageView, StageTiming | None]:
    item = inspect.stage_view(row, plan.stages[row.name])
    child = openings.newest_child(loom.database, StageKey(row.goal_id, row.name, row.item)) if item.pipeline else None
    found = [ChildView(child[0], str(item.pipeline), inspect.goal_status(child[1]), row.item)] if child else []
    pauses = details.pauses(loom.database, view.goal_id)
    timing = tracks.item_timing(whole, item, details.now(loom.database), pauses)
    spent = spending.of_item(loom.database, row.goal_id, row.name, row.item)
    return replace(item, children=tuple(found), tokens=row.token_usage, spent=spent), timing


def _roots(loom: Loom, stage: StagePlan, row: Row[Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Give what the stage's mapping and condition may ask for, as it is now."""
    reads = stage.spec.reads if stage.spec else stage.reads
    found: dict[str, Any] = openings.inputs(loom.database, row.goal_id, reads) if reads else {}
    if stage.task is not None:
        whole = goals.get(loom.database, row.goal_id)
        payload = asked["context"].get(stage.name, {})
        if whole is not None and whole.parent_goal is not None:
            found |= inputs_of_task(loom.database, whole.parent_goal, payload, known=found)
        return {"goal": {}, **found}
    return {**found, "goal": asked, **({"item": row.element, "index": row.item} if row.item >= 0 else {})}


def _payload(plan: Plan, stage: StagePlan, row: Row[Any], roots: dict[str, Any], asked: dict[str, Any]) -> Checked:
    contract = stage.inputs
    if stage.pipeline is not None:
        inner = plan.pipelines.get(stage.pipeline)
        schema = inner.input_schema if inner else ORCHESTRATOR_INPUT
        contract = Contract(schema) if schema is not None else None
    if row.payload is not None:
        return _checked(row.payload, contract)
    if stage.each is not None and row.item < 0:
        return Checked(None, "each item has its own")
    try:
        return _checked(stage.payload(asked, roots), contract)
    except LoomqError as error:
        return Checked(None, error.message)


def _output(stage: StagePlan, row: Row[Any]) -> Checked:
    if row.output is None:
        return Checked(None)
    return _checked(row.output, stage.outputs)


def _checked(value: dict[str, Any], contract: Contract | None) -> Checked:
    return Checked(value, errors=contract.errors(value) if contract else None)


def _asked(stage: StagePlan, row: Row[Any], roots: dict[str, Any]) -> Asked | None:
    when = stage.spec.when if stage.spec else None
    if when is None:
        return None
    if row.state == "waiting" or when.reads_item != (row.item >= 0):
        return Asked(str(when), None, None)
    return Asked(str(when), when.evaluate(roots), when.told(roots))


def _prompt(loom: Loom, stage: StagePlan, payload: Checked) -> tuple[LLMRequest | None, str | None]:
    """Put the prompt together that the model is sent, its secrets hidden, with knowledge as it is now."""
    if stage.worker.worker_kind != "llm" or stage.pipeline is not None or payload.value is None:
        return None, None
    value, fault, known = redacted_json(payload.value), None, NOTHING
    try:
        known = knowledge_of(stage.worker, loom.settings.project, lambda _: None)
    except LoomqError as error:
        fault = f"without its knowledge, which cannot be read here: {error.message}"
    return request_of(stage.worker, value, stage.timeout_s, known), fault


def _prompt_of_step(
    loom: Loom, plan: Plan, stage: StagePlan, goal_id: UUID, asked: dict[str, Any]
) -> tuple[LLMRequest | None, str | None] | None:
    """Put the prompt of an orchestrator's step together; ``None`` if the stage is none that asks a model."""
    step = stage.step
    if step is None:
        return None
    if step.kind == "tasks" or plan.frozen is None:
        return None, None
    so_far = history(loom.database, goal_id, before=step.round or None)
    goal = About(goal_id, asked["instruction"], redacted_json(asked["context"]))
    return prompt_of(step_program(plan, stage, goal, so_far, Kept()), _checkpoints(loom, plan.frozen, goal_id))


def _checkpoints(loom: Loom, frozen: Frozen, goal_id: UUID) -> list[CheckpointState]:
    if frozen.spec.checkpoint.store == "postgres":
        return [CheckpointState.model_validate(one) for one in checkpoints.listed(loom.database, goal_id)]
    server = loom.app.limiter.server
    try:
        newest = RedisCheckpoints(server).latest(goal_id) if server is not None else None
    except EnvironmentNotReadyError:
        newest = None
    return [newest] if newest is not None else []


def _rounds(loom: Loom, key: StageKey) -> Iterator[Round]:
    """List the calls to models and of tools that a stage has made."""
    for number, at, kind, state, _, model, prompt, answer, cost, took_ms, said in journal.rounds(loom.database, key):
        tokens = (prompt, answer) if prompt is not None else None
        yield Round(number, at, kind, state, model, tokens, cost, took_ms, said)


def _attempts(loom: Loom, stage: StageView) -> Iterator[Attempt]:
    """List every time in which a process had a stage, and its replays."""
    ids = {str(node) for node in (stage.node, *(entry.get("node") for entry in stage.history)) if node}
    names = details.hostnames(loom.database, ids) if ids else {}
    begun: datetime | None = None
    for entry in stage.history:
        if "replayed_at" in entry:
            at = tracks.time_of(entry["replayed_at"])
            yield Attempt("replayed", None, None, at, at, by=str(entry.get("by")))
            continue
        begun, error = tracks.time_of(entry["started_at"]), entry.get("error") or {}
        yield Attempt(
            outcome="lost" if error.get("type") == "WorkerLostError" else "failed",
            attempt=entry.get("attempt"),
            delivery=entry.get("delivery"),
            start=begun,
            end=tracks.time_of(entry["ended_at"]),
            where=names.get(str(entry.get("node")), entry.get("node")),
            error=error,
        )
    is_new = stage.started_at is not None and stage.started_at != begun
    if stage.started_at is not None and is_new and stage.state in _OUTCOMES:
        node = names.get(str(stage.node), str(stage.node)) if stage.node else None
        yield Attempt(
            outcome=_OUTCOMES[stage.state],
            attempt=stage.attempt,
            delivery=stage.deliveries,
            start=stage.started_at,
            end=stage.ended_at,
            where=f"{node}, process {stage.pid}" if node else None,
            error=stage.error if stage.state in {"failed", "dead"} else None,
        )
