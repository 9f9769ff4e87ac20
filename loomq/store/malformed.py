"""Malformed messages: what no task could be made of, kept with its bytes until somebody has looked at it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import DataError

from loomq.ids import uuid7

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from loomq.store.engine import Database

_EXCERPT_BYTES = 256
_PATIENCE_S = 2.0  # a server that does not answer must not hold a worker's event loop
_COLUMNS = "id, queue, reason, {body}, properties, node, seen_at, dropped_at"

# Written twice, a message is kept once. Whoever waits for the result of such a call is told at once, as Celery would.
_PUT = """
WITH given AS (
    SELECT * FROM unnest(%(ids)s::uuid[], %(queues)s::text[], %(reasons)s::text[], %(bodies)s::bytea[],
                         %(properties)s::text[], %(nodes)s::uuid[], %(ages)s::float8[], %(tasks)s::text[],
                         %(failures)s::text[])
        AS g (id, queue, reason, body, properties, node, age, task, failure)
), kept AS (
    INSERT INTO malformed (id, queue, reason, body, properties, node, seen_at)
    SELECT id, queue, reason, body, properties::jsonb, node, clock_timestamp() - make_interval(secs => age) FROM given
    ON CONFLICT (id) DO NOTHING
), told AS (
    INSERT INTO task_results (task_id, state, body)
    SELECT DISTINCT ON (task) task, 'FAILURE', failure::jsonb FROM given WHERE task IS NOT NULL
    ON CONFLICT (task_id) DO NOTHING RETURNING task_id
)
SELECT pg_notify('loomq_ended', '- ' || task_id) FROM told
"""

_DROP = """
WITH dropped AS (
    UPDATE malformed SET dropped_at = clock_timestamp() WHERE id = %(id)s AND dropped_at IS NULL RETURNING id
)
INSERT INTO audit (id, actor, action, message) SELECT %(request)s, %(actor)s, 'drop', id FROM dropped RETURNING id
"""


@dataclass(frozen=True, slots=True)
class NewMalformed:
    """A message to be kept.

    Args:
        body: Its bytes, bounded by whoever gives them.
        properties: What else is known of it; JSON that Postgres can store.
        age_s: How long ago it was seen.
        failure: The Celery task id and the result for whoever waits for it, if the message is a call with an id.
    """

    id: UUID
    queue: str
    reason: str
    body: bytes
    properties: dict[str, Any]
    node: UUID | None = None
    age_s: float = 0.0
    failure: tuple[str, dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Malformed:
    """A kept message.

    Args:
        properties: ``holds`` (what ``body`` is: ``envelope``, the whole item of a Redis list, or ``body``), ``size``
            (its bytes before it was cut) and, where they could be read, the message's own headers and properties.
    """

    id: UUID
    queue: str
    reason: str
    body: bytes
    properties: dict[str, Any]
    node: UUID | None
    seen_at: datetime
    dropped_at: datetime | None


def put(
    database: Database, queue: str, reason: str, body: bytes, properties: dict[str, Any], node: UUID | None
) -> UUID:
    """Keep one message; gives its id."""
    message = NewMalformed(uuid7(), queue, reason, body, properties, node)
    put_all(database, [message])
    return message.id


def put_all(database: Database, messages: Sequence[NewMalformed]) -> None:
    """Keep messages, in one round trip; the same ones may be given again.

    Raises:
        ValueError: Postgres cannot store one of them.
    """
    failures = [message.failure or (None, None) for message in messages]
    values = {
        "ids": [message.id for message in messages],
        "queues": [message.queue for message in messages],
        "reasons": [message.reason for message in messages],
        "bodies": [message.body for message in messages],
        "properties": [json.dumps(message.properties) for message in messages],
        "nodes": [message.node for message in messages],
        "ages": [message.age_s for message in messages],
        "tasks": [task_id for task_id, _ in failures],
        "failures": [result and json.dumps(result) for _, result in failures],
    }
    try:
        database.call(_PUT, values, within_s=_PATIENCE_S)
    except DataError as error:
        raise ValueError(str(error)) from error


def listed(
    database: Database, limit: int, *, queue: str | None = None, before: datetime | None = None, dropped: bool = False
) -> list[Malformed]:
    """List kept messages, newest first; of each body only the first 256 bytes.

    Args:
        queue: Those of this queue only.
        before: Those seen before this only: the ``seen_at`` of the last one of the page before.
        dropped: Whether those that somebody has dropped are listed too.
    """
    columns = _COLUMNS.format(body=f"substring(body FROM 1 FOR {_EXCERPT_BYTES})")
    rows = database.call(
        f"SELECT {columns} FROM malformed"  # noqa: S608
        " WHERE (%(dropped)s OR dropped_at IS NULL) AND (%(queue)s::text IS NULL OR queue = %(queue)s)"
        " AND (%(before)s::timestamptz IS NULL OR seen_at < %(before)s) ORDER BY seen_at DESC, id DESC LIMIT %(limit)s",
        {"dropped": dropped, "queue": queue, "before": before, "limit": limit},
    )
    return [Malformed(*row) for row in rows]


def get(database: Database, message_id: UUID) -> Malformed | None:
    """Read a kept message, whether it was dropped or not."""
    rows = database.call(
        f"SELECT {_COLUMNS.format(body='body')} FROM malformed WHERE id = %(id)s",  # noqa: S608
        {"id": message_id},
    )
    return Malformed(*rows[0]) if rows else None


def find_by_prefix(database: Database, prefix: str) -> list[UUID]:
    """Find up to ten kept messages whose id begins so, newest first."""
    statement = "SELECT id FROM malformed WHERE id::text LIKE %(prefix)s || '%%' ORDER BY id DESC LIMIT 10"
    return [row[0] for row in database.call(statement, {"prefix": prefix})]


def count(database: Database) -> int:
    """Count the messages that nobody has dropped."""
    return int(database.call("SELECT count(*) FROM malformed WHERE dropped_at IS NULL", {})[0][0])


def drop(database: Database, message_id: UUID, *, actor: str, request: UUID) -> bool:
    """Say that somebody has seen to a message; False if it is not there, or was dropped before.

    Args:
        request: The id of the audit row.
    """
    return bool(database.call(_DROP, {"id": message_id, "actor": actor, "request": request}))
