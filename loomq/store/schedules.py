"""Schedules: up to when each is served, and its runs, of which each due time has one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from loomq.store.engine import Database

_LOOK_BACK = 100  # runs of a schedule among which those that still go on are looked for
_OTHERS_S = 10.0  # after which a run that a command began is taken to be abandoned
_RUN = "r.key, r.due_at, r.cause, r.state, r.reason, r.dispatch, r.items, r.goals, r.decided_at, r.ended_at"
_OUTCOMES = (
    "(SELECT jsonb_object_agg(c.state, c.n) FROM (SELECT g.state, count(*) AS n"
    " FROM goals g WHERE g.id = ANY (r.goals) GROUP BY g.state) AS c)"
)
_RECENT = f"(SELECT * FROM schedule_runs WHERE key = %(key)s ORDER BY due_at DESC LIMIT {_LOOK_BACK})"  # noqa: S608


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule that beat has seen.

    Args:
        key: ``<file>.<entry>``.
        timing: What says when it is due; with another one it begins anew.
        anchor: Where its intervals begin.
        handled_until: Due times up to this one have a run, or were passed over.
        is_live: False if it is disabled, or no longer in the files.
    """

    key: str
    timing: str
    anchor: datetime
    handled_until: datetime
    is_live: bool
    paused_at: datetime | None
    paused_by: str | None


@dataclass(frozen=True, slots=True)
class Run:
    """What became of one due time.

    Args:
        cause: ``due``, ``trigger`` or ``backfill``.
        state: ``queued`` behind a run that still goes on, ``firing``, ``fired``, ``skipped`` or ``failed``.
        reason: Why it was skipped, failed, or stands for others.
        dispatch: What is handed in.
        items: What ``expand_from`` gave, one dispatch each; ``None`` until it was asked.
        goals: As many as were handed in so far; ``None`` for one that was refused.
    """

    key: str
    due_at: datetime
    cause: str
    state: str
    reason: str | None
    dispatch: dict[str, Any]
    items: list[dict[str, Any]] | None
    goals: tuple[UUID | None, ...]
    decided_at: datetime
    ended_at: datetime | None


def seen(database: Database) -> tuple[datetime, dict[str, Schedule]]:
    """Give the server's time, and all schedules by key."""
    rows = database.call(
        "SELECT clock_timestamp(), s.key, s.timing, s.anchor, s.handled_until, s.is_live, s.paused_at, s.paused_by"
        " FROM (SELECT 1) AS one LEFT JOIN schedules s ON true",
        {},
    )
    return rows[0][0], {row[1]: Schedule(*row[1:]) for row in rows if row[1] is not None}


def begin(database: Database, key: str, timing: str, anchor: datetime, handled_until: datetime) -> None:
    """Serve a schedule from now on: one that is new, came back, or is due at other times than before."""
    database.call(
        "INSERT INTO schedules (key, timing, anchor, handled_until)"
        " VALUES (%(key)s, %(timing)s, %(anchor)s, %(until)s)"
        " ON CONFLICT (key) DO UPDATE SET timing = excluded.timing, anchor = excluded.anchor,"
        " handled_until = excluded.handled_until, is_live = true",
        {"key": key, "timing": timing, "anchor": anchor, "until": handled_until},
    )


def withdraw(database: Database, keys: Sequence[str], reason: str) -> None:
    """Serve some schedules no longer: what waits in their queues is skipped."""
    database.call(
        "WITH gone AS (UPDATE schedules SET is_live = false WHERE key = ANY (%(keys)s) RETURNING key)"
        " UPDATE schedule_runs r SET state = 'skipped', reason = %(reason)s, ended_at = clock_timestamp()"
        " FROM gone WHERE r.key = gone.key AND r.state = 'queued'",
        {"keys": list(keys), "reason": reason},
    )


def pause(database: Database, key: str, who: str) -> bool:
    """Let a schedule fire no more until it is resumed; False if it is paused already, or was never seen."""
    rows = database.call(
        "UPDATE schedules SET paused_at = clock_timestamp(), paused_by = %(who)s"
        " WHERE key = %(key)s AND paused_at IS NULL RETURNING key",
        {"key": key, "who": who},
    )
    return bool(rows)


def resume(database: Database, key: str) -> bool:
    """Let a paused schedule go on from now; what was due meanwhile is passed over. False if it was not paused."""
    rows = database.call(
        "UPDATE schedules SET paused_at = NULL, paused_by = NULL,"
        " handled_until = greatest(handled_until, clock_timestamp())"
        " WHERE key = %(key)s AND paused_at IS NOT NULL RETURNING key",
        {"key": key},
    )
    return bool(rows)


