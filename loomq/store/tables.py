"""The tables as SQLAlchemy sees them, for queries that are put together; the migrations are what makes them.

A test compares this picture with a migrated database.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP, TSVECTOR

metadata = MetaData()


def moment(name: str, *, nullable: bool = True) -> Column[object]:
    """Make a column for a moment in time."""
    return Column(name, TIMESTAMP(timezone=True), nullable=nullable)


specs = Table(
    "specs",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("body", JSONB, nullable=False),
    moment("created_at", nullable=False),
)

goals = Table(
    "goals",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("pipeline", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("snapshot", Text, nullable=False),
    Column("instruction", Text, nullable=False),
    Column("context", JSONB, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("leaves_left", Integer, nullable=False),
    Column("idempotency_key", Text),
    Column("request_id", Text),
    Column("session_id", Uuid),
    moment("deadline"),
    Column("budget", JSONB),
    Column("task_id", Text),
    Column("canvas", JSONB),
    Column("follows", Boolean, nullable=False),
    Column("error", JSONB),
    moment("created_at", nullable=False),
    moment("ended_at"),
    Column("on_failure", Text, nullable=False),
    Column("timeout_s", Double),
    Column("max_concurrent", Integer),
    moment("admitted_at"),
    moment("paused_at"),
    Column("parent_goal", Uuid),
    Column("parent_stage", Text),
    Column("parent_item", Integer),
    Column("rerun_of", Uuid),
    Column("is_newer", Boolean, nullable=False),
    moment("watched_until"),
    moment("awaited_until"),
    postgresql_partition_by="RANGE (id)",
)
Index(
    "goals_waiting",
    goals.c.pipeline,
    goals.c.priority.desc(),
    goals.c.id,
    postgresql_where=(goals.c.state == "open") & goals.c.admitted_at.is_(None),
)
Index(
    "goals_limited",
    goals.c.pipeline,
    goals.c.id,
    postgresql_where=(goals.c.state == "open") & goals.c.max_concurrent.is_not(None),
)
Index(
    "goals_admitted",
    goals.c.pipeline,
    postgresql_where=(goals.c.state == "open") & goals.c.max_concurrent.is_not(None) & goals.c.admitted_at.is_not(None),
)
Index("goals_children", goals.c.parent_goal, postgresql_where=goals.c.parent_goal.is_not(None))
Index("goals_reruns", goals.c.rerun_of, postgresql_where=goals.c.rerun_of.is_not(None))
Index("goals_session", goals.c.session_id, goals.c.id, postgresql_where=goals.c.session_id.is_not(None))
Index("goals_open", goals.c.id, postgresql_where=goals.c.state == "open")
Index("goals_follows", goals.c.ended_at, postgresql_where=goals.c.follows)
Index(
    "goals_deadline",
    goals.c.deadline,
    postgresql_where=(goals.c.state == "open") & goals.c.deadline.is_not(None),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("key", Text, primary_key=True),
    Column("goal_id", Uuid, nullable=False),
    moment("created_at", nullable=False),
)

stages = Table(
    "stages",
    metadata,
    Column("goal_id", Uuid, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("item", Integer, primary_key=True, autoincrement=False),
    Column("worker", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("waits_for", Integer, nullable=False),
    Column("children", ARRAY(Text), nullable=False),
    Column("reads", ARRAY(Text), nullable=False),
    Column("timeout_s", Double, nullable=False),
    Column("max_retries", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("deliveries", Integer, nullable=False),
    Column("token", Uuid),
    moment("lease_until"),
    Column("node", Uuid),
    Column("pid", Integer),
    Column("message_id", Text),
    moment("not_before"),
    Column("reason", Text),
    moment("ready_at"),
    moment("published_at"),
    moment("started_at"),
    moment("ended_at"),
    Column("output", JSONB),
    Column("error", JSONB),
    Column("model_used", Text),
    Column("token_usage", JSONB),
    Column("processing_time_ms", Integer),
    Column("history", JSONB, nullable=False),
    Column("payload", JSONB),
    moment("dropped_at"),
    Column("needs", ARRAY(Text), nullable=False),
    Column("fallback", JSONB),
    Column("fan_out", Integer),
    Column("max_parallel", Integer),
    Column("released", Integer),
    Column("tolerant", Boolean, nullable=False),
    Column("element", JSONB),
    Column("bulk", Boolean, nullable=False),
    Column("limit_key", Text),
    Column("limit_max", Integer),
    Column("wants_key", Boolean, nullable=False),
    Column("raised_from", SmallInteger),
    Column("notes", JSONB),
    Column("place", Integer),
    postgresql_partition_by="RANGE (goal_id)",
)
Index(
    "stages_ready",
    stages.c.worker,
    stages.c.tier,
    stages.c.priority.desc(),
    stages.c.goal_id,
    stages.c.ready_at,
    postgresql_where=(stages.c.state == "ready") & stages.c.not_before.is_(None),
)
Index(
    "stages_delayed",
    stages.c.worker,
    stages.c.tier,
    stages.c.not_before,
    postgresql_where=(stages.c.state == "ready") & stages.c.not_before.is_not(None),
)
Index(
    "stages_published",
    stages.c.worker,
    stages.c.tier,
    stages.c.priority,
    stages.c.bulk,
    stages.c.published_at,
    postgresql_where=stages.c.state == "published",
)
Index(
    "stages_oldest",
    text("((worker || '.'::text) || tier)"),
    stages.c.ready_at,
    postgresql_where=(stages.c.state == "ready") & stages.c.not_before.is_(None),
)
Index(
    "stages_running",
    stages.c.tier,
    stages.c.worker,
    postgresql_where=(stages.c.state == "claimed") & stages.c.node.is_not(None),
)
Index(
    "stages_key_held",
    stages.c.limit_key,
    postgresql_where=(stages.c.state == "claimed") & stages.c.limit_key.is_not(None),
)
Index(
    "stages_key_wanted",
    stages.c.limit_key,
    stages.c.priority.desc(),
    stages.c.ready_at,
    postgresql_where=(stages.c.state == "ready") & stages.c.wants_key,
)
Index(
    "stages_ended",
    stages.c.ended_at,
    stages.c.worker,
    stages.c.tier,
    postgresql_where=stages.c.state.in_(("done", "failed", "dead")),
)
Index(
    "stages_in_window",
    stages.c.goal_id,
    postgresql_where=(stages.c.state == "waiting") & (stages.c.waits_for == 0) & stages.c.place.is_not(None),
)
Index("stages_claimed", stages.c.node, stages.c.lease_until, postgresql_where=stages.c.state == "claimed")
Index(
    "stages_dead",
    stages.c.ended_at,
    postgresql_where=stages.c.state.in_(("failed", "dead")) & stages.c.dropped_at.is_(None),
)

nodes = Table(
    "nodes",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("hostname", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("pool", Text, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("queues", ARRAY(Text), nullable=False),
    Column("version", Text, nullable=False),
    moment("started_at", nullable=False),
    moment("seen_at", nullable=False),
)

turns = Table(
    "turns",
    metadata,
    Column("worker", Text, primary_key=True),
    Column("tier", Text, primary_key=True),
    Column("goal_id", Uuid, primary_key=True),
    moment("at", nullable=False),
)

Index("turns_last", turns.c.worker, turns.c.tier, turns.c.at.desc())

limit_overrides = Table(
    "limit_overrides",
    metadata,
    Column("name", Text, primary_key=True),
    Column("rate", Text, nullable=False),
    Column("set_by", Text, nullable=False),
    moment("set_at", nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Uuid, nullable=False),
    moment("until", nullable=False),
    Column("memory", JSONB, nullable=False),
    Column("who", Text),
    moment("since"),
    moment("renewed_at"),
)

chords = Table(
    "chords",
    metadata,
    Column("group_id", Text, primary_key=True),
    Column("size", Integer),
    Column("body", JSONB),
    moment("created_at", nullable=False),
    moment("dispatched_at"),
)
Index("chords_open", chords.c.created_at, postgresql_where=chords.c.dispatched_at.is_(None))

chord_parts = Table(
    "chord_parts",
    metadata,
    Column("group_id", Text, primary_key=True),
    Column("task_id", Text, primary_key=True),
    Column("position", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("result", JSONB),
)

task_results = Table(
    "task_results",
    metadata,
    Column("task_id", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("body", JSONB, nullable=False),
    moment("created_at", nullable=False),
)

malformed = Table(
    "malformed",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("queue", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("properties", JSONB, nullable=False),
    Column("node", Uuid),
    moment("seen_at", nullable=False),
    moment("dropped_at"),
)
Index("malformed_seen", malformed.c.seen_at, postgresql_where=malformed.c.dropped_at.is_(None))

audit = Table(
    "audit",
    metadata,
    Column("id", Uuid, primary_key=True),
    moment("at", nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("goal_id", Uuid),
    Column("stage", Text),
    Column("item", Integer),
    Column("message", Uuid),
    Column("detail", JSONB, nullable=False),
)
Index("audit_goal", audit.c.goal_id, postgresql_where=audit.c.goal_id.is_not(None))

events = Table(
    "events",
    metadata,
    Column("goal_id", Uuid, primary_key=True),
    Column("xid", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    moment("at", nullable=False),
    Column("kind", Text, nullable=False),
    Column("stage", Text),
    Column("item", Integer),
    Column("detail", JSONB),
    postgresql_partition_by="RANGE (goal_id)",
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("title", Text, nullable=False),
    moment("created_at", nullable=False),
    moment("updated_at", nullable=False),
)
Index("sessions_updated", sessions.c.updated_at.desc())

session_messages = Table(
    "session_messages",
    metadata,
    Column("session_id", Uuid, ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    Column("seq", BigInteger, Identity(always=True), primary_key=True),
    Column("role", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("goal_id", Uuid),
    moment("at", nullable=False),
    Column("words", TSVECTOR, nullable=False),
)
Index(
    "session_messages_goal",
    session_messages.c.goal_id,
    session_messages.c.role,
    unique=True,
    postgresql_where=session_messages.c.goal_id.is_not(None),
)
Index("session_messages_words", session_messages.c.words, postgresql_using="gin")
