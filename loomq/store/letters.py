"""Dead letters: the stages that failed for good, and what people have done about them.

A dead letter is a state with a history and no second queue: its row is the stage's own, ``failed`` or ``dead`` and not
dropped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Row, Select, Text, cast, func, or_, select
from sqlalchemy import text as sql_text

from loomq.store.stages import StageKey
from loomq.store.tables import audit, goals, stages

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from loomq.store.engine import Database

# The functions know an input only once somebody has edited it.
_REMEMBER = """
UPDATE audit SET detail = detail || %(before)s::jsonb
WHERE id = %(request)s AND detail -> 'payload_before' = 'null'::jsonb
"""

# Spelled out, not bound: only so does the partial index serve.
_IS_LETTER = sql_text("stages.state IN ('failed', 'dead') AND stages.dropped_at IS NULL")
_COLUMNS: tuple[ColumnElement[Any], ...] = (
    *(column for column in stages.c if column.name not in {"output", "payload"}),
    goals.c.pipeline,
    goals.c.kind,
    goals.c.snapshot,
    goals.c.state.label("goal_state"),
    goals.c.task_id,
    goals.c.created_at.label("submitted_at"),
    stages.c.payload.is_not(None).label("is_edited"),
)


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which dead letters are meant; what is ``None`` does not matter.

    Args:
        error_type: The type of the error that ended the stage, such as ``PipelineTimeoutError``.
        state: ``failed``, or ``dead`` for a stage that lost its process too often.
        since, until: When it failed.
        text: A part of the error as it is stored, in any case of letters.
    """

    worker: str | None = None
    pipeline: str | None = None
    goal_id: UUID | None = None
    stage: str | None = None
    error_type: str | None = None
    state: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    text: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """Say the same in SQL."""
        equal = (
            (stages.c.worker, self.worker),
            (goals.c.pipeline, self.pipeline),
            (stages.c.goal_id, self.goal_id),
            (stages.c.name, self.stage),
            (stages.c.error["type"].astext, self.error_type),
            (stages.c.state, self.state),
        )
        found: list[ColumnElement[bool]] = [column == value for column, value in equal if value is not None]
        if self.since is not None:
            found.append(stages.c.ended_at >= self.since)
        if self.until is not None:
            found.append(stages.c.ended_at < self.until)
        if self.text is not None:
            found.append(func.strpos(func.lower(cast(stages.c.error, Text)), self.text.lower()) > 0)
        return found


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a replay, an edit or a drop.

    Args:
        outcome: What was asked for (``replayed edited dropped``), or why it was not done: ``nothing`` (the stage has
            not failed, or works again), ``dropped``, ``blocked`` (another stage of its goal was), ``ended`` (no way
            back to its goal), ``missing``.
        state: What stands in the way: the stage's state, the goal's if that has ended, or the other stage's name.
        replayed: The stages that begin anew.
        reopened: How many others of the goal, which its failure had cancelled, are open again.
        routes: The (worker, tier) routes on which stages became ready.
    """

    outcome: str
    state: str | None = None
    replayed: tuple[StageKey, ...] = ()
    reopened: int = 0
    routes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Deed:
    """One line of the audit trail: who did what, and when."""

    at: datetime
    actor: str
    action: str
    stage: str | None
    item: int | None
    detail: dict[str, Any] = field(default_factory=dict)


def listed(database: Database, wanted: LetterFilter, limit: int) -> list[Row[Any]]:
    """List dead letters, newest first, with what is known of their goals; without inputs and outputs."""
    query = _letters(*_COLUMNS, wanted=wanted).order_by(stages.c.ended_at.desc(), stages.c.goal_id, stages.c.name)
    with database.reading() as connection:
        return list(connection.execute(query.limit(limit)))


def count(database: Database, wanted: LetterFilter) -> tuple[int, int]:
    """Count dead letters, and the goals that they belong to."""
    query = _letters(func.count(), func.count(func.distinct(stages.c.goal_id)), wanted=wanted)
    with database.reading() as connection:
        letters, their_goals = connection.execute(query).one()
    return letters, their_goals


def replayable(database: Database, wanted: LetterFilter, limit: int) -> list[StageKey]:
    """List one dead letter of each goal that can go on, those first that have waited longest.

    Args:
        limit: The most goals.
    """
    place = func.row_number().over(partition_by=stages.c.goal_id, order_by=stages.c.ended_at).label("place")
    letters = (
        _letters(stages.c.goal_id, stages.c.name, stages.c.item, stages.c.ended_at, place, wanted=wanted)
        .where(goals.c.state == "failed", goals.c.leaves_left > 0)
        .where(goals.c.on_failure == "fail", goals.c.parent_goal.is_(None))
        .subquery()
    )
    query = select(letters.c.goal_id, letters.c.name, letters.c.item).where(letters.c.place == 1)
    query = query.order_by(letters.c.ended_at).limit(limit)
    with database.reading() as connection:
        return [StageKey(*row) for row in connection.execute(query)]


def get(database: Database, key: StageKey) -> Row[Any] | None:
    """Read a stage as dead letters are listed, whether it is one or not; with its edited input as ``payload``."""
    query: Select[Any] = (
        select(*_COLUMNS, stages.c.payload)
        .join_from(stages, goals, goals.c.id == stages.c.goal_id)
        .where(stages.c.goal_id == key.goal_id, stages.c.name == key.name, stages.c.item == key.item)
    )
    with database.reading() as connection:
        return connection.execute(query).one_or_none()


def trail(database: Database, *, goal_id: UUID | None = None, message: UUID | None = None) -> list[Deed]:
    """List what was done to a goal's dead letters or to a malformed message, oldest first."""
    query = select(audit.c.at, audit.c.actor, audit.c.action, audit.c.stage, audit.c.item, audit.c.detail)
    about = [
        column == value
        for column, value in ((audit.c.goal_id, goal_id), (audit.c.message, message))
        if value is not None
    ]
    with database.reading() as connection:
        return [Deed(*row) for row in connection.execute(query.where(or_(*about)).order_by(audit.c.at))]