def pass_over(database: Database, key: str, handled_until: datetime) -> None:
    """Take due times for handled, or, after the server's clock was set back, no longer."""
    database.call(
        "UPDATE schedules SET handled_until = %(until)s WHERE key = %(key)s", {"key": key, "until": handled_until}
    )


def decide(
    database: Database,
    key: str,
    due_at: datetime,
    *,
    state: str,
    dispatch: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]] | None,
    reason: str | None = None,
) -> bool:
    """Write down what becomes of a due time, once: whoever comes later with the same changes nothing.

    Nothing is decided for a schedule that was paused meanwhile, and of a due time that another leader has handled.

    Args:
        state: ``firing``, ``queued`` or ``skipped``.

    Returns:
        Whether it was written now.
    """
    rows = database.call(
        "WITH served AS (SELECT key FROM schedules WHERE key = %(key)s AND paused_at IS NULL AND is_live"
        " AND handled_until < %(due)s FOR UPDATE),"
        " run AS (INSERT INTO schedule_runs (key, due_at, cause, state, reason, dispatch, items, ended_at)"
        " SELECT key, %(due)s, 'due', %(state)s, %(reason)s, %(dispatch)s, %(items)s,"
        " CASE WHEN %(state)s = 'skipped' THEN clock_timestamp() END FROM served"
        " ON CONFLICT DO NOTHING RETURNING key),"
        " moved AS (UPDATE schedules s SET handled_until = %(due)s FROM served WHERE s.key = served.key)"
        " SELECT count(*) FROM run",
        {
            "key": key,
            "due": due_at,
            "state": state,
            "reason": reason,
            "dispatch": json.dumps(dispatch),
            "items": None if items is None else json.dumps(items),
        },
    )
    return bool(rows[0][0])


def order(
    database: Database,
    key: str,
    due_at: datetime,
    *,
    cause: str,
    state: str,
    dispatch: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]] | None,
    reason: str | None = None,
) -> Run | None:
    """Write down a run that a person wants; a due time that was skipped or failed gets another chance.

    Returns:
        The run; ``None`` if that due time has fired, or is about to.
    """
    rows = database.call(
        "INSERT INTO schedule_runs AS r (key, due_at, cause, state, reason, dispatch, items, ended_at)"  # noqa: S608
        " VALUES (%(key)s, %(due)s, %(cause)s, %(state)s, %(reason)s, %(dispatch)s, %(items)s,"
        " CASE WHEN %(state)s = 'skipped' THEN clock_timestamp() END)"
        " ON CONFLICT (key, due_at) DO UPDATE SET cause = excluded.cause, state = excluded.state,"
        " reason = excluded.reason, dispatch = excluded.dispatch, items = excluded.items, goals = '{}',"
        " decided_at = clock_timestamp(), ended_at = excluded.ended_at WHERE r.state IN ('skipped', 'failed')"
        f" RETURNING {_RUN}",
        {
            "key": key,
            "due": due_at,
            "cause": cause,
            "state": state,
            "reason": reason,
            "dispatch": json.dumps(dispatch),
            "items": None if items is None else json.dumps(items),
        },
    )
    return _run(rows[0]) if rows else None


def unfinished(database: Database) -> list[Run]:
    """List the runs that are queued or firing, oldest first; one that a command has just begun is left to it."""
    rows = database.call(
        f"SELECT {_RUN} FROM schedule_runs r WHERE r.state = 'queued' OR r.state = 'firing' AND"  # noqa: S608
        " (r.cause = 'due' OR r.decided_at < clock_timestamp() - make_interval(secs => %(others)s))"
        " ORDER BY r.due_at LIMIT 1000",
        {"others": _OTHERS_S},
    )
    return [_run(row) for row in rows]


def is_going_on(database: Database, key: str, before: datetime | None = None) -> bool:
    """Say whether a run of a schedule is firing or has goals that have not ended.

    Args:
        before: Only runs of earlier due times count.
    """
    rows = database.call(
        f"SELECT EXISTS (SELECT 1 FROM {_RECENT} AS r"  # noqa: S608
        " WHERE (%(before)s::timestamptz IS NULL OR r.due_at < %(before)s) AND (r.state = 'firing' OR EXISTS"
        " (SELECT 1 FROM unnest(r.goals) AS i (id) JOIN goals g ON g.id = i.id WHERE g.state = 'open')))",
        {"key": key, "before": before},
    )
    return bool(rows[0][0])


