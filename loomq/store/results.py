"""Celery's own results: tasks that are not loomq workers, and the chords of users' canvases."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loomq.store.engine import Database


def put(database: Database, task_id: str, state: str, body: dict[str, Any]) -> None:
    """Store a task's result; a first success is never overwritten."""
    with database.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO task_results AS t (task_id, state, body) VALUES (%(id)s, %(state)s, %(body)s)"
            " ON CONFLICT (task_id) DO UPDATE SET state = excluded.state, body = excluded.body"
            " WHERE t.state <> 'SUCCESS'",
            {"id": task_id, "state": state, "body": json.dumps(body)},
        )
        connection.exec_driver_sql("SELECT pg_notify('loomq_ended', %(payload)s)", {"payload": "- " + task_id})


def get(database: Database, task_id: str) -> dict[str, Any] | None:
    """Read a task's result."""
    rows = database.call("SELECT body FROM task_results WHERE task_id = %(id)s", {"id": task_id})
    return dict(rows[0][0]) if rows else None


def drop(database: Database, task_id: str) -> None:
    """Forget a task's or a group's result."""
    database.call("DELETE FROM task_results WHERE task_id = %(id)s", {"id": task_id})


def open_chord(database: Database, group_id: str, body: dict[str, Any]) -> None:
    """Keep a chord's body, before its header is sent."""
    database.call(
        "INSERT INTO chords (group_id, body) VALUES (%(id)s, %(body)s)"
        " ON CONFLICT (group_id) DO UPDATE SET body = excluded.body",
        {"id": group_id, "body": json.dumps(body)},
    )


def size_chord(database: Database, group_id: str, size: int) -> bool:
    """Say how many parts a chord has; True if they have all come already."""
    with database.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO chords AS c (group_id, size) VALUES (%(id)s, %(size)s)"
            " ON CONFLICT (group_id) DO UPDATE SET size = greatest(c.size, excluded.size)",
            {"id": group_id, "size": size},
        )
        # A statement of its own: the row is locked by now, so it sees every part that did not see the size.
        counted = "SELECT count(*) >= %(size)s FROM chord_parts WHERE group_id = %(id)s"
        return bool(connection.exec_driver_sql(counted, {"id": group_id, "size": size}).scalar())


def add_part(database: Database, group_id: str, task_id: str, position: int, state: str, result: Any) -> bool:
    """Count a part that is not a loomq worker's; True for the one that fills the chord."""
    rows = database.call(
        "SELECT loomq_chord_part(%(group)s, %(task)s, %(position)s, %(state)s, %(result)s)",
        {"group": group_id, "task": task_id, "position": position, "state": state, "result": json.dumps(result)},
    )
    return bool(rows[0][0])


def read_chord(database: Database, group_id: str) -> tuple[int | None, dict[str, Any] | None, bool]:
    """Read how many parts a chord has, its body, and whether that has been sent."""
    rows = database.call(
        "SELECT size, body, dispatched_at IS NOT NULL FROM chords WHERE group_id = %(id)s", {"id": group_id}
    )
    return (rows[0][0], rows[0][1], rows[0][2]) if rows else (None, None, False)


def chord_parts(database: Database, group_id: str) -> list[tuple[str, str, Any]]:
    """Read a chord's parts in the header's order: task id, state, result."""
    rows = database.call(
        "SELECT task_id, state, result FROM chord_parts WHERE group_id = %(id)s ORDER BY position", {"id": group_id}
    )
    return [(task_id, state, result) for task_id, state, result in rows]


def full_chords(database: Database, older_s: float) -> list[tuple[str, dict[str, Any]]]:
    """List the oldest full chords whose body nobody is known to have sent, with the body; at most 200."""
    rows = database.call(
        "SELECT c.group_id, c.body FROM chords c WHERE c.dispatched_at IS NULL AND c.body IS NOT NULL AND c.size <="
        " (SELECT count(*) FROM chord_parts p WHERE p.group_id = c.group_id)"
        " AND c.created_at < now() - make_interval(secs => %(older)s) ORDER BY c.created_at LIMIT 200",
        {"older": older_s},
    )
    return [(group_id, body) for group_id, body in rows]


def mark_dispatched(database: Database, group_id: str) -> None:
    """Say that a chord's body has been sent."""
    database.call("UPDATE chords SET dispatched_at = clock_timestamp() WHERE group_id = %(id)s", {"id": group_id})


def mark_failed(database: Database, group_id: str) -> None:
    """Say that a chord's body has been told of the header's failure; not if somebody has replayed that meanwhile."""
    with database.begin() as connection:
        connection.exec_driver_sql("SELECT 1 FROM chords WHERE group_id = %(id)s FOR UPDATE", {"id": group_id})
        # A statement of its own: it sees what was replayed before the row was locked.
        connection.exec_driver_sql(
            "UPDATE chords SET dispatched_at = clock_timestamp() WHERE group_id = %(id)s"
            " AND EXISTS (SELECT 1 FROM chord_parts WHERE group_id = %(id)s AND state <> 'SUCCESS')",
            {"id": group_id},
        )
