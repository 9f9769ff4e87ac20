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

_HELD_S = 75.0  # after which a run that a command began is taken to be abandoned: a function has a minute
_LONGEST_REASON = 2_000
_STUCK_S = 90.0
_RUN = "r.key, r.due_at, r.cause, r.state, r.reason, r.dispatch, r.items IS NOT NULL, r.goals, r.decided_at, r.ended_at"
_OUTCOMES = (
    "(SELECT jsonb_object_agg(c.state, c.n) FROM (SELECT g.state, count(*) AS n"
    " FROM goals g WHERE g.id = ANY (r.goals) GROUP BY g.state) AS c)"
)


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
        is_expanded: Whether it is known what is dispatched; ``items_of`` gives it.
        goals: As many as were handed in so far; ``None`` for one that was refused.
    """

    key: str
    due_at: datetime
    cause: str
    state: str
    reason: str | None
    dispatch: dict[str, Any]
    is_expanded: bool
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
        " handled_until = excluded.handled_until, is_live = true"
        " WHERE schedules.timing <> excluded.timing OR NOT schedules.is_live",  # else somebody was faster
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


def set_back(database: Database, key: str, now: datetime) -> None:
    """Go on from now, after the server's clock was set back; an interval that began later begins now."""
    database.call(
        "UPDATE schedules SET handled_until = CASE WHEN anchor > %(now)s THEN %(now)s - interval '1 microsecond'"
        " ELSE %(now)s END, anchor = least(anchor, %(now)s) WHERE key = %(key)s",
        {"key": key, "now": now},
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
        " run AS (INSERT INTO schedule_runs (key, due_at, cause, state, reason, dispatch, items, is_open, ended_at)"
        " SELECT key, %(due)s, 'due', %(state)s, %(reason)s, %(dispatch)s, %(items)s, %(state)s <> 'skipped',"
        " CASE WHEN %(state)s = 'skipped' THEN clock_timestamp() END FROM served"
        " ON CONFLICT DO NOTHING RETURNING key),"
        " moved AS (UPDATE schedules s SET handled_until = %(due)s FROM served WHERE s.key = served.key)"
        " SELECT count(*) FROM run",
        _decision(key, due_at, state, reason, dispatch, items),
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
        "INSERT INTO schedule_runs AS r"  # noqa: S608
        " (key, due_at, cause, state, reason, dispatch, items, is_open, held_until, ended_at)"
        " VALUES (%(key)s, %(due)s, %(cause)s, %(state)s, %(reason)s, %(dispatch)s, %(items)s, %(state)s <> 'skipped',"
        " CASE WHEN %(state)s = 'firing' THEN clock_timestamp() + make_interval(secs => %(held)s) END,"
        " CASE WHEN %(state)s = 'skipped' THEN clock_timestamp() END)"
        " ON CONFLICT (key, due_at) DO UPDATE SET cause = excluded.cause, state = excluded.state,"
        " reason = excluded.reason, dispatch = excluded.dispatch, items = excluded.items, goals = '{}',"
        " is_open = excluded.is_open, held_until = excluded.held_until,"
        " decided_at = clock_timestamp(), ended_at = excluded.ended_at WHERE r.state IN ('skipped', 'failed')"
        f" RETURNING {_RUN}",
        {**_decision(key, due_at, state, reason, dispatch, items), "cause": cause, "held": _HELD_S},
    )
    return _run(rows[0]) if rows else None


def _decision(
    key: str,
    due_at: datetime,
    state: str,
    reason: str | None,
    dispatch: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]] | None,
) -> dict[str, Any]:
    return {
        "key": key,
        "due": due_at,
        "state": state,
        "reason": reason,
        "dispatch": json.dumps(dispatch),
        "items": None if items is None else json.dumps(items),
    }


def unfinished(database: Database) -> list[Run]:
    """List what there is to do: runs that are firing, but for those that a command is at work at, then queued ones.

    Of each schedule that is not paused the oldest queued run is listed.
    """
    rows = database.call(
        f"(SELECT {_RUN} FROM schedule_runs r WHERE r.state = 'firing'"  # noqa: S608
        " AND (r.held_until IS NULL OR r.held_until < clock_timestamp()) ORDER BY r.due_at LIMIT 1000)"
        f" UNION ALL (SELECT DISTINCT ON (r.key) {_RUN} FROM schedule_runs r"
        " WHERE r.state IN ('queued', 'firing') AND r.state = 'queued' AND NOT EXISTS"
        " (SELECT 1 FROM schedules s WHERE s.key = r.key AND s.paused_at IS NOT NULL) ORDER BY r.key, r.due_at)",
        {},
    )
    return [_run(row) for row in rows]