def open_goals(database: Database, key: str, before: datetime) -> list[UUID]:
    """List the goals of earlier runs that have not ended."""
    rows = database.call(
        f"SELECT g.id FROM {_RECENT} AS r, unnest(r.goals) AS i (id) JOIN goals g ON g.id = i.id"  # noqa: S608
        " WHERE r.due_at < %(before)s AND g.state = 'open'",
        {"key": key, "before": before},
    )
    return [row[0] for row in rows]


def count_queued(database: Database, key: str) -> int:
    """Count the runs that wait for an earlier one to end."""
    rows = database.call(
        "SELECT count(*) FROM schedule_runs WHERE state IN ('queued', 'firing') AND state = 'queued' AND key = %(key)s",
        {"key": key},
    )
    return int(rows[0][0])


def start_queued(database: Database, run: Run) -> bool:
    """Let a queued run go; False if somebody else did."""
    rows = database.call(
        "UPDATE schedule_runs SET state = 'firing', decided_at = clock_timestamp()"
        " WHERE key = %(key)s AND due_at = %(due)s AND state = 'queued' RETURNING key",
        {"key": run.key, "due": run.due_at},
    )
    return bool(rows)


def set_items(database: Database, run: Run, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Keep what ``expand_from`` gave; if somebody has asked it before, what it gave then counts, and is returned."""
    rows = database.call(
        "WITH kept AS (UPDATE schedule_runs SET items = %(items)s"
        " WHERE key = %(key)s AND due_at = %(due)s AND items IS NULL RETURNING items)"
        " SELECT items FROM kept UNION ALL"
        " SELECT items FROM schedule_runs WHERE key = %(key)s AND due_at = %(due)s LIMIT 1",
        {"key": run.key, "due": run.due_at, "items": json.dumps(items)},
    )
    return list(rows[0][0])


def add_goals(database: Database, run: Run, done: int, goals: Sequence[UUID | None]) -> None:
    """Note which goals were handed in for a run, unless somebody else noted the same.

    Args:
        done: How many were before these.
    """
    database.call(
        "UPDATE schedule_runs SET goals = goals || %(goals)s::uuid[]"
        " WHERE key = %(key)s AND due_at = %(due)s AND cardinality(goals) = %(done)s",
        {"key": run.key, "due": run.due_at, "done": done, "goals": list(goals)},
    )


def finish(database: Database, run: Run, state: str, reason: str | None) -> None:
    """End a run as ``fired`` or ``failed``."""
    database.call(
        "UPDATE schedule_runs SET state = %(state)s, reason = coalesce(%(reason)s, reason),"
        " ended_at = clock_timestamp() WHERE key = %(key)s AND due_at = %(due)s AND state = 'firing'",
        {"key": run.key, "due": run.due_at, "state": state, "reason": reason},
    )


def last_runs(database: Database, keys: Sequence[str], most: int) -> list[tuple[Run, dict[str, int]]]:
    """List the last runs of some schedules, newest first, each with how many of its goals are in which state."""
    rows = database.call(
        f"SELECT {_RUN}, {_OUTCOMES} FROM unnest(%(keys)s::text[]) AS k (key) CROSS JOIN LATERAL"  # noqa: S608
        " (SELECT * FROM schedule_runs w WHERE w.key = k.key ORDER BY w.due_at DESC LIMIT %(most)s) AS r"
        " ORDER BY r.due_at DESC, r.key",
        {"keys": list(keys), "most": most},
    )
    return [(_run(row[:10]), dict(row[10] or {})) for row in rows]


def runs_at(database: Database, key: str, due: Sequence[datetime]) -> list[tuple[Run, dict[str, int]]]:
    """List the runs of some due times, oldest first, as ``last_runs`` does."""
    rows = database.call(
        f"SELECT {_RUN}, {_OUTCOMES} FROM schedule_runs r"  # noqa: S608
        " WHERE r.key = %(key)s AND r.due_at = ANY (%(due)s) ORDER BY r.due_at",
        {"key": key, "due": list(due)},
    )
    return [(_run(row[:10]), dict(row[10] or {})) for row in rows]


def _run(row: Sequence[Any]) -> Run:
    key, due_at, cause, state, reason, dispatch, items, goals, decided_at, ended_at = row
    return Run(key, due_at, cause, state, reason, dispatch, items, tuple(goals), decided_at, ended_at)
