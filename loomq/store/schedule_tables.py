"""The tables of schedules."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Index, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP

from loomq.store.tables import metadata, moment

schedules = Table(
    "schedules",
    metadata,
    Column("key", Text, primary_key=True),
    Column("timing", Text, nullable=False),
    moment("anchor", nullable=False),
    moment("handled_until", nullable=False),
    Column("is_live", Boolean, nullable=False),
    moment("paused_at"),
    Column("paused_by", Text),
    moment("first_seen_at", nullable=False),
)

schedule_runs = Table(
    "schedule_runs",
    metadata,
    Column("id", Uuid, nullable=False, unique=True),
    Column("key", Text, primary_key=True),
    Column("due_at", TIMESTAMP(timezone=True), primary_key=True),
    Column("cause", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("dispatch", JSONB, nullable=False),
    Column("items", JSONB),
    Column("goals", ARRAY(Uuid), nullable=False),
    Column("is_open", Boolean, nullable=False),
    moment("held_until"),
    moment("decided_at", nullable=False),
    moment("ended_at"),
)
_is_open = schedule_runs.c.state.in_(("queued", "firing"))
Index("schedule_runs_open", schedule_runs.c.due_at, postgresql_where=_is_open)
Index("schedule_runs_going_on", schedule_runs.c.key, postgresql_where=schedule_runs.c.is_open)
Index("schedule_runs_ended", schedule_runs.c.decided_at, postgresql_where=~_is_open)
