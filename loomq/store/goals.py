"""Goals: written once, read often."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import Row, case, func, literal, null, select
from sqlalchemy.dialects.postgresql import JSONB

from loomq.store.tables import goals, idempotency_keys, specs, stages

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement

    from loomq.store.engine import Database


_SUBMIT_WITHIN_S = 2.5  # with a connection attempt of 2 s on top, a submit is answered within 5


@dataclass(frozen=True, slots=True)
class NewStage:
    """A stage as submit writes it.

    Args:
        state: ``waiting``, ``ready``, ``published``, or ``done`` or ``skipped`` as an earlier goal left it.
        needs: Those of ``reads`` that the mapping cannot do without.
        fallback: ``{"output": …}``, or another worker: ``{"worker", "tier", "timeout_s", "max_retries"}``.
        bulk: Whether its message stands behind another one of the goal on the same queue.
        place: Of a round's task: its place in the plan.
        max_parallel: How many tasks of its round may be under way.
    """

    name: str
    worker: str
    tier: str
    priority: int
    state: str
    waits_for: int
    children: tuple[str, ...]
    reads: tuple[str, ...]
    timeout_s: float
    max_retries: int
    not_before: str | None = None
    needs: tuple[str, ...] = ()
    fallback: dict[str, Any] | None = None
    bulk: bool = False
    place: int | None = None
    max_parallel: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Describe the row."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True)
class NewGoal:
    """A goal as submit writes it.

    Args:
        on_failure: ``fail``, or ``continue_partial`` where other stages go on.
        timeout_s: From its start to its deadline.
        max_concurrent: How many goals of its pipeline may be under way; one too many waits.
        parent: The stage whose work it is: goal, name, item.
        is_newer: Whether nodes of the first release would run it wrongly.
        rerun_of: The goal whose results its ``done`` and ``skipped`` stages take over.
    """

    id: UUID
    pipeline: str
    kind: str
    instruction: str
    context: dict[str, Any]
    priority: int
    leaves_left: int
    request_id: str | None = None
    session_id: UUID | None = None
    deadline: datetime | None = None
    budget: dict[str, Any] | None = None
    task_id: str | None = None
    canvas: dict[str, Any] | None = None
    on_failure: str = "fail"
    timeout_s: float | None = None
    max_concurrent: int | None = None
    parent: tuple[UUID, str, int] | None = None
    rerun_of: UUID | None = None
    is_newer: bool = False

    def to_json(self) -> dict[str, Any]:
        """Describe the row."""
        found = {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}
        if self.parent:
            del found["parent"]
            found |= {"parent_goal": str(self.parent[0]), "parent_stage": self.parent[1], "parent_item": self.parent[2]}
        if self.deadline:
            found["deadline"] = self.deadline.isoformat()
        return {name: str(value) if isinstance(value, UUID) else value for name, value in found.items()}


@dataclass(frozen=True, slots=True)
class Submission:
    """A goal as it is handed to the store.

    Args:
        snapshot: The content address of ``body``.
        key: The idempotency key: a second goal with the same key is the first one.
    """

    goal: NewGoal
    stages: Sequence[NewStage]
    snapshot: str
    body: dict[str, Any]
    key: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Describe it."""
        stages = [stage.to_json() for stage in self.stages]
        return {"goal": self.goal.to_json(), "stages": stages, "key": self.key, "hash": self.snapshot}


def submit(
    database: Database, submissions: Sequence[Submission], *, known_snapshots: set[str]
) -> list[tuple[UUID, bool]]:
    """Write goals, their stages and, the first time, their snapshots: one transaction.

    Args:
        known_snapshots: Snapshots that this process knows to be stored; added to.

    Returns:
        For each the goal's id, and whether it is new.
    """
    bodies = {one.snapshot: one.body for one in submissions}
    new = {name: body for name, body in bodies.items() if name not in known_snapshots}
    parameters = {"goals": json.dumps([one.to_json() for one in submissions]), "bodies": json.dumps(new)}
    statement = "SELECT * FROM loomq_submit_5(%(goals)s, %(bodies)s) ORDER BY nr"
    rows = database.call(statement, parameters, within_s=_SUBMIT_WITHIN_S)
    if rows[0][1] == "spec_missing":
        parameters["bodies"] = json.dumps(bodies)
        rows = database.call(statement, parameters, within_s=_SUBMIT_WITHIN_S)
    known_snapshots.update(bodies)
    return [(goal_id, outcome == "created") for _, outcome, goal_id in rows]