def look(database: Database, key: StageKey) -> Verdict:
    """Say what a replay or a drop would find: ``letter``, or what stands in its way as ``Verdict.outcome`` has it."""
    rows = database.call("SELECT * FROM loomq_hold_letter(%(goal)s, %(name)s, %(item)s)", key.parameters())
    return Verdict(*rows[0])


def known(database: Database, field: str) -> list[str]:
    """List the workers (``worker``) or the types of error (``error_type``) that dead letters have."""
    column = {"worker": stages.c.worker, "error_type": stages.c.error["type"].astext}[field]
    with database.reading() as connection:
        return sorted(filter(None, connection.scalars(select(column).where(_IS_LETTER).distinct())))


def replay(
    database: Database,
    key: StageKey,
    *,
    actor: str,
    request: UUID,
    payload: str | None = None,
    before: Mapping[str, Any] | None = None,
) -> Verdict:
    """Set a dead letter and its goal going again; publishing is the caller's, or later the sweeper's.

    Args:
        request: The id of this request and of its audit row; the same one may ask twice.
        payload: An input as JSON text, in place of the present one.
        before: What the audit row tells of the present one, if nobody has edited it yet.
    """
    rows = _change(
        database,
        "SELECT * FROM loomq_replay(%(goal)s, %(name)s, %(item)s, %(payload)s, %(actor)s, %(request)s)",
        {**key.parameters(), "payload": payload, "actor": actor, "request": request},
        before,
    )
    outcome, state, going = rows[0]
    if outcome != "replayed":
        return Verdict(outcome, state)
    return Verdict(
        outcome,
        state,
        tuple(StageKey(key.goal_id, name, item) for name, item in going["replayed"]),
        going["reopened"],
        tuple((worker, tier) for worker, tier in going["routes"]),
    )


def edit(
    database: Database,
    key: StageKey,
    *,
    actor: str,
    request: UUID,
    payload: str,
    before: Mapping[str, Any] | None = None,
) -> Verdict:
    """Put another input, as JSON text, in place of a dead letter's; ``request`` and ``before`` as for ``replay``."""
    rows = _change(
        database,
        "SELECT * FROM loomq_edit(%(goal)s, %(name)s, %(item)s, %(payload)s, %(actor)s, %(request)s)",
        {**key.parameters(), "payload": payload, "actor": actor, "request": request},
        before,
    )
    return Verdict(*rows[0])


def drop(database: Database, key: StageKey, *, actor: str, request: UUID) -> Verdict:
    """Say that nobody will replay a dead letter; ``request`` as for ``replay``."""
    rows = database.call(
        "SELECT * FROM loomq_drop(%(goal)s, %(name)s, %(item)s, %(actor)s, %(request)s)",
        {**key.parameters(), "actor": actor, "request": request},
    )
    return Verdict(*rows[0])


def _change(
    database: Database, statement: str, parameters: Mapping[str, Any], before: Mapping[str, Any] | None
) -> list[Any]:
    if before is None:
        return database.call(statement, parameters)
    with database.begin() as connection:
        rows = list(connection.exec_driver_sql(statement, dict(parameters)))
        connection.exec_driver_sql(_REMEMBER, {"before": json.dumps(before), "request": parameters["request"]})
    return rows


def _letters(*columns: Any, wanted: LetterFilter) -> Select[Any]:
    joined = select(*columns).join_from(stages, goals, goals.c.id == stages.c.goal_id)
    return joined.where(_IS_LETTER, *wanted.conditions())
