"""An orchestrator's goal on its way: what its steps know of earlier rounds, and what tasks take from others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loomq.errors import ConfigError
from loomq.orchestrator.checkpoint import PostgresCheckpoints, RedisCheckpoints
from loomq.orchestrator.decompose import Decompose
from loomq.orchestrator.history import Round, TaskRecord
from loomq.orchestrator.memory import About
from loomq.orchestrator.outline import Step
from loomq.orchestrator.synthesize import Synthesize
from loomq.orchestrator.tasks import Subtask
from loomq.queues.names import StageMessage
from loomq.runs.about import about
from loomq.store import details, goals, openings, rounds
from loomq.workers.deadline import undisturbed

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import Row

    from loomq.orchestrator.checkpoint import CheckpointStore
    from loomq.queues.app import LoomCelery
    from loomq.runs.gate import Persist
    from loomq.runs.plan import Plan, StagePlan
    from loomq.store.engine import Database
    from loomq.store.stages import Claim
    from loomq.workers.runtime import Program


class Orchestration:
    """What the steps of orchestrators' goals need, read when they run.

    Args:
        persist: Makes a call until Postgres answers.
    """

    def __init__(self, database: Database, app: LoomCelery, persist: Persist) -> None:
        self._database = database
        self._app = app
        self._persist = persist

    def program(self, plan: Plan, stage: StagePlan, claim: Claim) -> Program | None:
        """Give what a step of an orchestrator's goal does; ``None`` for any other stage.

        Raises:
            ConfigError: Its checkpoints have no store.
        """
        step, frozen = stage.step, plan.frozen
        if step is None or frozen is None:
            return None
        so_far = self._persist(lambda: history(self._database, claim.key.goal_id, before=step.round or None))
        return step_program(
            plan,
            stage,
            About(claim.key.goal_id, claim.instruction, claim.context),
            so_far,
            self._store(frozen.spec.checkpoint.store),
            is_last_attempt=claim.attempt > claim.max_retries,
        )

    def inputs_of(self, stage: StagePlan, claim: Claim) -> dict[str, Any]:
        """Give what a round's task may take values from: tasks of its plan, of earlier rounds, and the goal."""
        found: dict[str, Any] = dict(claim.inputs)
        if stage.task is None or claim.parent is None:
            return found
        whole, payload = claim.parent.goal_id, claim.context.get(stage.name, {})
        return found | self._persist(lambda: inputs_of_task(self._database, whole, payload, known=found))

    def _store(self, kind: str) -> CheckpointStore:
        if kind == "postgres":
            return PostgresCheckpoints(self._database, self._undisturbed)
        server = self._app.limiter.server
        if server is None:
            raise ConfigError(
                "checkpoint.store: redis needs a Redis, and there is none",
                hint="name one with LOOMQ_REDIS_URL, or leave checkpoints to postgres",
            )
        return RedisCheckpoints(server)

    def _undisturbed(self, work: Any) -> Any:
        def once() -> Any:
            with undisturbed():
                return work()

        return self._persist(once)


def step_program(
    plan: Plan,
    stage: StagePlan,
    goal: About,
    so_far: list[Round],
    store: CheckpointStore,
    *,
    is_last_attempt: bool = True,
) -> Decompose | Synthesize:
    """Give what a step that asks a model does.

    Args:
        so_far: The rounds before it.
    """
    assert plan.frozen is not None
    assert stage.step is not None
    if stage.step.kind == "plan":
        return Decompose(plan.frozen, goal, stage.step.round, so_far, store)
    return Synthesize(plan.frozen, goal, so_far, store, is_last_attempt)


def history(database: Database, goal_id: UUID, *, before: int | None = None, tokens: bool = False) -> list[Round]:
    """Read the rounds of an orchestrator's goal.

    Args:
        before: Only those before this one.
        tokens: Also add up what each task has used.
    """
    rows = {step.round: row for row in rounds.of_goal(database, goal_id) if (step := Step.of(row.stage)) is not None}
    numbers = sorted(number for number in rows if before is None or number < before)
    plans = openings.inputs(database, goal_id, [Step("plan", number).name for number in numbers])
    ended: dict[UUID, list[Row[Any]]] = {rows[number].goal_id: [] for number in numbers}
    for task in rounds.tasks(database, list(ended)) if ended else []:
        ended[task.goal_id].append(task)
    found = []
    for number in numbers:
        round_id = rows[number].goal_id
        said = plans.get(Step("plan", number).name, {}).get("output", {})
        planned = tuple(Subtask.of(one) for one in said.get("tasks", ()))
        kinds = {one.name: one.worker_type for one in planned}
        used = details.tokens(database, round_id) if tokens else {}
        records = tuple(_record(task, number, kinds, used.get(task.name, {})) for task in ended[round_id])
        found.append(Round(number, planned, records))
    return found


def _record(task: Row[Any], number: int, kinds: dict[str, str], tokens: dict[str, int]) -> TaskRecord:
    return TaskRecord(
        name=task.name,
        round=number,
        worker_type=kinds.get(task.name, task.worker),
        task_id=StageMessage(task.goal_id, task.name).id,
        state=task.state,
        output=task.output,
        error=task.error,
        reason=task.reason,
        model_used=task.model_used,
        processing_time_ms=task.processing_time_ms,
        tokens=sum(tokens.values()),
    )


def inputs_of_task(
    database: Database, whole: UUID, payload: dict[str, Any], *, known: dict[str, Any]
) -> dict[str, Any]:
    """Read what a payload takes from the orchestrator's goal and from its earlier rounds.

    Args:
        whole: The orchestrator's goal.
        known: What is at hand already.
    """
    asked = [name for name in Subtask("", "", payload).reads if name not in known]
    found: dict[str, Any] = {}
    if "goal" in asked:
        row = goals.get(database, whole)
        found["goal"] = about(row) if row is not None else {}
    names = [name for name in asked if name != "goal"]
    if names:
        earlier = [row.goal_id for row in rounds.of_goal(database, whole)]
        for task in rounds.tasks(database, earlier, names=names):
            if task.state == "done":
                found[task.name] = {"output": task.output, "model_used": task.model_used}
    return found