def read_snapshot(database: Database, snapshot: str) -> dict[str, Any] | None:
    """Read the spec snapshot with that content address."""
    with database.reading() as connection:
        found: dict[str, Any] | None = connection.scalar(select(specs.c.body).where(specs.c.hash == snapshot))
        return found


def end(database: Database, goal_id: UUID, state: str, error: dict[str, Any]) -> bool:
    """End an open goal as ``failed`` or ``cancelled``; False if it had ended before."""
    rows = database.call(
        "SELECT loomq_end_goal(%(goal)s, %(state)s, %(error)s)",
        {"goal": goal_id, "state": state, "error": json.dumps(error)},
    )
    return bool(rows[0][0])


def admit(database: Database, pipeline: str) -> list[UUID]:
    """Let waiting goals of a pipeline go, as many as it may have under way; gives those that went."""
    return [row[0] for row in database.call("SELECT loomq_admit(%(pipeline)s)", {"pipeline": pipeline})]


def pause(database: Database, goal_id: UUID) -> bool:
    """Start nothing more of a goal and of its parts; False if it has ended."""
    return bool(database.call("SELECT loomq_pause(%(goal)s)", {"goal": goal_id})[0][0])


def resume(database: Database, goal_id: UUID) -> bool:
    """Let a paused goal go on; False if it was not paused, or has ended."""
    return bool(database.call("SELECT loomq_resume(%(goal)s)", {"goal": goal_id})[0][0])


def end_overdue(database: Database, limit: int = 100) -> list[UUID]:
    """Fail up to ``limit`` open goals whose deadline has passed."""
    error = {"type": "PipelineTimeoutError", "message": "the goal's deadline passed", "retryable": False}
    rows = database.call(
        "WITH late AS MATERIALIZED ("
        "SELECT id FROM goals WHERE state = 'open' AND deadline < now() ORDER BY deadline LIMIT %(limit)s)"
        " SELECT id FROM late WHERE loomq_end_goal(id, 'failed', %(error)s)",
        {"error": json.dumps(error), "limit": limit},
    )
    return [row[0] for row in rows]


def mark_followed(database: Database, goal_id: UUID) -> None:
    """Say that what Celery attached to a raw call has been sent; not of one that somebody has replayed meanwhile."""
    database.call(
        "UPDATE goals SET follows = false WHERE id = %(goal)s AND follows AND state <> 'open'", {"goal": goal_id}
    )


def unfollowed(database: Database, older_s: float) -> list[UUID]:
    """List ended raw calls whose continuation is not known to have been sent."""
    rows = database.call(
        "SELECT id FROM goals WHERE follows AND state <> 'open'"
        " AND ended_at < now() - make_interval(secs => %(older)s) ORDER BY ended_at LIMIT 100",
        {"older": older_s},
    )
    return [row[0] for row in rows]


def state_of(database: Database, goal_id: UUID) -> str | None:
    """Read a goal's state alone, for whoever asks often."""
    rows = database.call("SELECT state FROM goals WHERE id = %(goal)s", {"goal": goal_id})
    return str(rows[0][0]) if rows else None


def await_end(database: Database, goal_id: UUID, within_s: float) -> tuple[str | None, bool]:
    """Ask to be notified of a goal's end, on ``loomq_ended``.

    Args:
        within_s: For how long.

    Returns:
        Its state, ``None`` if there is no such goal; and, of an open one, whether its end will be notified: not while
        somebody holds it, as whoever ends it does.
    """
    rows = database.call("SELECT * FROM loomq_await(%(goal)s, %(within)s)", {"goal": goal_id, "within": within_s})
    state, is_asked = rows[0]
    return state, bool(is_asked)


def get(database: Database, goal_id: UUID) -> Row[Any] | None:
    """Read one goal's row."""
    with database.reading() as connection:
        return connection.execute(select(goals).where(goals.c.id == goal_id)).one_or_none()


