"""Take out what nobody needs any more, in short transactions; two may do it at once, and either may die anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from loomq.store.engine import Database

BATCH = 1_000
_SPECS_AT_ONCE = 100  # each is locked against goals that are being written
_AUDIT_KEPT = timedelta(days=365)
_SPECS_KEPT = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Cutoffs:
    """Until when things may go, on the server's clock.

    Args:
        goals: Goals that ended before this.
        letters: Failed goals that have dead letters, if they ended before this; malformed messages too.
        last_letter, last_message: The newest dead letter, and malformed message, that is too many; it goes, and what is
            older.
        audit: Lines of the audit trail about goals that are gone.
        specs: Snapshots that were stored before this.
    """

    goals: datetime
    letters: datetime
    last_letter: datetime | None
    last_message: datetime | None
    audit: datetime
    specs: datetime

    def parameters(self) -> dict[str, Any]:
        """Give them as SQL parameters."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Goals:
    """A batch of goals that went: with how many stages, and how many dead letters among those."""

    goals: int
    stages: int
    letters: int


_CUTOFFS = """
SELECT now() - %(goals)s, now() - %(letters)s,
    (SELECT s.ended_at FROM stages s JOIN goals g ON g.id = s.goal_id
     WHERE s.state IN ('failed', 'dead') AND s.dropped_at IS NULL AND g.state = 'failed'
     ORDER BY s.ended_at DESC OFFSET %(most)s LIMIT 1),
    (SELECT m.seen_at FROM malformed m WHERE m.dropped_at IS NULL ORDER BY m.seen_at DESC OFFSET %(most)s LIMIT 1),
    now() - %(audit)s, now() - %(specs)s
"""
_LETTERS = "FROM stages s WHERE s.goal_id = g.id AND s.state IN ('failed', 'dead') AND s.dropped_at IS NULL"
_GOALS = f"""
    g.state <> 'open' AND NOT g.follows AND CASE
        WHEN g.state = 'failed' AND EXISTS (SELECT 1 {_LETTERS})
        THEN g.ended_at < %(letters)s OR (SELECT max(s.ended_at) {_LETTERS}) <= %(last_letter)s::timestamptz
        ELSE g.ended_at < %(goals)s END
    AND NOT EXISTS (SELECT 1 FROM stages s WHERE s.goal_id = g.id AND s.state = 'claimed')
    AND NOT (g.kind = 'round' AND EXISTS (SELECT 1 FROM goals p WHERE p.id = g.parent_goal))
    AND NOT (g.kind = 'orchestrator' AND EXISTS (SELECT 1 FROM goals p WHERE p.rerun_of = g.id))
"""  # noqa: S608
_GOALS_DELETED = f"""
WITH chosen AS MATERIALIZED (
    SELECT g.id, g.idempotency_key, g.state FROM goals g
    WHERE (%(after)s::uuid IS NULL OR g.id > %(after)s::uuid) AND {_GOALS}
    ORDER BY g.id LIMIT %(limit)s FOR UPDATE OF g SKIP LOCKED
), gone_stages AS (
    DELETE FROM stages s USING chosen c WHERE s.goal_id = c.id
    RETURNING c.state = 'failed' AND s.state IN ('failed', 'dead') AND s.dropped_at IS NULL AS is_letter
), gone_events AS (
    DELETE FROM events e USING chosen c WHERE e.goal_id = c.id
), gone_calls AS (
    DELETE FROM llm_calls l USING chosen c WHERE l.goal_id = c.id
), gone_tool_results AS (
    DELETE FROM tool_results t USING chosen c WHERE t.goal_id = c.id
), gone_updates AS (
    DELETE FROM silo_updates u USING chosen c WHERE u.goal_id = c.id AND u.state <> 'pending'
), gone_checkpoints AS (
    DELETE FROM checkpoints p USING chosen c WHERE p.goal_id = c.id
), gone_keys AS (
    DELETE FROM idempotency_keys k USING chosen c WHERE k.key = c.idempotency_key AND k.goal_id = c.id
), gone AS (
    DELETE FROM goals g USING chosen c WHERE g.id = c.id
), counted AS (
    SELECT (SELECT count(*) FROM chosen) AS goals, count(*) AS stages, count(*) FILTER (WHERE is_letter) AS letters
    FROM gone_stages
), noted AS (
    INSERT INTO audit (id, actor, action, detail)
    SELECT gen_random_uuid(), %(actor)s, 'prune', jsonb_build_object('goals', goals, 'letters', letters)
    FROM counted WHERE letters > 0
)
SELECT goals, stages, letters, (SELECT id FROM chosen ORDER BY id DESC LIMIT 1) FROM counted
"""  # noqa: S608
_GOALS_COUNTED = f"""
SELECT count(*), coalesce(sum(c.stages), 0)::bigint, coalesce(sum(c.letters), 0)::bigint
FROM goals g CROSS JOIN LATERAL (
    SELECT count(*) AS stages, count(*) FILTER (
        WHERE g.state = 'failed' AND s.state IN ('failed', 'dead') AND s.dropped_at IS NULL) AS letters
    FROM stages s WHERE s.goal_id = g.id
) AS c WHERE {_GOALS}
"""  # noqa: S608