def stuck(database: Database) -> list[tuple[str, datetime]]:
    """List runs that should have been handed in long ago: schedule and due time."""
    rows = database.call(
        "SELECT key, due_at FROM schedule_runs WHERE state IN ('queued', 'firing') AND state = 'firing'"
        " AND decided_at < clock_timestamp() - make_interval(secs => %(stuck)s) ORDER BY due_at LIMIT 10",
        {"stuck": _STUCK_S},
    )
    return [(key, due_at) for key, due_at in rows]


def is_going_on(database: Database, key: str) -> bool:
    """Say whether a run of a schedule is firing or has goals that have not ended."""
    rows = database.call(
        "WITH known AS MATERIALIZED (SELECT r.due_at, r.state = 'firing' OR EXISTS"
        " (SELECT 1 FROM unnest(r.goals) AS i (id) JOIN goals g ON g.id = i.id WHERE g.state = 'open') AS goes_on"
        " FROM schedule_runs r WHERE r.key = %(key)s AND r.is_open AND r.state <> 'queued'),"
        " ended AS (UPDATE schedule_runs r SET is_open = false FROM known k"
        " WHERE r.key = %(key)s AND r.due_at = k.due_at AND NOT k.goes_on)"
        " SELECT EXISTS (SELECT 1 FROM known k WHERE k.goes_on)",
        {"key": key},
    )
    return bool(rows[0][0])


def end_earlier(database: Database, run: Run, reason: str) -> list[UUID]:
    """Stop what was decided before a run of the same schedule; gives the goals that have not ended."""
    rows = database.call(
        "WITH before AS MATERIALIZED (SELECT r.due_at, r.state, r.goals FROM schedule_runs r WHERE r.key = %(key)s"
        " AND r.is_open AND r.state <> 'queued' AND (r.decided_at, r.due_at) < (%(decided)s, %(due)s)),"
        " stopped AS (UPDATE schedule_runs r SET state = 'skipped', reason = %(reason)s, ended_at = clock_timestamp()"
        " FROM before b WHERE r.key = %(key)s AND r.due_at = b.due_at AND r.state = 'firing')"
        " SELECT g.id FROM before b, unnest(b.goals) AS i (id) JOIN goals g ON g.id = i.id WHERE g.state = 'open'",
        {"key": run.key, "due": run.due_at, "decided": run.decided_at, "reason": reason},
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
        "UPDATE schedule_runs SET state = 'firing', decided_at = clock_timestamp(), held_until = NULL"
        " WHERE key = %(key)s AND due_at = %(due)s AND state = 'queued' RETURNING key",
        {"key": run.key, "due": run.due_at},
    )
    return bool(rows)


def items_of(database: Database, run: Run) -> list[dict[str, Any]]:
    """Read what a run dispatches."""
    rows = database.call(
        "SELECT items FROM schedule_runs WHERE key = %(key)s AND due_at = %(due)s", {"key": run.key, "due": run.due_at}
    )
    return list(rows[0][0])


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


def add_goals(database: Database, run: Run, done: int, goals: Sequence[UUID | None]) -> bool:
    """Note which goals were handed in for a run, unless somebody else noted the same.

    Args:
        done: How many were before these.

    Returns:
        Whether the run is still firing.
    """
    rows = database.call(
        "WITH noted AS (UPDATE schedule_runs SET goals = goals || %(goals)s::uuid[]"
        " WHERE key = %(key)s AND due_at = %(due)s AND state = 'firing' AND cardinality(goals) = %(done)s)"
        " SELECT state = 'firing' FROM schedule_runs WHERE key = %(key)s AND due_at = %(due)s",
        {"key": run.key, "due": run.due_at, "done": done, "goals": list(goals)},
    )
    return bool(rows and rows[0][0])


def finish(database: Database, run: Run, state: str, reason: str | None, *, unless_expanded: bool = False) -> None:
    """End a run as ``fired`` or ``failed``.

    Args:
        reason: What Postgres cannot keep of it is replaced, and what is too long cut.
        unless_expanded: Not if somebody else has found out meanwhile what is dispatched.
    """
    database.call(
        "UPDATE schedule_runs SET state = %(state)s, reason = coalesce(%(reason)s, reason),"
        " ended_at = clock_timestamp() WHERE key = %(key)s AND due_at = %(due)s AND state = 'firing'"
        " AND (items IS NULL OR NOT %(unless)s)",
        {"key": run.key, "due": run.due_at, "state": state, "reason": storable(reason), "unless": unless_expanded},
    )


def storable(text: str | None) -> str | None:
    """Write a text as Postgres can keep it, and not too long."""
    if text is None:
        return None
    plain = text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    return plain if len(plain) <= _LONGEST_REASON else f"{plain[:_LONGEST_REASON]} …"


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
    found = list(row)
    found[7] = tuple(found[7])
    return Run(*found)