def find_by_key(database: Database, key: str) -> UUID | None:
    """Find the goal of an idempotency key."""
    with database.reading() as connection:
        found: UUID | None = connection.scalar(select(idempotency_keys.c.goal_id).where(idempotency_keys.c.key == key))
        return found


def count_open(database: Database) -> int:
    """Count the goals that have not ended; read from their own small index."""
    with database.reading() as connection:
        return connection.scalar(select(func.count()).where(goals.c.state == "open")) or 0


def find_by_prefix(database: Database, prefix: str) -> list[UUID]:
    """Find up to ten goals whose id begins so, newest first."""
    with database.reading() as connection:
        query = select(goals.c.id).where(func.cast(goals.c.id, literal("").type).like(prefix + "%"))
        return list(connection.scalars(query.order_by(goals.c.id.desc()).limit(10)))


def states(database: Database, goal_id: UUID) -> tuple[str, set[str]] | None:
    """Read a goal's state and the states of its stages, in one query; ``None`` if there is no such goal."""
    query = (
        select(goals.c.state, func.array_agg(func.distinct(stages.c.state)))
        .join_from(goals, stages, (stages.c.goal_id == goals.c.id) & (stages.c.item == -1))
        .where(goals.c.id == goal_id)
        .group_by(goals.c.state)
    )
    with database.reading() as connection:
        found = connection.execute(query).one_or_none()
    return (found[0], set(found[1])) if found else None


def stages_of(
    database: Database, goal_id: UUID, *, outputs: bool = True, items: Collection[str] | None = None
) -> list[Row[Any]]:
    """Read a goal's stages in the order in which they became ready; items of a fan-out are not among them.

    Args:
        outputs: False leaves their outputs in the database.
        items: Of which stages that fanned out their items' outputs are read; ``None`` is all of them.
    """
    columns: list[ColumnElement[Any]] = [column for column in stages.c if column.name != "output"]
    if outputs:
        whole = func.loomq_items(stages.c.goal_id, stages.c.name, type_=JSONB)
        unread = None if items is None else stages.c.name.not_in(items)
        cases = [(stages.c.fan_out.is_(None), stages.c.output), *([] if unread is None else [(unread, null())])]
        columns.append(case(*cases, else_=whole).label("output"))
    query = select(*columns).where(stages.c.goal_id == goal_id, stages.c.item == -1)
    with database.reading() as connection:
        return list(connection.execute(query.order_by(stages.c.ready_at.asc().nulls_last(), stages.c.name)))


def items_of(
    database: Database, goal_id: UUID, name: str, *, limit: int = 20, states: Sequence[str] = ()
) -> list[Row[Any]]:
    """Read the first items of a stage that fanned out, maybe only those in some states."""
    query = select(stages).where(stages.c.goal_id == goal_id, stages.c.name == name, stages.c.item >= 0)
    if states:
        query = query.where(stages.c.state.in_(states))
    with database.reading() as connection:
        return list(connection.execute(query.order_by(stages.c.item).limit(limit)))


def listed(
    database: Database, *, limit: int = 20, state: str | None = None, pipeline: str | None = None
) -> list[Row[Any]]:
    """List goals, newest first, with how many of their stages there are, are done, and are running."""
    newest = select(goals).where(goals.c.kind != "round")  # part of an orchestrator's, and shown there
    if state:
        newest = newest.where(goals.c.state == state)
    if pipeline:
        newest = newest.where(goals.c.pipeline == pipeline)
    chosen = newest.order_by(goals.c.id.desc()).limit(limit).subquery()
    counts = (
        select(
            func.count().label("stages_total"),
            func.count().filter(stages.c.state.in_(("done", "skipped"))).label("stages_done"),
            func.count().filter(stages.c.state == "claimed").label("stages_running"),
        )
        .where(stages.c.goal_id == chosen.c.id, stages.c.item == -1)
        .lateral()
    )
    query = select(chosen, counts).join_from(chosen, counts, literal(value=True)).order_by(chosen.c.id.desc())
    with database.reading() as connection:
        return list(connection.execute(query))