# A chord is needed for as long as a part of it may still come, or be replayed.
_CHORDS = """
    CASE WHEN t.dispatched_at IS NULL THEN t.created_at < %(letters)s ELSE t.dispatched_at < %(goals)s END
    AND NOT EXISTS (SELECT 1 FROM goals g WHERE g.state <> 'done' AND g.canvas ->> 'group_id' = t.group_id)
"""
_MESSAGES = """
    t.seen_at < CASE WHEN t.dropped_at IS NULL THEN %(letters)s ELSE %(goals)s END
    OR t.dropped_at IS NULL AND t.seen_at <= %(last_message)s::timestamptz
"""
_AUDIT = """
    t.at < %(audit)s AND (t.goal_id IS NULL OR NOT EXISTS (SELECT 1 FROM goals g WHERE g.id = t.goal_id))
"""
# A run outlives its goals, and the last one of a schedule stays.
_RUNS = """
    t.state NOT IN ('queued', 'firing') AND t.decided_at < %(goals)s
    AND NOT EXISTS (SELECT 1 FROM goals g WHERE g.id = ANY (t.goals))
    AND EXISTS (SELECT 1 FROM schedule_runs l WHERE l.key = t.key AND l.due_at > t.due_at)
"""
_SPECS = "t.created_at < %(specs)s AND NOT EXISTS (SELECT 1 FROM goals g WHERE g.snapshot = t.hash)"

# What else goes: its table, the column that orders it, that column's type, and which rows.
PLAIN = {
    "results": ("task_results", "task_id", "text", "t.created_at < %(goals)s"),
    "malformed": ("malformed", "id", "uuid", _MESSAGES),
    "audit": ("audit", "id", "uuid", _AUDIT),
    "chords": ("chords", "group_id", "text", _CHORDS),
    "runs": ("schedule_runs", "id", "uuid", _RUNS),
    "answers": ("llm_cache", "key", "text", "t.expires_at < clock_timestamp()"),
}


def cutoffs(database: Database, *, goals: timedelta, letters: timedelta, most_letters: int) -> Cutoffs:
    """Say what may go.

    Args:
        goals, letters: For how long ended goals, and dead letters, are kept.
        most_letters: How many dead letters, and malformed messages, are kept.
    """
    found = database.call(
        _CUTOFFS, {"goals": goals, "letters": letters, "most": most_letters, "audit": _AUDIT_KEPT, "specs": _SPECS_KEPT}
    )
    return Cutoffs(*found[0])


def goals(database: Database, until: Cutoffs, *, actor: str) -> Iterator[Goals]:
    """Delete goals with their stages and keys, a batch a transaction; the audit trail tells of dead letters.

    A goal that somebody is just replaying is left alone, and one that a worker still has a stage of.
    """
    after = None
    while True:
        parameters = {**until.parameters(), "after": after, "limit": BATCH, "actor": actor}
        *found, after = database.call(_GOALS_DELETED, parameters)[0]
        if after is None:
            return
        yield Goals(*found)


def count_goals(database: Database, until: Cutoffs) -> Goals:
    """Count what ``goals`` would delete."""
    return Goals(*database.call(_GOALS_COUNTED, until.parameters())[0])


def rows(database: Database, what: str, until: Cutoffs) -> Iterator[int]:
    """Delete rows of one of ``PLAIN``, a batch a transaction; a chord goes with its parts."""
    table, key, kind, condition = PLAIN[what]
    parts = (
        "DELETE FROM chord_parts p USING chosen c WHERE p.group_id = c.key"
        if what == "chords"
        else "SELECT 1 FROM chosen"
    )
    statement = (
        f"WITH chosen AS MATERIALIZED (SELECT t.{key} AS key FROM {table} t"  # noqa: S608
        f" WHERE (%(after)s::{kind} IS NULL OR t.{key} > %(after)s::{kind}) AND ({condition})"
        f" ORDER BY t.{key} LIMIT %(limit)s FOR UPDATE OF t SKIP LOCKED), parts AS ({parts}),"
        f" gone AS (DELETE FROM {table} t USING chosen c WHERE t.{key} = c.key)"
        " SELECT count(*), (SELECT key FROM chosen ORDER BY key DESC LIMIT 1) FROM chosen"
    )
    after = None
    while True:
        count, after = database.call(statement, {**until.parameters(), "after": after, "limit": BATCH})[0]
        if after is None:
            return
        yield count


def count_rows(database: Database, what: str, until: Cutoffs) -> int:
    """Count what ``rows`` would delete."""
    table, _, _, condition = PLAIN[what]
    return int(database.call(f"SELECT count(*) FROM {table} t WHERE {condition}", until.parameters())[0][0])  # noqa: S608


def specs(database: Database, until: Cutoffs) -> Iterator[int]:
    """Delete snapshots that no goal runs from."""
    found = database.call(f"SELECT t.hash FROM specs t WHERE {_SPECS}", until.parameters())  # noqa: S608
    hashes = [row[0] for row in found]
    for start in range(0, len(hashes), _SPECS_AT_ONCE):
        chosen = {"hashes": hashes[start : start + _SPECS_AT_ONCE]}
        yield int(database.call("SELECT loomq_prune_specs(%(hashes)s)", chosen)[0][0])


def count_specs(database: Database, until: Cutoffs) -> int:
    """Count the snapshots that no goal runs from now; more are free when goals have gone."""
    return int(database.call(f"SELECT count(*) FROM specs t WHERE {_SPECS}", until.parameters())[0][0])  # noqa: S608
