"""Sessions: goals that belong together, and what was said in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, literal, select

from loomq.store.tables import sessions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from loomq.store.engine import Database


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session with its usage.

    Args:
        goals: How many goals it has by state.
        prompt_tokens, completion_tokens: Of its goals, and of those that these contain.
    """

    id: UUID
    title: str
    created_at: datetime
    updated_at: datetime
    messages: int
    goals: dict[str, int]
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class MessageRow:
    """One message, with how its goal is, if there is one still."""

    seq: int
    role: str
    content: str
    at: datetime
    goal_id: UUID | None
    pipeline: str | None
    state: str | None
    error: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class HitRow:
    """A message that a search found; one of ``seq`` ``None`` is the session's title."""

    session_id: UUID
    title: str
    seq: int | None
    role: str | None
    content: str
    at: datetime
    goal_id: UUID | None


_CHOSEN = """
SELECT x.id, x.title, x.created_at, x.updated_at,
    (SELECT count(*) FROM session_messages m WHERE m.session_id = x.id),
    (SELECT coalesce(jsonb_object_agg(c.state, c.number), '{}') FROM (
        SELECT g.state, count(*) AS number FROM goals g WHERE g.session_id = x.id GROUP BY g.state) AS c),
    t.prompt, t.completion
FROM (SELECT * FROM sessions WHERE %(id)s::uuid IS NULL OR id = %(id)s::uuid
      ORDER BY updated_at DESC, id DESC LIMIT %(limit)s) AS x
CROSS JOIN LATERAL (
    WITH RECURSIVE family (id) AS (
        SELECT g.id FROM goals g WHERE g.session_id = x.id
        UNION SELECT g.id FROM goals g JOIN family f ON g.parent_goal = f.id)
    SELECT coalesce(sum((s.token_usage ->> 'prompt_tokens')::bigint), 0)::bigint AS prompt,
           coalesce(sum((s.token_usage ->> 'completion_tokens')::bigint), 0)::bigint AS completion
    FROM family f JOIN stages s ON s.goal_id = f.id WHERE s.token_usage IS NOT NULL
) AS t
ORDER BY x.updated_at DESC, x.id DESC
"""
_MESSAGES = """
SELECT * FROM (
    SELECT m.seq, m.role, m.content, m.at, m.goal_id, g.pipeline, g.state, g.error
    FROM session_messages m LEFT JOIN goals g ON g.id = m.goal_id
    WHERE m.session_id = %(id)s ORDER BY m.seq DESC LIMIT %(limit)s
) AS last ORDER BY last.seq
"""
# A title that stands in a message as well, as the first instruction does, is no find of its own.
_SEARCH = """
WITH q AS MATERIALIZED (SELECT websearch_to_tsquery('simple', %(text)s) AS words), found AS MATERIALIZED (
    SELECT m.*, ts_rank(m.words, q.words) AS rank FROM session_messages m, q WHERE m.words @@ q.words
    ORDER BY rank DESC, m.at DESC LIMIT %(limit)s
)
SELECT hit.* FROM (
    SELECT f.session_id, x.title, f.seq, f.role, f.content, f.at, f.goal_id, f.rank
    FROM found f JOIN sessions x ON x.id = f.session_id
    UNION ALL
    SELECT x.id, x.title, NULL, NULL, x.title, x.updated_at, NULL, ts_rank(to_tsvector('simple', x.title), q.words)
    FROM sessions x, q WHERE to_tsvector('simple', x.title) @@ q.words
      AND NOT EXISTS (SELECT 1 FROM found f WHERE f.session_id = x.id)
) AS hit ORDER BY hit.rank DESC, hit.at DESC LIMIT %(limit)s
"""
_SNIPPETS = """
SELECT ts_headline('simple', t.content, websearch_to_tsquery('simple', %(text)s),
    'StartSel=**, StopSel=**, MaxFragments=2, MaxWords=20, MinWords=5, FragmentDelimiter=" … "')
FROM unnest(%(contents)s::text[]) WITH ORDINALITY AS t (content, place) ORDER BY t.place
"""


def create(database: Database, session_id: UUID, title: str) -> None:
    """Write a session, once."""
    database.call(
        "INSERT INTO sessions (id, title) VALUES (%(id)s, %(title)s) ON CONFLICT DO NOTHING",
        {"id": session_id, "title": title},
    )


def listed(database: Database, limit: int) -> list[SessionRow]:
    """List sessions, those first in which something was said last."""
    return [SessionRow(*row) for row in database.call(_CHOSEN, {"id": None, "limit": limit})]


def get(database: Database, session_id: UUID) -> SessionRow | None:
    """Read one session."""
    rows = database.call(_CHOSEN, {"id": session_id, "limit": 1})
    return SessionRow(*rows[0]) if rows else None


def messages(database: Database, session_id: UUID, limit: int) -> list[MessageRow]:
    """Read the last messages of a session, in order."""
    return [MessageRow(*row) for row in database.call(_MESSAGES, {"id": session_id, "limit": limit})]


def find_by_prefix(database: Database, prefix: str) -> list[UUID]:
    """Find up to two sessions whose id begins so."""
    query = select(sessions.c.id).where(func.cast(sessions.c.id, literal("").type).like(prefix + "%")).limit(2)
    with database.reading() as connection:
        return list(connection.scalars(query))


def search(database: Database, text: str, limit: int) -> list[HitRow]:
    """Find messages and titles, the best first, by words as people type them into a search engine."""
    return [HitRow(*row[:7]) for row in database.call(_SEARCH, {"text": text, "limit": limit})]


def snippets(database: Database, text: str, contents: Sequence[str]) -> list[str]:
    """Give of each text the part where the words stand, with ``**`` around them."""
    return [row[0] for row in database.call(_SNIPPETS, {"text": text, "contents": list(contents)})]


def rename(database: Database, session_id: UUID, title: str) -> bool:
    """Give a session another title; False if there is no such session."""
    statement = "UPDATE sessions SET title = %(title)s WHERE id = %(id)s RETURNING 1"
    return bool(database.call(statement, {"id": session_id, "title": title}))


def delete(database: Database, session_id: UUID) -> bool:
    """Delete a session with its messages; its goals stay, and belong to none. False if there is no such session."""
    with database.begin() as connection:
        # Goals first, as whoever ends one locks them; what ends later finds no session, and writes nothing.
        parameters = {"id": session_id}
        connection.exec_driver_sql("UPDATE goals SET session_id = NULL WHERE session_id = %(id)s", parameters)
        return bool(connection.exec_driver_sql("DELETE FROM sessions WHERE id = %(id)s", parameters).rowcount)
